"""Fold index maps into the nodes that read through them.

    %t = view{a, b, c}  %k[a, c, b]                      (k transposed)
    %s = contract{i, j | d} %q[i, d] * %t[0, d, j]   →   %s = contract{i, j | d} %q[i, d] * %k[0, j, d]

A read through a merge is divided into the digits of the merge; where an axis of the reader straddles two digits, that
axis is split first, so that the axes of every node become the finest that its reads and those of its readers need.
"""

from __future__ import annotations

from collections.abc import Mapping

from attncc import index as ix
from attncc import ir
from attncc.symbolic import Dim


def fold_views(graph: ir.Graph) -> ir.Graph:
    """The graph with no node reading a View through an index map, where the map can be undone."""
    nodes: dict[str, ir.Node] = {}
    for node in graph:
        nodes[node.name] = _folded(node, nodes)
    return graph.rewritten(nodes, "fold_views").without_dead()


def bind(access: ir.Access, producer: ir.Node, sizes: Mapping[str, Dim]) -> dict[str, ix.Linear] | None:
    """The index of every axis of `producer` at which an access (over axes of `sizes`) reads its value.

    None where the access does not fall apart into the producer's axes; raises `index.NeedsSplit` where it would.
    """
    bound: dict[str, ix.Linear] = {}
    for axes, index in zip(producer.dims, access.index, strict=True):
        digits = ix.bind(index, [(a, producer.sizes[a]) for a in axes], sizes)
        if digits is None:
            return None
        bound.update(digits)
    return bound


def _folded(node: ir.Node, nodes: Mapping[str, ir.Node]) -> ir.Node:
    while True:
        try:
            return node.with_accesses(tuple(_through(a, node, nodes) for a in node.accesses))
        except ix.NeedsSplit as split:
            node = node.split(split.axis, split.inner)


def _through(access: ir.Access, reader: ir.Node, nodes: Mapping[str, ir.Node]) -> ir.Access:
    """The access as one of the value behind all Views."""
    producer = nodes[access.value]
    bound = bind(access, producer, reader.sizes)
    if bound is None or not isinstance(producer, ir.View):
        return access
    return _through(producer.operand.substitute(bound), reader, nodes)
