"""An AttentionSpec evaluated with plain torch operators: on every device, differentiable, traceable.

The backward pass recomputes through this evaluation, and tensors on devices without kernels run on it. Scores and
softmax are in float32 (float64 for a float64 spec), as in the kernels; memory is O(B·H·Sq·Skv), as PyTorch's own
unfused attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from attncc import expr as ex
from attncc.runtime.operands import Operands
from attncc.spec import DOT, AttentionSpec

LAYOUTS = ("bhsd", "bshd")

_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "floordiv": torch.floor_divide,
    "mod": torch.remainder, "pow": torch.pow, "min": torch.minimum, "max": torch.maximum, "neg": torch.neg,
    "abs": torch.abs, "exp": torch.exp, "exp2": torch.exp2, "log": torch.log, "log2": torch.log2,
    "log1p": torch.log1p, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "erf": torch.erf, "sin": torch.sin, "cos": torch.cos, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round, "sign": torch.sign, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge,
    "eq": torch.eq, "ne": torch.ne, "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
    "not": torch.logical_not, "where": torch.where,
}  # fmt: skip


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of the name that a spec uses."""
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name!r} is not a dtype")
    return found


def compute_dtype(spec: AttentionSpec) -> torch.dtype:
    """What scores, softmax and row statistics are computed in: float64 for a float64 spec, else float32."""
    return torch.float64 if spec.dtype == "float64" else torch.float32


def outputs(spec: AttentionSpec, operands: Operands, layout: str = "bhsd") -> list[Tensor]:
    """The spec's outputs: "out" and "weights" in q's dtype, "max" and "sum" in the compute dtype.

    `layout` says which of [B, H, Sq, E] ("bhsd") and [B, Sq, H, E] ("bshd") the first is contiguous as.
    """
    q, k, v, extras, scalars, integers = operands
    compute = compute_dtype(spec)
    named = dict(zip((extra.name for extra in spec.extras), extras, strict=True))
    wide_q, wide_k, wide_v = (t.to(compute) for t in (q, k, v))
    if spec.bilinear is not None:
        wide_q = wide_q @ named[spec.bilinear].to(compute)  # [D, E] or [H, D, E]: both broadcast against [B, H, Sq, D]
    sizes = {"B": q.shape[0], "H": q.shape[1], "Sq": q.shape[2], "Skv": k.shape[2]}
    values: dict[str, Any] = {**named, **sizes}
    values |= zip((*spec.scalars, *spec.integers), (*scalars, *integers), strict=True)
    axes = dict(zip(ex.AXES, sizes.values(), strict=True))
    evaluator = _Evaluator(values, compute, q.device, axes)
    x = evaluator.run(spec.score_mod, _scores(spec, wide_q, wide_k, evaluator))
    if spec.mask is not None:
        x = torch.where(evaluator.run(spec.mask), x, torch.full((), spec.fill, dtype=compute, device=q.device))
    x = x.to(compute).expand(sizes["B"], sizes["H"], sizes["Sq"], sizes["Skv"])
    sink = None if spec.sink is None else evaluator.run(spec.sink).to(compute).expand(*x.shape[:3], 1)
    p = x if spec.normalizer == "none" else _softmax(x, sink, spec.empty_row)
    weights = p if spec.value_scale is None else p * evaluator.run(spec.value_scale).to(compute)
    found = {"out": lay_out(_grouped(weights, wide_v, spec.group).to(q.dtype), layout)}
    if "weights" in spec.outputs:
        found["weights"] = p.to(q.dtype).contiguous()
    if "max" in spec.outputs or "sum" in spec.outputs:
        found["max"], found["sum"] = _statistics(x, sink)
    return [found[name] for name in spec.outputs]


def lay_out(out: Tensor, layout: str) -> Tensor:
    """`out` [B, H, S, E] contiguous in the order that `layout` names; itself where it is already."""
    if layout == "bhsd":
        return out.contiguous()
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _scores(spec: AttentionSpec, q: Tensor, k: Tensor, evaluator: _Evaluator) -> Tensor:
    """[B, H, Sq, Skv]: the sum over d of the spec's element."""
    if spec.element == DOT:
        return _grouped(q, k.transpose(-1, -2), spec.group)
    k = k.repeat_interleave(spec.group, dim=1)
    by_column = evaluator.with_axis("d", q.shape[3])
    product = by_column.run(spec.element, q=q[:, :, :, None, :], k=k[:, :, None, :, :])
    return product.expand(*q.shape[:3], k.shape[2], q.shape[3]).sum(-1)


def _grouped(left: Tensor, right: Tensor, group: int) -> Tensor:
    """left [B, H, S, N] @ right [B, H/group, N, M]: the heads of a group are stacked as rows, `right` is not copied."""
    if group == 1:
        return left @ right
    batch, heads, rows, inner = left.shape
    stacked = left.reshape(batch, heads // group, group * rows, inner) @ right
    return stacked.reshape(batch, heads, rows, right.shape[-1])


def _softmax(x: Tensor, sink: Tensor | None, empty_row: str) -> Tensor:
    """softmax over the keys and the sink, without the sink's column.

    A row that is -inf everywhere is 0 ("zero", with gradient 0) or NaN ("nan").
    """
    keys = x.shape[-1]
    if keys == 0:
        return x
    columns = x if sink is None else torch.cat([x, sink], dim=-1)
    if empty_row == "nan":
        return torch.softmax(columns, dim=-1)[..., :keys]
    empty = (columns == -math.inf).all(dim=-1, keepdim=True)
    p = torch.softmax(columns.masked_fill(empty, 0.0), dim=-1)[..., :keys]
    return p.masked_fill(empty, 0.0)


def _statistics(x: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Maximum of each row, and the sum of exp(x - maximum): -inf and 0 for a row that is -inf everywhere."""
    last = x.new_full((*x.shape[:3], 1), -math.inf) if sink is None else sink
    columns = torch.cat([x, last], dim=-1)
    top = columns.amax(dim=-1, keepdim=True)
    base = top.masked_fill(top == -math.inf, 0.0)  # -inf - -inf would be NaN
    return top[..., 0], torch.exp(columns - base).sum(dim=-1)


class _Evaluator:
    """Expressions over tensors that broadcast to the sizes of `axes`, such as [B, H, Sq, Skv] for b, h, i and j.

    Floats are evaluated in `compute`, integers in int64.
    """

    def __init__(
        self, values: dict[str, Any], compute: torch.dtype, device: torch.device, axes: Mapping[str, int]
    ) -> None:
        self.values, self.compute, self.device, self.axes = values, compute, device, axes

    def with_axis(self, name: str, size: int) -> _Evaluator:
        """The same over one more axis, the last one."""
        return _Evaluator(self.values, self.compute, self.device, {**self.axes, name: size})

    def run(self, expr: ex.Expr, score: Tensor | None = None, **elements: Tensor) -> Tensor:
        """`expr` with the score, or the elements of q and k, given."""

        def visit(node: ex.Expr, args: tuple[Tensor, ...]) -> Tensor:
            match node:
                case ex.Score() if score is not None:
                    return score
                case ex.Elem(name):
                    return elements[name]
                case ex.Const(value):
                    return self._number(value)
                case ex.Size(name) | ex.Scalar(name):
                    return self._number(self.values[name])
                case ex.Index(axis):
                    return self._index(axis)
                case ex.Load(name):
                    return self._wide(self._load(self.values[name], node, args))
                case ex.Op("cast", _, dtype):
                    cast = args[0] if dtype in ex.FLOATS else args[0].to(torch_dtype(dtype))
                    return cast.to(self.compute) if dtype in ex.FLOATS else self._wide(cast)
                case ex.Op(name):
                    return _OPERATORS[name](*args)
            raise TypeError(f"cannot evaluate {node!r} here")

        result: Tensor = ex.fold(expr, visit)
        return result

    def _index(self, axis: str) -> Tensor:
        index = torch.arange(self.axes[axis], device=self.device)
        return index.view([-1 if name == axis else 1 for name in self.axes])

    def _load(self, tensor: Tensor, node: ex.Load, index: tuple[Tensor, ...]) -> Tensor:
        """tensor[index]; as a view where the index is made of distinct axes and constants, which saves the gather."""
        used = [n.axis for n in node.index if isinstance(n, ex.Index)]
        plain = len(set(used)) == len(used)
        if not plain or any(not isinstance(n, (ex.Index, ex.Const)) for n in node.index):
            return tensor[index] if index else tensor
        for dim in reversed(range(len(node.index))):
            at = node.index[dim]
            if isinstance(at, ex.Const):
                tensor = tensor.select(dim, int(at.value))
        for dim, axis in enumerate(used):
            tensor = tensor.narrow(dim, 0, self.axes[axis])
        places = list(self.axes)
        tensor = tensor.permute(sorted(range(len(used)), key=lambda dim: places.index(used[dim])))
        for place, axis in enumerate(places):
            if axis not in used:
                tensor = tensor.unsqueeze(place)
        return tensor

    def _number(self, value: Any) -> Tensor:
        if isinstance(value, bool):
            return torch.full((), value, dtype=torch.bool, device=self.device)
        dtype = self.compute if isinstance(value, (float, torch.SymFloat)) else torch.int64
        return torch.full((), value, dtype=dtype, device=self.device)

    def _wide(self, value: Tensor) -> Tensor:
        if value.dtype == torch.bool:
            return value
        return value.to(self.compute if value.is_floating_point() else torch.int64)
