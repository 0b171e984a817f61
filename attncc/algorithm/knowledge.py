"""What the data says of whole blocks of a mask: facts that a kernel collects cheaply, and what follows from them.

Where a mask reads tensors (padding, documents, a cache's positions, a mask that is a tensor), its form alone bounds
nothing. But a tile of queries can ask, of each block of keys, whether some pair of them sees each other, and whether
some pair does not, without looking at every pair:

    padding[b, j] & (j <= position[i])      the first of the block's keys alone, the second of least and largest values
    document[i] == document[j]              can only hold where the ranges of both sides overlap
    mask[b, h, i, j]                        of every pair, until both answers have been seen

Answers err on one side: a block may be visited in vain, never left out wrongly. A bias added to the score hides keys in
the same way, where it is -inf, or so low (finfo.min) that a row which sees anything else gives them no weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from attncc import expr as ex
from attncc.algorithm.visibility import biases, not_hiding
from attncc.spec import AttentionSpec

TRUE_SEEN, FALSE_SEEN = 1, 2

_FLIPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
_YES: ex.Expr = ex.Const(True, "bool")
_NO: ex.Expr = ex.Const(False, "bool")


@dataclass(frozen=True)
class Fact:
    """A number to collect over the rows of a tile, the keys of a block, or all pairs of them."""

    name: str
    """The `Index` that stands for it in conclusions."""
    over: Literal["rows", "keys", "pairs"]
    kind: Literal["seen", "least", "most"]
    """"seen": TRUE_SEEN, FALSE_SEEN or their sum, of a condition; else the least or largest value of an integer."""
    value: ex.Expr
    """In b, h, and i or j or both."""
    enough: int = TRUE_SEEN | FALSE_SEEN
    """What, once seen, makes further looking useless."""


@dataclass(frozen=True)
class Knowledge:
    """Facts, and conclusions from them: conditions in the facts, Index "first_key" and Index "last_key" of the block.

    May be true where it is not so, never the other way round.
    """

    facts: tuple[Fact, ...]
    visible: ex.Expr
    """Some key of the block may count for some row."""
    masked: ex.Expr
    """The mask may hide some key of the block from some row."""
    lossy: ex.Expr
    """Keys of a block that is not `visible` may count for a row that sees no other: under a finite fill or bias."""


def knowledge(spec: AttentionSpec) -> Knowledge | None:
    """What is to be found out before the keys of `spec` are read; None where no tensor can hide keys."""
    collector = _Collector()
    seen = collector.truth(spec.mask) if spec.mask is not None else _Truth(_YES, _NO)
    hiding = biases(spec)
    if not hiding and not any(_reads(fact.value) for fact in collector.facts):
        return None
    counts = [collector.fact("seen", not_hiding(bias), TRUE_SEEN) for bias in hiding]
    lossless = []
    if spec.mask is None or not math.isfinite(spec.fill):
        surely = [collector.fact("seen", infinite(bias), FALSE_SEEN) for bias in hiding]
        lossless = [_not(seen.may), *(_not(_has(fact, FALSE_SEEN)) for fact in surely)]
    safe, visible = _NO, functools.reduce(_and, (_has(fact, TRUE_SEEN) for fact in counts), seen.may)
    for reason in lossless:
        safe = _or(safe, reason)
    lossy = _not(safe) if spec.normalizer == "softmax" else _NO
    return Knowledge(tuple(collector.facts), visible, seen.may_not, lossy)


@dataclass(frozen=True)
class _Truth:
    """Whether a condition may be true, and may be false, for some pair of a block."""

    may: ex.Expr
    may_not: ex.Expr


_UNKNOWN = _Truth(_YES, _YES)


@dataclass
class _Collector:
    """Gathers the facts that conclusions need, each once."""

    facts: list[Fact] = field(default_factory=list)

    def truth(self, node: ex.Expr) -> _Truth:
        """What is known of a condition over a block."""
        if not {"i", "j"} <= _axes(node):
            return self.seen(node)
        match node:
            case ex.Op("not", (a,)) if a.dtype == "bool":
                return _negated(self.truth(a))
            case ex.Op("cast", (a,)) if node.dtype == a.dtype == "bool":
                return self.truth(a)
            case ex.Op("and", (a, b)) if a.dtype == b.dtype == "bool":
                return _both(self.truth(a), self.truth(b))
            case ex.Op("or", (a, b)) if a.dtype == b.dtype == "bool":
                return _either(self.truth(a), self.truth(b))
            case ex.Op("where", (c, a, b)) if node.dtype == a.dtype == b.dtype == "bool":
                chosen = self.truth(c)
                return _either(_both(chosen, self.truth(a)), _both(_negated(chosen), self.truth(b)))
            case ex.Op(name, (a, b)) if name in _FLIPPED and a.dtype in ex.INTEGERS and b.dtype in ex.INTEGERS:
                sides = _sides(name, a, b)
                if sides is not None:
                    return self.order(*sides)
        return self.seen(node) if _reads_by_position(node) else _UNKNOWN

    def seen(self, condition: ex.Expr) -> _Truth:
        fact = self.fact("seen", condition)
        return _Truth(_has(fact, TRUE_SEEN), _has(fact, FALSE_SEEN))

    def order(self, name: str, rows: ex.Expr, keys: ex.Expr) -> _Truth:
        """`rows name keys`, where only rows depends on i, and only keys on j."""
        if name in ("ge", "gt"):  # a > b unless a <= b
            return _negated(self.order({"ge": "lt", "gt": "le"}[name], rows, keys))
        low, high = self.range(rows)
        first, last = self.range(keys)
        match name:
            case "lt":
                return _Truth(ex.op("lt", low, last), ex.op("ge", high, first))
            case "le":
                return _Truth(ex.op("le", low, last), ex.op("gt", high, first))
        equal = _Truth(
            _and(ex.op("le", low, last), ex.op("le", first, high)),
            _or(ex.op("ne", low, last), ex.op("ne", high, first)),
        )
        return equal if name == "eq" else _negated(equal)

    def range(self, value: ex.Expr) -> tuple[ex.Expr, ex.Expr]:
        """Least and largest value of an integer over the rows or keys."""
        if value == ex.Index("j"):
            return ex.Index("first_key"), ex.Index("last_key")
        return self.fact("least", value), self.fact("most", value)

    def fact(self, kind: Literal["seen", "least", "most"], value: ex.Expr, enough: int = 3) -> ex.Expr:
        axes = _axes(value)
        over: Literal["rows", "keys", "pairs"] = "pairs"
        if not {"i", "j"} <= axes:
            over = "keys" if "j" in axes else "rows"
        for known in self.facts:
            if (known.kind, known.value, known.enough) == (kind, value, enough):
                return ex.Index(known.name)
        self.facts.append(Fact(f"fact{len(self.facts)}", over, kind, value, enough))
        return ex.Index(self.facts[-1].name)


def _sides(name: str, a: ex.Expr, b: ex.Expr) -> tuple[str, ex.Expr, ex.Expr] | None:
    """`a name b` as another comparison of r and k, where r is free of j and k of i; None where a term depends on both.

    Only sums in int64 are taken apart: positions do not wrap around in it.
    """
    rows: list[tuple[int, ex.Expr]] = []
    keys: list[tuple[int, ex.Expr]] = []
    for sign, term in (*_summands(a, 1), *_summands(b, -1)):
        axes = _axes(term)
        if {"i", "j"} <= axes:
            return None
        if "j" in axes:
            keys.append((-sign, term))
        else:
            rows.append((sign, term))
    if all(sign < 0 for sign, _ in keys):
        return _FLIPPED[name], _sum([(-sign, term) for sign, term in rows]), _sum([(1, term) for _, term in keys])
    return name, _sum(rows), _sum(keys)


def _summands(node: ex.Expr, sign: int) -> Iterator[tuple[int, ex.Expr]]:
    match node:
        case ex.Op("add" | "sub", (a, b)) if node.dtype == a.dtype == b.dtype == "int64":
            yield from _summands(a, sign)
            yield from _summands(b, sign if node.name == "add" else -sign)
        case ex.Op("neg", (a,)) if node.dtype == a.dtype == "int64":
            yield from _summands(a, -sign)
        case _:
            yield sign, node


def _sum(terms: list[tuple[int, ex.Expr]]) -> ex.Expr:
    total: ex.Expr | None = None
    terms = [each for each in terms if each[1] != ex.Const(0, "int64")]
    for sign, term in sorted(terms, key=lambda each: -each[0]):  # a positive one first
        wide = term if term.dtype == "int64" else ex.op("cast", term, dtype="int64")
        if total is None:
            total = wide if sign > 0 else ex.op("neg", wide)
        else:
            total = ex.op("add" if sign > 0 else "sub", total, wide)
    return ex.Const(0, "int64") if total is None else total


def infinite(bias: ex.Expr) -> ex.Expr:
    """Whether `bias` hides a key from every row, whatever else it sees."""
    return ex.op("eq", bias, ex.Const(-math.inf, "float32"))


def _reads(node: ex.Expr) -> bool:
    """Whether a tensor is read at a position that depends on the row or key."""
    return any(isinstance(part, ex.Load) and _axes(part) & {"i", "j"} for part in node.walk())


def _reads_by_position(node: ex.Expr) -> bool:
    """Whether tensors are read by row or by key, and none by something of both (a table of distances)."""
    loads = [part for part in node.walk() if isinstance(part, ex.Load)]
    return _reads(node) and not any({"i", "j"} <= _axes(at) for load in loads for at in load.index)


def _axes(node: ex.Expr) -> set[str]:
    return {part.axis for part in node.walk() if isinstance(part, ex.Index)}


def _has(fact: ex.Expr, bit: int) -> ex.Expr:
    """Whether a fact of kind "seen" includes this observation."""
    return ex.op("ne", ex.op("and", fact, ex.Const(bit, "int64")), ex.Const(0, "int64"))


def _both(a: _Truth, b: _Truth) -> _Truth:
    return _Truth(_and(a.may, b.may), _or(a.may_not, b.may_not))


def _either(a: _Truth, b: _Truth) -> _Truth:
    return _Truth(_or(a.may, b.may), _and(a.may_not, b.may_not))


def _negated(a: _Truth) -> _Truth:
    return _Truth(a.may_not, a.may)


def _and(a: ex.Expr, b: ex.Expr) -> ex.Expr:
    if _NO in (a, b):
        return _NO
    if _YES in (a, b):
        return b if a == _YES else a
    return ex.op("and", a, b, dtype="bool")


def _or(a: ex.Expr, b: ex.Expr) -> ex.Expr:
    if _YES in (a, b):
        return _YES
    if _NO in (a, b):
        return b if a == _NO else a
    return ex.op("or", a, b, dtype="bool")


def _not(a: ex.Expr) -> ex.Expr:
    if isinstance(a, ex.Const):
        return _NO if a.value else _YES
    return a.operands[0] if isinstance(a, ex.Op) and a.name == "not" else ex.op("not", a)
