"""Scores that are sums over d of more than a product: w · tanh(q + k), (q - k)², |q - k|.

%t = map{i, j, d} %q[i, d], %k[j, d]: tanh(_0 + _1)
%s = contract{i, j | d} %t[i, j, d] * %w[d]           element: tanh(q + k) * w[d]
"""

from __future__ import annotations

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.logform import uncast
from attncc.passes.read import Reader
from attncc.passes.refused import Refused
from attncc.passes.roles import axes_of
from attncc.symbolic import Dim

Parts = tuple[ir.Access, ir.Access, ir.Access | None, dict[str, Dim], tuple[str, ...], tuple[str, ...], ex.Expr | None]
"""q, k, W, the sizes of all axes, those of the head dimension of k and of q, the term under the sum."""


class _TermReader(Reader):
    """Reads the term under a sum: what does not move along queries and keys both is a tensor of its own."""

    def __init__(self, graph: ir.Graph, sizes: dict[str, Dim], rows: set[str], keys: set[str]) -> None:
        super().__init__(graph, sizes)
        self.rows, self.keys = rows, keys

    def _is_kept(self, access: ir.Access, node: ir.Map) -> bool:
        axes = axes_of(access)
        return node.dtype in ex.FLOATS and not (axes & self.rows and axes & self.keys)


def element_product(
    reader: Reader,
    contract: ir.Contract,
    node: ir.Node,
    load: ex.Load,
    bound: dict[str, ix.Linear],
    v: ir.Access,
) -> Parts | None:
    """The score that a sum over a Map of queries and keys is; None for sums of other things. Raises Refused."""
    keys = set(contract.reduced)
    access = reader.accesses[load]
    rows = axes_of(access) - keys - axes_of(v)
    if not node.reduced or not rows or not axes_of(access) & keys:
        return None
    fresh = ir.fresh_axes((*contract.sizes, *node.sizes), len(node.reduced))
    at = {**bound, **{a: ix.axis(f) for a, f in zip(node.reduced, fresh, strict=True)}}
    reads = [a.substitute(at) for a in node.accesses]
    if not any(
        isinstance(reader.graph.nodes[a.value], ir.Map) and axes_of(a) & rows and axes_of(a) & keys for a in reads
    ):
        return None
    if _is_plain(reads, rows, keys):
        return None
    sizes = {**contract.sizes, **{f: node.sizes[a] for a, f in zip(node.reduced, fresh, strict=True)}}
    terms = _TermReader(reader.graph, sizes, rows, keys)
    term, *others = (uncast(terms.read(a)) for a in reads)
    for other in others:
        term = ex.op("mul", term, other)
    queries = _moving(terms, term, rows, keys)
    key_loads = _moving(terms, term, keys, rows)
    if len(queries) != 1 or len(key_loads) != 1:
        raise Refused("the score is a sum over more than one tensor of queries and one of keys", node.name)
    q, k = terms.accesses[queries[0]], terms.accesses[key_loads[0]]
    if not set(fresh) <= axes_of(q) or not set(fresh) <= axes_of(k):
        raise Refused("queries and keys do not share the axis that the score sums over", node.name)
    leaves = {queries[0]: ex.Elem("q", queries[0].dtype), key_loads[0]: ex.Elem("k", key_loads[0].dtype)}
    element = ex.substitute(term, lambda leaf: leaves.get(leaf) if isinstance(leaf, ex.Load) else None)
    return q, k, None, sizes, fresh, fresh, element


def _is_plain(reads: list[ir.Access], rows: set[str], keys: set[str]) -> bool:
    """Whether one factor alone moves along the keys, and the other along rows that it does not: it has a head of its
    own for every query head while the values share theirs (Falcon), and is no mixture of queries and keys."""
    moving = [axes_of(a) for a in reads if axes_of(a) & keys]
    still = [axes_of(a) for a in reads if not axes_of(a) & keys]
    return len(moving) == len(still) == 1 and moving[0] & rows < still[0] & rows


def _moving(reader: Reader, term: ex.Expr, along: set[str], not_along: set[str]) -> list[ex.Load]:
    """The tensors of a term that move along some axes. Raises Refused for one that moves along others as well."""
    found: list[ex.Load] = []
    for leaf in dict.fromkeys(term.walk()):
        if isinstance(leaf, ex.Load) and leaf in reader.accesses and axes_of(reader.accesses[leaf]) & along:
            if axes_of(reader.accesses[leaf]) & not_along:
                raise Refused("a term of the score is a tensor of queries and keys both", leaf.tensor)
            found.append(leaf)
    return found
