"""Options of the compiler and of the `torch.compile` backend: one closed set, checked when it is given."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

INNERS = ("eager", "inductor")
MODES = {
    "default": "eager",
    "lite": "eager",
    "reduce-overhead": "eager",
    "max-autotune": "inductor",
    "max-autotune-no-cudagraphs": "inductor",
}
"""Modes of `torch.compile` -> the inner compiler that each one asks for."""


@dataclass(frozen=True)
class Options:
    """How a graph is compiled."""

    inner: str = "eager"
    """Who runs what is not attention: "eager" (PyTorch, as written) or "inductor"."""
    strict: bool = False
    """Raise `UnfusedAttention` when a softmax between two contractions is left unfused."""
    verify: bool = True
    """Replay each fused site against the original computation in float64 before it is used."""
    database: str | os.PathLike[str] | None = None
    """A file of tuned records to look into before the user's own. Models share their kernels, so from then on it serves
    all of this process."""

    def __post_init__(self) -> None:
        if self.inner not in INNERS:
            raise ValueError(f"attncc option inner={self.inner!r} is unknown; {_nearest(self.inner, INNERS)}")
        for name in ("strict", "verify"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"attncc option {name}={getattr(self, name)!r} is not a bool")
        if self.database is not None and not isinstance(self.database, str | os.PathLike):
            raise ValueError(f"attncc option database={self.database!r} is not a path")

    @classmethod
    def parse(cls, mode: str | None = None, options: Mapping[str, Any] | None = None) -> Options:
        """Options from the `mode` and `options` of `torch.compile`.

        Raises ValueError for a mode, a name or a value that does not exist, naming the nearest one that does.
        """
        mode = mode or "default"
        if mode not in MODES:
            raise ValueError(f"attncc: unknown mode {mode!r}; {_nearest(mode, MODES)}")
        known = [f.name for f in fields(cls)]
        for name in options or {}:
            if name not in known:
                raise ValueError(f"attncc: unknown option {name!r}; {_nearest(name, known)}")
        return replace(cls(inner=MODES[mode]), **(options or {}))


def disabled() -> bool:
    """True where the environment says `ATTNCC_DISABLE=1`: everything then runs as PyTorch runs it."""
    return os.environ.get("ATTNCC_DISABLE", "0") not in ("", "0")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"
