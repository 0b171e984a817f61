"""The product of queries and keys in a score: its operands seen from the weighted sum, and what lies between."""

from __future__ import annotations

from dataclasses import dataclass

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.passes.roles import axes_of
from attncc.passes.weights import Weights
from attncc.symbolic import Dim


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


def score_product(reader: Reader, contract: ir.Contract, x: ex.Expr) -> ScoreProduct:
    """The product of queries and keys in a score: of several, the first that fits. Raises Refused."""
    loads = dict.fromkeys(leaf for leaf in x.walk() if isinstance(leaf, ex.Load))
    refused: Refused | None = None
    for load in loads:
        node = reader.graph.nodes[load.tensor]
        access = reader.accesses.get(load)
        if not isinstance(node, ir.Contract) or access is None:
            continue
        bound = bind(access, node, reader.sizes)
        if bound is None:
            continue
        try:
            return _operands(reader, contract, node, load, bound)
        except Refused as reason:
            refused = refused or reason
    notes = [n.note for n in (reader.graph.nodes[x.tensor] for x in loads) if isinstance(n, ir.Opaque) and n.note]
    why = f" ({notes[0]})" if notes else ""
    raise refused or Refused(f"the softmax is not over a product of queries and keys{why}", contract.name)


def _operands(
    reader: Reader, contract: ir.Contract, node: ir.Contract, load: ex.Load, bound: dict[str, ix.Linear]
) -> ScoreProduct:
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
    return ScoreProduct(load, q, k, weight, sizes, inner, rows)


def _weight(operands: list[ir.Access], summed: set[str]) -> ir.Access | None:
    """The one operand of three, taken out, that moves along both summed axes and at most one more."""
    for number, operand in enumerate(operands):
        axes = axes_of(operand)
        if summed <= axes and len(axes - summed) <= 1 and all(len(i.terms) <= 1 for i in operand.index):
            return operands.pop(number)
    return None


def covered(reader: Reader, weights: Weights, score: str) -> tuple[str, ...]:
    """The nodes between the score product (included) and the weighted sum, in order."""
    inside = {score, *reader.through, *weights.reductions}
    covered = {score}
    for name in reader.graph.nodes:
        if name in inside and any(r in covered for r in reader.graph.nodes[name].reads):
            covered.add(name)
    return tuple(name for name in reader.graph.nodes if name in covered)
