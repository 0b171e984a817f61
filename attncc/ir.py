"""The IR: a closed set of frozen nodes over a `networkx.DiGraph`.

Every node makes one value. Nodes that compute (`Iota`, `View`, `Gather`, `Map`, `Contract`, `Reduce`) have an iteration
space of named axes, local to the node; they read other values at linear functions of those axes (`Access`), and each
dimension of the value they make is a tuple of axes, merged row-major (`()` is a dimension of size 1). A layout is thus
nothing but names: `matmul`, `bmm` and `einsum` in any rank and order are all one `Contract`.

What is not known is `Opaque`: a graph is never refused. Names of nodes are those of the FX nodes whose value they are
(`w.1`, `w.2` after in-place changes of `w`), or derived from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import networkx as nx

from attncc import expr as ex
from attncc import index as ix
from attncc.ir_node import Access as Access
from attncc.ir_node import Node as Node
from attncc.ir_node import fresh_axes as fresh_axes
from attncc.spec import AttentionSpec
from attncc.symbolic import Dim

_NOWHERE = ix.Linear()
_UNREAD = Access("", ())
_NOTHING = ex.Const(0, "int64")


@dataclass(frozen=True)
class Input(Node):
    """A value from outside: an argument or attribute, or (`number`) a float that is known when the graph runs."""

    number: bool = False
    parameter: bool = False
    """Whether it is a parameter of the model rather than data."""


@dataclass(frozen=True)
class Const(Node):
    """One number, repeated over the dims."""

    value: float | int | bool = 0


@dataclass(frozen=True)
class Iota(Node):
    """`position`, linear in the node's axes: what `arange` makes."""

    position: ix.Linear = _NOWHERE

    def substituted(self, at: Mapping[str, ix.Linear]) -> Node:
        return replace(self, position=self.position.substitute(at))


@dataclass(frozen=True)
class View(Node):
    """The elements of another value under an index map: reshape, permute, expand, slice, select, …"""

    operand: Access = _UNREAD

    @property
    def accesses(self) -> tuple[Access, ...]:
        return (self.operand,)

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        return replace(self, operand=accesses[0])


@dataclass(frozen=True)
class Gather(Node):
    """Elements of `source`, each of whose dimensions is indexed by an axis (Linear) or by an integer value (Access)."""

    source: str = ""
    indices: tuple[ix.Linear | Access, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source, *super().reads)

    @property
    def accesses(self) -> tuple[Access, ...]:
        return tuple(i for i in self.indices if isinstance(i, Access))

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        rest = iter(accesses)
        return replace(self, indices=tuple(next(rest) if isinstance(i, Access) else i for i in self.indices))

    def substituted(self, at: Mapping[str, ix.Linear]) -> Node:
        return replace(self, indices=tuple(i.substitute(at) for i in self.indices))


@dataclass(frozen=True)
class Concat(Node):
    """Values joined along dimension `dim`."""

    parts: tuple[str, ...] = ()
    dim: int = 0

    @property
    def reads(self) -> tuple[str, ...]:
        return self.parts


@dataclass(frozen=True)
class Map(Node):
    """`body`, pointwise: `Arg(n)` is the n-th operand, `Index(a)` the position on axis a."""

    operands: tuple[Access, ...] = ()
    body: ex.Expr = _NOTHING

    @property
    def accesses(self) -> tuple[Access, ...]:
        return self.operands

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        return replace(self, operands=accesses)

    def substituted(self, at: Mapping[str, ix.Linear]) -> Node:
        def index(node: ex.Expr) -> ex.Expr | None:
            return ix.to_expression(at[node.axis]) if isinstance(node, ex.Index) and node.axis in at else None

        moved = tuple(a.substitute(at) for a in self.operands)
        return replace(self, operands=moved, body=ex.substitute(self.body, index))


@dataclass(frozen=True)
class Contract(Node):
    """The product of the operands, summed over the axes that the value does not have: an einsum."""

    operands: tuple[Access, ...] = ()

    @property
    def accesses(self) -> tuple[Access, ...]:
        return self.operands

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        return replace(self, operands=accesses)


@dataclass(frozen=True)
class Reduce(Node):
    """The operand's "max" or "sum" over the axes that the value does not have."""

    kind: str = "sum"
    operand: Access = _UNREAD

    @property
    def accesses(self) -> tuple[Access, ...]:
        return (self.operand,)

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        return replace(self, operand=accesses[0])


@dataclass(frozen=True)
class Opaque(Node):
    """Whatever else: `op` applied to values. `note` says why it is not expressed, where that matters."""

    op: str = ""
    operands: tuple[str, ...] = ()
    note: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        return self.operands


@dataclass(frozen=True)
class Attention(Node):
    """A fused attention; its axes are those of the output and of the operands (`j` and `d` are reduced).

    `roles` names the axes, outermost first, that make up b, h, i, j, the head dimension of k (`d`), that of q where it
    differs (`c`) and that of v (`e`); `r` are the innermost of h, which the keys do not have. `static` are sizes that
    have to be the numbers given.
    """

    q: Access = _UNREAD
    k: Access = _UNREAD
    v: Access = _UNREAD
    weight: Access | None = None
    """The matrix of a bilinear score."""
    extras: tuple[tuple[str, tuple[Dim | None, ...]], ...] = ()
    """Tensors that score_mod and mask read: a value, and for each of its dimensions the position taken (None: all)."""
    spec: AttentionSpec | None = None
    roles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    scalars: tuple[float | str, ...] = ()
    """Float arguments: numbers, or names of values."""
    integers: tuple[Dim, ...] = ()
    static: tuple[tuple[Dim, int], ...] = ()
    covers: tuple[str, ...] = ()
    """The nodes from the score product on that this one takes the place of."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, *(n for n, _ in self.extras), *(s for s in self.scalars if isinstance(s, str)))

    @property
    def accesses(self) -> tuple[Access, ...]:
        return (self.q, self.k, self.v, *(() if self.weight is None else (self.weight,)))

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        q, k, v, *weight = accesses
        return replace(self, q=q, k=k, v=v, weight=weight[0] if weight else None)


@dataclass(frozen=True)
class Output(Node):
    """What an Attention gives beside its result: "max", "sum" or "weights" (see `AttentionSpec.outputs`).

    Its axes are those of the Attention that the output has.
    """

    attention: str = ""
    kind: str = "weights"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.attention,)


MANY = 12
"""Products from which on a value is no score."""


@dataclass(frozen=True)
class Graph:
    """Nodes by name, each after those it reads, and the names of the values that leave the graph or have effects."""

    nodes: Mapping[str, Node]
    outputs: tuple[str, ...]
    after: str = ""
    """The pass that made this graph."""
    hints: Mapping[str, int] = field(default_factory=dict)
    """An example value of every size symbol."""
    overwritten: frozenset[str] = frozenset()
    """Values that the program changes in place after it made them."""

    @cached_property
    def edges(self) -> nx.DiGraph:
        """The data flow: an edge from each value to each node that reads it."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from((r, n.name) for n in self.nodes.values() for r in n.reads if r in self.nodes)
        return graph

    @cached_property
    def products(self) -> Mapping[str, tuple[str, ...]]:
        """The Contracts that each value is a pointwise function of, at most `MANY`: a residual stream is one of all."""
        found: dict[str, tuple[str, ...]] = {}
        for node in self.nodes.values():
            reads = {} if isinstance(node, Reduce) else dict.fromkeys(p for r in node.reads for p in found.get(r, ()))
            found[node.name] = (node.name,) if isinstance(node, Contract) else tuple(reads)[:MANY]
        return found

    def users(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value."""
        return tuple(self.nodes[n] for n in self.edges.successors(name))

    def with_nodes(self, nodes: Iterable[Node], after: str = "") -> Graph:
        """This graph with nodes added or replaced by name, back in topological order."""
        merged = {**self.nodes, **{n.name: n for n in nodes}}
        result = replace(self, nodes=merged, after=after or self.after)
        position = {name: p for p, name in enumerate(merged)}
        order = nx.lexicographical_topological_sort(result.edges, key=position.__getitem__)
        return replace(result, nodes={name: merged[name] for name in order})

    def rewritten(self, nodes: Mapping[str, Node], after: str) -> Graph:
        """This graph with other nodes, as the pass `after` makes it."""
        return replace(self, nodes=nodes, after=after)

    def without_dead(self) -> Graph:
        """This graph with only what the outputs need."""
        alive = set(self.outputs)
        for name in self.outputs:
            if name not in self.nodes:
                raise ValueError(f"output {name} is no node")
        stack = list(self.outputs)
        while stack:
            for read in self.nodes[stack.pop()].reads:
                if read not in alive:
                    alive.add(read)
                    stack.append(read)
        return replace(self, nodes={k: n for k, n in self.nodes.items() if k in alive})

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __str__(self) -> str:
        from attncc.ir_text import to_text

        return to_text(self)
