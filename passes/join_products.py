"""Products over keys that lie in several tensors as one product over all of them.

    %a = contract{i, j | d} %q[i, d] * %k[j, d];  %b = contract{i, j | d} %q[i, d] * %l[j, d]
    %s = concat 1: %a, %b
    →  %s.keys = concat 0: %k, %l;  %s = contract{i, j | d} %q[i, d] * %s.keys[j, d]

    %m = contract{i, e | j} %p[i, j] * %v[j, e];  %n = contract{i, e | j} %p[i, j + 5] * %w[j, e]
    %o = map{i, e} %m[i, e], %n[i, e]: _0 + _1
    →  %o.values = concat 0: %v, %w;  %o = contract{i, e | j} %p[i, j] * %o.values[j, e]

As attention to global tokens beside a block of local ones has it, or to a prefix or cache beside the new tokens.
Joining copies O(S·D); only scores and weights of a softmax are joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.divide_first import exponentials
from attncc.passes.fold_views import bind
from attncc.passes.hoist_scale import before_softmax
from attncc.passes.roles import axes_of
from attncc.symbolic import Dim, equal, reduce


def join_products(graph: ir.Graph) -> ir.Graph:
    """The graph with every such concatenation and sum as one product."""
    nodes: dict[str, ir.Node] = {}
    scores = before_softmax(graph)
    totals = [n for n in graph if isinstance(n, ir.Reduce) and n.kind == "sum"]
    has_softmax = any(exponentials(total.operand.value, graph.nodes) for total in totals)
    for node in graph:
        made: Sequence[ir.Node] = ()
        if isinstance(node, ir.Concat) and node.name in scores:
            made = _side_by_side(node, nodes)
        elif isinstance(node, ir.Map) and has_softmax:
            made = _added(node, nodes)
        nodes.update({n.name: n for n in made or (node,)})
    return graph.rewritten(nodes, "join_products").without_dead()


@dataclass
class _Joining:
    """Values over common axes, of which `along` has another length in each of them, as one value."""

    name: str
    nodes: Mapping[str, ir.Node]
    sizes: dict[str, Dim]
    """Of all axes, `along` with the length of all parts together."""
    along: str
    lengths: Sequence[Dim]
    made: list[ir.Node] = field(default_factory=list)
    products: int = 0
    """Products among what was made."""

    def join(self, reads: Sequence[ir.Access]) -> ir.Access | None:
        """The read of one value in the place of one of each part, made of what the parts are made of; None if none."""
        reads = [self._through(read) for read in reads]
        return self._known(reads) or self._product(reads) or self._map(reads)

    def _through(self, read: ir.Access) -> ir.Access:
        """The read of what a view shows."""
        node = self.nodes[read.value]
        bound = self._bound(read, node) if isinstance(node, ir.View) else None
        return read if bound is None else self._through(node.accesses[0].substitute(bound))

    def beside(self, reads: Sequence[ir.Access]) -> ir.Access:
        """The same for tensors: as they are, side by side in a new one where they have to be."""
        return self._known(reads) or self._copy(reads)

    def _known(self, reads: Sequence[ir.Access]) -> ir.Access | None:
        """The one value that all parts read, if they do."""
        if all(r == reads[0] for r in reads) and self.along not in axes_of(reads[0]):
            return reads[0]
        starts = [reduce(sum(self.lengths[:n], start=0)) for n in range(len(reads))]
        moving = next((n for n, r in enumerate(reads) if self.along in axes_of(r)), None)
        if moving is None:
            return None
        whole = self._shifted(reads[moving], reduce(-starts[moving]))
        for read, start, length in zip(reads, starts, self.lengths, strict=True):
            behind = self._shifted(whole, start)
            if length == 1:
                read, behind = (r.substitute({self.along: ix.constant(0)}) for r in (read, behind))
            if read.value != behind.value or not all(
                a.terms == b.terms and equal(a.const, b.const) for a, b in zip(read.index, behind.index, strict=True)
            ):
                return None
        return whole

    def _shifted(self, read: ir.Access, by: Dim) -> ir.Access:
        return read.substitute({self.along: ix.total([ix.axis(self.along)], by)})

    def _product(self, reads: Sequence[ir.Access]) -> ir.Access | None:
        """Products that have all operands but one in common."""
        contracts = [self.nodes[r.value] for r in reads]
        first = contracts[0]
        if not all(isinstance(c, ir.Contract) and len(c.operands) == 2 and c.dtype == first.dtype for c in contracts):
            return None
        summed = [[c.sizes[a] for a in c.reduced] for c in contracts]
        if any(len(s) != len(summed[0]) or not all(map(equal, s, summed[0])) for s in summed):
            return None
        fresh = ir.fresh_axes(self.sizes, len(first.reduced))
        self.sizes |= dict(zip(fresh, summed[0], strict=True))
        operands: list[list[ir.Access]] = []
        for read, contract in zip(reads, contracts, strict=True):
            bound = self._bound(read, contract)
            if bound is None:
                return None
            bound |= {a: ix.axis(f) for a, f in zip(contract.reduced, fresh, strict=True)}
            operands.append([a.substitute(bound) for a in contract.accesses])
        for order in ((0, 1), (1, 0)):
            pairs = [[o[n] for n in (order if part else (0, 1))] for part, o in enumerate(operands)]
            sides = list(zip(*pairs, strict=True))
            same = [all(a == side[0] for a in side) and self.along not in axes_of(side[0]) for side in sides]
            if same.count(True) == 1:
                whole = tuple(self.beside(side) for side in sides)
                own = [a for a in self.sizes if any(a in axes_of(o) for o in whole)]
                self.products += 1
                return self._add(
                    ir.Contract, first.dtype, [a for a in own if a not in fresh], fresh=fresh, operands=whole
                )
        return None

    def _map(self, reads: Sequence[ir.Access]) -> ir.Access | None:
        """The same function of values that can be joined."""
        maps = [self.nodes[r.value] for r in reads]
        first = maps[0]
        if not isinstance(first, ir.Map) or any(isinstance(part, ex.Index) for part in first.body.walk()):
            return None
        if not all(isinstance(m, ir.Map) and m.body == first.body and m.dtype == first.dtype for m in maps):
            return None
        operands: list[list[ir.Access]] = []
        for read, node in zip(reads, maps, strict=True):
            bound = self._bound(read, node)
            if bound is None:
                return None
            operands.append([a.substitute(bound) for a in node.accesses])
        whole = tuple(self.join(side) or self._copy(side) for side in zip(*operands, strict=True))
        own = [a for a in self.sizes if any(a in axes_of(o) for o in whole)]
        return self._add(ir.Map, first.dtype, own, operands=whole, body=first.body)

    def _copy(self, reads: Sequence[ir.Access]) -> ir.Access:
        """The parts, side by side in a new tensor."""
        own = [a for a in self.sizes if a == self.along or any(a in axes_of(r) for r in reads)]
        dtype = self.nodes[reads[0].value].dtype
        names: list[str] = []
        for read, length in zip(reads, self.lengths, strict=True):
            axes = tuple((a, length if a == self.along else self.sizes[a]) for a in own)
            names.append(f"{self.name}.part{len(self.made)}")
            self.made.append(ir.View(names[-1], dtype, axes, tuple((a,) for a in own), read))
        return self._add(ir.Concat, dtype, own, parts=tuple(names), dim=own.index(self.along))

    def _bound(self, read: ir.Access, node: ir.Node) -> dict[str, ix.Linear] | None:
        return bind(read, node, self.sizes)

    def _add(
        self, kind: type[ir.Node], dtype: str, own: Sequence[str], fresh: Sequence[str] = (), **fields: object
    ) -> ir.Access:
        """A node over the axes `own`, and `fresh` ones that it sums over; the read of all of it."""
        name = f"{self.name}.joined{len(self.made)}"
        axes = tuple((a, self.sizes[a]) for a in (*own, *fresh))
        self.made.append(kind(name, dtype, axes, tuple((a,) for a in own), **fields))
        return ir.Access(name, tuple(ix.axis(a) for a in own))


def _side_by_side(node: ir.Concat, nodes: Mapping[str, ir.Node]) -> Sequence[ir.Node]:
    """The nodes in the place of a concatenation of products; beside them there may be one other column, as of sinks."""
    count = len(node.parts)
    for first, last in ((0, count), (0, count - 1), (1, count)):
        parts, whole = node.parts[first:last], last - first == count
        made = _joined(node if whole else replace(node, name=f"{node.name}.products"), parts, nodes)
        if made and whole:
            return made
        if made:
            left = (*node.parts[:first], made[-1].name, *node.parts[last:])
            return [*made, replace(node, parts=left)]
    return ()


def _joined(node: ir.Concat, parts: Sequence[str], nodes: Mapping[str, ir.Node]) -> list[ir.Node]:
    """A product over the `parts` of a concatenation, what it reads before it; empty where they are none."""
    lengths = [nodes[p].shape[node.dim] for p in parts]
    while len(parts) > 1 and len(node.dims[node.dim]) == 1:
        (along,) = node.dims[node.dim]
        sizes = {**node.sizes, along: reduce(sum(lengths[1:], start=lengths[0]))}
        index = tuple(ix.merged(d, sizes) for d in node.dims)
        joining = _Joining(node.name, nodes, sizes, along, lengths)
        reads = [
            ir.Access(p, tuple(ix.constant(0) if n == node.dim and size == 1 else i for n, i in enumerate(index)))
            for p, size in zip(parts, lengths, strict=True)
        ]
        try:
            found = joining.join(reads)
        except ix.NeedsSplit as split:
            if split.axis == along or split.axis not in node.sizes:
                break
            node = node.split(split.axis, split.inner)  # type: ignore[assignment]
            continue
        if found is None or not joining.products:
            break
        whole = tuple((a, sizes[a]) for a, _ in node.axes)
        return [*joining.made, ir.View(node.name, node.dtype, whole, node.dims, found)]
    return []


def _added(node: ir.Map, nodes: Mapping[str, ir.Node]) -> Sequence[ir.Node]:
    """The weighted sum that a sum of two is, over parts of the same weights, and the values that it reads.

    Weights are made of exponentials; not always of those that are summed, which may be written twice.
    """
    match node.body:
        case ex.Op("add", (ex.Arg(a), ex.Arg(b))) if a != b:
            terms = [nodes[node.operands[n].value] for n in (a, b)]
        case _:
            return ()
    if not all(isinstance(t, ir.Contract) and len(t.operands) == 2 and len(t.reduced) <= 1 for t in terms):
        return ()
    if any(t.dtype != node.dtype for t in terms):
        return ()
    while True:
        (along,) = ir.fresh_axes(node.sizes, 1)
        try:
            operands = [_operands(node.operands[n], t, node, along) for n, t in zip((a, b), terms, strict=True)]
            lengths = [t.sizes[t.reduced[0]] if t.reduced else 1 for t in terms]  # of one key there is no sum
            return _weighted(node, operands, lengths, along, nodes) or _weighted(
                node, operands[::-1], lengths[::-1], along, nodes
            )
        except ix.NeedsSplit as split:
            if split.axis not in node.sizes:
                return ()
            node = node.split(split.axis, split.inner)  # type: ignore[assignment]


def _operands(access: ir.Access, term: ir.Node, node: ir.Map, along: str) -> tuple[ir.Access, ...]:
    """The operands of a product, read from `node`; none where they cannot be."""
    bound = bind(access, term, node.sizes)
    if bound is None:
        return ()
    return tuple(a.substitute({**bound, **{key: ix.axis(along) for key in term.reduced}}) for a in term.accesses)


def _weighted(
    node: ir.Map, operands: list[tuple[ir.Access, ...]], lengths: list[Dim], along: str, nodes: Mapping[str, ir.Node]
) -> list[ir.Node]:
    """The product of the weights that all the operands have parts of, and of the values side by side."""
    total = reduce(lengths[0] + lengths[1])
    orders = [(first, second) for first in (0, 1) for second in (first, 1 - first)] if all(operands) else []
    for first, second in orders:
        weights = (operands[0][first], operands[1][second])
        if not all(exponentials(w.value, nodes) for w in weights):
            continue
        rows = {a: s for a, s in node.axes if a in axes_of(weights[0])}
        joining = _Joining(node.name, nodes, {**rows, along: total, **node.sizes}, along, lengths)
        joined = joining.join(weights)
        copied = any(isinstance(n, ir.Contract | ir.Concat) for n in joining.made)
        if joined is None or copied or along not in axes_of(joined):
            continue
        values = joining.beside((operands[0][1 - first], operands[1][1 - second]))
        axes = (*node.axes, (along, total))
        return [*joining.made, ir.Contract(node.name, node.dtype, axes, node.dims, (joined, values))]
    return []
