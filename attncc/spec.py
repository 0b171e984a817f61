"""AttentionSpec: what one attention computes, with no torch, no TVM and no target in it.

    s[b,h,i,j] = sum over d of element(q[b,h,i,d], k[b,h // group,j,d])       (q first times W when bilinear)
    x[b,h,i,j] = score_mod(s, b, h, i, j)                                      then `fill` where the mask is false
    p[b,h,i,:] = softmax of x[b,h,i,:] over the keys                           or x itself, normalizer "none"
    o[b,h,i,e] = sum over j of p[b,h,i,j] * value_scale(b,h,j) * v[b,h // group,j,e]

A softmax may run over one more column, the `sink`, whose weight is dropped: sink 0 is the "softmax plus one".

Shapes: q [B, H, Sq, query_dim], k [B, H/group, Skv, head_dim], v [B, H/group, Skv, value_dim],
out [B, H, Sq, value_dim]; further outputs: max and sum [B, H, Sq], weights [B, H, Sq, Skv].
B, H, Sq, Skv and all strides are run-time values; head sizes, dtype and group are static.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

from attncc import expr as ex

VERSION = 2
"""Version of the canonical JSON; a change of meaning or form raises it, and every kernel name changes with it."""

NORMALIZERS = ("softmax", "none")
EMPTY_ROWS = ("zero", "nan")
OUTPUTS = ("out", "max", "sum", "weights")
"""What an attention can give, in the order in which it gives it."""
SCORE = ex.Score()
DOT = ex.op("mul", ex.Elem("q"), ex.Elem("k"))
CODES = ("int8", *ex.FLOAT8)
"""What the elements of a quantised k or v may be: numbers whose scales are in score_mod and value_scale."""


@dataclass(frozen=True)
class Extra:
    """A tensor argument beside q, k and v: `name` (t0, t1, … in order of argument), dtype and rank."""

    name: str
    dtype: str
    rank: int


@dataclass(frozen=True)
class AttentionSpec:
    """What one attention computes. Frozen, hashable, serialisable; `name` identifies it everywhere.

    Raises ValueError for anything that does not describe an attention.
    """

    dtype: str
    """dtype of q, k, v and the output: float32, bfloat16, float16 or float64."""
    head_dim: int
    """Size of the dimension that q (after the bilinear form) and k share."""
    value_dim: int
    """Size of a row of v and of the output."""
    group: int = 1
    """Query heads a key head serves: kv_head = h // group."""
    element: ex.Expr = DOT
    """The term under the sum over d, in `Elem("q")`, `Elem("k")`, and Load of extras at Index d, b and h."""
    bilinear: str | None = None
    """Name of the extra W, [query_dim, head_dim] or [H, query_dim, head_dim]; q W takes q's place."""
    query_dim: int | None = None
    """Size of a row of q where it differs from head_dim (bilinear only)."""
    score_mod: ex.Expr = SCORE
    """x as an expression in Score(), Index b/h/i/j, Size, Scalar and Load of extras. Scale is part of it."""
    mask: ex.Expr | None = None
    """Boolean expression in the same leaves but Score(); keys for which it is false get `fill`."""
    fill: float = float("-inf")
    """The value of x where the mask is false: -inf, a finite number (finfo.min, -1e9), or 0 without a normalizer."""
    normalizer: str = "softmax"
    """What makes weights of x: "softmax" over the keys, or "none": score_mod gives the weights (sigmoid, relu)."""
    sink: ex.Expr | None = None
    """x of a further column of the softmax that has no value: an expression in b, h, i, sizes, scalars and loads."""
    outputs: tuple[str, ...] = ("out",)
    """"out", then those wanted of "max" (the largest x of a row, sink included), "sum" (of exp(x - max), sink included)
    and "weights" (p). A row that is -inf everywhere has the maximum -inf and the sum 0."""
    key_dtype: str | None = None
    """dtype of k where it is one of `CODES`; its elements then count as the numbers that they are."""
    value_dtype: str | None = None
    """The same of v."""
    value_scale: ex.Expr | None = None
    """A factor of the rows of v: an expression in b, h, j, sizes, scalars, loads. A key's is a factor in score_mod."""
    empty_row: str = "zero"
    """What a row whose x is -inf everywhere gives: "zero" (as SDPA) or "nan" (as softmax). Without keys: zero."""
    extras: tuple[Extra, ...] = ()
    scalars: tuple[str, ...] = ()
    """Names of the float run-time scalars, s0, s1, … in order of argument."""
    integers: tuple[str, ...] = ()
    """Names of the integer run-time scalars, n0, n1, … in order of argument."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def quantized(self) -> bool:
        """Whether k or v are not plain numbers of `dtype`: codes, or rows with scales."""
        return any(part is not None for part in (self.key_dtype, self.value_dtype, self.value_scale))

    @cached_property
    def json(self) -> str:
        """Canonical text: sorted keys, defaults left out, versioned."""
        data: dict[str, Any] = {"version": VERSION}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                data[field.name] = _encode(value)
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @cached_property
    def name(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec that `json` describes. Raises ValueError for another version or malformed text."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("version", None) != VERSION:
            raise ValueError(f"not an attention spec of version {VERSION}: {text[:80]!r}")
        for key in ("element", "score_mod", "mask", "sink", "value_scale"):
            if data.get(key) is not None:
                data[key] = ex.from_json(data[key])
        data["extras"] = tuple(Extra(*e) for e in data.get("extras", ()))
        data["fill"] = float(data.get("fill", "-inf"))
        for key in ("scalars", "integers"):
            data[key] = tuple(data.get(key, ()))
        data["outputs"] = tuple(data.get("outputs", ("out",)))
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"not an attention spec: {text[:80]!r}") from error

    def __str__(self) -> str:
        score = ex.pretty(self.element) if self.bilinear is None else f"(q @ {self.bilinear}) * k"
        parts = [f"x = {ex.pretty(self.score_mod)} with score = sum_d {score}"]
        if self.mask is not None:
            parts.append(f"mask {ex.pretty(self.mask)} else {self.fill:g}")
        if self.sink is not None:
            parts.append(f"sink {ex.pretty(self.sink)}")
        if self.value_scale is not None:
            parts.append(f"v times {ex.pretty(self.value_scale)}")
        if len(self.outputs) > 1:
            parts.append(f"gives {', '.join(self.outputs)}")
        kept = dict.fromkeys(d for d in (self.key_dtype, self.value_dtype) if d is not None)
        cache = f" over {' and '.join(kept)}" if kept else ""
        heads = f", {self.group} query heads a key head" if self.group > 1 else ""
        kind = "softmax" if self.normalizer == "softmax" else "unnormalized"
        return f"{kind} attention {self.dtype}{cache} D={self.head_dim} E={self.value_dim}{heads}: {'; '.join(parts)}"


def _encode(value: Any) -> Any:
    if isinstance(value, ex.Expr):
        return ex.to_json(value)
    if isinstance(value, Extra):
        return [value.name, value.dtype, value.rank]
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    if isinstance(value, float):
        return repr(value)
    return value


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"attention spec: {message}")


def _check(spec: AttentionSpec) -> None:
    """Reject what is not an attention: unknown names, a mask that reads the score, a score_mod that does not."""
    _need(spec.dtype in ex.FLOATS, f"dtype {spec.dtype!r} is not one of {', '.join(ex.FLOATS)}")
    _need(min(spec.head_dim, spec.value_dim, spec.group) >= 1, "head_dim, value_dim and group are at least 1")
    for kept in (spec.key_dtype, spec.value_dtype):
        _need(kept is None or kept in CODES, f"k and v are kept in {kept!r}, which is not one of {', '.join(CODES)}")
    _need(spec.empty_row in EMPTY_ROWS, f"empty_row {spec.empty_row!r} is not one of {', '.join(EMPTY_ROWS)}")
    _need([e.name for e in spec.extras] == [f"t{n}" for n in range(len(spec.extras))], "extras are named t0, t1, …")
    _need(spec.scalars == tuple(f"s{n}" for n in range(len(spec.scalars))), "float scalars are named s0, s1, …")
    _need(spec.integers == tuple(f"n{n}" for n in range(len(spec.integers))), "integer scalars are named n0, n1, …")
    _check_normalizer(spec)
    ranks = {e.name: e.rank for e in spec.extras}
    _need(
        spec.query_dim is None or spec.bilinear is not None, "query_dim differs from head_dim only in a bilinear score"
    )
    if spec.bilinear is not None:
        _need(ranks.get(spec.bilinear) in (2, 3), "bilinear names an extra of rank 2 or 3")
    _need(spec.mask is None or spec.mask.dtype == "bool", "mask is boolean")
    _check_leaves(spec, "element", spec.element, ("b", "h", "d"))
    _check_leaves(spec, "score_mod", spec.score_mod, ex.AXES)
    _check_leaves(spec, "mask", spec.mask, ex.AXES)
    _check_leaves(spec, "sink", spec.sink, ("b", "h", "i"))
    _check_leaves(spec, "value_scale", spec.value_scale, ("b", "h", "j"))


def _check_normalizer(spec: AttentionSpec) -> None:
    softmax = spec.normalizer == "softmax"
    _need(spec.normalizer in NORMALIZERS, f"normalizer {spec.normalizer!r} is not one of {', '.join(NORMALIZERS)}")
    _need(spec.outputs == tuple(o for o in OUTPUTS if o in spec.outputs), f"outputs are some of {', '.join(OUTPUTS)}")
    _need("out" in spec.outputs, "outputs include out")
    if softmax:
        _need(spec.fill == spec.fill and spec.fill < 0, "fill is -inf or a negative number")
    else:
        _need(spec.mask is None or spec.fill == 0, "without a normalizer fill is 0")
        _need(spec.sink is None, "a sink is part of a softmax")
        _need(not {"max", "sum"} & set(spec.outputs), "max and sum are outputs of a softmax")


def _check_leaves(spec: AttentionSpec, role: str, tree: ex.Expr | None, axes: tuple[str, ...]) -> None:
    """Reject leaves that mean nothing in the expression that plays `role`."""
    extras = {e.name: e for e in spec.extras}
    numbers = (*spec.scalars, *spec.integers)
    for node in tree.walk() if tree is not None else ():
        match node:
            case ex.Load(tensor, index, dtype):
                _need(tensor in extras, f"{role} reads {tensor!r}, which is no extra")
                _need(len(index) == extras[tensor].rank, f"{role} reads {tensor} with {len(index)} indices")
                _need(dtype == extras[tensor].dtype, f"{role} reads {tensor} as {dtype}")
            case ex.Index(axis):
                _need(axis in axes, f"{role} uses the axis {axis!r}")
            case ex.Size(name):
                _need(name in ex.SIZES, f"{role} uses the size {name!r}")
            case ex.Scalar(name):
                _need(name in numbers, f"{role} uses the scalar {name!r}, which is no argument")
            case ex.Score():
                _need(role == "score_mod", f"the {role} depends on the score")
            case ex.Elem():
                _need(role == "element", f"{role} contains {node}")
            case ex.Arg():
                _need(False, f"{role} contains {node}")
