"""Take sums and factors of the row out of weighted sums: each softmax gets a product with V of its own.

    %w = map{i, j} %p[i, j], %r[i, j], %l[i]: _0 - _1 * _2     (differential attention)
    %o = contract{i, e | j} %w[i, j] * %v[j, e]
    →  %o.0 = contract{i, e | j} %p[i, j] * %v[j, e];  %o.1 = contract{i, e | j} %r[i, j] * %v[j, e]
       %o = map{i, e} %o.0[i, e], %o.1[i, e], %l[i]: _0 - _1 * _2

Only of weights that are made of exponentials and of sums over them; factors must not move along the summed axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.divide_first import exponentials, sums
from attncc.passes.fold_views import bind
from attncc.passes.roles import axes_of
from attncc.symbolic import Dim

_Reads = list[ir.Access]


@dataclass(frozen=True)
class _Term:
    """One part of the weights: `sign * factor * weights`, the factor's arguments numbered in a common list."""

    sign: str
    weights: ir.Access
    factor: ex.Expr | None = None


def distribute(graph: ir.Graph) -> ir.Graph:
    """The graph with every such product as products of its parts."""
    nodes: dict[str, ir.Node] = {}
    for node in graph:
        parts = _parts(node, nodes) if isinstance(node, ir.Contract) and len(node.operands) == 2 else None
        for made in parts or (node,):
            nodes[made.name] = made
    return graph.rewritten(nodes, "distribute").without_dead()


def _parts(contract: ir.Contract, nodes: Mapping[str, ir.Node]) -> tuple[ir.Node, ...] | None:
    for number, access in enumerate(contract.operands):
        node = nodes[access.value]
        if not isinstance(node, ir.Map) or not _splits(node.body) or not _is_softmax(access.value, nodes):
            continue
        reads: _Reads = []
        try:
            terms = _terms(access, contract.sizes, set(contract.reduced), nodes, reads)
        except ix.NeedsSplit:
            continue
        if terms and (len(terms) > 1 or terms[0].factor is not None) and len(terms) <= 4:
            return _products(contract, number, terms, reads)
    return None


def _splits(body: ex.Expr) -> bool:
    return isinstance(body, ex.Op) and body.name in ("add", "sub", "mul", "neg", "cast")


def _is_softmax(name: str, nodes: Mapping[str, ir.Node]) -> bool:
    return bool(sums(name, nodes) & exponentials(name, nodes))


def _terms(
    access: ir.Access, sizes: Mapping[str, Dim], keys: set[str], nodes: Mapping[str, ir.Node], reads: _Reads
) -> list[_Term]:
    """The terms of a value; it is one itself where it falls apart no further. `reads` receives what factors read."""
    node = nodes[access.value]
    if not isinstance(node, ir.Map) or not _splits(node.body):
        return [_Term("add", access)]
    bound = bind(access, node, sizes)
    if bound is None:
        return [_Term("add", access)]
    operands = [a.substitute(bound) for a in node.operands]

    def of(part: ex.Expr) -> list[_Term] | None:
        match part:
            case ex.Arg(number) if _is_softmax(operands[number].value, nodes):
                return _terms(operands[number], sizes, keys, nodes, reads)
            case ex.Op("cast", (inner,), dtype) if dtype in ex.FLOATS and isinstance(inner, ex.Arg):
                return None  # of another dtype: a value of its own
            case ex.Op("neg", (inner,)):
                return _negative(of(inner))
            case ex.Op("add" | "sub" as name, (a, b)):
                left, right = of(a), of(b)
                if left is None or right is None:
                    return None
                return left + (right if name == "add" else _negative(right) or [])
            case ex.Op("mul", (a, b)):
                for inner, factor in ((a, b), (b, a)):
                    terms = of(inner)
                    moved = _factor(factor, operands, keys, reads) if terms is not None else None
                    if terms is not None and moved is not None:
                        return [replace(t, factor=_times(t.factor, moved)) for t in terms]
        return None

    return of(node.body) or [_Term("add", access)]


def _negative(terms: list[_Term] | None) -> list[_Term] | None:
    if terms is None:
        return None
    return [replace(t, sign="sub" if t.sign == "add" else "add") for t in terms]


def _times(a: ex.Expr | None, b: ex.Expr) -> ex.Expr:
    return b if a is None else ex.op("mul", a, b)


def _factor(factor: ex.Expr, operands: Sequence[ir.Access], keys: set[str], reads: _Reads) -> ex.Expr | None:
    """A factor over the common arguments; None where it moves along the keys."""
    leaves = [leaf for leaf in factor.walk() if not isinstance(leaf, ex.Op | ex.Const)]
    if any(not isinstance(leaf, ex.Arg) or axes_of(operands[leaf.number]) & keys for leaf in leaves):
        return None

    def numbered(leaf: ex.Expr) -> ex.Expr | None:
        if not isinstance(leaf, ex.Arg):
            return None
        read = operands[leaf.number]
        if read not in reads:
            reads.append(read)
        return ex.Arg(reads.index(read), leaf.dtype)

    return ex.substitute(factor, numbered)


def _products(
    contract: ir.Contract, number: int, terms: list[_Term], reads: Sequence[ir.Access]
) -> tuple[ir.Node, ...]:
    """A product for each term, and the Map that joins them."""
    made: list[ir.Node] = []
    whole = tuple(ix.merged(d, contract.sizes) for d in contract.dims)
    for place, term in enumerate(terms):
        operands = tuple(term.weights if n == number else a for n, a in enumerate(contract.operands))
        made.append(replace(contract, name=f"{contract.name}.{place}", operands=operands))
    body: ex.Expr = ex.Const(0.0, contract.dtype)
    for place, term in enumerate(terms):
        part: ex.Expr = ex.Arg(len(reads) + place, contract.dtype)
        part = part if term.factor is None else ex.op("mul", part, term.factor, dtype=contract.dtype)
        first = part if term.sign == "add" else ex.op("neg", part)
        body = ex.op(term.sign, body, part) if place else first
    kept = {a for d in contract.dims for a in d}
    axes = tuple((a, s) for a, s in contract.axes if a in kept)
    operands = (*reads, *(ir.Access(node.name, whole) for node in made))
    return (
        *made,
        ir.Map(contract.name, contract.dtype, axes, contract.dims, operands, body or ex.Const(0.0, "float32")),
    )
