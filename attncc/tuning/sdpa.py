"""PyTorch's SDPA of a spec, where it has such an attention: what a user would run without attncc."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attncc import expr as ex
from attncc import reference
from attncc.runtime.operands import Operands
from attncc.spec import DOT, AttentionSpec

MOST_ELEMENTS = 1 << 27
"""Of a mask that is written out, as SDPA wants it."""


def sdpa(spec: AttentionSpec, operands: Operands, twins: Operands | None = None) -> Callable[[], Tensor] | None:
    """A call of SDPA that computes the attention of `spec` for these operands; None where there is none.

    What the spec says by expressions is worked out beforehand: a scale as a number, masks and biases as one tensor.
    It is called on `twins` where given: the same on another device.
    """
    plain = spec.element == DOT and spec.bilinear is None and not spec.quantized and spec.sink is None
    if not plain or spec.normalizer != "softmax" or spec.outputs != ("out",) or spec.empty_row != "zero":
        return None
    q, k, v, extras, scalars, integers = operands
    counts = {"B": q.shape[0], "H": q.shape[1], "Sq": q.shape[2], "Skv": k.shape[2]}
    if spec.mask is not None and counts["Sq"] * counts["Skv"] > MOST_ELEMENTS:
        return None
    names = (*(e.name for e in spec.extras), *spec.scalars, *spec.integers)
    where = dict(zip(names, (*extras, *scalars, *integers), strict=True))
    affine = _affine(spec, {**where, **counts, **reference.grid(counts)})
    if affine is None:
        return None
    scale, bias = affine
    keep = None if spec.mask is None else reference.evaluate(spec.mask, {**where, **counts, **reference.grid(counts)})
    options: dict[str, Any] = {"scale": scale, "enable_gqa": spec.group > 1}
    if keep is not None and bias is None and _causal(keep, counts):
        options["is_causal"] = True
    elif keep is not None or bias is not None:
        options["attn_mask"] = _mask(spec, keep, bias, q.dtype)
    q, k, v = (twins or operands)[:3]
    if "attn_mask" in options:
        options["attn_mask"] = options["attn_mask"].to(q.device)
    return lambda: scaled_dot_product_attention(q, k, v, **options)


def _affine(spec: AttentionSpec, where: dict[str, Any]) -> tuple[float, Tensor | None] | None:
    """Scale and bias where score_mod is scale · score + bias; the bias is None where it is 0.

    Read off its values: what is affine at three places, all over the grid, is taken to be (it only sets a time that
    ours is shown beside).
    """
    if _by_place(spec) and where["Sq"] * where["Skv"] > MOST_ELEMENTS:
        return None
    at = [reference.evaluate(spec.score_mod, {**where, "score": torch.tensor(x, dtype=torch.float64)}) for x in _PLACES]
    scale = (at[1] - at[0]) / (_PLACES[1] - _PLACES[0])
    foretold = at[0] + scale * (_PLACES[2] - _PLACES[0])
    if not bool(scale.isfinite().all()) or scale.unique().numel() > 1:
        return None
    if not torch.allclose(foretold, at[2]):
        return None
    bias = at[0]
    return float(scale.flatten()[0]), bias if bool(bias.any()) else None


_PLACES = (0.0, 1.0, -3.0)


def _by_place(spec: AttentionSpec) -> bool:
    """Whether score_mod differs from key to key."""
    return any(isinstance(node, ex.Index) for node in spec.score_mod.walk())


def _causal(keep: Tensor, counts: dict[str, int]) -> bool:
    """Whether the mask is what SDPA calls causal."""
    if keep.numel() != counts["Sq"] * counts["Skv"]:
        return False
    lower = torch.ones(counts["Sq"], counts["Skv"], dtype=torch.bool).tril()
    return bool(torch.equal(keep.view(lower.shape), lower))


def _mask(spec: AttentionSpec, keep: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """One tensor of rank 4 that broadcasts to the scores: bool where nothing is added to them."""
    if bias is None and keep is not None and spec.fill == float("-inf"):
        return keep
    added = torch.zeros(1, 1, 1, 1, dtype=torch.float64) if bias is None else bias
    if keep is not None:
        added = torch.where(keep, added, spec.fill)
    return added.to(dtype)
