"""Take operands that no sum moves along out of products of three and more.

    %s = contract{h, i, j | d} %q[h, i, d] * %k[h, j, d] * %t[h]
    →  %s.product = contract{h, i, j | d} %q[h, i, d] * %k[h, j, d]
       %s = map{h, i, j} %s.product[h, i, j], %t[h]: _0 * _1

So `einsum("hid,hjd,->hij", q, k, scale)` is the product of two that its author thinks of.
"""

from __future__ import annotations

from dataclasses import replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.roles import axes_of


def split_factors(graph: ir.Graph) -> ir.Graph:
    """The graph with every such product as one of two or more operands, and the Map that applies the others."""
    nodes: dict[str, ir.Node] = {}
    for node in graph:
        parts = _split(node) if isinstance(node, ir.Contract) and len(node.operands) > 2 else None
        for made in parts or (node,):
            nodes[made.name] = made
    return graph.rewritten(nodes, "split_factors")


def _split(contract: ir.Contract) -> tuple[ir.Node, ...] | None:
    summed = set(contract.reduced)
    still = [a for a in contract.operands if not axes_of(a) & summed]
    moving = [a for a in contract.operands if axes_of(a) & summed]
    if not still or len(moving) < 2 or contract.dtype not in ex.FLOATS:
        return None
    along = {axis for a in moving for axis in axes_of(a)}
    dims = tuple(tuple(axis for axis in d if axis in along) for d in contract.dims)
    axes = tuple((a, s) for a, s in contract.axes if a in along)
    inner = replace(contract, name=f"{contract.name}.product", axes=axes, dims=dims, operands=tuple(moving))
    read = ir.Access(inner.name, tuple(ix.merged(d, contract.sizes) for d in dims))
    body: ex.Expr = ex.Arg(0, contract.dtype)
    for number in range(len(still)):
        body = ex.op("mul", body, ex.Arg(number + 1, contract.dtype))
    kept = tuple((a, s) for a, s in contract.axes if a not in summed)
    return inner, ir.Map(contract.name, contract.dtype, kept, contract.dims, (read, *still), body)
