"""Recognise a softmax by what it computes: exp(x - max) over its own sum, however that is spelled.

`e / s`, `exp(x - logsumexp)`, `where(max == -inf, 0, e / s)`; x may be anything. Each reduction is read at the place of
the product that uses the weights, so that the same x appears as the same expression.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.symbolic import equal, product


@dataclass(frozen=True)
class Softmax:
    """x, what a row of nothing but -inf gives, whether the original subtracts the maximum."""

    x: ex.Expr
    empty_row: str
    shifted: bool
    reductions: tuple[str, ...]
    """The nodes that are the sum and the maximum."""


def match_softmax(reader: Reader, contract: ir.Contract, access: ir.Access) -> Softmax | None:
    """The softmax that operand `access` of `contract` is, over the axes that the contract sums; None where it is none.

    Raises Refused where it is a softmax of another kind, and `index.NeedsSplit` as `Reader.read` does.
    """
    weights = without_casts(reader.read(access))
    empty_row = "nan"
    shift: tuple[ex.Expr, ex.Load | None] | None
    top: ex.Load | None
    match weights:
        case ex.Op("where", (ex.Op("eq", (ex.Load(), ex.Const(limit))), ex.Const(0.0), inner)) if limit == -float(
            "inf"
        ):
            weights, empty_row = without_casts(inner), "zero"
    match weights:
        case ex.Op("div", (raised, ex.Load() as total)):
            shift = _shift_of(without_casts(raised))
        case ex.Op("exp", (ex.Op("sub", (x, ex.Op("add", (ex.Load() as top, ex.Op("log", (ex.Load() as total,)))))),)):
            raised = ex.op("exp", ex.op("sub", x, top))
            shift = x, top
        case _:
            return None
    if shift is None:
        return None
    x, top = shift
    if not _is_reduction(reader, contract, total, "sum", raised):
        return None
    if top is not None and not _is_reduction(reader, contract, top, "max", x):
        raise Refused("the exponent is shifted by something other than the row's maximum", access.value)
    return Softmax(x, empty_row, top is not None, tuple(r.tensor for r in (total, top) if r is not None))


def _shift_of(raised: ex.Expr) -> tuple[ex.Expr, ex.Load | None] | None:
    match raised:
        case ex.Op("exp", (ex.Op("sub", (x, ex.Load() as top)),)):
            return x, top
        case ex.Op("exp", (x,)):
            return x, None
    return None


def _is_reduction(reader: Reader, contract: ir.Contract, load: ex.Load, kind: str, of: ex.Expr) -> bool:
    """Whether a leaf is the reduction of the expression `of` over the axes that `contract` sums. Raises Refused."""
    node = reader.graph.nodes[load.tensor]
    access = reader.accesses.get(load)
    if not isinstance(node, ir.Reduce) or node.kind != kind or access is None:
        return False
    summed = set(contract.reduced)
    bound = bind(access, node, reader.sizes)
    if bound is None:
        return False
    wrong = any(summed & set(i.axes) for i in access.index)
    sizes = [node.sizes[a] for a in node.reduced]
    whole = equal(product(sizes), product(contract.sizes[a] for a in contract.reduced))
    if not wrong and not whole and _same_leaves(reader, node, of):
        raise Refused(
            "the softmax runs over other positions than the product with V sums over (more keys, or a sink)",
            load.tensor,
        )
    if wrong or not whole:
        if _same_leaves(reader, node, of):
            raise Refused(
                "the softmax runs over another axis than the one that the product with V sums over", load.tensor
            )
        return False
    if len(node.reduced) == 1:
        bound[node.reduced[0]] = ix.merged(contract.reduced, contract.sizes)
    elif len(node.reduced) == len(contract.reduced):
        bound.update({a: ix.axis(b) for a, b in zip(node.reduced, contract.reduced, strict=True)})
    elif len(contract.reduced) == 1:
        raise ix.NeedsSplit(contract.reduced[0], product(sizes[1:]))
    else:
        return False
    return without_casts(reader.read(node.operand.substitute(bound))) == without_casts(of)


def _same_leaves(reader: Reader, node: ir.Reduce, of: ex.Expr) -> bool:
    """Whether a reduction reads what an expression is made of, whatever the axes."""
    cone = {node.operand.value}
    stack = [node.operand.value]
    while stack:
        for name in reader.graph.nodes[stack.pop()].reads:
            if name not in cone:
                cone.add(name)
                stack.append(name)
    return any(isinstance(leaf, ex.Load) and leaf.tensor in cone for leaf in of.walk())


def without_casts(expr: ex.Expr) -> ex.Expr:
    """The expression below casts from one floating-point dtype to another."""
    while (
        isinstance(expr, ex.Op)
        and expr.name == "cast"
        and expr.dtype in ex.FLOATS
        and expr.operands[0].dtype in ex.FLOATS
    ):
        expr = expr.operands[0]
    return expr
