"""Weights as exponentials: `exp(x - max) / sum`, `exp(x - logsumexp)`, `exp2(x * log2e - m) / s` in one form.

A product of exponentials, sums and selections is written as exp(body + shifts), where every shift is a value of the
row: made of maxima and sums over the keys (`statistic`), the same for all keys. Arithmetic is that of the reals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from attncc import expr as ex
from attncc.expr import op

Statistic = Callable[[ex.Expr], bool]
"""Whether an expression is a value of the row that a reduction over the keys makes."""
_LOGS = {"log": 1.0, "log2": 1 / math.log(2)}
_EXPONENTIALS = {"exp": 1.0, "exp2": math.log(2)}


@dataclass(frozen=True)
class LogForm:
    """exp(body + sum of coefficient * statistic), and 0 where a condition does not hold. A body of None is 0."""

    body: ex.Expr | None
    shifts: Mapping[ex.Expr, float] = field(default_factory=dict)
    """Statistics and their coefficients; a divisor s is `log(s)` with -1."""
    conditions: tuple[ex.Expr, ...] = ()

    def times(self, other: LogForm, sign: float = 1.0) -> LogForm | None:
        """The product with another (sign -1: the quotient)."""
        if sign < 0 and other.conditions:
            return None
        right = other.body if sign > 0 or other.body is None else op("neg", other.body)
        body = right if self.body is None else self.body if right is None else op("add", self.body, right)
        return LogForm(body, _sum(self.shifts, other.shifts, sign), (*self.conditions, *other.conditions))

    def without(self, statistic: ex.Expr) -> LogForm:
        """The same without one shift."""
        return LogForm(self.body, {s: c for s, c in self.shifts.items() if s != statistic}, self.conditions)

    def same_shifts(self, other: LogForm) -> bool:
        """Whether both are shifted alike, so that the shifts cancel in a quotient."""
        return not _sum(self.shifts, other.shifts, -1.0)

    @property
    def masked(self) -> ex.Expr:
        """The body, -inf where a condition does not hold."""
        result = self.body if self.body is not None else ex.Const(0.0, "float32")
        for condition in self.conditions:
            result = op("where", condition, result, ex.Const(-math.inf, result.dtype))
        return result


def log_form(expr: ex.Expr, statistic: Statistic) -> LogForm | None:
    """The form of a value without casts (`uncast`) that is never negative; None for what is no exponential."""
    if statistic(expr):
        return log_of_statistic(expr, statistic)
    match expr:
        case ex.Op("exp" | "exp2" as name, (exponent,)):
            return _scaled(_peeled(exponent, statistic), _EXPONENTIALS[name])
        case ex.Op("mul" | "div" as name, (a, b)):
            left, right = log_form(a, statistic), log_form(b, statistic)
            if left is None or right is None:
                return None
            return left.times(right, 1.0 if name == "mul" else -1.0)
        case ex.Op("where", (condition, value, ex.Const(0))):
            return _selected(condition, log_form(value, statistic))
        case ex.Op("where", (condition, ex.Const(0), value)):
            return _selected(op("not", condition), log_form(value, statistic))
        case ex.Op("cast", (condition,)) if condition.dtype == "bool":
            return LogForm(None, {}, (condition,))
        case ex.Const(value) if value == 1:
            return LogForm(None)
        case ex.Const(value) if value > 0:
            return LogForm(ex.Const(math.log(value), "float32"))
    return None


def log_of_statistic(expr: ex.Expr, statistic: Statistic) -> LogForm | None:
    """The form of a value of the row: a product of sums, each its own shift."""
    match expr:
        case ex.Op("mul" | "div" as name, (a, b)):
            left, right = log_form(a, statistic), log_form(b, statistic)
            if left is not None and right is not None:
                return left.times(right, 1.0 if name == "mul" else -1.0)
        case ex.Op("exp" | "exp2" as name, (exponent,)):
            return _scaled(_peeled(exponent, statistic), _EXPONENTIALS[name])
    return LogForm(None, {op("log", expr): 1.0})


def uncast(expr: ex.Expr) -> ex.Expr:
    """The expression without casts from one floating-point dtype to another."""

    def without(node: ex.Expr) -> ex.Expr | None:
        match node:
            case ex.Op("cast", (inner,), dtype) if dtype in ex.FLOATS and inner.dtype in ex.FLOATS:
                return inner
        return None

    return ex.substitute(expr, without)


def _selected(condition: ex.Expr, value: LogForm | None) -> LogForm | None:
    return None if value is None else LogForm(value.body, value.shifts, (*value.conditions, condition))


def _peeled(exponent: ex.Expr, statistic: Statistic) -> LogForm:
    """The form of exp(exponent): statistics that are added are taken off, the rest is left as it is written."""
    match exponent:
        case ex.Op("add" | "sub" as name, (a, b)):
            left, right = _peeled(a, statistic), _peeled(b, statistic)
            if left.shifts or right.shifts:
                return left.times(right, 1.0 if name == "add" else -1.0) or LogForm(exponent)
        case ex.Op("neg", (a,)):
            inner = _peeled(a, statistic)
            if inner.shifts:
                return LogForm(None).times(inner, -1.0) or LogForm(exponent)
        case ex.Op("mul", (a, ex.Const(factor))) | ex.Op("mul", (ex.Const(factor), a)):
            inner = _peeled(a, statistic)
            if inner.shifts:
                return _scaled(inner, float(factor))
        case ex.Op("log" | "log2" as name, (a,)) if statistic(a):
            inner_log = log_of_statistic(a, statistic)
            if inner_log is not None:
                return _scaled(inner_log, _LOGS[name])
    return LogForm(None, {exponent: 1.0}) if statistic(exponent) else LogForm(exponent)


def _scaled(form: LogForm, factor: float) -> LogForm:
    if factor == 1:
        return form
    return LogForm(_times(form.body, factor), {s: c * factor for s, c in form.shifts.items()}, form.conditions)


def _times(body: ex.Expr | None, factor: float) -> ex.Expr | None:
    """The body times a number, which joins one that it has: 2^(x log2 e) has the body x."""
    if body is None:
        return None
    inner, known = unscaled(body)
    return inner if abs(known * factor - 1) < 1e-12 else op("mul", inner, ex.Const(known * factor, body.dtype))


def unscaled(body: ex.Expr) -> tuple[ex.Expr, float]:
    """An expression without the numbers that it is multiplied by, and their product."""
    match body:
        case ex.Op("mul", (inner, ex.Const(factor))) | ex.Op("mul", (ex.Const(factor), inner)):
            rest, known = unscaled(inner)
            return rest, known * float(factor)
        case ex.Op("div", (inner, ex.Const(factor))) if factor != 0:
            rest, known = unscaled(inner)
            return rest, known / float(factor)
    return body, 1.0


def same_body(a: LogForm, b: LogForm) -> bool:
    """Whether two bodies are the same function: 2^(x log2 e) is exp(x)."""
    if a.body is None or b.body is None:
        return a.body is b.body
    (left, known), (right, other) = unscaled(a.body), unscaled(b.body)
    return left == right and math.isclose(known, other, rel_tol=1e-12)


def _sum(left: Mapping[ex.Expr, float], right: Mapping[ex.Expr, float], sign: float) -> dict[ex.Expr, float]:
    total = dict(left)
    for statistic, coefficient in right.items():
        total[statistic] = total.get(statistic, 0.0) + sign * coefficient
    return {s: c for s, c in total.items() if abs(c) > 1e-9}
