"""An AttentionSpec evaluated with plain torch operators: on every device, differentiable, traceable.

The backward pass recomputes through this evaluation, and tensors on devices without kernels run on it. Scores and
softmax are in float32 (float64 for a float64 spec), as in the kernels; memory is O(B·H·Sq·Skv), as PyTorch's own
unfused attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attncc import expr as ex
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


def attention(
    spec: AttentionSpec,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    layout: str = "bhsd",
) -> Tensor:
    """out [B, H, Sq, value_dim] in q's dtype, for q [B, H, Sq, query_dim], k and v [B, H/group, Skv, …].

    `layout` says which of [B, H, Sq, E] ("bhsd") and [B, Sq, H, E] ("bshd") the result is contiguous as.
    """
    compute = torch.float64 if spec.dtype == "float64" else torch.float32
    named = dict(zip((extra.name for extra in spec.extras), extras, strict=True))
    wide_q, wide_k, wide_v = (t.to(compute) for t in (q, k, v))
    if spec.bilinear is not None:
        wide_q = wide_q @ named[spec.bilinear].to(compute)  # [D, E] or [H, D, E]: both broadcast against [B, H, Sq, D]
    sizes = {"B": q.shape[0], "H": q.shape[1], "Sq": q.shape[2], "Skv": k.shape[2]}
    values: dict[str, Any] = {**named, **sizes}
    values |= zip((*spec.scalars, *spec.integers), (*scalars, *integers), strict=True)
    evaluator = _Evaluator(values, compute, q.device)
    x = evaluator.run(spec.score_mod, _scores(spec, wide_q, wide_k, evaluator))
    if spec.mask is not None:
        x = torch.where(evaluator.run(spec.mask), x, torch.full((), spec.fill, dtype=compute, device=q.device))
    x = x.to(compute).expand(sizes["B"], sizes["H"], sizes["Sq"], sizes["Skv"])
    p = _softmax(x, spec.empty_row)
    out = _grouped(p, wide_v, spec.group).to(q.dtype)
    return lay_out(out, layout)


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
    product = evaluator.run(spec.element, q=q[:, :, :, None, :], k=k[:, :, None, :, :])
    return product.expand(*q.shape[:3], k.shape[2], q.shape[3]).sum(-1)


def _grouped(left: Tensor, right: Tensor, group: int) -> Tensor:
    """left [B, H, S, N] @ right [B, H/group, N, M]: the heads of a group are stacked as rows, `right` is not copied."""
    if group == 1:
        return left @ right
    batch, heads, rows, inner = left.shape
    stacked = left.reshape(batch, heads // group, group * rows, inner) @ right
    return stacked.reshape(batch, heads, rows, right.shape[-1])


def _softmax(x: Tensor, empty_row: str) -> Tensor:
    """softmax over the keys; a row that is -inf everywhere is 0 ("zero", with gradient 0) or NaN ("nan")."""
    if empty_row == "nan" or x.shape[-1] == 0:
        return torch.softmax(x, dim=-1)
    empty = (x == float("-inf")).all(dim=-1, keepdim=True)
    p = torch.softmax(x.masked_fill(empty, 0.0), dim=-1)
    return p.masked_fill(empty, 0.0)


class _Evaluator:
    """Expressions over tensors that broadcast to [B, H, Sq, Skv]; floats in `compute`, integers in int64."""

    def __init__(self, values: dict[str, Any], compute: torch.dtype, device: torch.device) -> None:
        self.values, self.compute, self.device = values, compute, device

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
        at = ex.AXES.index(axis)
        index = torch.arange(self.values[ex.SIZES[at]], device=self.device)
        return index.view([-1 if n == at else 1 for n in range(4)])

    def _load(self, tensor: Tensor, node: ex.Load, index: tuple[Tensor, ...]) -> Tensor:
        """tensor[index]; as a view where the index is made of distinct axes and constants, which saves the gather."""
        axes = [n.axis for n in node.index if isinstance(n, ex.Index)]
        plain = len(set(axes)) == len(axes)
        if not plain or any(not isinstance(n, (ex.Index, ex.Const)) for n in node.index):
            return tensor[index] if index else tensor
        for dim in reversed(range(len(node.index))):
            at = node.index[dim]
            if isinstance(at, ex.Const):
                tensor = tensor.select(dim, int(at.value))
        for dim, axis in enumerate(axes):
            tensor = tensor.narrow(dim, 0, self.values[ex.SIZES[ex.AXES.index(axis)]])
        order = sorted(range(len(axes)), key=lambda dim: ex.AXES.index(axes[dim]))
        tensor = tensor.permute(order)
        for at_axis, axis in enumerate(ex.AXES):
            if axis not in axes:
                tensor = tensor.unsqueeze(at_axis)
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
