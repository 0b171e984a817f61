"""The form of a call of `attncc.attention`: its spec, and all else that follows from shapes, dtypes and flags alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attncc import expr as ex
from attncc import modspec
from attncc.attention_check import CODES, Operands, Scale, Sizes, check
from attncc.spec import AttentionSpec, Extra

_FORMS = 1024


class Flags(NamedTuple):
    """The arguments of a call that are neither tensors nor functions nor run-time numbers."""

    causal: bool
    gqa: bool
    normalizer: str
    lse: bool
    weights: bool

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of the spec that the results are made of."""
        return ("out", *(("max", "sum") if self.lse else ()), *(("weights",) if self.weights else ()))


@dataclass(frozen=True)
class Form:
    """All that follows from the shapes, dtypes and flags of a call."""

    sizes: Sizes
    spec: AttentionSpec
    text: str
    scale: float
    tails: tuple[int, ...]
    """For each of the spec's extras, how many dimensions come after those of a batch of several; 0 without those."""
    plain: bool
    """Nothing has to be reshaped, expanded or answered without a kernel, and no weights are asked for."""


def form_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bilinear: Tensor | None,
    sinks: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    flags: tuple[bool, bool, str, bool, bool],
) -> Form:
    """The form of a call, remembered by everything it follows from; `flags` as in `Flags`.

    Raises what `attention_check.check` raises. It stands in the path of every call: records are made on a miss only.
    """
    if torch.compiler.is_compiling() or not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        # which refuses what is no tensor
        return _new_form(Operands(q, k, v, mask, bilinear, sinks, k_scale, v_scale), Flags(*flags))
    signature = (
        (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, flags),
        None if mask is None else (mask.shape, mask.dtype, mask.device),
        None if bilinear is None else (bilinear.shape, bilinear.dtype, bilinear.device),
        None if sinks is None else (sinks.shape, sinks.dtype, sinks.device),
        None if k_scale is None else (k_scale.shape, k_scale.dtype, k_scale.device),
        None if v_scale is None else (v_scale.shape, v_scale.dtype, v_scale.device),
    )
    found = _forms.get(signature)
    if found is None:
        found = _new_form(Operands(q, k, v, mask, bilinear, sinks, k_scale, v_scale), Flags(*flags))
        if len(_forms) >= _FORMS:
            _forms.clear()
        _forms[signature] = found
    return found


def _new_form(operands: Operands, flags: Flags) -> Form:
    sizes = check(operands, flags.causal, flags.gqa, flags.normalizer)
    mask, bilinear, sinks = operands.mask, operands.bilinear, operands.sinks
    head_dim = index(sizes.head_dim)  # under Dynamo a symbol: `index` makes it the constant that a kernel needs
    weight = None
    if bilinear is not None and not sizes.zero_scores:
        weight = (bilinear.ndim, index(sizes.query_dim), _name(bilinear.dtype))
    spec = _constant_spec(
        _name(operands.q.dtype),
        1 if sizes.zero_scores else head_dim,
        max(1, index(sizes.value_dim)),
        index(sizes.group),
        weight,
        None if mask is None else (_name(mask.dtype), *sizes.mask_axes),
        flags.causal,
        flags.normalizer,
        None if sinks is None else _name(sinks.dtype),
        flags.outputs,
        tuple(_name(t.dtype) if t.dtype in CODES else None for t in (operands.k, operands.v)),
        None if sizes.k_scale is None else tuple(sizes.k_scale),  # Dynamo hands on no tuple of a class of its own
        None if sizes.v_scale is None else tuple(sizes.v_scale),
    )
    several = len(sizes.batch) > 1
    tails = [0] if weight is not None else []
    tails += [3 if several and len(sizes.mask_axes) > 3 else 0] if mask is not None else []
    tails += [0] if sinks is not None else []
    tails += [len(s.axes) - 1 if several and "b" in s.axes else 0 for s in (sizes.k_scale, sizes.v_scale) if s]
    scale = 1.0 / math.sqrt(head_dim) if head_dim else 1.0
    return Form(sizes, spec, spec.json, scale, tuple(tails), sizes.simple and not flags.weights)


@lru_cache(maxsize=1024)
def _spec(
    dtype: str,
    head_dim: int,
    value_dim: int,
    group: int,
    bilinear: tuple[int, int, str] | None,
    mask: tuple[str, ...] | None,
    causal: bool,
    normalizer: str,
    sinks: str | None,
    outputs: tuple[str, ...],
    kept: tuple[str | None, str | None],
    *row_scales: tuple[Any, ...] | None,
) -> AttentionSpec:
    """The spec of a call without functions; `mask` is its dtype and, a dimension, the axis that indexes it or ""."""
    compute = "float64" if dtype == "float64" else "float32"
    extras: list[Extra] = []
    masks: list[ex.Expr] = [ex.op("le", ex.Index("j"), ex.Index("i"))] if causal else []
    if bilinear is not None:
        extras.append(Extra("t0", bilinear[2], bilinear[0]))
    k_scale, v_scale = (None if scale is None else Scale(*scale) for scale in row_scales)
    count = len(extras) + (mask is not None) + (sinks is not None)
    scales = []
    for number, scale in enumerate(s for s in (k_scale, v_scale) if s is not None):
        scales.append(Extra(f"t{count + number}", scale.dtype, len(scale.axes)))
    factors = iter(scales)
    k_factor, v_factor = (None if s is None else _scale_load(next(factors), s, compute) for s in (k_scale, v_scale))
    score: ex.Expr = ex.Score(compute)
    score = score if k_factor is None else ex.op("mul", score, k_factor)
    score = ex.op("mul", score, ex.Scalar("s0", compute))
    if mask is not None:
        name = f"t{len(extras)}"
        extras.append(Extra(name, mask[0], len(mask) - 1))
        at = tuple(ex.Index(axis) if axis else ex.Const(0, "int64") for axis in mask[1:])
        load = ex.Load(name, at, mask[0])
        if mask[0] == "bool":
            masks.append(load)
        else:
            score = ex.op("add", score, _widened(load, compute))
    sink: ex.Expr | None = ex.Const(0.0, compute) if normalizer == "softmax_plus_one" else None
    if sinks is not None:
        name = f"t{len(extras)}"
        extras.append(Extra(name, sinks, 1))
        sink = _widened(ex.Load(name, (ex.Index("h"),), sinks), compute)
    softmax = normalizer.startswith("softmax")
    return AttentionSpec(
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        group=group,
        bilinear=None if bilinear is None else "t0",
        query_dim=None if bilinear is None or bilinear[1] == head_dim else bilinear[1],
        score_mod=_activated(normalizer, score),
        mask=modspec.conjunction(masks),
        fill=-math.inf if softmax else 0.0,
        normalizer="softmax" if softmax else "none",
        sink=sink,
        outputs=outputs,
        key_dtype=kept[0],
        value_dtype=kept[1],
        value_scale=v_factor,
        extras=(*extras, *scales),
        scalars=("s0",),
    )


def _scale_load(extra: Extra, scale: Scale, compute: str) -> ex.Expr:
    """The element of a scale of keys or values at b, h and j."""
    head: ex.Expr = ex.Index("h")
    if scale.share > 1:
        head = ex.op("floordiv", head, ex.Const(scale.share, "int64"))
    at = (head if axis == "h" else ex.Index(axis) if axis else ex.Const(0, "int64") for axis in scale.axes)
    return _widened(ex.Load(extra.name, tuple(at), extra.dtype), compute)


def _widened(load: ex.Load, compute: str) -> ex.Expr:
    return load if load.dtype == compute else ex.op("cast", load, dtype=compute)


def _activated(normalizer: str, x: ex.Expr) -> ex.Expr:
    """The weight of a score that goes through a function of its own instead of a softmax."""
    if normalizer == "sigmoid":
        return ex.op("sigmoid", x)
    return ex.op("max", x, ex.Const(0.0, x.dtype)) if normalizer == "relu" else x


def _constant_spec(*facts: Any) -> AttentionSpec:
    """`_spec`, which Dynamo need not trace: it depends on static facts alone."""
    return _spec(*facts)


# What `torch.compiler.assume_constant_result` does; calling that would import all of Dynamo together with attncc.
_constant_spec._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_forms: dict[Any, Form] = {}
