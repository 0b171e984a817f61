"""Take factors that do not move out of products.

    %p = map  %q[i, d]: _0 * 0.125
    %s = contract{i, j | d} %p[i, d] * %k[j, d]    →    %s.unscaled = contract{i, j | d} %q[i, d] * %k[j, d]
                                                        %s = map %s.unscaled[i, j]: _0 * 0.125

A factor is a number or a value without dimensions, on either operand, as a product or a divisor. Only products that
become the arguments of an exponential are changed: the results of others, a projection's or an attention's, are read
as the program computes them.
"""

from __future__ import annotations

from dataclasses import replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind

_EXPONENTIALS = ("exp", "exp2", "sigmoid")


def hoist_scale(graph: ir.Graph) -> ir.Graph:
    """The graph with scalar factors of product operands applied to the product instead."""
    made: dict[str, ir.Node] = {}
    scores = before_softmax(graph)
    for node in graph:
        maps: list[ir.Map] = []
        score = node.name in scores
        while score and isinstance(node, ir.Contract):
            hoisted = _hoisted(node, made, graph)
            if hoisted is None:
                break
            node, scaled = hoisted
            maps.append(scaled)
        made.update({n.name: n for n in (node, *reversed(maps))})
    return graph.rewritten(made, "hoist_scale").without_dead()


def before_softmax(graph: ir.Graph) -> set[str]:
    """The values that reach an exponential or a reduction with nothing but Maps, Views and Concats between."""
    stack: list[ir.Node] = [
        n for n in graph if isinstance(n, ir.Reduce) or (isinstance(n, ir.Map) and _is_exponential(n.body))
    ]
    seen = {n.name for n in stack}
    while stack:
        for name in stack.pop().reads:
            read = graph.nodes[name]
            if name not in seen:
                seen.add(name)
                if isinstance(read, ir.Map | ir.View | ir.Concat):
                    stack.append(read)
    return seen


def _is_exponential(body: ex.Expr) -> bool:
    return any(isinstance(part, ex.Op) and part.name in _EXPONENTIALS for part in body.walk())


def _hoisted(contract: ir.Contract, nodes: dict[str, ir.Node], graph: ir.Graph) -> tuple[ir.Contract, ir.Map] | None:
    """The product without one factor, and the Map that applies it. `graph` is as it was before this pass."""
    for number, access in enumerate(contract.operands):
        producer = nodes[access.value]
        if not isinstance(producer, ir.Map):
            continue
        found = _factor(producer, nodes)
        bound = bind(access, producer, contract.sizes) if found is not None else None
        if found is None or bound is None:
            continue
        moving, name, factor, scalars = found
        if producer.operands[moving].value not in graph.nodes:
            continue  # the product behind it is one of this pass: no value that the program computes
        if producer.operands[moving].value in graph.overwritten:
            continue  # scaled in place: without the factor it is no more
        operands = list(contract.operands)
        operands[number] = producer.operands[moving].substitute(bound)
        inner = replace(contract, name=f"{contract.name}.unscaled", operands=tuple(operands))
        kept = {a for d in contract.dims for a in d}
        axes = tuple((a, s) for a, s in contract.axes if a in kept)
        read = ir.Access(inner.name, tuple(_merged(d, contract) for d in contract.dims))
        body = ex.op(name, ex.Arg(0, contract.dtype), factor)
        return inner, ir.Map(contract.name, contract.dtype, axes, contract.dims, (read, *scalars), body)
    return None


def _merged(dim: tuple[str, ...], node: ir.Node) -> ix.Linear:
    return ix.merged(dim, node.sizes)


def _factor(node: ir.Map, nodes: dict[str, ir.Node]) -> tuple[int, str, ex.Expr, tuple[ir.Access, ...]] | None:
    """Operand number, operator, factor and the factor's own operands of `operand * factor` or `operand / factor`."""
    match node.body:
        case ex.Op("mul", (ex.Arg(number, dtype), factor)) | ex.Op("mul", (factor, ex.Arg(number, dtype))):
            name = "mul"
        case ex.Op("div", (ex.Arg(number, dtype), factor)):
            name = "div"
        case _:
            return None
    if dtype != node.dtype or not _still(factor, node, nodes):
        match node.body:  # both sides may be operands: the other one may be the factor
            case ex.Op("mul", (factor, ex.Arg(number, dtype))) if dtype == node.dtype and _still(factor, node, nodes):
                name = "mul"
            case _:
                return None
    used = sorted({leaf.number for leaf in factor.walk() if isinstance(leaf, ex.Arg)})
    renumbered = {old: ex.Arg(new + 1, _dtype(node, old, nodes)) for new, old in enumerate(used)}
    moved = ex.substitute(factor, lambda leaf: renumbered.get(leaf.number) if isinstance(leaf, ex.Arg) else None)
    return number, name, moved, tuple(node.operands[n] for n in used)


def _dtype(node: ir.Map, number: int, nodes: dict[str, ir.Node]) -> str:
    return nodes[node.operands[number].value].dtype


def _still(factor: ex.Expr, node: ir.Map, nodes: dict[str, ir.Node]) -> bool:
    """Whether an expression has the same value at every position."""
    for leaf in factor.walk():
        if isinstance(leaf, ex.Index):
            return False
        if isinstance(leaf, ex.Arg) and any(i.axes for i in node.operands[leaf.number].index):
            return False
    return True
