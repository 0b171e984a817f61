"""Merge a product with a matrix into the score product that it feeds: q W kᵀ in one Contract.

    %w = contract{b, h, i, d | c} %q[b, h, i, c] * %W[c, d]
    %s = contract{b, h, i, j | d} %w[b, h, i, d] * %k[b, h, j, d]
    →  %s = contract{b, h, i, j | d, c} %q[b, h, i, c] * %W[c, d] * %k[b, h, j, d]

Only where W acts on the head dimension alone: it has no axis besides c and d but such as q has too, and q and k share
at least two axes that W lacks or shares. A projection to heads, x[b, i, c] * W[c, (h, d)], is left where it is: W has
an axis h that x lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.symbolic import Dim


def merge_bilinear(graph: ir.Graph) -> ir.Graph:
    """The graph with every such pair of products merged."""
    nodes = dict(graph.nodes)
    for node in graph:
        if isinstance(node, ir.Contract) and len(node.operands) == 2:
            nodes[node.name] = _merged(node, graph, nodes)
    return graph.rewritten(nodes, "merge_bilinear").without_dead()


def _merged(outer: ir.Contract, graph: ir.Graph, nodes: Mapping[str, ir.Node]) -> ir.Contract:
    for number in (0, 1):
        inner = nodes[outer.operands[number].value]
        if not isinstance(inner, ir.Contract) or len(inner.operands) != 2 or len(graph.users(inner.name)) != 1:
            continue
        bound = bind(outer.operands[number], inner, outer.sizes)
        if bound is None or len(inner.reduced) != 1 or len(outer.reduced) != 1:
            continue
        (fresh,) = ir.fresh_axes(outer.sizes, 1)
        bound[inner.reduced[0]] = ix.axis(fresh)
        x, w = (a.substitute(bound) for a in inner.operands)
        for row, matrix in ((x, w), (w, x)):
            if _acts_on_heads(row, matrix, outer.operands[1 - number], outer.reduced[0], fresh):
                size: Dim = inner.sizes[inner.reduced[0]]
                operands = (row, matrix, outer.operands[1 - number])
                return replace(outer, axes=(*outer.axes, (fresh, size)), operands=operands)
    return outer


def _axes(access: ir.Access) -> set[str]:
    return {a for i in access.index for a in i.axes}


def _acts_on_heads(row: ir.Access, matrix: ir.Access, other: ir.Access, inner: str, fresh: str) -> bool:
    """Whether `matrix` is W[c, d] or W[h, c, d] and `row` an operand that is split into heads already."""
    extra = _axes(matrix) - {inner, fresh}
    shared = (_axes(row) & _axes(other)) - {inner, fresh}
    plain = all(len(i.terms) <= 1 for i in matrix.index)
    return (
        plain
        and {inner, fresh} <= _axes(matrix)
        and inner not in _axes(row)
        and len(extra) <= 1
        and extra <= shared
        and len(shared) >= 2
    )
