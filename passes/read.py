"""Reading a value at an index as one expression: what an element *is*, through Maps, Views, Iotas, Gathers, Concats.

Leaves are `Load(value, index)` of values that have to exist: inputs, products, reductions and what is opaque. A Map
that is a tensor of its own rather than a part of the score (floating point, of data only, no larger than what it
reads) is a leaf too: it is computed once, not once an element.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.passes.fold_views import bind
from attncc.symbolic import Dim, at_least, reduce


class Reader:
    """Reads values of one graph. `accesses` has the access behind every Load it made, where that is linear."""

    def __init__(self, graph: ir.Graph, sizes: Mapping[str, Dim]) -> None:
        self.graph = graph
        self.sizes = sizes
        self.accesses: dict[ex.Load, ir.Access] = {}
        self.through: set[str] = set()
        """Names of the values that were read through."""
        self._kept: dict[str, bool] = {}

    def read(self, access: ir.Access) -> ex.Expr:
        """The element of a value at a place given in the axes of `sizes`. May raise `index.NeedsSplit`."""
        node = self.graph.nodes[access.value]
        if isinstance(node, ir.Const):
            return ex.Const(node.value, node.dtype)
        bound = bind(access, node, self.sizes)
        if bound is None:
            return self._leaf(access, node)
        match node:
            case ir.Iota(position=position):
                return ix.to_expression(position.substitute(bound))
            case ir.View(operand=operand):
                self.through.add(node.name)
                return self.read(operand.substitute(bound))
            case ir.Map() if not self._is_kept(access, node):
                self.through.add(node.name)
                return self._map(node, bound)
            case ir.Gather():
                return self._gather(node, bound) or self._leaf(access, node)
            case ir.Concat():
                part = part_read(access, node, self.graph, self.sizes)
                if part is not None:
                    self.through.add(node.name)
                    return self.read(part)
        return self._leaf(access, node)

    def inside(self, leaf: ex.Expr) -> ex.Expr | None:
        """What a leaf that is a Map of its own is made of; None for other expressions."""
        if not isinstance(leaf, ex.Load) or leaf not in self.accesses:
            return None
        node = self.graph.nodes[leaf.tensor]
        bound = bind(self.accesses[leaf], node, self.sizes) if isinstance(node, ir.Map) else None
        if bound is None or not isinstance(node, ir.Map):
            return None
        self.through.add(node.name)
        return self._map(node, bound)

    def _map(self, node: ir.Map, bound: Mapping[str, ix.Linear]) -> ex.Expr:
        operands = [self.read(a.substitute(bound)) for a in node.operands]

        def leaf(part: ex.Expr) -> ex.Expr | None:
            if isinstance(part, ex.Arg):
                return operands[part.number]
            return ix.to_expression(bound[part.axis]) if isinstance(part, ex.Index) else None

        return _replaced(node.body, leaf)

    def _gather(self, node: ir.Gather, bound: Mapping[str, ix.Linear]) -> ex.Expr | None:
        """A gather at positions that the graph itself counts out is a plain read."""
        index: list[ix.Linear] = []
        for part in node.indices:
            if isinstance(part, ix.Linear):
                index.append(part.substitute(bound))
                continue
            linear = to_linear(self.read(part.substitute(bound)))
            reach = ix.bounds(linear, self.sizes) if linear is not None else None
            if linear is None or reach is None or not at_least(reach[0], 0):
                return None
            index.append(linear)
        self.through.add(node.name)
        return self.read(ir.Access(node.source, tuple(index)))

    def _leaf(self, access: ir.Access, node: ir.Node) -> ex.Expr:
        load = ex.Load(access.value, tuple(ix.to_expression(i) for i in access.index), node.dtype)
        self.accesses[load] = access
        return load

    def _is_kept(self, access: ir.Access, node: ir.Map) -> bool:
        """Whether a Map is a tensor of its own (see above)."""
        if node.name not in self._kept:
            self._kept[node.name] = node.dtype in ex.FLOATS and _is_data(node, self.graph)
        return self._kept[node.name]


def part_read(access: ir.Access, node: ir.Concat, graph: ir.Graph, sizes: Mapping[str, Dim]) -> ir.Access | None:
    """The read of the one part of a concatenation in which all of `access` lies; None where it meets several."""
    index = access.index[node.dim]
    reach = ix.bounds(index, sizes)
    start: Dim = 0
    for part in node.parts:
        end = reduce(start + graph.nodes[part].shape[node.dim])
        if reach is not None and at_least(reach[0], start) and at_least(reduce(end - 1), reach[1]):
            inside = ix.total([index], reduce(-start))
            return ir.Access(part, (*access.index[: node.dim], inside, *access.index[node.dim + 1 :]))
        start = end
    return None


def is_parameter(graph: ir.Graph, access: ir.Access) -> bool:
    """Whether a value is a parameter of the model as it is."""
    node = graph.nodes[access.value]
    while isinstance(node, ir.View):
        node = graph.nodes[node.operand.value]
    return isinstance(node, ir.Input) and node.parameter


def _is_data(node: ir.Map, graph: ir.Graph) -> bool:
    """Whether a Map only reworks tensors as large as itself, with more than a cast, a number or a selection."""
    if isinstance(node.body, ex.Arg | ex.Const) or (
        isinstance(node.body, ex.Op) and node.body.name in ("cast", "where")
    ):
        return False
    largest, seen = 0, {node.name}
    stack: list[ir.Node] = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, ir.Map) and any(isinstance(leaf, ex.Index) for leaf in current.body.walk()):
            return False
        for name in current.reads:
            read = graph.nodes[name]
            if isinstance(read, ir.Contract | ir.Reduce | ir.Iota):
                return False
            if isinstance(read, ir.Map | ir.View | ir.Concat):
                if read.name not in seen:
                    seen.add(read.name)
                    stack.append(read)
            elif not isinstance(read, ir.Const):
                largest = max(largest, sum(1 for d in read.dims if d))
    return largest >= sum(1 for d in node.dims if d)


def _replaced(expr: ex.Expr, leaf: object) -> ex.Expr:
    return ex.substitute(expr, leaf)  # type: ignore[arg-type]


def to_linear(expr: ex.Expr) -> ix.Linear | None:
    """An integer expression as a linear index; None where it is none."""
    match expr:
        case ex.Index(axis):
            return ix.axis(axis)
        case ex.Const(value):
            return ix.constant(int(value))
        case ex.Size(name):
            return ix.constant(sympy.Symbol(name, integer=True, positive=True))
        case ex.Op("cast", (inner,), dtype) if dtype in ("int64", "int32"):
            return to_linear(inner)
        case ex.Op("add" | "sub" | "mul" as name, (a, b)):
            left, right = to_linear(a), to_linear(b)
            if left is None or right is None:
                return None
            if name == "mul":
                if left.terms and right.terms:
                    return None
                return ix.scaled(left, right.const) if not right.terms else ix.scaled(right, left.const)
            return ix.total([left, right if name == "add" else ix.scaled(right, -1)])
    return None


def size_of(expr: ex.Expr) -> Dim | None:
    """An expression without axes as a size; None where it is none."""
    linear = to_linear(expr)
    return reduce(linear.const) if linear is not None and not linear.terms else None
