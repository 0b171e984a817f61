"""The versions that a tuning record was made with, and which of them must be those of this installation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Self


@dataclass(frozen=True)
class Versions:
    """What the code of a kernel depends on beside its decisions."""

    attncc: str
    abi: int
    """The kernels' argument list."""
    generators: str
    """SHA-256 over the sources that generate kernels."""
    tvm: str

    @classmethod
    def current(cls) -> Self:
        """Those of this installation."""
        return cls(*_current())

    def differs(self) -> str | None:
        """What sets these apart from this installation so far that a record made with them is rejected, or None.

        Other sources of the same release are not enough: see `attncc.tuning.choose` for what is asked of such records.
        """
        here = Versions.current()
        for name, theirs, ours in (
            ("attncc", self.attncc, here.attncc),
            ("the kernels' interface", self.abi, here.abi),
            ("apache-tvm", self.tvm, here.tvm),
        ):
            if theirs != ours:
                return f"made with {name} {theirs}, and this is {ours}; attncc tune --check measures it anew"
        return None


@cache
def _current() -> tuple[str, int, str, str]:
    from attncc import __version__
    from attncc.runtime import build

    return __version__, build.ABI, build.code_digest(), build.version("apache-tvm")
