"""Operators that make tensors out of nothing (Const, Iota), triangles, and reads at computed positions (Gather)."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.convert.context import (
    Context,
    Unsupported,
    as_dtype,
    broadcast,
    dtype_name,
    lowers,
    map_node,
    result,
    shape_of,
    space,
)
from attncc.convert.pointwise import argument
from attncc.symbolic import dim

_ZERO = ("zeros", "zeros_like", "new_zeros")
_ONE = ("ones", "ones_like", "new_ones")


@lowers(*(f"aten.{name}.default" for name in (*_ZERO, *_ONE)))
def constant(c: Context, node: fx.Node) -> ir.Node:
    """Zeros or ones."""
    name = str(node.target).split(".")[1]
    return _filled(c, node, 0 if name in _ZERO else 1)


@lowers("aten.full.default", "aten.full_like.default", "aten.new_full.default", "aten.scalar_tensor.default",
        "aten.fill.Scalar", "aten.fill.Tensor")  # fmt: skip
def full(c: Context, node: fx.Node) -> ir.Node:
    """One number everywhere."""
    at = 0 if "scalar_tensor" in str(node.target) else 2 if "new_full" in str(node.target) else 1
    return _filled(c, node, node.args[at] if len(node.args) > at else node.kwargs["fill_value"])


def _filled(c: Context, node: fx.Node, value: Any) -> ir.Node:
    tensor = result(node)
    dtype = dtype_name(tensor.dtype)
    if not isinstance(value, bool | int | float):
        return map_node(c, node.name, tensor, [argument(c, value)], lambda x: as_dtype(x, dtype))
    axes, dims = space(shape_of(tensor))
    kind: Any = bool if dtype == "bool" else float if dtype in ex.FLOATS else int
    return c.add(ir.Const(node.name, dtype, axes, dims, kind(value)))


@lowers("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(c: Context, node: fx.Node) -> ir.Node:
    """start, start + step, …"""
    given = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args]
    if not all(isinstance(g, int | torch.SymInt) for g in given):
        raise Unsupported("arange of floats")
    start, step = (given[0] if len(given) > 1 else 0), (given[2] if len(given) > 2 else 1)
    tensor = result(node)
    axes, dims = space(shape_of(tensor))
    moving = ix.axis(axes[0][0]) if axes else ix.Linear()
    place = ix.total([ix.scaled(moving, dim(step))], dim(start))
    dtype = dtype_name(tensor.dtype)
    if dtype == "int64":
        return c.add(ir.Iota(node.name, dtype, axes, dims, place))
    whole = c.add(ir.Iota(f"{node.name}.index", "int64", axes, dims, place))
    return map_node(c, node.name, tensor, [whole], lambda x: as_dtype(x, dtype))


@lowers("aten.tril.default", "aten.triu.default")
def triangle(c: Context, node: fx.Node) -> ir.Node:
    """The operand on and below (above) a diagonal, zero elsewhere."""
    source = c.value(node.args[0])
    diagonal = c.scalar(node.args[1] if len(node.args) > 1 else node.kwargs.get("diagonal", 0))
    if isinstance(diagonal, ir.Node):
        raise Unsupported("a diagonal known only at run time")
    _, dims = space(source.shape)
    row, column = (ex.Index(d[0]) if d else ex.Const(0, "int64") for d in dims[-2:])
    distance = ex.op("sub", column, row)
    comparison = "le" if "tril" in str(node.target) else "ge"
    keep = ex.op(comparison, distance, as_dtype(diagonal, "int64"))

    def body(x: ex.Expr) -> ex.Expr:
        return ex.op("where", keep, x, as_dtype(ex.Const(0, "int64"), x.dtype))

    return map_node(c, node.name, result(node), [source], body)


@lowers("aten.index.Tensor")
def index(c: Context, node: fx.Node) -> ir.Node:
    """Advanced indexing by adjacent integer tensors."""
    source = c.value(node.args[0])
    given: list[Any] = list(node.args[1])
    given += [None] * (len(source.shape) - len(given))
    used = [p for p, g in enumerate(given) if g is not None]
    if not used or used != list(range(used[0], used[-1] + 1)):
        raise Unsupported("advanced indexing over dimensions that are not adjacent")
    values = [c.value(given[p]) for p in used]
    if any(v.dtype not in ("int64", "int32") for v in values):
        raise Unsupported("indexing by a boolean mask: the shape depends on data")
    axes, dims = space(shape_of(result(node)))
    rank = max(len(v.shape) for v in values)
    inside = dims[used[0] : used[0] + rank]
    indices: list[ix.Linear | ir.Access] = []
    for p in range(len(source.shape)):
        if p in used:
            indices.append(broadcast(values[p - used[0]], inside))
        else:
            at = p if p < used[0] else p - len(used) + rank
            indices.append(ix.axis(dims[at][0]) if dims[at] else ix.constant(0))
    return c.add(ir.Gather(node.name, source.dtype, axes, dims, source.name, tuple(indices)))


@lowers("aten.embedding.default")
def embedding(c: Context, node: fx.Node) -> ir.Node:
    """Rows of a table."""
    table, rows = c.value(node.args[0]), c.value(node.args[1])
    axes, dims = space(shape_of(result(node)))
    column = ix.axis(dims[-1][0]) if dims[-1] else ix.constant(0)
    indices = (broadcast(rows, dims[:-1]), column)
    return c.add(ir.Gather(node.name, table.dtype, axes, dims, table.name, indices))
