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
    identity,
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
    """x[:, mask] = value, for one mask of dimensions that follow each other and one value."""
    target, places, value = node.args[:3]
    tensor, source = result(node), c.value(target)
    masks = [(first, place) for first, place in enumerate(places) if place is not None]
    if _given(node, 3, "accumulate", False) or len(masks) != 1:
        raise Unsupported("a write at computed positions")
    ((first, place),) = masks
    mask, new = c.value(place), argument(c, value)
    if mask.dtype != "bool" or (isinstance(new, ir.Node) and new.shape not in ((), (1,))):
        raise Unsupported("a write at computed positions")
    mask = _over(c, f"{node.name}.mask", mask, first, source)

    def body(k: ex.Expr, x: ex.Expr, y: ex.Expr) -> ex.Expr:
        return op("where", k, as_dtype(x, source.dtype), y)

    return map_node(c, node.name, tensor, [mask, new, source], body)


def _over(c: Context, name: str, mask: ir.Node, first: int, source: ir.Node) -> ir.Node:
    """A mask of the dimensions of `source` from `first` on, with further ones of size 1 behind it where it ends early.

    Raises Unsupported where its sizes are not those of the source: a size of 1 does not broadcast in an assignment.
    """
    behind = len(source.shape) - first - len(mask.shape)
    if behind < 0 or not all(map(equal, mask.shape, source.shape[first:])):
        raise Unsupported("a write at computed positions")
    if not behind:
        return mask
    axes, dims, access = identity(mask)
    return c.add(ir.View(name, mask.dtype, axes, (*dims, *[()] * behind), access))


def _given(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
