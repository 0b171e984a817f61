"""Workspaces of kernels, reused between calls: a fresh large block costs a page fault for every 4 KiB of it."""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES = 64 << 20
_SHAPES = 256
"""Bounds on what idle workspaces may hold, and on how many kinds of them there are; beyond, all are dropped."""


class Scratch:
    """Workspaces of one combination of shapes. Calls that overlap in time get workspaces of their own."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> None:
        self._shapes, self._dtype = shapes, dtype
        self._key = (shapes, dtype)
        self._bytes = dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes)

    def take(self) -> list[Tensor]:
        """Workspaces for one call, with whatever contents."""
        global _held
        try:
            found = _idle[self._key].pop()
        except (KeyError, IndexError):
            return [torch.empty(shape, dtype=self._dtype) for shape in self._shapes]
        _held -= self._bytes
        return found

    def give(self, workspaces: list[Tensor]) -> None:
        """Return them after the call."""
        global _held
        if _held + self._bytes > _BYTES or len(_idle) >= _SHAPES:
            _idle.clear()
            _held = 0
        if self._bytes <= _BYTES:
            _idle.setdefault(self._key, []).append(workspaces)
            _held += self._bytes


def forget() -> None:
    """Drop what is idle: the next calls allocate their workspaces anew."""
    global _held
    _idle.clear()
    _held = 0


_idle: dict[tuple[tuple[tuple[int, ...], ...], torch.dtype], list[list[Tensor]]] = {}
# Each dictionary and list step above is atomic under the interpreter lock; `_held` may miss an update of another
# thread, which the next clearing sets right.
_held = 0
