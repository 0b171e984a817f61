"""The product of queries and keys in a score: its operands seen from the weighted sum, and what lies between."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.element import Parts, element_product
from attncc.passes.fold_views import bind
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.passes.roles import axes_of
from attncc.passes.weights import Weights
from attncc.symbolic import Dim

NO_PRODUCT = "the softmax is not over a product of queries and keys"
"""The reason given where nothing is known of the scores."""


@dataclass(frozen=True)
class ScoreProduct:
    """The score product seen from the weighted sum: operands over its axes, W if bilinear, sizes of all axes."""

    load: ex.Load
    q: ir.Access
    k: ir.Access
    weight: ir.Access | None
    sizes: dict[str, Dim]
    inner: tuple[str, ...]
    """The axes of the head dimension."""
    rows: tuple[str, ...]
    """Those of q, if W stands between."""
    element: ex.Expr | None = None
    """The term under the sum in Elem q and k and loads over the axes; None for the plain product."""


def score_products(
    reader: Reader, contract: ir.Contract, x: ex.Expr, v: ir.Access
) -> tuple[list[ScoreProduct], Refused | None]:
    """All products of queries and keys in a score, and why the first of the others is none (if none is: of all)."""
    found: list[ScoreProduct] = []
    refused: Refused | None = None
    for load in dict.fromkeys(leaf for leaf in x.walk() if isinstance(leaf, ex.Load)):
        node, access = reader.graph.nodes[load.tensor], reader.accesses.get(load)
        summed = isinstance(node, ir.Contract) or (isinstance(node, ir.Reduce) and node.kind == "sum")
        bound = bind(access, node, reader.sizes) if summed and access is not None else None
        if bound is None:
            continue
        try:
            score = element_product(reader, contract, node, load, bound, v)
            if score is None and isinstance(node, ir.Contract):
                score = _operands(reader, contract, node, load, bound)
            found += [] if score is None else [ScoreProduct(load, *score)]
        except Refused as reason:
            refused = refused or reason
    if not found and refused is None:
        notes = [n for leaf in x.walk() if isinstance(leaf, ex.Load) for n in _notes(reader.graph, leaf.tensor)]
        why = f" ({notes[0]})" if notes else ""
        refused = Refused(f"{NO_PRODUCT}{why}", contract.name)
    return found, refused


def _notes(graph: ir.Graph, name: str) -> list[str]:
    """What is noted of the operators that have no form in the IR and that a value is or is made of, pointwise."""
    found: list[str] = []
    stack, seen = [name], {name}
    while stack:
        node = graph.nodes[stack.pop()]
        if isinstance(node, ir.Opaque) and node.note:
            found.append(node.note)
        elif isinstance(node, ir.Map | ir.View):
            fresh = set(node.reads) - seen
            seen |= fresh
            stack += sorted(fresh)
    return found


def _operands(
    reader: Reader, contract: ir.Contract, node: ir.Contract, load: ex.Load, bound: dict[str, ix.Linear]
) -> Parts:
    keys = set(contract.reduced)
    fresh = ir.fresh_axes((*contract.sizes, *node.sizes), len(node.reduced))
    bound = {**bound, **{a: ix.axis(f) for a, f in zip(node.reduced, fresh, strict=True)}}
    sizes = {**contract.sizes, **{f: node.sizes[a] for a, f in zip(node.reduced, fresh, strict=True)}}
    operands = [a.substitute(bound) for a in node.operands]
    weight = _weight(operands, set(fresh)) if len(operands) == 3 else None
    if len(operands) != 2 or (weight is not None and len(fresh) != 2):
        raise Refused("the score is not a product of two tensors", node.name)
    moving = [bool(axes_of(a) & keys) for a in operands]
    if moving[0] == moving[1]:
        side = "both operands of the score product move" if moving[0] else "no operand of the score product moves"
        raise Refused(f"{side} along the axis of the softmax", node.name)
    k, q = operands if moving[0] else operands[::-1]
    inner = tuple(a for a in fresh if a in axes_of(k))
    rows = tuple(a for a in fresh if a in axes_of(q))
    if weight is None and not (len(inner) == len(rows) == len(fresh)):
        raise Refused("queries and keys do not share the axis that their product sums over", node.name)
    return q, k, weight, sizes, inner, rows, None


def _weight(operands: list[ir.Access], summed: set[str]) -> ir.Access | None:
    """The one operand of three, taken out, that moves along both summed axes and at most one more."""
    for number, operand in enumerate(operands):
        axes = axes_of(operand)
        if summed <= axes and len(axes - summed) <= 1 and all(len(i.terms) <= 1 for i in operand.index):
            return operands.pop(number)
    return None


def covered(reader: Reader, weights: Weights, scores: Collection[str]) -> tuple[str, ...]:
    """The nodes between the score products (included) and the weighted sum, in order."""
    inside = {*scores, *reader.through, *weights.reductions}
    covered = set(scores)
    for name in reader.graph.nodes:
        if name in inside and any(r in covered for r in reader.graph.nodes[name].reads):
            covered.add(name)
    return tuple(name for name in reader.graph.nodes if name in covered)
