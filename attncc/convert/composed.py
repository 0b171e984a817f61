"""Functions of several tensors that PyTorch keeps as one operator, by simpler ones; writes under a boolean mask."""

from __future__ import annotations

from typing import Any

from torch import fx

from attncc import expr as ex
from attncc import ir
from attncc.convert.context import (
    Context,
    Unsupported,
    as_dtype,
    dtype_name,
    lowers,
    map_node,
    result,
    shape_of,
    space,
)
from attncc.convert.pointwise import argument, pointwise
from attncc.expr import op
from attncc.symbolic import equal


@lowers("aten.addcmul.default", "aten.addcdiv.default")
def add_product(c: Context, node: fx.Node) -> ir.Node:
    """x + value * a * b, or a / b."""
    name = "div" if "addcdiv" in str(node.target) else "mul"
    factor = node.kwargs.get("value", 1)

    def body(x: ex.Expr, a: ex.Expr, b: ex.Expr, k: ex.Expr) -> ex.Expr:
        return op("add", x, op(name, a if factor == 1 else op("mul", k, a), b))

    return pointwise(c, node, (*node.args[:3], factor), body)


@lowers("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(c: Context, node: fx.Node) -> ir.Node:
    """a + weight * (b - a)."""
    return pointwise(c, node, node.args[:3], lambda a, b, w: op("add", a, op("mul", w, op("sub", b, a))))


@lowers("aten.eye.default", "aten.eye.m")
def eye(c: Context, node: fx.Node) -> ir.Node:
    """1 on the diagonal."""
    dtype = dtype_name(result(node).dtype)
    axes, dims = space(shape_of(result(node)))
    row, column = (ex.Index(d[0]) if d else ex.Const(0, "int64") for d in dims)
    same = op("eq", row, column)
    return c.add(ir.Map(node.name, dtype, axes, dims, (), as_dtype(same, dtype)))


@lowers("aten.index_put.default")
def put(c: Context, node: fx.Node) -> ir.Node:
    """x[mask] = value, for a mask of all dimensions (or the first ones) and one value."""
    target, places, value = node.args[:3]
    tensor, source = result(node), c.value(target)
    if _given(node, 3, "accumulate", False) or len(places) != 1 or places[0] is None:
        raise Unsupported("a write at computed positions")
    mask = c.value(places[0])
    new = argument(c, value)
    whole = len(mask.shape) == len(source.shape) and all(map(equal, mask.shape, source.shape))
    if mask.dtype != "bool" or not whole or (isinstance(new, ir.Node) and new.shape not in ((), (1,))):
        raise Unsupported("a write at computed positions")

    def body(k: ex.Expr, x: ex.Expr, y: ex.Expr) -> ex.Expr:
        return op("where", k, as_dtype(x, source.dtype), y)

    return map_node(c, node.name, tensor, [mask, new, source], body)


def _given(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
