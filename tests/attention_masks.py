"""Masks for generated programs: kinds, their and/or/not, and the ways to put them to the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of several."""

Kind = Callable[[Tensor, Tensor, int, Tensor, Tensor, Tensor], Tensor]
KINDS: dict[str, Kind] = {
    "causal": lambda i, j, late, seen, numbers, lengths: j <= i,
    "strictly causal": lambda i, j, late, seen, numbers, lengths: j < i,
    "bottom right": lambda i, j, late, seen, numbers, lengths: j - i <= late,
    "late by one": lambda i, j, late, seen, numbers, lengths: j <= i + late + 1,
    "triangle": lambda i, j, late, seen, numbers, lengths: torch.ones(i.shape[0], j.shape[1]).tril(late) == 1,
    "window": lambda i, j, late, seen, numbers, lengths: (i - j).abs() < 3,
    "dilated": lambda i, j, late, seen, numbers, lengths: (i - j) % 2 == 0,
    "blocks": lambda i, j, late, seen, numbers, lengths: i // 2 == j // 2,
    "prefix": lambda i, j, late, seen, numbers, lengths: (j < 2).expand(i.shape[0], -1),
    "given": lambda i, j, late, seen, numbers, lengths: seen,
    "padding": lambda i, j, late, seen, numbers, lengths: (j < lengths[:, None, None])[:, None],
    "documents": lambda i, j, late, seen, numbers, lengths: _same(numbers[:, :1, None] + i // 3, numbers[:, None]),
}


def _same(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows == columns)[:, None]


HIDINGS = ("fill -inf", "fill -1e9", "fill finfo", "where", "fill in place", "add", "add finfo", "add little", "scaled")


@dataclass(frozen=True)
class Mask:
    """True where a key is seen: one kind, or two joined."""

    first: str
    join: str = ""
    second: str = ""

    def __call__(self, s: int, t: int, seen: Tensor, numbers: Tensor, lengths: Tensor) -> Tensor:
        """[B or 1, 1, S, T] or fewer dimensions, for `seen` [B, 1, S, T], `numbers` [B, T] and `lengths` [B]."""
        i, j = torch.arange(s)[:, None], torch.arange(t)[None]
        first, *rest = (KINDS[kind](i, j, t - s, seen, numbers, lengths) for kind in (self.first, self.second) if kind)
        mask = first
        if self.join == "and":
            mask = first & rest[0]
        elif self.join == "or":
            mask = torch.logical_or(first, rest[0])
        elif self.join == "and not":
            mask = first & ~rest[0]
        elif self.join == "not":
            mask = ~first
        return mask[None, None] if mask.ndim == 2 else mask


def a_mask(pick: Pick) -> Mask:
    """One kind, its opposite, or two joined."""
    first, join = pick(tuple(KINDS)), pick(("", "not", "and", "or", "and not"))
    return Mask(first, join, pick(tuple(KINDS)) if join not in ("", "not") else "")


def hide(how: str, x: Tensor, visible: Tensor) -> Tensor:
    """The scores with what is not visible hidden, in one of `HIDINGS`."""
    if how == "where":
        return torch.where(visible, x, float("-inf"))
    if how == "fill in place":
        return x.clone().masked_fill_(~visible, -1e9)
    if how == "add":
        return x + torch.zeros(()).masked_fill(~visible, float("-inf"))
    if how == "add finfo":
        return x + (~visible) * torch.finfo(torch.float32).min
    if how == "add little":
        return x + (1.0 - visible.to(torch.float32)) * -1e4
    if how == "scaled":
        return x * visible - 1e30 * (~visible)
    fill = {"fill -inf": float("-inf"), "fill -1e9": -1e9, "fill finfo": torch.finfo(torch.float32).min}[how]
    return x.masked_fill(visible.logical_not(), fill)
