"""Adding nodes to an FX graph: operator calls with their fake values, sizes as nodes, and reads as chains of views."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from attncc import index as ix
from attncc import ir
from attncc.convert import Converted
from attncc.convert.driver import Source
from attncc.emit_index import Group, divided, joined, outermost
from attncc.passes.refused import Refused
from attncc.symbolic import Dim, dim, equal, exact_div, product, reduce, symbols

aten = torch.ops.aten
_VIEWS = frozenset(
    (aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default, aten.select.int,
     aten.unsqueeze.default, aten.squeeze.dim, aten.slice.Tensor, aten.expand.default, aten.unflatten.int)
)  # fmt: skip
_MOST_VIEWS = 32
Make = Callable[["Emitter", ir.Node], fx.Node]


class Emitter:
    """Adds nodes to a graph before `anchor`, each with its fake value; `undo` takes them out again.

    Values that no FX node holds are made by `make`, once each, where they are among `new`.
    """

    def __init__(
        self, converted: Converted, anchor: fx.Node, new: Mapping[str, ir.Node], make: Make, start: int
    ) -> None:
        self.converted = converted
        self.anchor = anchor
        self.graph = anchor.graph
        self.made: list[fx.Node] = []
        self.layout = "bhsd"
        """The order in which results of attentions lie."""
        self.outputs: dict[str, dict[str, fx.Node]] = {}
        """What the attentions emitted so far give, by name and kind, as the operator lays it out."""
        self._symbols = {str(s): s for size in converted.sizes for s in symbols(size)}
        self._new, self._make, self._start = new, make, start
        self._values: dict[str, fx.Node] = {}
        self._copied: dict[fx.Node, fx.Node] = {}
        self._again: dict[str, tuple[str, ...]] = {}
        """What is read by values that are computed again."""

    def call(self, target: Any, *args: Any, before: fx.Node | None = None) -> fx.Node:
        """A call of an operator on nodes and numbers, its fake value and origin noted."""
        with self.graph.inserting_before(before or self.anchor):
            node = self.graph.call_function(target, args)
        self.made.append(node)
        node.meta["val"] = target(*fx.map_arg(args, _fake))
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            if key in self.anchor.meta:
                node.meta[key] = self.anchor.meta[key]
        return node

    def undo(self) -> None:
        """Remove everything that was added."""
        for node in reversed(self.made):
            self.graph.erase_node(node)
        self.made.clear()
        self.outputs.clear()
        self._values.clear()
        self._copied.clear()
        self._again.clear()

    def new(self, name: str) -> ir.Attention:
        """An attention that is emitted here."""
        node = self._new[name]
        if not isinstance(node, ir.Attention):
            raise TypeError(f"{name} is no attention")
        return node

    def value(self, name: str) -> fx.Node:
        """The FX node that holds an IR value at the anchor. Raises Refused where none does any more, or yet."""
        if name in self._values:
            return self._values[name]
        if name in self._new:
            self._values[name] = self._make(self, self._new[name])
            return self._values[name]
        source = self.converted.sources.get(name)
        if source is None:
            raise Refused(f"the value {name} is never computed by itself", name)
        here = self.converted.positions[self.anchor]
        if source.expires is not None and source.expires < here:
            self._values[name] = self._kept(name, source)
            return self._values[name]
        if source.position >= here:
            raise Refused(f"the attention weights are used before {source.node.name} is computed", name)
        return source.node

    def leaves(self, names: Iterable[str]) -> list[fx.Node]:
        """The nodes that both the original and what is emitted read for values: not copies that only the latter has."""
        found: dict[fx.Node, None] = {}
        for name in names:
            node = self.value(name)
            read = self.leaves(self._again[name]) if name in self._again else [self._copied.get(node, node)]
            found |= dict.fromkeys(read)
        return list(found)

    def _kept(self, name: str, source: Source) -> fx.Node:
        """A value that is changed in place later, as it was before.

        Of a counter or a row of positions, as caches have them, a copy; what is larger is computed again where it is
        pointwise and became another value before the scores are computed: as a bias that is masked, and that nobody
        reads then. Raises Refused for others: to copy them could cost more than fusing gains.
        """
        if source.node.meta["val"].ndim <= 1:
            changer = next(n for n, position in self.converted.positions.items() if position == source.expires)
            copy = self.call(aten.clone.default, source.node, before=changer)
            self._copied[copy] = source.node
            return copy
        node, here = self.converted.graph.nodes.get(name), self.converted.positions[self.anchor]
        same_mode = not any(source.position < fence < here for fence in self.converted.fences)
        before = source.expires is not None and source.expires < self._start
        if isinstance(node, ir.Map | ir.View) and same_mode and before:
            self._again[name] = node.reads
            with contextlib.suppress(Refused):
                return self._make(self, node)
        raise Refused(f"{source.node.name} is changed in place before the attention's end", source.node.name)

    def number(self, size: Dim) -> Any:
        """A size as an int or as an FX node. Raises Refused where it cannot be computed at the anchor."""
        size = reduce(size)
        if isinstance(size, int):
            return size
        # Expressions name symbols; what is assumed of them (a number that is passed may be 0) is the graph's.
        size = size.xreplace({s: self._symbols.get(str(s), s) for s in size.free_symbols})
        found = self._existing(size)
        if found is not None:
            return found
        if size.is_Add or size.is_Mul:
            first, *rest = (self.number(a) for a in size.args)
            for part in rest:
                first = self.call(operator.add if size.is_Add else operator.mul, first, part)
            return first
        if size.func.__name__ == "FloorDiv":
            return self.call(operator.floordiv, *(self.number(a) for a in size.args))
        if isinstance(size, sympy.Pow) and size.exp.is_Integer and size.exp > 0:
            return self.call(operator.pow, self.number(size.base), int(size.exp))
        known = _environment(self.converted).replace(size)  # sizes are learnt while guards are added
        if known != size:
            return self.number(known)
        raise Refused(f"the size {size} is not at hand")

    def _existing(self, size: sympy.Expr) -> fx.Node | None:
        """A node before the anchor that is the size, or a dimension of an input that has it."""
        for node, along in self.converted.sizes.get(size, ()):
            if self.converted.positions[node] < self.converted.positions[self.anchor]:
                return node if along is None else self.call(aten.sym_size.int, node, along)
        return None

    def operand(
        self, access: ir.Access, groups: Sequence[Group], sizes: Mapping[str, Dim], dtype: str | None = None
    ) -> fx.Node:
        """The value read by `access` as a tensor with one dimension a group of axes."""
        node = source = self.value(access.value)
        access, groups, sizes = joined(access, groups, sizes)
        labels: list[str] = []
        for p in reversed(range(len(access.index))):
            node, axes = self._unpacked(node, p, access.index[p], sizes)
            labels = [*axes, *labels]
        if len(set(labels)) != len(labels):
            raise Refused(f"{access.value} is read along a diagonal", access.value)
        wanted = [a for g in groups for a in g]
        if set(labels) - set(wanted):
            raise Refused(f"{access.value} moves along axes that this operand cannot have", access.value)
        order = [labels.index(a) for a in wanted if a in labels]
        if order != list(range(len(order))):
            node = self.call(aten.permute.default, node, order)
        node = self._grouped(node, groups, {a for a in labels}, sizes)
        node = next((view for view in (source, *self._views(source)) if is_same(view, node)), node)
        if dtype is not None and str(node.meta["val"].dtype) != f"torch.{dtype}":
            node = self.call(aten.to.dtype, node, getattr(torch, dtype))
        return node

    def _views(self, source: fx.Node) -> list[fx.Node]:
        """Views of a value that the graph has at the anchor anyway, the nearest ones first."""
        found, here = [source], self.converted.positions[self.anchor]
        if self.converted.fences:  # views that were made without gradients would lose them
            return []
        for node in found:  # which grows
            users = (user for user in node.users if user.target in _VIEWS and user.args[0] is node)
            found += [user for user in users if self.converted.positions.get(user, here) < here]
            if len(found) > _MOST_VIEWS:
                break
        return found[1:]

    def _grouped(self, node: fx.Node, groups: Sequence[Group], present: set[str], sizes: Mapping[str, Dim]) -> fx.Node:
        """Dimensions for the missing axes, then one dimension a group."""
        place, missing = 0, False
        for group in groups:
            for axis in group or ("",):
                if axis not in present:
                    node = self.call(aten.unsqueeze.default, node, place)
                    missing |= axis != ""
                place += 1
        if missing:
            shape = [self.number(sizes[a]) if a else 1 for g in groups for a in (g or ("",))]
            node = self.call(aten.expand.default, node, shape)
        if any(len(g) > 1 for g in groups):
            node = self.call(aten.reshape.default, node, [self.number(product(sizes[a] for a in g)) for g in groups])
        return node

    def _unpacked(self, node: fx.Node, p: int, index: ix.Linear, sizes: Mapping[str, Dim]) -> tuple[fx.Node, list[str]]:
        """Dimension p read at `index`, as one dimension for each axis of the index."""
        size = dim(node.meta["val"].shape[p])
        if not index.terms:
            return self.call(aten.select.int, node, p, self.number(index.const)), []
        axis, stride = outermost(index)
        if len(index.terms) == 1:
            if stride == 1 and equal(size, sizes[axis]):
                return node, [axis]
            end = reduce(index.const + product((stride, reduce(sizes[axis] - 1))) + 1)
            start, stop, step = (self.number(x) for x in (index.const, end, stride))
            return self.call(aten.slice.Tensor, node, p, start, stop, step), [axis]
        rest = ix.Linear(tuple(t for t in index.terms if t[0] != axis), 0)
        count, (whole, left) = exact_div(size, stride), divided(index.const, stride)
        if count is None:  # the merged part lies inside the dimension: cut it out first
            length = product((stride, sizes[axis]))
            node = self.call(
                aten.slice.Tensor, node, p, self.number(index.const), self.number(reduce(index.const + length)), 1
            )
            count, whole, left = sizes[axis], 0, 0
        shape = [self.number(dim(s)) for s in node.meta["val"].shape]
        node = self.call(
            aten.view.default, node, [*shape[:p], self.number(count), self.number(stride), *shape[p + 1 :]]
        )
        node, inner = self._unpacked(node, p + 1, ix.total([rest], left), sizes)
        node, outer = self._unpacked(node, p, ix.Linear(((axis, 1),), whole), sizes)
        return node, [*outer, *inner]


def is_same(source: fx.Node, result: fx.Node) -> bool:
    """Whether both are views of one memory with every element in the same place: each view costs microseconds.

    Axes of size 1 are read by select and come back by unsqueeze; those chains end as they began.
    """
    a, b = source.meta["val"], result.meta["val"]
    if a.ndim != b.ndim or a.dtype != b.dtype or not torch._C._is_alias_of(a, b):
        return False
    sizes = [(dim(x), dim(y)) for x, y in zip(a.shape, b.shape, strict=True)]
    strides = zip(a.stride(), b.stride(), sizes, strict=True)
    places = [(dim(x), dim(y)) for x, y, (size, _) in strides if size != 1]  # along one element no stride counts
    places.append((dim(a.storage_offset()), dim(b.storage_offset())))
    return all(equal(x, y) for x, y in [*sizes, *places])


def _fake(node: fx.Node) -> Any:
    """The fake value of a node; any number where a float is known only when the graph runs: no shape depends on it."""
    value = node.meta["val"]
    return 1.0 if isinstance(value, torch.SymFloat) else value


def _environment(converted: Converted) -> Any:
    """The shape environment of a graph with symbolic sizes. Raises Refused for a graph without."""
    for node in converted.positions:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt):
                return size.node.shape_env
    raise Refused("a size is not known")
