"""`attncc.attention`: one fused attention, called like PyTorch's `scaled_dot_product_attention`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from attncc import expr as ex
from attncc import modspec
from attncc.attention_check import Sizes, check
from attncc.runtime import op, stats
from attncc.spec import AttentionSpec, Extra

_FORMS = 1024


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    bilinear: Tensor | None = None,
) -> Tensor:
    """softmax(score_mod(scale · q kᵀ) + mask) v in one kernel, with the semantics of PyTorch's SDPA.

    Shapes: query [..., H, Sq, D], key [..., G, Skv, D], value [..., G, Skv, E] give [..., H, Sq, E]. Leading dimensions
    broadcast; without them the ranks 2 and 3 work as in SDPA. float32, bfloat16, float16 and float64, all three alike.

    Args:
        attn_mask: broadcastable to [..., H, Sq, Skv]: bool (True keeps a key) or floating (added to the scores).
        is_causal: hide keys with kv_idx > q_idx, counted from the top left. Not together with `attn_mask`.
        scale: factor of the scores, by default 1/sqrt(D), D being the size of a row of `key`.
        enable_gqa: let G divide H, each key head serving H/G query heads in a row.
        score_mod: `f(score, b, h, q_idx, kv_idx)`, FlexAttention's signature, applied to the scaled score, before
            `attn_mask` is. Tensors that it captures are read in place and receive gradients. An index past the end of
            one reads its last element. At ranks 2 and 3 b is 0; above 4 it counts all leading dimensions.
        mask_mod: `f(b, h, q_idx, kv_idx) -> bool`, True keeps a key; all masks given must agree to keep it.
        bilinear: W [Dq, D] or [H, Dq, D]: the score is scale · q W kᵀ, and a row of `query` has the size Dq.

    Returns:
        [..., H, Sq, E], laid out in memory like `query`. A row that sees no key is 0. Gradients are recomputed through
        PyTorch's own operators; tensors that are not on the CPU run on those altogether.

    Raises:
        ValueError: shapes, devices or arguments that do not go together. TypeError: dtypes that do not.
        NotImplementedError: a function that calls what kernels cannot express, naming the operator.

    The method is online softmax (Milakov and Gimelshein, arXiv:1805.02867) in blocks, as in FlashAttention (Dao et al.,
    arXiv:2205.14135).
    """
    if torch._C._is_any_autocast_enabled():
        query, key, value = (_autocast(t) for t in (query, key, value))
    form = _form(query, key, value, attn_mask, is_causal, enable_gqa, bilinear)
    if form.sizes.zero_scores:
        bilinear = None
    tensors = [t for t in (bilinear, attn_mask) if t is not None]
    factor = scale if scale is not None else form.scale
    if score_mod is not None or mask_mod is not None:
        run = _untraced if torch.compiler.is_compiling() else _with_functions
        return run(form, query, key, value, tensors, factor, score_mod, mask_mod)
    if form.simple:
        layout = "bshd" if query.stride(1) < query.stride(2) else "bhsd"
        return op.attention(query, key, value, tensors, (factor,), (), form.text, layout)
    return _reshaped(form, query, key, value, tensors, (factor,), (), form.text)


@dataclass(frozen=True)
class _Form:
    """All that follows from the shapes, dtypes and flags of a call."""

    sizes: Sizes
    spec: AttentionSpec
    text: str
    scale: float
    simple: bool
    """Nothing has to be reshaped, expanded or answered without a kernel."""


def _form(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, gqa: bool, bilinear: Tensor | None
) -> _Form:
    """The form of a call, remembered by everything it follows from."""
    if torch.compiler.is_compiling() or not all([isinstance(t, Tensor) for t in (q, k, v)]):
        return _new_form(q, k, v, mask, causal, gqa, bilinear)  # which refuses what is not a tensor
    signature = (
        (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, causal, gqa),
        None if mask is None else (mask.shape, mask.dtype, mask.device),
        None if bilinear is None else (bilinear.shape, bilinear.dtype, bilinear.device),
    )
    found = _forms.get(signature)
    if found is None:
        found = _new_form(q, k, v, mask, causal, gqa, bilinear)
        if len(_forms) >= _FORMS:
            _forms.clear()
        _forms[signature] = found
    return found


def _new_form(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, gqa: bool, bilinear: Tensor | None
) -> _Form:
    sizes = check(q, k, v, mask, causal, gqa, bilinear)
    head_dim = index(sizes.head_dim)  # under Dynamo a symbol: `index` makes it the constant that a kernel needs
    facts = (
        _name(q.dtype),
        1 if sizes.zero_scores else head_dim,
        max(1, index(sizes.value_dim)),
        index(sizes.group),
        None
        if bilinear is None or sizes.zero_scores
        else (bilinear.ndim, index(sizes.query_dim), _name(bilinear.dtype)),
        None if mask is None else (_name(mask.dtype), *sizes.mask_axes),
        causal,
    )
    spec = _constant_spec(*facts)
    scale = 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    return _Form(sizes, spec, spec.json, scale, sizes.simple)


@lru_cache(maxsize=1024)
def _spec(
    dtype: str,
    head_dim: int,
    value_dim: int,
    group: int,
    bilinear: tuple[int, int, str] | None,
    mask: tuple[str, ...] | None,
    causal: bool,
) -> AttentionSpec:
    """The spec of a call without functions; `mask` is its dtype and, a dimension, the axis that indexes it or ""."""
    compute = "float64" if dtype == "float64" else "float32"
    score: ex.Expr = ex.op("mul", ex.Score(compute), ex.Scalar("s0", compute))
    extras: list[Extra] = []
    masks: list[ex.Expr] = [ex.op("le", ex.Index("j"), ex.Index("i"))] if causal else []
    if bilinear is not None:
        extras.append(Extra("t0", bilinear[2], bilinear[0]))
    if mask is not None:
        name = f"t{len(extras)}"
        extras.append(Extra(name, mask[0], len(mask) - 1))
        at = tuple(ex.Index(axis) if axis else ex.Const(0, "int64") for axis in mask[1:])
        load = ex.Load(name, at, mask[0])
        if mask[0] == "bool":
            masks.append(load)
        else:
            bias = load if mask[0] == compute else ex.op("cast", load, dtype=compute)
            score = ex.op("add", score, bias)
    return AttentionSpec(
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        group=group,
        bilinear=None if bilinear is None else "t0",
        query_dim=None if bilinear is None or bilinear[1] == head_dim else bilinear[1],
        score_mod=score,
        mask=modspec.conjunction(masks),
        extras=tuple(extras),
        scalars=("s0",),
    )


def _constant_spec(*facts: Any) -> AttentionSpec:
    """`_spec`, which Dynamo need not trace: it depends on static facts alone."""
    return _spec(*facts)


# What `torch.compiler.assume_constant_result` does; calling that would import all of Dynamo together with attncc.
_constant_spec._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _with_functions(
    form: _Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: list[Tensor],
    scale: float,
    score_mod: Callable[..., Any] | None,
    mask_mod: Callable[..., Any] | None,
) -> Tensor:
    text, captured, scalars, integers = modspec.extend(form.spec, q, score_mod, mask_mod)
    return _reshaped(form, q, k, v, [*tensors, *captured], (scale, *scalars), integers, text)


_untraced = _disable_dynamo(_with_functions)
"""Under Dynamo the functions are traced here, outside of its graph."""


def _reshaped(
    form: _Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    text: str,
) -> Tensor:
    """Call the operator on [B, H, S, D] views of operands of any rank, broadcast where they differ."""
    sizes = form.sizes
    if not sizes.value_dim:
        return q.new_empty((*sizes.batch, sizes.heads, sizes.q_len, 0)[-sizes.rank :])
    if sizes.zero_scores:  # a sum of nothing: so it is for rows of one zero
        q, k = (t.new_zeros(*t.shape[:-1], 1) for t in (q, k))
    q = _rank4(q, sizes.batch, sizes.heads)
    kv_heads = sizes.heads // sizes.group
    k, v = (_rank4(t, sizes.batch, kv_heads) for t in (k, v))
    if len(sizes.batch) > 1 and len(sizes.mask_axes) > 3:
        at = 0 if form.spec.bilinear is None else 1
        tail = extras[at].shape[-3:]
        mask = extras[at].expand(*sizes.batch, *tail).reshape(math.prod(sizes.batch), *tail)
        extras = [*extras[:at], mask, *extras[at + 1 :]]
    layout = "bshd" if q.stride(1) < q.stride(2) else "bhsd"
    out = op.attention(q, k, v, extras, scalars, integers, text, layout)
    if sizes.rank == 4:
        return out
    if sizes.rank > 4:
        return out.reshape(*sizes.batch, *out.shape[1:])
    return out[0] if sizes.rank == 3 else out[0, 0]


def _rank4(tensor: Tensor, batch: tuple[int, ...], heads: int) -> Tensor:
    """[B, heads, S, D] from a tensor of rank 2 or more whose leading dimensions broadcast to `batch` and `heads`."""
    if tensor.ndim == 2:
        tensor = tensor[None]
    present = tensor.shape[-3]
    if present not in (1, heads):  # key and value have different numbers of heads
        stats.copies.add()
        tensor = tensor.repeat_interleave(heads // present, dim=-3)
    tensor = tensor.expand(*batch, heads, *tensor.shape[-2:])
    if len(batch) == 1:
        return tensor
    return tensor.reshape(math.prod(batch), *tensor.shape[-3:]) if batch else tensor[None]


def _autocast(tensor: Tensor) -> Tensor:
    """`tensor` as PyTorch casts the arguments of SDPA in an autocast region of its device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensor
    castable = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(device)) if castable else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_forms: dict[Any, _Form] = {}
