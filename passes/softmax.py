"""Recognise a softmax by what it computes: exp(x) over the sum of exp(x), however that is spelled.

`e / s`, `exp(x - logsumexp)`, `exp2`, a shift by the maximum or none, a further column without a value (`sink`: beside
the scores, or a term added to the sum, as in the softmax plus one), weights set to 0 where a mask hides keys. Each
reduction is read at the place of the product that uses the weights, so that the same x appears as the same expression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attncc import expr as ex
from attncc import ir
from attncc.expr import op
from attncc.passes.logform import LogForm, log_form, same_body, uncast, unscaled
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.passes.statistics import Statistics
from attncc.passes.weights import Weights

_INFINITY = -math.inf


def match_softmax(reader: Reader, contract: ir.Contract, access: ir.Access) -> Weights | None:
    """The softmax that operand `access` of `contract` is, over the axes that the contract sums; None where it is none.

    Raises Refused where it is a softmax of another kind, and `index.NeedsSplit` as `Reader.read` does.
    """
    weights = uncast(reader.read(access))
    statistics = Statistics(reader, contract, weights)
    weights, zero = _without_guard(weights, statistics)
    form = log_form(weights, statistics)
    if form is None or not form.shifts:
        _refuse_what_is_nearly_one(weights, form, statistics, access.value)
        return None
    refused: Refused | None = None
    for divisor, coefficient in form.shifts.items():
        if isinstance(divisor, ex.Op) and divisor.name == "log" and abs(coefficient + 1) < 1e-9:
            try:
                return _normalized(form.without(divisor), divisor.operands[0], statistics, zero, access.value)
            except Refused as reason:
                refused = refused or reason
    if refused is None and not _is_exponential(weights):
        return None
    raise refused or Refused("the exponentials of the scores are not divided by their sum", access.value)


def _is_exponential(weights: ex.Expr) -> bool:
    return any(isinstance(node, ex.Op) and node.name in ("exp", "exp2") for node in weights.walk())


def _refuse_what_is_nearly_one(weights: ex.Expr, form: LogForm | None, statistics: Statistics, name: str) -> None:
    """Raises Refused for weights that have a softmax in them, or one over another axis."""
    if not _is_exponential(weights):
        return
    if statistics.over_another_axis(weights):
        raise Refused("the softmax runs over another axis than the one that the product with V sums over", name)
    if form is None and any(statistics(node) for node in weights.walk() if isinstance(node, ex.Load)):
        raise Refused("the weights are changed between the softmax and the product with V", name)


def _without_guard(weights: ex.Expr, statistics: Statistics) -> tuple[ex.Expr, bool]:
    """The weights without a selection of 0 for rows that see no key, and whether there was one."""
    match weights:
        case ex.Op("where", (ex.Op("eq", (top, ex.Const(limit))), ex.Const(0), inner)) if limit == _INFINITY:
            if statistics(top):
                return inner, True
        case ex.Op("where", (ex.Op("ne", (a, b)), ex.Const(0), inner)) if a == b == inner:
            return inner, True
        case ex.Op("min", (ex.Op("max", (ex.Op("where") as inner, ex.Const(low))), ex.Const(high))):
            if low <= 0 and high >= 1:  # nan_to_num; the weights lie between 0 and 1
                return _without_guard(inner, statistics)
    return weights, False


@dataclass
class _Total:
    """The terms of a sum over a row, and whether it is kept from being 0."""

    sums: list[ex.Load]
    terms: list[ex.Expr]
    guarded: bool = False
    least: float = 0.0


def _terms(total: ex.Expr, statistics: Statistics) -> _Total:
    match total:
        case ex.Load() if statistics.is_reduction(total):
            return _Total([total], [])
        case ex.Op("add", (a, b)):
            left, right = _terms(a, statistics), _terms(b, statistics)
            guarded, least = left.guarded or right.guarded, max(left.least, right.least)
            return _Total(left.sums + right.sums, left.terms + right.terms, guarded, least)
        case ex.Op("where", (ex.Op("eq", (a, ex.Const(0))), ex.Const(), b)) if a == b:
            return _guarded(b, statistics)
        case ex.Op("where", (ex.Op("gt" | "ne", (a, ex.Const(0))), b, ex.Const())) if a == b:
            return _guarded(b, statistics)
        case ex.Op("max", (a, ex.Const(least))) | ex.Op("max", (ex.Const(least), a)):
            inner = _terms(a, statistics)
            inner.least = max(inner.least, float(least))
            return inner
    return _Total([], [total])


def _guarded(total: ex.Expr, statistics: Statistics) -> _Total:
    inner = _terms(total, statistics)
    inner.guarded = True
    return inner


def _normalized(form: LogForm, total: ex.Expr, statistics: Statistics, zero: bool, name: str) -> Weights:
    """The softmax that exp(form) / total is. Raises Refused."""
    parts = _terms(total, statistics)
    if len(parts.sums) != 1:
        raise Refused("the weights are not divided by one sum over the keys", name)
    summed = statistics.reduced(parts.sums[0], "sum")
    inner = None if summed is None else log_form(summed, statistics)
    if inner is None:
        raise Refused("the weights are divided by a sum of something other than the exponentials of the scores", name)
    if not same_body(inner, form) or not inner.same_shifts(form):
        raise Refused("the exponentials that are weighted are not those that are summed", name)
    x = inner.masked
    if any(isinstance(node, ex.Load) and statistics.is_made_of_scores(node) for node in x.walk()):
        raise Refused("the scores of the softmax are made of another softmax, or of sums or maxima", name)
    if inner.conditions and inner.conditions != form.conditions:
        raise Refused("the exponentials that are weighted are not those that are summed", name)
    safe = all([_check_shift(shift, x, statistics, name) for shift in form.shifts])
    if parts.least > 0 and not (form.shifts and parts.least <= 1):
        raise Refused(f"the sum of the softmax is kept above {parts.least:g}, which the weights can tell", name)
    if parts.guarded or parts.least > 0:
        if not safe and not zero:
            raise Refused("a row that sees no key is guarded in the sum, but its maximum is not", name)
        zero = True
    sink = _sink(parts.terms, form, statistics, name)
    seen = () if inner.conditions else form.conditions
    rows = {} if sink is not None else _rows(form, parts.sums[0], statistics)
    empty_row, shifted = "zero" if zero else "nan", bool(form.shifts)
    return Weights(x, "softmax", empty_row, tuple(statistics.used), sink, shifted, rows, seen)


def _rows(form: LogForm, total: ex.Load, statistics: Statistics) -> dict[str, tuple[str, ir.Access]]:
    """Maximum and sum of a softmax that is shifted by the maximum of x and nothing else."""
    shift, *others = form.shifts or (None,)
    if others or not isinstance(shift, ex.Load) or abs(form.shifts[shift] + 1) > 1e-9:
        return {}
    of = statistics.reduced(shift, "max")
    found = None if of is None else log_form(op("exp", of), statistics)
    if found is None or found.shifts or not same_body(found, form):
        return {}
    accesses = statistics.reader.accesses
    return {shift.tensor: ("max", accesses[shift]), total.tensor: ("sum", accesses[total])}


def _sink(terms: list[ex.Expr], form: LogForm, statistics: Statistics, name: str) -> ex.Expr | None:
    """The logit of what is added to the sum over the keys. Raises Refused."""
    sinks: list[ex.Expr] = []
    for term in terms:
        if term == ex.Const(0.0, term.dtype):
            continue
        found = log_form(uncast(ex.substitute(term, statistics.reader.inside)), statistics)
        if found is None or found.conditions:
            raise Refused("something is added to the sum of the softmax that is no exponential", name)
        if not found.same_shifts(form):
            small = isinstance(term, ex.Const)
            what = f"{term.value:g} is added to the sum of the softmax" if isinstance(term, ex.Const) else ""
            raise Refused(
                f"{what} after the maximum was subtracted: no attention has such weights (leave it out: the sum is "
                "at least 1)" if small else "what is added to the softmax's sum is shifted otherwise than the scores",
                name,
            )  # fmt: skip
        sinks.append(found.body if found.body is not None else ex.Const(0.0, "float32"))
    if len(sinks) > 1:  # several columns are one of the sum of their exponentials
        total = op("exp", sinks[0])
        for sink in sinks[1:]:
            total = op("add", total, op("exp", sink))
        return op("log", total)
    return sinks[0] if sinks else None


def _check_shift(shift: ex.Expr, x: ex.Expr, statistics: Statistics, name: str) -> bool:
    """Whether a shift is finite for rows that see no key, too. Raises Refused where it is no maximum of the scores."""
    if isinstance(shift, ex.Op) and shift.name == "log":
        return False  # an earlier sum, of weights that are normalized anew
    inside = {unscaled(node)[0] for node in x.walk()}
    for leaf in shift.walk():
        if not isinstance(leaf, ex.Load) or not statistics.is_reduction(leaf):
            continue
        of = statistics.reduced(leaf, "max")
        form = None if of is None else log_form(op("exp", of), statistics)
        if form is None or form.body is None or unscaled(form.body)[0] not in inside:
            raise Refused("the exponent is shifted by something other than the row's maximum", name)
    return _is_finite(shift, statistics)


def _is_finite(shift: ex.Expr, statistics: Statistics) -> bool:
    match shift:
        case ex.Op("max", (a, b)):
            return _is_finite(a, statistics) or _is_finite(b, statistics)
        case ex.Op("where", (ex.Op("eq", (a, ex.Const(limit))), ex.Const(value), b)) if a == b and limit == _INFINITY:
            return math.isfinite(value)
        case ex.Const(value):
            return math.isfinite(value)
    return False
