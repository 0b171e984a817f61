"""What is read of an attention besides its result, and how the fused one can give it: weights, row maxima and sums.

    %p = softmax…, %o = contract %p * %v, return %o, %p      →      %o = attention …, %p = output weights of %o

A value between the score product and the weighted sum may have another reader only if that belongs to another attention
that is fused as well, or if the value is one that the operator gives (`AttentionSpec.outputs`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import networkx as nx

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.passes.refused import Refused
from attncc.spec import OUTPUTS
from attncc.symbolic import Dim, equal, product


@dataclass(frozen=True)
class Candidate:
    """An attention that takes the place of nodes of a graph, if nothing else needs them."""

    attention: ir.Attention
    scores: frozenset[str]
    """The products of queries and keys."""
    covers: frozenset[str]
    """The nodes from there on that it takes the place of, without the weighted sum itself."""
    known: Mapping[str, tuple[str, ir.Access]]
    """Nodes whose values the operator can give: the kind, and the read of the value over the attention's axes."""
    made: tuple[ir.Node, ...] = ()
    """Nodes that come with it: what it reads and nothing made before."""


def with_outputs(
    graph: ir.Graph, candidate: Candidate, others: Collection[str], given: Collection[str]
) -> list[ir.Node]:
    """The attention with what else is wanted of it.

    `others` are nodes that other attentions take the place of, `given` those whose values they give.

    Raises Refused where something reads a value that no kernel gives.
    """
    search = _Search(graph, candidate, others, given)
    search.run()
    attention = candidate.attention
    if not search.outputs:
        return [*candidate.made, attention]
    spec = attention.spec
    if spec is None:
        raise Refused("no spec", attention.name)
    kinds = {node.kind for node in search.outputs.values()}
    wide = any(n.kind == "weights" and n.dtype == "float32" for n in search.outputs.values())
    dtype = "float32" if wide and spec.dtype in ("bfloat16", "float16") else spec.dtype
    spec = replace(spec, outputs=tuple(o for o in OUTPUTS if o == "out" or o in kinds), dtype=dtype)
    reads = {r for node in (attention, *candidate.made) for r in node.reads if r in graph.nodes}
    before = {a for read in reads for a in (read, *nx.ancestors(graph.edges, read))}
    if before & set(search.outputs):
        raise Refused("queries, keys or values depend on the attention's own weights", attention.name)
    return [*candidate.made, replace(attention, spec=spec), *search.outputs.values()]


class _Search:
    """Follows every reader outside of the attention."""

    def __init__(self, graph: ir.Graph, candidate: Candidate, others: Collection[str], given: Collection[str]) -> None:
        self.graph, self.candidate, self.others, self.given = graph, candidate, others, given
        self.outputs: dict[str, ir.Output] = {}
        self.covers = set(candidate.covers)
        self.known = dict(candidate.known)
        self.twins: dict[str, str] = {}
        """Nodes that compute again what a covered node does."""

    def run(self) -> None:
        stack = [name for name in self.graph.nodes if name in self.covers]
        while stack:
            name = stack.pop(0)
            leaves, readers = name in self.graph.outputs, self._readers(name)
            if name in self.given or (not leaves and not readers):
                continue
            if self._give(name):
                continue
            if self._is_of_the_row(name) and name not in self.candidate.known:
                self.covers.discard(name)  # computed from row maxima and sums outside of the kernel
                stack += [r for r in self.graph.nodes[name].reads if r in self.covers or r in self.twins]
                continue
            if leaves:
                self._refuse(name, "the caller")
            for reader in readers:
                twin, view = self._twin(reader), self._view(reader)
                if twin is not None:
                    self.twins[reader.name] = twin
                    if twin in self.known:
                        self.known[reader.name] = self.known[twin]
                elif view is not None:
                    self.known[reader.name] = view
                else:
                    self._refuse(name, reader.name)
                stack.append(reader.name)

    def _readers(self, name: str) -> list[ir.Node]:
        own = {*self.covers, *self.twins, self.candidate.attention.name, *self.others}
        return [u for u in self.graph.users(name) if u.name not in own and u.name not in self.known]

    def _give(self, name: str) -> bool:
        """Whether the operator gives this value; notes that it has to."""
        if name not in self.known:
            return False
        kind, access = self.known[name]
        node, sizes = self.graph.nodes[name], self.candidate.attention.sizes
        dims = tuple(_merge(i, size, sizes) for i, size in zip(access.index, node.shape, strict=True))
        if any(d is None for d in dims):
            return False
        axes = tuple((a, sizes[a]) for d in dims for a in d or ())
        whole = tuple(d or () for d in dims)
        self.outputs[name] = ir.Output(name, node.dtype, axes, whole, self.candidate.attention.name, kind)
        return True

    def _is_of_the_row(self, name: str) -> bool:
        """Whether a value is made of reductions alone, so that it has no keys any more."""
        node = self.graph.nodes[name]
        if name in self.candidate.scores or not isinstance(node, ir.Map | ir.View):
            return False
        inside = [self.graph.nodes[r] for r in node.reads if r in self.covers or r in self.twins]
        return all(isinstance(n, ir.Reduce) or self._is_of_the_row(n.name) for n in inside)

    def _twin(self, node: ir.Node) -> str | None:
        """The covered node that computes the same."""
        if not isinstance(node, ir.Map | ir.Reduce | ir.View):
            return None
        same = _renamed(node, self.twins)
        for name in self.covers:
            other = self.graph.nodes[name]
            if type(other) is type(node) and _renamed(other, self.twins) == same:
                return name
        return None

    def _view(self, node: ir.Node) -> tuple[str, ir.Access] | None:
        """The known value that a view shows, as a read over the attention's axes."""
        if not isinstance(node, ir.View) or node.operand.value not in self.known:
            return None
        kind, access = self.known[node.operand.value]
        at: dict[str, ix.Linear] = {}
        for shown, wanted in zip(node.operand.index, access.index, strict=True):
            if len(shown.terms) == 1 and shown.terms[0][1] == 1:
                at[shown.terms[0][0]] = ix.total([wanted], ix.scaled(ix.constant(shown.const), -1).const)
            elif shown.terms or shown != wanted:
                return None
        if set(at) != set(node.sizes):
            return None
        index = tuple(ix.merged(d, node.sizes).substitute(at) for d in node.dims)
        return kind, ir.Access(node.name, index)

    def _is_score(self, name: str) -> bool:
        """Whether a value comes before the softmax: made of the score product, of no sum or maximum over the keys."""
        node = self.graph.nodes[name]
        return not isinstance(node, ir.Reduce) and all(self._is_score(r) for r in node.reads if r in self.covers)

    def _refuse(self, name: str, reader: str) -> None:
        what = "scores" if self._is_score(name) else "attention weights"
        raise Refused(f"the {what} are also used by {reader}, and a fused kernel does not return them", name)


def _renamed(node: ir.Node, names: Mapping[str, str]) -> ir.Node:
    """A node without its name that reads others by the names of those they repeat."""
    reads = tuple(replace(a, value=names.get(a.value, a.value)) for a in node.accesses)
    return replace(node, name="").with_accesses(reads)


def _merge(index: ix.Linear, size: Dim, sizes: Mapping[str, Dim]) -> tuple[str, ...] | None:
    """The axes of which an index is the merge, over all of a dimension of that size."""
    for axes in _orders(index):
        if ix.merged(axes, sizes) == index and equal(product(sizes[a] for a in axes), size):
            return axes
    return None


def _orders(index: ix.Linear) -> Iterator[tuple[str, ...]]:
    """The orders in which the axes of an index can be merged: by falling strides."""
    known = [t for t in index.terms if isinstance(t[1], int)]
    others = [t for t in index.terms if not isinstance(t[1], int)]
    falling = [a for a, _ in sorted(known, key=lambda t: -int(t[1]))]
    if len(others) <= 1:
        yield (*(a for a, _ in others), *falling)
    else:
        longest = sorted(others, key=lambda t: -len(str(t[1])))
        yield (*(a for a, _ in longest), *falling)


def known_values(
    graph: ir.Graph, access: ir.Access, sizes: Mapping[str, Dim], rows: Mapping[str, tuple[str, ir.Access]]
) -> dict[str, tuple[str, ir.Access]]:
    """Row maxima and sums, the weights as the product reads them, and what these are a cast or a view of."""
    known = dict(rows)
    while True:
        known[access.value] = ("weights", access)
        node = graph.nodes[access.value]
        plain = isinstance(node, ir.View) or (
            isinstance(node, ir.Map)
            and isinstance(node.body, ex.Op)
            and node.body.name == "cast"
            and node.dtype in ex.FLOATS
            and isinstance(node.body.operands[0], ex.Arg)
        )
        bound = bind(access, node, sizes) if plain else None
        if bound is None or graph.nodes[node.reads[0]].dtype not in ex.FLOATS:
            return known
        access = node.accesses[0].substitute(bound)
