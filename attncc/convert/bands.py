"""An attention over a band of keys in its plain form, whatever layout it was written in (see `attncc.bands`).

%o.scores = contract{b, h, s, t | d} %q * %k
%o.masked = map where(t - s <= after and s - t <= before, f(%o.scores, …), -inf)
softmax over t;  %o = contract{…, e | t} weights * %v;  rows that the program sets to 0 are set so behind it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.bands.terms import KEY, ROW, Band, Dot, Number, Read, Term, axes_of, leaves
from attncc.convert.attention import exp_parts
from attncc.convert.context import Context, Unsupported, as_dtype, broadcast, dtype_name, result, space
from attncc.convert.contractions import in_dtype
from attncc.expr import op
from attncc.symbolic import Dim, product


def plain(c: Context, band: Band) -> ir.Node:
    """The attention as products of all queries and keys, of which the band is seen."""
    return _Plain(c, band).node()


@dataclass
class _Plain:
    c: Context
    band: Band
    names: dict[str, str] = field(init=False)
    """The IR's axis for every axis of the band."""
    sizes: dict[str, Dim] = field(init=False)

    def __post_init__(self) -> None:
        band = self.band
        self.sizes = {axis.name: axis.size for part in band.dims for axis in part}
        for term in (band.score, band.value, *(condition for condition, _ in band.zeroed)):
            for leaf in leaves(term):
                self.sizes = {**leaf.sizes, **self.sizes}
        self.sizes |= {ROW: band.rows, KEY: band.keys}
        self.names = dict(zip(self.sizes, ir.fresh_axes((), len(self.sizes)), strict=True))

    def node(self) -> ir.Node:
        """The result, under the name that it has in the program."""
        band, name = self.band, self.band.node.name
        axes = [a.name for part in band.dims for a in part]
        dims = tuple(tuple(self.names[a.name] for a in part) for part in band.dims)
        at = {ROW: ix.total([ix.scaled(ix.axis(self.names[part]), stride) for part, stride in band.strides])}
        weights, order = self.weights([a for a in axes if a not in dict(band.strides)])
        places = tuple(at[ROW] if a == ROW else ix.axis(self.names[a]) for a in order)
        inner = f"{name}.attention" if band.zeroed else name
        made: ir.Node = ir.Contract(
            inner, _dtype(band.node), self.space([*axes, KEY]), dims,
            (ir.Access(weights.name, places), self.access(band.value, at)),
        )  # fmt: skip
        if not band.zeroed:
            return self.c.add(made)
        self.c.add(made)
        operands = [ir.Access(inner, tuple(ix.merged(d, made.sizes) for d in dims))]
        body: ex.Expr = ex.Arg(0, made.dtype)
        nothing = ex.Const(0.0, made.dtype)
        for condition, where in band.zeroed:
            test = as_dtype(self.expression(condition, operands, at), "bool")
            body = op("where", test, *((nothing, body) if where else (body, nothing)))
        return self.c.add(ir.Map(name, made.dtype, self.space(axes), dims, tuple(operands), body))

    def weights(self, carried: list[str]) -> tuple[ir.Node, list[str]]:
        """The softmax of the scores that are seen, and the axes of its dimensions."""
        band, name = self.band, self.band.node.name
        order = [a for a in carried if a in axes_of(band.score)] + [ROW] * (band.rows > 1) + [KEY]
        source: fx.Node = band.softmax.args[0]
        operands: list[ir.Access] = []
        body = as_dtype(self.expression(band.score, operands, {}), _dtype(source))
        seen = self.seen()
        if seen is not None:
            body = op("where", seen, body, ex.Const(-math.inf, body.dtype))
        dims = tuple((self.names[a],) for a in order)
        masked = ir.Map(f"{name}.masked", _dtype(source), self.space(order), dims, tuple(operands), body)
        _check(masked)
        scores = in_dtype(self.c, f"{name}.input", self.c.add(masked), _dtype(band.softmax))
        _, raised, summed = exp_parts(self.c, f"{name}.softmax", scores, len(order) - 1)
        axes, local = space(scores.shape)
        reads = (broadcast(raised, local), broadcast(summed, local))
        share = op("div", ex.Arg(0, scores.dtype), ex.Arg(1, scores.dtype))
        weights = self.c.add(ir.Map(f"{name}.weights", scores.dtype, axes, local, reads, share))
        for number, cast in enumerate(band.casts):
            weights = in_dtype(self.c, f"{name}.cast{number}", weights, _dtype(cast))
        return weights, order

    def seen(self) -> ex.Expr | None:
        """Whether a key is in the band of a row; None where all are."""
        row, key = ex.Index(self.names[ROW]), ex.Index(self.names[KEY])
        found: ex.Expr | None = None
        for distance, limit in ((op("sub", key, row), self.band.after), (op("sub", row, key), self.band.before)):
            if limit is not None:
                test = op("le", distance, ex.Const(limit, "int64"))
                found = test if found is None else op("and", found, test)
        return found

    def space(self, axes: list[str]) -> tuple[tuple[str, Dim], ...]:
        """Axes of the IR with their sizes."""
        return tuple((self.names[a], self.sizes[a]) for a in axes)

    def access(self, read: Read, at: Mapping[str, ix.Linear]) -> ir.Access:
        """A read of a value; `at` are the indices of axes that the reading node does not have."""
        value = self.c.value(read.node)
        index: list[ix.Linear] = []
        for part in read.index:
            terms: list[ix.Linear] = []
            stride: Dim = 1
            for place in reversed(part):
                position = at.get(place.name) or (ix.axis(self.names[place.name]) if place.name else None)
                terms.append(ix.scaled(ix.constant(place.at) if position is None else position, stride))
                stride = product((stride, place.size))
            index.append(ix.total(terms))
        return ir.Access(value.name, tuple(index))

    def expression(self, term: Term, operands: list[ir.Access], at: Mapping[str, ix.Linear]) -> ex.Expr:
        """A term as the body of a Map; what it reads is added to the operands."""
        match term:
            case Number(value):
                return ex.Const(value, "float64")
            case Read(node):
                operands.append(self.access(term, at))
                return ex.Arg(len(operands) - 1, self.c.value(node).dtype)
            case Dot():
                operands.append(self.dot(term, f"{self.band.node.name}.scores{len(operands)}"))
                return ex.Arg(len(operands) - 1, _dtype(term.node))
        dtype = _dtype(term.node)
        parts = [self.expression(t, operands, at) for t in term.operands]
        if term.kind == "cast":
            return as_dtype(parts[0], dtype)
        test = [as_dtype(parts.pop(0), "bool")] if term.kind == "where" else []
        return op(term.kind, *test, *(as_dtype(p, dtype) for p in parts))

    def dot(self, term: Dot, name: str) -> ir.Access:
        """A read of a product of rows."""
        own = [a for a in self.sizes if a in axes_of(term)]
        dims = tuple((self.names[a],) for a in own)
        reads = (self.access(term.left, {}), self.access(term.right, {}))
        if any(self.c.nodes[read.value].dtype != _dtype(term.node) for read in reads):
            raise Unsupported("a product of unlike dtypes")
        summed = [a for a in self.sizes if a in term.summed]
        made = self.c.add(ir.Contract(name, _dtype(term.node), self.space([*own, *summed]), dims, reads))
        return ir.Access(made.name, tuple(ix.axis(self.names[a]) for a in own))


def _check(masked: ir.Map) -> None:
    """Raises Unsupported where the scores have axes that the result has not."""
    if any(axis not in masked.sizes for read in masked.operands for i in read.index for axis in i.axes):
        raise Unsupported("scores have axes that the result has not")


def _dtype(node: fx.Node) -> str:
    fake: Tensor = result(node)
    return dtype_name(fake.dtype)
