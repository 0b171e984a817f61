"""Which keys a query of a `Case` sees: as a boolean tensor, and in FlexAttention's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attncc.bench.cases import Case

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def tensors(case: Case) -> dict[str, Tensor]:
    """What tells the masks that are known by tensors, as models have it.

    "position" [q_len]: of a query, in a cache that ends in the queries; "real" bool [batch, kv_len], of lengths
    around the mean; "document" [kv_len]: the number of its document, of random lengths; "ancestor" bool
    [q_len, q_len]: of the drafted tokens, of which each follows one before it.
    """
    found = {}
    if case.filled is not None:
        found["position"] = torch.arange(case.q_len) + (case.filled - case.q_len)
    if case.padded is not None:
        spread = torch.linspace(0.5, 1.5, case.batch) if case.batch > 1 else torch.ones(1)
        lengths = (spread * case.padded * case.kv_len).long().clamp(1, case.kv_len)
        found["real"] = torch.arange(case.kv_len) < lengths[:, None]
    if case.documents is not None:
        cuts = torch.randperm(case.kv_len - 1, generator=torch.Generator().manual_seed(0))[: case.documents - 1]
        found["document"] = torch.zeros(case.kv_len, dtype=torch.int64).index_fill(0, cuts + 1, 1).cumsum(0)
    if case.tree:
        ancestor = torch.eye(case.q_len, dtype=torch.bool)
        for token in range(1, case.q_len):
            ancestor[token] |= ancestor[(token - 1) // 2]
        found["ancestor"] = ancestor
    return found


def visible(case: Case, rows: Tensor) -> Tensor | None:
    """bool [1 or batch, 1, len(rows), kv_len]: which keys the query rows of these numbers see; None where all are."""
    if not case.masked:
        return None
    i, j = rows[:, None], torch.arange(case.kv_len)[None, :]
    keep = (j <= i) if case.causal else torch.ones(len(rows), case.kv_len, dtype=torch.bool)
    if case.prefix is not None:
        keep = keep | (j < case.prefix)
    if case.window is not None:
        keep = keep & ((i - j).abs() < case.window)
    found = tensors(case)
    if "position" in found:
        keep = keep & (j <= found["position"][i])
    if "document" in found:
        keep = keep & (found["document"][j] == found["document"][i])
    if "ancestor" in found:
        past = case.kv_len - case.q_len
        keep = keep.clone()
        keep[:, past:] &= found["ancestor"][rows]
    keep = keep[None, None]
    return keep & found["real"][:, None, None, :] if "real" in found else keep


def mask_mod(case: Case) -> MaskMod | None:
    """The mask of `case` in FlexAttention's form, an expression of the four indices; None where all is visible."""
    by_form, by_data = _by_form(case), _by_data(case)
    if by_form is None or by_data is None:
        return by_form or by_data

    def both(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return by_form(b, h, i, j) & by_data(b, h, i, j)

    return both


def _by_form(case: Case) -> MaskMod | None:
    window, prefix = case.window, case.prefix

    def causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= i

    def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i - j < window) & (j - i < window)

    def both(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i - j < window)

    def prefixed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) | (j < prefix)

    if prefix is not None:
        return prefixed
    if window is None:
        return causal if case.causal else None
    return both if case.causal else near


def _by_data(case: Case) -> MaskMod | None:
    """The one mask that is known by a tensor. Raises ValueError for several."""
    found = tensors(case)
    if len(found) > 1:
        raise ValueError(f"{case.label}: one of filled, padded, documents and tree at a time")
    if "ancestor" in found:
        return _tree(found["ancestor"], case.kv_len - case.q_len)
    makers = {"position": _filled, "real": _padded, "document": _packed}
    return next((makers[name](tensor) for name, tensor in found.items()), None)


def _filled(position: Tensor) -> MaskMod:
    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j <= position[i]

    return mask


def _padded(real: Tensor) -> MaskMod:
    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return real[b, j]

    return mask


def _packed(document: Tensor) -> MaskMod:
    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return document[i] == document[j]

    return mask


def _tree(ancestor: Tensor, past: int) -> MaskMod:
    def mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j < past) | ancestor[i, (j - past).clamp(min=0)]

    return mask
