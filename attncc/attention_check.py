"""Arguments of `attncc.attention` held against each other, and the sizes that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CODES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
"""What key and value may be beside the dtype of query."""
NORMALIZERS = ("softmax", "softmax_plus_one", "sigmoid", "relu", "none")


class Operands(NamedTuple):
    """The tensors of a call."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    bilinear: Tensor | None = None
    sinks: Tensor | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


class Scale(NamedTuple):
    """How a scale of keys or values is read."""

    dtype: str
    axes: tuple[str, ...]
    """For each dimension (leading ones as one) the axis b, h or j, or "" where it is broadcast."""
    share: int
    """Query heads that have a dimension's element along h in common."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one attention, after broadcasting."""

    rank: int
    """Rank of the result: 2 has no heads, 3 no batch."""
    batch: tuple[int, ...]
    heads: int
    group: int
    q_len: int
    kv_len: int
    query_dim: int
    head_dim: int
    value_dim: int
    mask_axes: tuple[str, ...]
    """For each dimension of the mask (its leading ones as one) the axis b, h, i or j, or "" where it is broadcast."""
    k_scale: Scale | None
    v_scale: Scale | None
    simple: bool
    """The operands are [B, H, S, D] as they are: nothing to expand, to reshape or to answer without a kernel."""

    @property
    def zero_scores(self) -> bool:
        """Whether every score is a sum of nothing."""
        return not (self.head_dim and self.query_dim)


def check(operands: Operands, causal: bool, gqa: bool, normalizer: str) -> Sizes:
    """The sizes of a call. Raises ValueError or TypeError, naming argument and shapes, where it makes no sense."""
    q, k, v, mask, bilinear, sinks, *_ = operands
    given = _kinds(operands)
    if causal and mask is not None:
        raise ValueError("attention: attn_mask and is_causal exclude each other; use mask_mod to combine masks")
    if normalizer not in NORMALIZERS:
        raise ValueError(f"attention: normalizer is {normalizer!r}, not one of {', '.join(NORMALIZERS)}")
    head_dim, kv_len = k.shape[-1], k.shape[-2]
    if bilinear is None and q.shape[-1] != head_dim:
        raise ValueError(f"attention: a row of query has {q.shape[-1]} elements and one of key {head_dim} ({given})")
    if v.shape[-2] != kv_len:
        raise ValueError(f"attention: {kv_len} keys and {v.shape[-2]} values ({given})")
    heads, group = _heads(q, k, v, gqa, given)
    leading = [tuple(t.shape[:-3]) for t in (q, k, v)]
    batch = _broadcast(leading, given)
    rank = max(q.ndim, k.ndim, v.ndim)
    if bilinear is not None:
        _check_bilinear(bilinear, heads, q, head_dim)
    if sinks is not None:
        _check_sinks(sinks, heads, normalizer)
    mask_axes = () if mask is None else _mask_axes(mask, rank, (*batch, heads, q.shape[-2], kv_len), len(batch))
    plain = q.ndim == k.ndim == v.ndim == 4 and leading[0] == leading[1] == leading[2]
    matching = plain and q.shape[1] == heads and k.shape[1] == v.shape[1] and k.shape[1] * group == heads
    return Sizes(
        rank=rank,
        batch=batch,
        heads=heads,
        group=group,
        q_len=q.shape[-2],
        kv_len=kv_len,
        query_dim=q.shape[-1],
        head_dim=head_dim,
        value_dim=v.shape[-1],
        mask_axes=mask_axes,
        k_scale=_scale("k_scale", operands.k_scale, k, heads, batch),
        v_scale=_scale("v_scale", operands.v_scale, v, heads, batch),
        simple=bool(matching and q.shape[-1] and head_dim and v.shape[-1]),
    )


def _kinds(operands: Operands) -> str:
    """Check types, ranks, dtypes and devices; gives the shapes in words, for later messages."""
    q, k, v, mask, bilinear, sinks, k_scale, v_scale = operands
    named = {"query": q, "key": k, "value": v, "attn_mask": mask, "bilinear": bilinear}
    named |= {"sinks": sinks, "k_scale": k_scale, "v_scale": v_scale}
    for name, tensor in named.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"attention: {name} is a {type(tensor).__name__}, not a tensor")
        if tensor is not None and tensor.ndim < 2 and name not in ("sinks", "k_scale", "v_scale"):
            raise ValueError(f"attention: {name} {_shape(tensor)} has {tensor.ndim} dimensions; at least 2 are needed")
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"attention: {name} is on {tensor.device} and query on {q.device}")
    if q.dtype not in DTYPES:
        raise TypeError(f"attention: query is {q.dtype}; supported are {', '.join(map(str, DTYPES))}")
    given = f"query {_shape(q)}, key {_shape(k)}, value {_shape(v)}"
    if not {k.dtype, v.dtype} <= {q.dtype, *CODES}:
        raise TypeError(
            f"attention: query is {q.dtype}, key {k.dtype}, value {v.dtype}; they must agree, "
            f"or key and value be {', '.join(map(str, CODES))} ({given})"
        )
    if bilinear is not None and bilinear.dtype != q.dtype:
        raise TypeError(f"attention: bilinear is {bilinear.dtype} and query {q.dtype}; they must agree")
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, q.dtype):
        raise TypeError(f"attention: attn_mask is {mask.dtype}; use torch.bool, torch.float32 or query's {q.dtype}")
    return given


def _heads(q: Tensor, k: Tensor, v: Tensor, gqa: bool, given: str) -> tuple[int, int]:
    """Query heads, and how many of them share a key head."""
    counts = [t.shape[-3] if t.ndim > 2 else 1 for t in (q, k, v)]
    if gqa:
        heads = counts[0]
        for name, count in zip(("key", "value"), counts[1:], strict=True):
            if count == 0 or heads % count:
                raise ValueError(f"attention: {count} {name} heads do not divide {heads} query heads ({given})")
        return heads, heads // counts[1] if counts[1] == counts[2] else 1
    heads = _broadcast(
        [(count,) for count in counts], given, " heads; enable_gqa shares key heads between query heads"
    )[0]
    return heads, heads if heads and counts[1] == counts[2] == 1 else 1


def _broadcast(shapes: Sequence[tuple[int, ...]], given: str, hint: str = "") -> tuple[int, ...]:
    rank = max(len(shape) for shape in shapes)
    result = []
    for dim in range(-rank, 0):
        sizes = [shape[dim] for shape in shapes if len(shape) >= -dim and shape[dim] != 1]
        if any(size != sizes[0] for size in sizes[1:]):
            raise ValueError(f"attention: sizes {sizes} of query, key and value do not broadcast{hint} ({given})")
        result.append(sizes[0] if sizes else 1)
    return tuple(result)


def _check_bilinear(bilinear: Tensor, heads: int, q: Tensor, head_dim: int) -> None:
    wanted = (q.shape[-1], head_dim)
    shape = tuple(bilinear.shape)
    if shape != wanted and shape != (heads, *wanted):
        raise ValueError(
            f"attention: bilinear {_shape(bilinear)} is neither [query_dim, head_dim] = {list(wanted)} nor "
            f"[heads, query_dim, head_dim] = {[heads, *wanted]}"
        )


def _check_sinks(sinks: Tensor, heads: int, normalizer: str) -> None:
    if normalizer != "softmax":
        raise ValueError(f"attention: sinks are part of a softmax, and normalizer is {normalizer!r}")
    if tuple(sinks.shape) != (heads,):
        raise ValueError(f"attention: sinks {_shape(sinks)} is not [heads] = [{heads}]")
    if sinks.dtype not in DTYPES:
        raise TypeError(f"attention: sinks is {sinks.dtype}; supported are {', '.join(map(str, DTYPES))}")


def _scale(name: str, scale: Tensor | None, rows: Tensor, heads: int, batch: tuple[int, ...]) -> Scale | None:
    """How a scale of the rows of key or value is read."""
    if scale is None:
        return None
    if scale.dtype not in DTYPES:
        raise TypeError(f"attention: {name} is {scale.dtype}; supported are {', '.join(map(str, DTYPES))}")
    own = rows.shape[-3] if rows.ndim > 2 else 1
    wanted = ((), (own,), (*batch, own), (*batch, own, rows.shape[-2]))
    shape = tuple(scale.shape)
    axes = next((axes for axes, of in zip(("", "h", "bh", "bhj"), wanted, strict=True) if _fits(shape, of)), None)
    if axes is None:
        raise ValueError(
            f"attention: {name} {_shape(scale)} is none of {', '.join(str(list(of)) for of in wanted)}: "
            f"a number, or one for each head or row"
        )
    sizes = shape[len(batch) - 1 :] if axes.startswith("b") and batch else shape
    axes = axes if batch else axes.removeprefix("b")
    several = [size != 1 or (axis == "b" and len(batch) > 1) for axis, size in zip(axes, sizes, strict=True)]
    read = tuple(axis if more else "" for axis, more in zip(axes, several, strict=True))
    return Scale(str(scale.dtype).removeprefix("torch."), read, heads // own if own else 1)


def _fits(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether a tensor of `shape` has all dimensions of `of`, or 1 in their place."""
    return len(shape) == len(of) and all(size in (1, full) for size, full in zip(shape, of, strict=True))


def _mask_axes(mask: Tensor, rank: int, scores: tuple[int, ...], batch_dims: int) -> tuple[str, ...]:
    """The axis that each dimension of the mask runs along; leading dimensions beyond one are taken as one."""
    if mask.ndim > rank:
        raise ValueError(
            f"attention: attn_mask {_shape(mask)} has more dimensions than the scores {list(scores[-rank:])}"
        )
    for size, of in zip(reversed(mask.shape), reversed(scores), strict=False):
        if size != 1 and size != of:
            raise ValueError(f"attention: attn_mask {_shape(mask)} does not broadcast to the scores {list(scores)}")
    axes = ["" if size == 1 else axis for size, axis in zip(mask.shape[-3:], "hij"[-mask.ndim :], strict=True)]
    if mask.ndim > 3:
        axes.insert(0, "b" if batch_dims > 1 or mask.shape[0] != 1 else "")
    return tuple(axes)


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
