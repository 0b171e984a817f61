"""Reduce over a concatenation part by part, so that a sink column beside the scores is a term of its own.

    %c = concat 1: %x, %sink                       (7 columns and 1)
    %m = reduce{a | b: 8} max %c[a, b]      →      %m.0 = reduce{a | b: 7} max %c[a, b]
                                                   %m = map{a} %m.0[a], %c[a, 7]: max(_0, _1)

Also where pointwise nodes stand between: what counts is that the reduced axis is the joined one.
"""

from __future__ import annotations

from dataclasses import replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.symbolic import Dim, equal, reduce

_LARGEST = 4
"""Parts of a concatenation that is taken apart: with more, reducing at once is as good."""


def split_concat(graph: ir.Graph) -> ir.Graph:
    """The graph with every such reduction taken apart."""
    nodes: dict[str, ir.Node] = {}
    for node in graph:
        parts = _part_sizes(node, graph) if isinstance(node, ir.Reduce) else None
        for made in _taken_apart(node, parts) if parts and isinstance(node, ir.Reduce) else (node,):
            nodes[made.name] = made
    return graph.rewritten(nodes, "split_concat").without_dead()


def _part_sizes(node: ir.Reduce, graph: ir.Graph) -> list[Dim] | None:
    """The lengths of what the one reduced axis joins; None where it joins nothing.

    Sums of integers stay whole: they count documents or patches for a mask, and are no softmax's.
    An axis that a product has as a whole stays whole: what is joined there is a mask, such as one padded for a further
    key, and the product with V sums over it all.
    """
    if len(node.reduced) != 1 or node.dtype not in ex.FLOATS:
        return None
    (along,) = node.reduced
    found: list[Dim] | None = None
    stack = [(node.operand, node.sizes)]
    while stack:
        access, sizes = stack.pop()
        producer = graph.nodes[access.value]
        if isinstance(producer, ir.Concat):
            parts = [graph.nodes[p].shape[producer.dim] for p in producer.parts]
            if access.index[producer.dim].is_axis(along) and 1 < len(parts) <= _LARGEST:
                found = found or parts
        elif isinstance(producer, ir.Contract):
            return None
        elif isinstance(producer, ir.Map | ir.View):
            bound = _bound(access, producer, sizes)
            if bound is not None:
                reads = [a.substitute(bound) for a in producer.accesses]
                stack += [(a, sizes) for a in reads if any(along in i.axes for i in a.index)]
    return found


def _bound(access: ir.Access, producer: ir.Node, sizes: object) -> dict[str, ix.Linear] | None:
    try:
        return bind(access, producer, sizes)  # type: ignore[arg-type]
    except ix.NeedsSplit:
        return None


def _taken_apart(node: ir.Reduce, parts: list[Dim]) -> list[ir.Node]:
    """The reductions of the parts, and the Map that joins them."""
    (along,) = node.reduced
    if not equal(node.sizes[along], sum(parts[1:], start=parts[0])):
        return [node]
    made: list[ir.Node] = []
    terms: list[ir.Access] = []
    start: Dim = 0
    kept = tuple((a, s) for a, s in node.axes if a != along)
    identity = tuple(ix.axis(d[0]) if len(d) == 1 else ix.merged(d, node.sizes) for d in node.dims)
    for number, size in enumerate(parts):
        if size == 1:
            terms.append(node.operand.substitute({along: ix.constant(start)}))
        else:
            moved = node.operand.substitute({along: ix.total([ix.axis(along)], start)})
            axes = tuple((a, size if a == along else s) for a, s in node.axes)
            part = replace(node, name=f"{node.name}.{number}", axes=axes, operand=moved)
            made.append(part)
            terms.append(ir.Access(part.name, identity))
        start = reduce(start + size)
    operator = {"sum": "add", "max": "max"}[node.kind]
    body: ex.Expr = ex.Arg(0, node.dtype)
    for number in range(1, len(terms)):
        body = ex.op(operator, body, ex.Arg(number, node.dtype))
    return [*made, ir.Map(node.name, node.dtype, kept, node.dims, tuple(terms), body)]
