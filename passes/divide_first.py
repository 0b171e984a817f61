"""Divide weights before their product with V instead of the product after it.

    %n = contract{i, e | j} %e[i, j] * %v[j, e]            %o.weights = map{i, j} %e[i, j], %s[i]: _0 / _1
    %o = map{i, e} %n[i, e], %s[i]: _0 / _1         →      %o = contract{i, e | j} %o.weights[i, j] * %v[j, e]

Only where the divisor is made of a sum over what one operand is made of, and does not move with the other's columns.
"""

from __future__ import annotations

from collections.abc import Mapping

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.passes.roles import axes_of

_PASSED = ir.Map | ir.View | ir.Concat


def divide_first(graph: ir.Graph) -> ir.Graph:
    """The graph with every such division moved."""
    nodes: dict[str, ir.Node] = {}
    for node in graph:
        moved = _moved(node, nodes) if isinstance(node, ir.Map) else None
        for made in moved or (node,):
            nodes[made.name] = made
    return graph.rewritten(nodes, "divide_first").without_dead()


def _moved(node: ir.Map, nodes: Mapping[str, ir.Node]) -> tuple[ir.Node, ...] | None:
    """The weights and the product that a division of a product is; None for other nodes."""
    if not isinstance(node.body, ex.Op) or node.body.name not in ("div", "mul"):
        return None
    left, right = node.body.operands
    found = _division(node, left, right, nodes)
    return found or (_division(node, right, left, nodes) if node.body.name == "mul" else None)


def _division(
    node: ir.Map, product: ex.Expr, factor: ex.Expr, nodes: Mapping[str, ir.Node]
) -> tuple[ir.Node, ...] | None:
    if not isinstance(product, ex.Arg) or not isinstance(node.body, ex.Op):
        return None
    access, operator = node.operands[product.number], node.body.name
    contract = nodes[access.value]
    used = sorted({leaf.number for leaf in factor.walk() if isinstance(leaf, ex.Arg)})
    if not isinstance(contract, ir.Contract) or len(contract.operands) != 2 or contract.dtype != node.dtype:
        return None
    if not used or product.number in used or any(isinstance(x, ex.Index) for x in factor.walk()):
        return None
    summed = {name for n in used for name in sums(node.operands[n].value, nodes)}
    totals = {total.name for n in used for total in _totals(node.operands[n].value, nodes)}
    if not summed:
        return None
    while True:
        try:
            bound = bind(access, contract, node.sizes)
            break
        except ix.NeedsSplit as split:
            node = node.split(split.axis, split.inner)  # type: ignore[assignment]
            access = node.operands[product.number]
    if bound is None:
        return None
    fresh = ir.fresh_axes(node.sizes, len(contract.reduced))
    bound |= {a: ix.axis(f) for a, f in zip(contract.reduced, fresh, strict=True)}
    sizes = {**node.sizes, **{f: contract.sizes[a] for a, f in zip(contract.reduced, fresh, strict=True)}}
    reads = [a.substitute(bound) for a in contract.operands]
    divisors = tuple(node.operands[n] for n in used)
    moving = {axis for d in divisors for axis in axes_of(d)}
    for weights, values in (reads, reads[::-1]):
        if not moving <= axes_of(weights) or not summed & exponentials(weights.value, nodes):
            continue
        if totals <= {total.name for total in _totals(weights.value, nodes)}:
            continue  # divided by it already: the factor is a gate made of the logsumexp, on the result
        own = tuple(a for a in sizes if a in axes_of(weights))
        body = ex.op(operator, ex.Arg(0, node.dtype), _renumbered(factor, used))
        name, dims = f"{node.name}.weights", tuple((a,) for a in own)
        divided = ir.Map(name, node.dtype, tuple((a, sizes[a]) for a in own), dims, (weights, *divisors), body)
        operands = (ir.Access(name, tuple(ix.axis(a) for a in own)), values)
        return divided, ir.Contract(node.name, node.dtype, tuple(sizes.items()), node.dims, operands)
    return None


def _renumbered(factor: ex.Expr, used: list[int]) -> ex.Expr:
    """The divisor with the operands `used` as 1, 2, …"""
    return ex.substitute(
        factor, lambda leaf: ex.Arg(used.index(leaf.number) + 1, leaf.dtype) if isinstance(leaf, ex.Arg) else None
    )


def sums(name: str, nodes: Mapping[str, ir.Node]) -> set[str]:
    """What the sums that a value is made of are taken over."""
    return {e for total in _totals(name, nodes) for e in exponentials(total.operand.value, nodes)}


def _totals(name: str, nodes: Mapping[str, ir.Node]) -> list[ir.Reduce]:
    """The sums that a value is made of."""
    found: list[ir.Reduce] = []
    stack, seen = [name], {name}
    while stack:
        node = nodes[stack.pop()]
        if isinstance(node, ir.Reduce) and node.kind == "sum":
            found.append(node)
        elif isinstance(node, _PASSED):
            fresh = set(node.reads) - seen
            seen |= fresh
            stack += fresh
    return found


def exponentials(name: str, nodes: Mapping[str, ir.Node]) -> set[str]:
    """The exponentials that a value is or is made of."""
    found: set[str] = set()
    stack, seen = [name], {name}
    while stack:
        node = nodes[stack.pop()]
        if not isinstance(node, _PASSED):
            continue
        if isinstance(node, ir.Map) and any(
            isinstance(x, ex.Op) and x.name in ("exp", "exp2") for x in node.body.walk()
        ):
            found.add(node.name)
        fresh = set(node.reads) - seen
        seen |= fresh
        stack += fresh
    return found
