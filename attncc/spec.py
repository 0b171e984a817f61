"""AttentionSpec: what one attention computes, with no torch, no TVM and no target in it.

    s[b,h,i,j] = sum over d of element(q[b,h,i,d], k[b,h // group,j,d])       (q first times W when bilinear)
    x[b,h,i,j] = score_mod(s, b, h, i, j)                                      then `fill` where the mask is false
    p[b,h,i,:] = normalizer(x[b,h,i,:])                                        over the keys
    o[b,h,i,e] = sum over j of p[b,h,i,j] * v[b,h // group,j,e]

Shapes: q [B, H, Sq, query_dim], k [B, H/group, Skv, head_dim], v [B, H/group, Skv, value_dim],
out [B, H, Sq, value_dim].
B, H, Sq, Skv and all strides are run-time values; head sizes, dtype and group are static.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

from attncc import expr as ex

VERSION = 1
"""Version of the canonical JSON; a change of meaning or form raises it, and every kernel name changes with it."""

NORMALIZERS = ("softmax",)
EMPTY_ROWS = ("zero", "nan")
SCORE = ex.Score()
DOT = ex.op("mul", ex.Elem("q"), ex.Elem("k"))


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
    """The term under the sum over d, an expression in `Elem("q")` and `Elem("k")`."""
    bilinear: str | None = None
    """Name of the extra W, [query_dim, head_dim] or [H, query_dim, head_dim]; q W takes q's place."""
    query_dim: int | None = None
    """Size of a row of q where it differs from head_dim (bilinear only)."""
    score_mod: ex.Expr = SCORE
    """x as an expression in Score(), Index b/h/i/j, Size, Scalar and Load of extras. Scale is part of it."""
    mask: ex.Expr | None = None
    """Boolean expression in the same leaves but Score(); keys for which it is false get `fill`."""
    fill: float = float("-inf")
    """The value of x where the mask is false: -inf, or a finite number (finfo.min, -1e9)."""
    normalizer: str = "softmax"
    empty_row: str = "zero"
    """What a row whose x is -inf everywhere gives: "zero" (as SDPA) or "nan" (as softmax). Without keys: zero."""
    extras: tuple[Extra, ...] = ()
    scalars: tuple[str, ...] = ()
    """Names of the float run-time scalars, s0, s1, … in order of argument."""
    integers: tuple[str, ...] = ()
    """Names of the integer run-time scalars, n0, n1, … in order of argument."""

    def __post_init__(self) -> None:
        _check(self)

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
        for key in ("element", "score_mod", "mask"):
            if data.get(key) is not None:
                data[key] = ex.from_json(data[key])
        data["extras"] = tuple(Extra(*e) for e in data.get("extras", ()))
        data["fill"] = float(data.get("fill", "-inf"))
        for key in ("scalars", "integers"):
            data[key] = tuple(data.get(key, ()))
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"not an attention spec: {text[:80]!r}") from error

    def __str__(self) -> str:
        score = ex.pretty(self.element) if self.bilinear is None else f"(q @ {self.bilinear}) * k"
        parts = [f"x = {ex.pretty(self.score_mod)} with score = sum_d {score}"]
        if self.mask is not None:
            parts.append(f"mask {ex.pretty(self.mask)} else {self.fill:g}")
        heads = f", {self.group} query heads a key head" if self.group > 1 else ""
        return (
            f"{self.normalizer} attention {self.dtype} D={self.head_dim} E={self.value_dim}{heads}: {'; '.join(parts)}"
        )


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


def _check(spec: AttentionSpec) -> None:
    """Reject what is not an attention: unknown names, a mask that reads the score, a score_mod that does not."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"attention spec: {message}")

    need(spec.dtype in ex.FLOATS, f"dtype {spec.dtype!r} is not one of {', '.join(ex.FLOATS)}")
    need(min(spec.head_dim, spec.value_dim, spec.group) >= 1, "head_dim, value_dim and group are at least 1")
    need(spec.normalizer in NORMALIZERS, f"normalizer {spec.normalizer!r} is not one of {', '.join(NORMALIZERS)}")
    need(spec.empty_row in EMPTY_ROWS, f"empty_row {spec.empty_row!r} is not one of {', '.join(EMPTY_ROWS)}")
    need(
        spec.query_dim is None or spec.bilinear is not None, "query_dim differs from head_dim only in a bilinear score"
    )
    need(spec.fill == spec.fill and spec.fill < 0, "fill is -inf or a negative number")
    names = {e.name: e for e in spec.extras}
    numbers = (*spec.scalars, *spec.integers)
    need([e.name for e in spec.extras] == [f"t{n}" for n in range(len(spec.extras))], "extras are named t0, t1, …")
    need(spec.scalars == tuple(f"s{n}" for n in range(len(spec.scalars))), "float scalars are named s0, s1, …")
    need(spec.integers == tuple(f"n{n}" for n in range(len(spec.integers))), "integer scalars are named n0, n1, …")
    if spec.bilinear is not None:
        need(spec.bilinear in names and names[spec.bilinear].rank in (2, 3), "bilinear names an extra of rank 2 or 3")
    for node in spec.element.walk():
        need(isinstance(node, (ex.Elem, ex.Const, ex.Op, ex.Scalar)), f"element contains {node}")
    need(spec.mask is None or spec.mask.dtype == "bool", "mask is boolean")
    for role, tree in (("score_mod", spec.score_mod), ("mask", spec.mask)):
        for node in tree.walk() if tree is not None else ():
            match node:
                case ex.Load(tensor, index, dtype):
                    need(tensor in names, f"{role} reads {tensor!r}, which is no extra")
                    need(len(index) == names[tensor].rank, f"{role} reads {tensor} with {len(index)} indices")
                    need(dtype == names[tensor].dtype, f"{role} reads {tensor} as {dtype}")
                case ex.Index(axis):
                    need(axis in ex.AXES, f"{role} uses the axis {axis!r}")
                case ex.Size(name):
                    need(name in ex.SIZES, f"{role} uses the size {name!r}")
                case ex.Scalar(name):
                    need(name in numbers, f"{role} uses the scalar {name!r}, which is no argument")
                case ex.Score():
                    need(role == "score_mod", "the mask depends on the score")
                case ex.Arg() | ex.Elem():
                    need(False, f"{role} contains {node}")
