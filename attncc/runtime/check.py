"""Operands of one call held against their spec: what does not fit is an error before any kernel runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from attncc import expr as ex
from attncc.runtime.eager import LAYOUTS, torch_dtype
from attncc.runtime.operands import Operands
from attncc.spec import AttentionSpec


def operands(spec: AttentionSpec, given: Operands, layout: str) -> None:
    """Raise ValueError or TypeError, naming argument and shapes, for operands that `spec` does not describe."""
    q, k, v, extras, scalars, integers = given
    if layout not in LAYOUTS:
        raise ValueError(f"attncc::attention: layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    dtypes = (spec.dtype, spec.key_dtype or spec.dtype, spec.value_dtype or spec.dtype)
    for name, tensor, dtype in zip("qkv", (q, k, v), map(torch_dtype, dtypes), strict=True):
        if tensor.ndim != 4:
            raise ValueError(f"attncc::attention: {name} has shape {_shape(tensor)}, not the rank 4 of [B, H, S, D]")
        if tensor.dtype != dtype:
            raise TypeError(f"attncc::attention: {name} is {tensor.dtype}, and the spec says {dtype}")
        if tensor.device != q.device:
            raise ValueError(f"attncc::attention: {name} is on {tensor.device} and q on {q.device}")
    batch, heads = q.shape[:2]
    kv_len = k.shape[2]
    expected = {
        "q": (q, (batch, heads, q.shape[2], spec.query_dim or spec.head_dim)),
        "k": (k, (batch, heads // spec.group, kv_len, spec.head_dim)),
        "v": (v, (batch, heads // spec.group, kv_len, spec.value_dim)),
    }
    if heads % spec.group:
        raise ValueError(f"attncc::attention: {heads} query heads do not divide into groups of {spec.group}")
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"attncc::attention: {name} has shape {_shape(tensor)} where the spec needs {list(shape)} "
                f"(q {_shape(q)}, k {_shape(k)}, v {_shape(v)}, group {spec.group})"
            )
    counts = (
        ("extras", extras, spec.extras),
        ("scalars", scalars, spec.scalars),
        ("integers", integers, spec.integers),
    )
    for name, values, wanted in counts:
        if len(values) != len(wanted):
            raise ValueError(f"attncc::attention: {len(values)} {name} for a spec with {len(wanted)}")
    _extras(spec, q, k, extras)


def _extras(spec: AttentionSpec, q: Tensor, k: Tensor, extras: Sequence[Tensor]) -> None:
    for extra, tensor in zip(spec.extras, extras, strict=True):
        if tensor.ndim != extra.rank or tensor.dtype != torch_dtype(extra.dtype):
            raise TypeError(
                f"attncc::attention: {extra.name} is {tensor.dtype} {_shape(tensor)}, "
                f"and the spec says {extra.dtype} of rank {extra.rank}"
            )
        if tensor.device != q.device:
            raise ValueError(f"attncc::attention: {extra.name} is on {tensor.device} and q on {q.device}")
    shapes = {extra.name: tuple(tensor.shape) for extra, tensor in zip(spec.extras, extras, strict=True)}
    sizes = {"b": q.shape[0], "h": q.shape[1], "i": q.shape[2], "j": k.shape[2], "d": k.shape[3]}
    if spec.bilinear is not None:
        weight = (q.shape[3], k.shape[3])
        if shapes[spec.bilinear] not in (weight, (q.shape[1], *weight)):
            raise ValueError(
                f"attncc::attention: the bilinear form has shape {list(shapes[spec.bilinear])}, not {list(weight)} "
                f"or {[q.shape[1], *weight]}"
            )
    for tree in (spec.element, spec.score_mod, spec.mask, spec.sink, spec.value_scale):
        for node in tree.walk() if tree is not None else ():
            if isinstance(node, ex.Load):
                _load(node, shapes[node.tensor], sizes)


def _load(node: ex.Load, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """The indices whose range is plain to see must stay inside: a kernel would read past the end of the tensor."""
    for dim, at in enumerate(node.index):
        if not shape[dim]:
            raise ValueError(f"attncc::attention: {node} reads {node.tensor}, which has no element: {list(shape)}")
        match at:
            case ex.Index(axis):
                last = sizes[axis] - 1
            case ex.Const(value):
                last = int(value)
            case _:
                continue
        if not last < shape[dim] or (isinstance(at, ex.Const) and last < 0):
            raise ValueError(
                f"attncc::attention: {node} reads up to element {last} of dimension {dim} of {node.tensor}, "
                f"which has shape {list(shape)}"
            )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
