"""The versions that a tuning record was made with, and which of them must be those of this installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from attncc.target import Target


@dataclass(frozen=True)
class Versions:
    """What the code of a kernel depends on beside its decisions."""

    attncc: str
    abi: int
    """The kernels' argument list."""
    generators: str
    """SHA-256 over the sources that generate kernels for the target's kind."""
    tvm: str

    @classmethod
    def current(cls, target: Target) -> Self:
        """Those of this installation, for kernels of `target`."""
        from attncc import __version__
        from attncc.runtime import build

        return cls(__version__, build.ABI, build.code_digest(target.kind), build.version("apache-tvm"))

    def differs(self) -> str | None:
        """What sets these apart from this installation so far that a record made with them is rejected, or None.

        Other sources of the same release are not enough: see `attncc.tuning.choose` for what is asked of such records.
        """
        from attncc import __version__
        from attncc.runtime import build

        for name, theirs, ours in (
            ("attncc", self.attncc, __version__),
            ("the kernels' interface", self.abi, build.ABI),
            ("apache-tvm", self.tvm, build.version("apache-tvm")),
        ):
            if theirs != ours:
                return f"made with {name} {theirs}, and this is {ours}; attncc tune --check measures it anew"
        return None
