"""Which keys a range of query rows can see, from the mask expression alone, by interval analysis.

Contract. Given a mask m(b, h, i, j) and query rows first <= i <= last (0 <= first, last < Sq), `key_bounds` gives
expressions for two intervals of keys:

    visit  [lo, hi)            m is false for every j outside it, for every row of the range
    full   [full_lo, full_hi)  m is true for every j inside it, for every row of the range

with 0 <= lo <= full_lo <= full_hi <= hi <= Skv. The expressions use Index("first") and Index("last") for the rows,
Index b and h, sizes, scalars, and tensors that the mask reads at positions free of i and j (of j, `by_row`). Both
intervals are safe, neither is promised to be the tightest: what the analysis does not understand makes visit everything
and full nothing.

Understood are conjunctions, disjunctions, negations and `where` of: comparisons that are linear in i and j with
coefficient ±1 (or 0) for j; conditions without i and j. Integer terms are taken not to wrap around: run-time scalars
lie within ±2^61.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from attncc import expr as ex

FIRST, LAST = ex.Index("first"), ex.Index("last")
_SKV = ex.Size("Skv")
_FLIPPED = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}


@dataclass(frozen=True)
class Bounds:
    """The two intervals of the module's contract, as int64 expressions."""

    lo: ex.Expr
    hi: ex.Expr
    full_lo: ex.Expr
    full_hi: ex.Expr


def key_bounds(mask: ex.Expr | None, *, loads: bool = True, by_row: bool = False) -> Bounds:
    """The keys that rows first … last may see, and those that all of them see (see the module's docstring).

    With `loads` false the bounds read no tensor: a condition on one (key lengths by batch, say) then bounds nothing.
    With `by_row` they are those of the one row Index("i"), of which any function may then be read: `j <= position[i]`.
    """
    if mask is None:
        return Bounds(_int(0), _SKV, _int(0), _SKV)
    known = _Analysis(loads, ("j",) if by_row else ("i", "j")).predicate(mask, True)
    lo = _clamp(known.some.lo, _int(0), _SKV)
    hi = _clamp(known.some.hi, lo, _SKV)
    full_lo = _clamp(known.all.lo, lo, hi)
    return Bounds(lo, hi, full_lo, _clamp(known.all.hi, full_lo, hi))


@dataclass(frozen=True)
class _Interval:
    """Keys lo <= j < hi; empty where hi <= lo."""

    lo: ex.Expr
    hi: ex.Expr


@dataclass(frozen=True)
class _Known:
    """What is known of a predicate: it is false outside `some` for all rows, and true inside `all` for all rows."""

    some: _Interval
    all: _Interval


@dataclass(frozen=True)
class _Linear:
    """i * coefficient_i + j * coefficient_j + rest, where `rest` is free of i and j."""

    i: int
    j: int
    rest: ex.Expr


def _int(value: int) -> ex.Expr:
    return ex.Const(value, "int64")


_EVERYTHING, _NOTHING = _Interval(_int(0), _SKV), _Interval(_int(0), _int(0))
_UNKNOWN = _Known(_EVERYTHING, _NOTHING)


class _Analysis:
    def __init__(self, loads: bool, axes: tuple[str, ...]) -> None:
        self.loads = loads
        self.axes = axes
        """The positions that the intervals are to hold for all of."""

    def varies(self, node: ex.Expr) -> bool:
        return any(isinstance(n, ex.Index) and n.axis in self.axes for n in node.walk())

    def predicate(self, node: ex.Expr, positive: bool) -> _Known:
        """What is known of `node`, or of its negation. Negations are pushed down to the comparisons."""
        if not self.varies(node):
            return self.constant(node, positive)
        match node:
            case ex.Op("not", (a,)) if a.dtype == "bool":
                return self.predicate(a, not positive)
            case ex.Op("cast", (a,)) if a.dtype == "bool":
                return self.predicate(a, positive)
            case ex.Op("and" | "or", (a, b)) if a.dtype == b.dtype == "bool":
                both = (node.name == "and") == positive
                return (_both if both else _either)(self.predicate(a, positive), self.predicate(b, positive))
            case ex.Op("where", (c, a, b)) if node.dtype == "bool":
                chosen = _both(self.predicate(c, True), self.predicate(a, positive))
                return _either(chosen, _both(self.predicate(c, False), self.predicate(b, positive)))
            case ex.Op(name, (a, b)) if name in _FLIPPED:
                return self.comparison(name if positive else _FLIPPED[name], a, b)
        return _UNKNOWN

    def constant(self, node: ex.Expr, positive: bool) -> _Known:
        """A condition that is the same for all i and j: every key or none."""
        if node.dtype != "bool" or not self.readable(node):
            return _UNKNOWN
        keys = _choose(node, _SKV, _int(0)) if positive else _choose(node, _int(0), _SKV)
        interval = _Interval(_int(0), keys)
        return _Known(interval, interval)

    def readable(self, node: ex.Expr) -> bool:
        return self.loads or not any(isinstance(n, ex.Load) for n in node.walk())

    def comparison(self, name: str, a: ex.Expr, b: ex.Expr) -> _Known:
        """`a name b` with both sides linear; a strict comparison of integers is a lax one, one off."""
        left, right = self.linear(a), self.linear(b)
        if left is None or right is None or abs(left.j - right.j) > 1:
            return _UNKNOWN
        match name:
            case "le":
                return _at_most_zero(_minus(left, right))
            case "lt":
                return _at_most_zero(_shifted(_minus(left, right), 1))
            case "ge":
                return _at_most_zero(_minus(right, left))
            case "gt":
                return _at_most_zero(_shifted(_minus(right, left), 1))
            case "eq":
                return _both(_at_most_zero(_minus(left, right)), _at_most_zero(_minus(right, left)))
        return _UNKNOWN

    def linear(self, node: ex.Expr) -> _Linear | None:
        """`node` as a linear form in i and j, or None."""
        if node.dtype not in ex.INTEGERS or not self.readable(node):
            return None
        if not self.varies(node):
            return _Linear(0, 0, _small(node))
        match node:
            case ex.Index("i"):
                return _Linear(1, 0, _int(0))
            case ex.Index("j"):
                return _Linear(0, 1, _int(0))
            case ex.Op("cast", (ex.Index("i" | "j") as a,)) if node.dtype == "int32":
                return self.linear(a)  # positions are below 2^31
            case ex.Op("cast", (a,)) if node.dtype == "int64":
                return self.linear(a)
        if not isinstance(node, ex.Op) or node.dtype != "int64":  # narrower arithmetic may wrap around
            return None
        match node.name, [self.linear(a) for a in node.operands]:
            case "add", (_Linear() as left, _Linear() as right):
                return _Linear(left.i + right.i, left.j + right.j, _add(left.rest, right.rest))
            case "sub", (_Linear() as left, _Linear() as right):
                return _minus(left, right)
            case "neg", (_Linear() as left,):
                return _minus(_Linear(0, 0, _int(0)), left)
        return None


def _minus(a: _Linear, b: _Linear) -> _Linear:
    return _Linear(a.i - b.i, a.j - b.j, _sub(a.rest, b.rest))


def _shifted(a: _Linear, by: int) -> _Linear:
    return _Linear(a.i, a.j, _add(a.rest, _int(by)))


def _at_most_zero(form: _Linear) -> _Known:
    """form <= 0. With e(i) = form without j, that is j <= -e(i), j >= e(i) or e(i) <= 0, as the sign of j says."""
    least, most = (FIRST, LAST) if form.i >= 0 else (LAST, FIRST)
    low = _add(_times(form.i, least), form.rest)  # the least e(i) of all rows
    high = _add(_times(form.i, most), form.rest)
    if form.j > 0:
        return _Known(_Interval(_int(0), _sub(_int(1), low)), _Interval(_int(0), _sub(_int(1), high)))
    if form.j < 0:
        return _Known(_Interval(low, _SKV), _Interval(high, _SKV))

    def keys(e: ex.Expr) -> _Interval:
        return _Interval(_int(0), _choose(ex.op("le", e, _int(0)), _SKV, _int(0)))

    return _Known(keys(low), keys(high))


def _both(a: _Known, b: _Known) -> _Known:
    return _Known(_intersection(a.some, b.some), _intersection(a.all, b.all))


def _either(a: _Known, b: _Known) -> _Known:
    return _Known(_hull(a.some, b.some), _joined(a.all, b.all))


def _intersection(a: _Interval, b: _Interval) -> _Interval:
    return _Interval(_max(a.lo, b.lo), _min(a.hi, b.hi))


def _hull(a: _Interval, b: _Interval) -> _Interval:
    """An interval that holds both (an empty one may widen it, which is safe: it is only used for `some`)."""
    if _NOTHING in (a, b):
        return b if a == _NOTHING else a
    return _Interval(_min(a.lo, b.lo), _max(a.hi, b.hi))


def _joined(a: _Interval, b: _Interval) -> _Interval:
    """The union where the intervals overlap or touch, else the longer of the two."""
    if _NOTHING in (a, b):
        return b if a == _NOTHING else a
    touch = ex.op("le", _max(a.lo, b.lo), _min(a.hi, b.hi))
    longer = ex.op("ge", _sub(a.hi, a.lo), _sub(b.hi, b.lo))
    lo = _choose(touch, _min(a.lo, b.lo), _choose(longer, a.lo, b.lo))
    return _Interval(lo, _choose(touch, _max(a.hi, b.hi), _choose(longer, a.hi, b.hi)))


def _small(node: ex.Expr) -> ex.Expr:
    """`node` in int64. What data say is brought within ±2^61, where it compares to positions as it did: a sum that the
    analysis makes would otherwise wrap around for the largest integer, which stands for infinity in some programs."""
    if node.dtype != "int64":
        return ex.op("cast", node, dtype="int64")
    data = any(isinstance(n, ex.Load) for n in node.walk())
    return _clamp(node, _int(-(2**61)), _int(2**61)) if data else node


def _clamp(x: ex.Expr, low: ex.Expr, high: ex.Expr) -> ex.Expr:
    """x brought into [low, high], given low <= high."""
    return _min(_max(x, low), high)


def _folded(name: str, a: ex.Expr, b: ex.Expr, value: Callable[[int, int], int]) -> ex.Expr:
    if isinstance(a, ex.Const) and isinstance(b, ex.Const):
        return _int(value(int(a.value), int(b.value)))
    return ex.op(name, a, b)


def _add(a: ex.Expr, b: ex.Expr) -> ex.Expr:
    if a == _int(0):
        return b
    return a if b == _int(0) else _folded("add", a, b, int.__add__)


def _sub(a: ex.Expr, b: ex.Expr) -> ex.Expr:
    if a == b:
        return _int(0)
    return a if b == _int(0) else _folded("sub", a, b, int.__sub__)


def _times(factor: int, x: ex.Expr) -> ex.Expr:
    if factor == 0:
        return _int(0)
    return x if factor == 1 else ex.op("mul", _int(factor), x)


def _max(a: ex.Expr, b: ex.Expr) -> ex.Expr:
    """The larger, given that 0 <= Skv."""
    if a == b or (a == _int(0) and b == _SKV):
        return b
    if a == _SKV and b == _int(0):
        return a
    return _folded("max", a, b, max)


def _min(a: ex.Expr, b: ex.Expr) -> ex.Expr:
    if a == b or (b == _int(0) and a == _SKV):
        return b
    if b == _SKV and a == _int(0):
        return a
    return _folded("min", a, b, min)


def _choose(condition: ex.Expr, a: ex.Expr, b: ex.Expr) -> ex.Expr:
    if a == b:
        return a
    if isinstance(condition, ex.Const):
        return a if condition.value else b
    return ex.op("where", condition, a, b)
