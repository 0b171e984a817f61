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
from attncc.spec import AttentionSpec
from attncc.symbolic import Dim, exact_div, product

_NOWHERE = ix.Linear()
_NOTHING = ex.Const(0, "int64")


@dataclass(frozen=True)
class Access:
    """A read of `value`: one index a dimension, linear in the axes of the reading node."""

    value: str
    index: tuple[ix.Linear, ...]

    def substitute(self, at: Mapping[str, ix.Linear]) -> Access:
        """The same read with axes replaced by indices."""
        return Access(self.value, tuple(i.substitute(at) for i in self.index))


@dataclass(frozen=True)
class Node:
    """What all nodes have: a name, the dtype of the value, the iteration space, the value's dimensions."""

    name: str
    dtype: str
    axes: tuple[tuple[str, Dim], ...] = ()
    """Axis names and sizes, in the order of the value's dimensions; axes that are summed over come last."""
    dims: tuple[tuple[str, ...], ...] = ()
    """The axes that make up each dimension of the value, outermost first."""

    @cached_property
    def sizes(self) -> Mapping[str, Dim]:
        """Size of every axis."""
        return dict(self.axes)

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Size of every dimension of the value."""
        return tuple(product(self.sizes[a] for a in d) for d in self.dims)

    @property
    def reduced(self) -> tuple[str, ...]:
        """The axes that the value no longer has."""
        kept = {a for d in self.dims for a in d}
        return tuple(a for a, _ in self.axes if a not in kept)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values this node reads, in order, with repetitions."""
        return tuple(a.value for a in self.accesses)

    @property
    def accesses(self) -> tuple[Access, ...]:
        """The reads that go through an index map."""
        return ()

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        """The same node with other accesses, in the order of `accesses`."""
        if accesses:
            raise TypeError(f"{type(self).__name__} reads nothing through index maps")
        return self

    def split(self, axis: str, inner: Dim) -> Node:
        """The same value, its axis `axis` written as an outer and an inner axis of size `inner`."""
        outer_size = exact_div(self.sizes[axis], inner)
        if outer_size is None:
            raise ValueError(f"axis {axis} of {self.name} does not divide into pieces of {inner}")
        names = fresh_axes((a for a, _ in self.axes), 2)
        at = {axis: ix.merged(names, {names[0]: outer_size, names[1]: inner})}
        axes: list[tuple[str, Dim]] = []
        for name, size in self.axes:
            axes += [(names[0], outer_size), (names[1], inner)] if name == axis else [(name, size)]
        dims = tuple(tuple(n for a in d for n in (names if a == axis else (a,))) for d in self.dims)
        renamed = replace(self, axes=tuple(axes), dims=dims)
        return renamed._substitute(at) if self.accesses or isinstance(self, Iota | Map) else renamed

    def _substitute(self, at: Mapping[str, ix.Linear]) -> Node:
        return self.with_accesses(tuple(a.substitute(at) for a in self.accesses))


@dataclass(frozen=True)
class Input(Node):
    """A value from outside: an argument or attribute, or (`number`) a float that is known when the graph runs."""

    number: bool = False


@dataclass(frozen=True)
class Const(Node):
    """One number, repeated over the dims."""

    value: float | int | bool = 0


@dataclass(frozen=True)
class Iota(Node):
    """`position`, linear in the node's axes: what `arange` makes."""

    position: ix.Linear = _NOWHERE

    def _substitute(self, at: Mapping[str, ix.Linear]) -> Node:
        return replace(self, position=self.position.substitute(at))


@dataclass(frozen=True)
class View(Node):
    """The elements of another value under an index map: reshape, permute, expand, slice, select, …"""

    operand: Access = Access("", ())

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

    def _substitute(self, at: Mapping[str, ix.Linear]) -> Node:
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

    def _substitute(self, at: Mapping[str, ix.Linear]) -> Node:
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
    operand: Access = Access("", ())

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

    q: Access = Access("", ())
    k: Access = Access("", ())
    v: Access = Access("", ())
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
class Graph:
    """Nodes by name, each after those it reads, and the names of the values that leave the graph or have effects."""

    nodes: Mapping[str, Node]
    outputs: tuple[str, ...]
    after: str = ""
    """The pass that made this graph."""
    hints: Mapping[str, int] = field(default_factory=dict)
    """An example value of every size symbol."""

    @cached_property
    def edges(self) -> nx.DiGraph:
        """The data flow: an edge from each value to each node that reads it."""
        graph = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from((r, n.name) for n in self.nodes.values() for r in n.reads if r in self.nodes)
        return graph

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


def fresh_axes(taken: Iterable[str], count: int) -> tuple[str, ...]:
    """Axis names that are not taken: a, b, …, z, a1, b1, …"""
    used = set(taken)
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")
        if name not in used:
            names.append(name)
        number += 1
    return tuple(names)
