"""Operators on one element of each operand: numbers are computed, selections by numbers move cells, else new cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from attncc.bands.axes import Dims, lengths
from attncc.bands.cells import Computed
from attncc.bands.walk import Unknown, Value, Walk, follows
from attncc.convert.effects import functional

aten = torch.ops.aten
POINTWISE: Mapping[str, str] = {
    "aten.add.Tensor": "add", "aten.add.Scalar": "add", "aten.sub.Tensor": "sub", "aten.sub.Scalar": "sub",
    "aten.mul.Tensor": "mul", "aten.mul.Scalar": "mul", "aten.div.Tensor": "div", "aten.div.Scalar": "div",
    "aten.neg.default": "neg", "aten.tanh.default": "tanh", "aten.where.self": "where",
    "aten.where.ScalarOther": "where", "aten.where.ScalarSelf": "where", "aten.where.Scalar": "where",
    "aten.masked_fill.Scalar": "where", "aten.masked_fill.Tensor": "where",
}  # fmt: skip
"""Operators that a score or a weight may be made by, and their names in `attncc.expr`."""
_NUMBERS = (
    *(f"aten.{name}.{overload}" for name in ("lt", "le", "gt", "ge", "eq", "ne") for overload in ("Tensor", "Scalar")),
    *(f"aten.{name}.Tensor" for name in ("__and__", "__or__", "bitwise_and", "bitwise_or")),
    *(f"aten.{name}.default" for name in ("logical_and", "logical_or", "logical_not", "bitwise_not", "abs")),
)
"""Operators that are followed only where their operands are numbers, as in masks made of positions."""


@follows(*POINTWISE, *_NUMBERS)
def pointwise(walk: Walk, node: fx.Node) -> Value:
    """One of the operators above."""
    if node.kwargs.get("alpha", 1) != 1 or len(node.args) > 3:
        raise Unknown
    name = functional(str(node.target))
    operands = [walk.value(a) for a in node.args]
    dims = _dims(walk, operands)
    if walk.cells.device == "meta":
        return Value(torch.empty(lengths(dims), dtype=torch.int64, device="meta"), dims)
    numbers = _computed(walk, node, operands)
    if numbers is not None:
        return Value(numbers.expand(lengths(dims)).clone(), dims)
    kind = POINTWISE.get(name)
    if kind is None:
        return Value(walk.cells.block(node, dims, None), dims)
    if "masked_fill" in name:
        operands = [operands[1], operands[2], operands[0]]
    if kind == "where":
        condition = walk.cells.values(operands[0].cells, torch.bool)
        if condition is not None and _of_one_dtype(node):
            return Value(torch.where(condition, operands[1].cells, operands[2].cells), dims)
    made = Computed(kind, tuple(v.cells.clone() for v in operands))
    return Value(walk.cells.block(node, dims, made), dims)


def cast(walk: Walk, node: fx.Node, source: Any) -> Value:
    """An operand in the dtype of `node`."""
    value = walk.value(source)
    dtype = node.meta["val"].dtype
    if not isinstance(source, fx.Node) or source.meta["val"].dtype == dtype:
        return value
    numbers = walk.cells.values(value.cells, source.meta["val"].dtype)
    if numbers is not None:
        return Value(walk.cells.of_values(numbers.to(dtype)), value.dims)
    made = Computed("cast", (value.cells.clone(),))
    return Value(walk.cells.block(node, value.dims, made), value.dims)


def _dims(walk: Walk, operands: list[Value]) -> Dims:
    """The dimensions in which operands meet, aligned at the last one."""
    rank = max(len(v.dims) for v in operands)
    padded = [((),) * (rank - len(v.dims)) + v.dims for v in operands]
    return tuple(walk.meet(*(dims[p] for dims in padded)) for p in range(rank))


def _computed(walk: Walk, node: fx.Node, operands: list[Value]) -> Tensor | None:
    """The cells of the result where all operands are numbers: PyTorch computes it."""
    given: list[Any] = []
    for argument, value in zip(node.args, operands, strict=True):
        fake = argument.meta["val"] if isinstance(argument, fx.Node) else None
        values = argument if fake is None else walk.cells.values(value.cells, fake.dtype)
        if values is None:
            return None
        given.append(values)
    packet, overload = functional(str(node.target)).removeprefix("aten.").split(".")
    result = getattr(getattr(aten, packet), overload)(*given, **node.kwargs)
    return walk.cells.of_values(result.to(node.meta["val"].dtype))


def _of_one_dtype(node: fx.Node) -> bool:
    """Whether a selection leaves what it selects as it is."""
    given = [a for a in node.args if isinstance(a, fx.Node) and a.meta["val"].dtype != torch.bool]
    return {a.meta["val"].dtype for a in given} == {node.meta["val"].dtype}
