"""Lengths of vectors and distances between them, as sums over the elements."""

from __future__ import annotations

from typing import Any

from torch import fx

from attncc import expr as ex
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
from attncc.convert.contractions import in_dtype, reduce_over
from attncc.expr import op


@lowers("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")
def vector_norm(c: Context, node: fx.Node) -> ir.Node:
    """The length of the difference of all pairs: the root of its sum of squares, or the sum of absolute values."""
    order = _given(node, 1, "ord", None)
    order = 2 if order is None else order
    along, keep = _given(node, 2, "dim", None), _given(node, 3, "keepdim", False)
    if along is None or node.kwargs.get("dtype") is not None or order not in (1, 2):
        raise Unsupported("a norm that is no root of a sum of squares")
    tensor, source = result(node), c.value(node.args[0])
    if not _is_of_pairs(c, source):
        raise Unsupported("the length of rows that exist: a tensor of its own")
    source = in_dtype(c, f"{node.name}.input", source, dtype_name(tensor.dtype))
    dims = [int(d) % len(source.shape) for d in ([along] if isinstance(along, int) else along)]
    axes, space_dims = space(source.shape)
    term = _term(ex.Arg(0, source.dtype), order)
    access = broadcast(source, space_dims)
    terms = c.add(ir.Map(f"{node.name}.terms", source.dtype, axes, space_dims, (access,), term))
    return _root(c, node, reduce_over(c, f"{node.name}.sum", "sum", terms, dims, bool(keep)), order)


@lowers("aten.cdist.default")
def distance(c: Context, node: fx.Node) -> ir.Node:
    """The distance of every row of one matrix from every row of another: [..., i, d] and [..., j, d] to [..., i, j]."""
    rows, columns = (c.value(x) for x in node.args[:2])
    order = _given(node, 2, "p", 2.0)
    if order not in (1, 2):
        raise Unsupported("a distance that is no root of a sum of squares")
    tensor = result(node)
    dtype = dtype_name(tensor.dtype)
    pairs = (*shape_of(tensor), rows.shape[-1])
    axes, dims = space(pairs)
    places = ((*dims[:-2], dims[-1]), (*dims[:-3], dims[-2], dims[-1]))
    reads = tuple(broadcast(x, at) for x, at in zip((rows, columns), places, strict=True))
    difference = op("sub", *(as_dtype(ex.Arg(n, x.dtype), dtype) for n, x in enumerate((rows, columns))))
    terms = c.add(ir.Map(f"{node.name}.terms", dtype, axes, dims, reads, _term(difference, order)))
    return _root(c, node, reduce_over(c, f"{node.name}.sum", "sum", terms, [len(pairs) - 1], False), order)


@lowers("aten.cosine_similarity.default")
def cosine(c: Context, node: fx.Node) -> ir.Node:
    """Its two lengths would be tensors of their own, which the program does not compute."""
    raise Unsupported("cosine_similarity: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT is fused")


def _is_of_pairs(c: Context, value: ir.Node) -> bool:
    """Whether a value is made for all pairs of rows of smaller ones: q[:, None] - k[None]."""
    return isinstance(value, ir.Map | ir.View) and all(
        len({axis for i in access.index for axis in i.axes}) < len(value.axes) or _is_of_pairs(c, c.nodes[access.value])
        for access in value.accesses
    )


def _term(x: ex.Expr, order: float) -> ex.Expr:
    return op("mul", x, x) if order == 2 else op("abs", x)


def _root(c: Context, node: fx.Node, total: ir.Node, order: float) -> ir.Node:
    return map_node(c, node.name, result(node), [total], lambda x: op("sqrt", x) if order == 2 else x)


def _given(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
