"""A sum of products is a product: mul and sum as a Contract.

    %m = map{i, j, d} %q[i, d], %k[j, d]: _0 * _1
    %s = reduce{i, j | d} sum %m[i, j, d]            →    %s = contract{i, j | d} %q[i, d] * %k[j, d]

Only where both factors move along an axis that is summed over; else it is a plain sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from attncc import expr as ex
from attncc import ir
from attncc.passes.fold_views import bind


def product_sum(graph: ir.Graph) -> ir.Graph:
    """The graph with sums over products of two values as Contracts."""
    nodes = {node.name: _product(node, graph.nodes) if isinstance(node, ir.Reduce) else node for node in graph}
    return graph.rewritten(nodes, "product_sum").without_dead()


def _product(node: ir.Reduce, nodes: Mapping[str, ir.Node]) -> ir.Node:
    source = nodes[node.operand.value]
    if node.kind != "sum" or not isinstance(source, ir.Map):
        return node
    match source.body:
        case ex.Op("mul", (ex.Arg(a), ex.Arg(b))):
            factors = (source.operands[a], source.operands[b])
        case _:
            return node
    bound = bind(node.operand, source, node.sizes)
    if bound is None or any(nodes[f.value].dtype != node.dtype for f in factors):
        return node
    reads = tuple(f.substitute(bound) for f in factors)
    moving = [{axis for i in r.index for axis in i.axes} for r in reads]
    if not any(axis in moving[0] and axis in moving[1] for axis in node.reduced):
        return node
    return ir.Contract(node.name, node.dtype, node.axes, node.dims, reads)
