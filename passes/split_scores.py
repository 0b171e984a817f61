"""Sums of two products of queries and keys as one, over columns side by side (nope and rope; absorbed latents).

    %a = contract{h, i, j | c} %q[h, i, c] * %k[j, c];  %b = contract{h, i, j | r} %p[h, i, r] * %l[j, r]
    x = (a + b) * scale      →      %o.q = concat %q, %p;  %o.k = concat %k, %l;  one product over c + r columns

Joining copies O(S·D); where one product has another factor, its queries are multiplied by the ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.expr import op
from attncc.passes.roles import axes_of
from attncc.passes.score_product import ScoreProduct
from attncc.symbolic import Dim, product, reduce

_Factor = tuple[float, ex.Expr | None]
"""A number, and a further factor that does not move."""


def merge_split_scores(
    graph: ir.Graph, contract: ir.Contract, x: ex.Expr, products: Sequence[ScoreProduct]
) -> tuple[ex.Expr, ScoreProduct, list[ir.Node]] | None:
    """x with its products as one, that product, and the nodes to make; None where they do not add up to one."""
    plain = [p for p in products if p.weight is None and p.element is None]
    if not 2 <= len(plain) == len(products) <= 3:
        return None
    loads = {p.load: p for p in plain}
    found = _sum(x, loads)
    if found is None or not _alike(graph, plain):
        return None
    node, factors, rest = found
    first = factors[plain[0].load]
    if any(f[1] != first[1] for f in factors.values()) or first[0] == 0:
        return None
    ratios = [factors[p.load][0] / first[0] for p in plain]
    score, made = _joined(graph, contract, plain, ratios)
    whole: ex.Expr = score.load
    if first[0] != 1:
        whole = op("mul", whole, ex.Const(first[0], whole.dtype))
    if first[1] is not None:
        whole = op("mul", whole, first[1])
    for term in rest:
        whole = op("add", whole, term)
    return ex.substitute(x, lambda part: whole if part == node else None), score, made


def _sum(
    x: ex.Expr, loads: dict[ex.Load, ScoreProduct]
) -> tuple[ex.Expr, dict[ex.Load, _Factor], list[ex.Expr]] | None:
    """The one sum in which all the products are terms, their factors, and its other terms."""
    for node in x.walk():
        if not isinstance(node, ex.Op) or node.name not in ("add", "sub"):
            continue
        factors: dict[ex.Load, _Factor] = {}
        rest: list[ex.Expr] = []
        for term, factor in _terms(node, (1.0, None)):
            inside = [leaf for leaf in term.walk() if leaf in loads]
            if isinstance(term, ex.Load) and term in loads and term not in factors:
                factors[term] = factor
            elif inside:
                break
            else:
                rest.append(_scaled(term, factor))
        else:
            if len(factors) == len(loads) and sum(1 for leaf in x.walk() if leaf in loads) == len(loads):
                return node, factors, rest
    return None


def _terms(expr: ex.Expr, factor: _Factor) -> list[tuple[ex.Expr, _Factor]]:
    number, further = factor
    match expr:
        case ex.Op("add" | "sub" as name, (a, b)):
            return [*_terms(a, factor), *_terms(b, (number if name == "add" else -number, further))]
        case ex.Op("mul", (a, ex.Const(value))) | ex.Op("mul", (ex.Const(value), a)):
            return _terms(a, (number * float(value), further))
        case ex.Op("div", (a, ex.Const(value))) if value != 0:
            return _terms(a, (number / float(value), further))
        case ex.Op("mul", (a, ex.Load(_, ()) as still)) | ex.Op("mul", (ex.Load(_, ()) as still, a)):
            return _terms(a, (number, still if further is None else op("mul", further, still)))
    return [(expr, factor)]


def _scaled(term: ex.Expr, factor: _Factor) -> ex.Expr:
    number, further = factor
    term = term if number == 1 else op("mul", term, ex.Const(number, term.dtype))
    return term if further is None else op("mul", term, further)


def _alike(graph: ir.Graph, products: list[ScoreProduct]) -> bool:
    """Whether queries can stand beside queries and keys beside keys: no keys move along the queries, dtypes agree."""
    rows = [axes_of(p.q) - axes_of(p.k) - set(p.inner) for p in products]
    separate = bool(set.intersection(*rows))
    dtypes = {graph.nodes[a.value].dtype for p in products for a in (p.q, p.k)}
    return separate and len(dtypes) == 1 and all(len(p.inner) == 1 for p in products)


def _joined(
    graph: ir.Graph, contract: ir.Contract, products: list[ScoreProduct], ratios: list[float]
) -> tuple[ScoreProduct, list[ir.Node]]:
    sizes: dict[str, Dim] = dict(contract.sizes)
    (column,) = ir.fresh_axes(sizes, 1)
    made: list[ir.Node] = []
    length: Dim = 0
    for p in products:
        length = reduce(length + product(p.sizes[a] for a in p.inner))
    sides: list[ir.Access] = []
    for side, numbers in (("q", ratios), ("k", [1.0] * len(products))):
        reads = [p.q if side == "q" else p.k for p in products]
        axes = [a for a in sizes if any(a in axes_of(read) for read in reads)]
        name, parts = f"{contract.name}.{side}", []
        for number, (p, read, ratio) in enumerate(zip(products, reads, numbers, strict=True)):
            space = (*((a, sizes[a]) for a in axes), (p.inner[0], p.sizes[p.inner[0]]))
            dims = tuple((a,) for a, _ in space)
            part = f"{name}.{number}"
            parts.append(part)
            dtype = graph.nodes[read.value].dtype
            body = op("mul", ex.Arg(0, dtype), ex.Const(ratio, dtype))
            made.append(
                ir.View(part, dtype, space, dims, read)
                if ratio == 1
                else ir.Map(part, dtype, space, dims, (read,), body)
            )
        whole = (*((a, sizes[a]) for a in axes), (column, length))
        made.append(ir.Concat(name, made[-1].dtype, whole, tuple((a,) for a, _ in whole), tuple(parts), len(axes)))
        sides.append(ir.Access(name, tuple(ix.axis(a) for a, _ in whole)))
    first = products[0]
    load = replace(first.load, tensor=f"{contract.name}.scores")
    sizes[column] = length
    return ScoreProduct(load, sides[0], sides[1], None, sizes, (column,), (column,)), made
