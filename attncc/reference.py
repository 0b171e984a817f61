"""The oracle: an AttentionSpec evaluated in float64, straight from its definition.

Nothing here is shared with kernels or passes, nothing is fused or reordered, and every intermediate is materialised: a
reader can hold each line against the formula in `attncc.spec`. Memory is O(B·H·Sq·Skv); use it on test-sized inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attncc import expr as ex
from attncc.spec import AttentionSpec

TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in (*ex.FLOATS, *ex.INTEGERS, "bool")
}  # fmt: skip

_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "pow": torch.pow, "min": torch.minimum, "max": torch.maximum,
    "div": torch.div, "floordiv": torch.floor_divide, "mod": torch.remainder, "neg": torch.neg, "abs": torch.abs,
    "exp": torch.exp, "exp2": torch.exp2, "log": torch.log, "log2": torch.log2, "log1p": torch.log1p,
    "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf,
    "sin": torch.sin, "cos": torch.cos, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
    "sign": torch.sign, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne,
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor, "where": torch.where,
}  # fmt: skip


def attention(
    spec: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor] = (),
    scalars: Sequence[float] = (),
    integers: Sequence[int] = (),
) -> Tensor:
    """The attention of `spec` in float64.

    q [B, H, Sq, query_dim], k [B, H/group, Skv, head_dim], v [B, H/group, Skv, value_dim] of any dtype; `extras`,
    `scalars` and `integers` in the order of the spec. Returns out [B, H, Sq, value_dim], float64.
    """
    return outputs(spec, q, k, v, extras, scalars, integers)["out"]


def outputs(
    spec: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor] = (),
    scalars: Sequence[float] = (),
    integers: Sequence[int] = (),
    *,
    only: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """All that `spec` can give, wanted or not, in float64, for the arguments of `attention`.

    "out" [B, H, Sq, value_dim] and "weights" [B, H, Sq, Skv]; for a softmax also "max" and "sum" [B, H, Sq].
    `only` has the numbers of the batches "b", heads "h" and rows "i" (1-D int64) that are wanted, where not all.
    """
    sizes = {"B": q.shape[0], "H": q.shape[1], "Sq": q.shape[2], "Skv": k.shape[2]}
    b, h, i = ((only or {}).get(axis, torch.arange(sizes[size])) for axis, size in zip("bhi", sizes, strict=False))
    places = grid(sizes) | {axis: t.view(-1, *[1] * n) for axis, t, n in (("b", b, 3), ("h", h, 2), ("i", i, 1))}
    q = q[b][:, h][:, :, i].double()
    k, v = (t[b][:, h // spec.group].double() for t in (k, v))
    named = dict(zip((e.name for e in spec.extras), extras, strict=True))
    if spec.bilinear is not None:
        weight = named[spec.bilinear].double()
        weight = weight[h] if weight.ndim == 3 else weight
        q = torch.einsum("bhid,hde->bhie" if weight.ndim == 3 else "bhid,de->bhie", q, weight)
    numbers = dict(zip((*spec.scalars, *spec.integers), (*scalars, *integers), strict=True))
    where: dict[str, Any] = {**named, **numbers, **sizes, **places}
    where["score"] = score(spec, q, k, where)

    x = evaluate(spec.score_mod, where)
    if spec.mask is not None:
        x = torch.where(evaluate(spec.mask, where), x, spec.fill)
    x = x.expand(where["score"].shape)
    scale = 1.0 if spec.value_scale is None else evaluate(spec.value_scale, where)
    if spec.normalizer == "none":
        return {"out": (x * scale) @ v, "weights": x}
    sink = -math.inf if spec.sink is None else evaluate(spec.sink, where)
    columns = torch.cat([x, torch.as_tensor(sink, dtype=torch.float64).expand(*x.shape[:-1], 1)], dim=-1)
    top = columns.amax(-1, keepdim=True)
    empty = top == -math.inf
    total = torch.where(empty, 0.0, torch.exp(columns - top).sum(-1, keepdim=True))
    nothing = 0.0 if spec.empty_row == "zero" or not sizes["Skv"] else math.nan
    p = torch.where(empty, nothing, torch.exp(x - top) / total)
    return {"out": (p * scale) @ v, "max": top[..., 0], "sum": total[..., 0], "weights": p}


def score(spec: AttentionSpec, q: Tensor, k: Tensor, where: dict[str, Any]) -> Tensor:
    """[B, H, Sq, Skv]: the sum over d of the spec's element, for q [B, H, Sq, D] and k [B, H, Skv, D].

    `where` has the numbers of the batches and heads that these are, as `grid` gives them.
    """
    places = {axis: where[axis].unsqueeze(-1) for axis in "bh"}
    places |= {"d": torch.arange(q.shape[3]), "q": q[:, :, :, None, :], "k": k[:, :, None, :, :]}
    terms = evaluate(spec.element, {**where, **places})
    return terms.expand(*q.shape[:3], *k.shape[2:]).sum(-1)


def grid(sizes: dict[str, int]) -> dict[str, Tensor]:
    """Index tensors b, h, i, j that broadcast to [B, H, Sq, Skv]."""
    axes = zip(ex.AXES, ex.SIZES, strict=True)
    return {
        axis: torch.arange(sizes[size]).view([-1 if n == at else 1 for n in range(4)])
        for at, (axis, size) in enumerate(axes)
    }


def evaluate(expr: ex.Expr, values: dict[str, Any]) -> Tensor:
    """`expr` over tensors that broadcast together; float arithmetic in float64, integers in int64."""

    def visit(node: ex.Expr, args: tuple[Tensor, ...]) -> Tensor:
        match node:
            case ex.Const(value):
                return _wide(torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None))
            case ex.Score():
                return torch.as_tensor(values["score"])
            case ex.Index(name) | ex.Size(name) | ex.Scalar(name) | ex.Elem(name):
                value = values[name]  # torch would make a float32 of a Python float
                return _wide(torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None))
            case ex.Load(tensor):
                return _wide(values[tensor][args] if args else values[tensor])
            case ex.Op("cast", _, dtype):
                return _wide(args[0].to(TORCH_DTYPES[dtype])) if dtype not in ex.FLOATS else args[0].double()
            case ex.Op("not"):
                return torch.logical_not(args[0])
            case ex.Op(name):
                return _OPERATORS[name](*args)
        raise TypeError(f"the reference cannot evaluate {node!r}")

    result: Tensor = ex.fold(expr, visit)
    return result


def _wide(value: Tensor) -> Tensor:
    """The value in the widest dtype of its kind: float64, int64 or bool."""
    if value.dtype == torch.bool:
        return value
    return value.double() if value.is_floating_point() else value.long()
