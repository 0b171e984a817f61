"""An Attention node of the IR as FX nodes: operands by views of values that exist, one operator, the result in place.

Operands are read as [B, H, S, D] through select, slice, view, permute and expand only, which copy nothing; a reshape
follows where several axes make up one (heads of a group, a batch of several dimensions), and copies only where the
strides do not merge. The result has the shape, dtype and strides of the node that it replaces, unless all that follows
takes any strides: then it lies so that the transpose that follows is free.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from attncc import index as ix
from attncc import ir
from attncc.convert import Converted
from attncc.passes.refused import Refused
from attncc.runtime import op as _registers_the_operator  # noqa: F401
from attncc.symbolic import Dim, dim, equal, exact_div, product, reduce

aten = torch.ops.aten
Group = tuple[str, ...]


class Emitter:
    """Adds nodes to a graph before `anchor`, each with its fake value; `undo` takes them out again."""

    def __init__(self, converted: Converted, anchor: fx.Node) -> None:
        self.converted = converted
        self.anchor = anchor
        self.graph = anchor.graph
        self.made: list[fx.Node] = []

    def call(self, target: Any, *args: Any) -> fx.Node:
        """A call of an operator on nodes and numbers, its fake value and origin noted."""
        with self.graph.inserting_before(self.anchor):
            node = self.graph.call_function(target, args)
        self.made.append(node)
        node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            if key in self.anchor.meta:
                node.meta[key] = self.anchor.meta[key]
        return node

    def undo(self) -> None:
        """Remove everything that was added."""
        for node in reversed(self.made):
            self.graph.erase_node(node)
        self.made.clear()

    def value(self, name: str) -> fx.Node:
        """The FX node that holds an IR value at the anchor. Raises Refused where none does any more."""
        source = self.converted.sources.get(name)
        if source is None:
            raise Refused(f"the value {name} is never computed by itself", name)
        if source.expires is not None and source.expires < self.converted.positions[self.anchor]:
            raise Refused(f"{source.node.name} is changed in place before the attention's end", name)
        return source.node

    def number(self, size: Dim) -> Any:
        """A size as an int or as an FX node. Raises Refused where it cannot be computed at the anchor."""
        size = reduce(size)
        if isinstance(size, int):
            return size
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
        known = example_environment(self.converted).replace(size)  # sizes are learnt while guards are added
        if known != size:
            return self.number(known)
        raise Refused(f"the size {size} is not at hand")

    def _existing(self, size: sympy.Expr) -> fx.Node | None:
        """A node before the anchor that is the size, or a dimension of an input that has it."""
        here = self.converted.positions[self.anchor]
        for node, position in self.converted.positions.items():
            if position >= here:
                break
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and equal(dim(value), size):
                return node
        for node, position in self.converted.positions.items():
            value = node.meta.get("val")
            if position < here and node.op == "placeholder" and isinstance(value, torch.Tensor):
                for p, s in enumerate(value.shape):
                    if equal(dim(s), size):
                        return self.call(aten.sym_size.int, node, p)
        return None

    def operand(
        self, access: ir.Access, groups: Sequence[Group], sizes: Mapping[str, Dim], dtype: str | None = None
    ) -> fx.Node:
        """The value read by `access` as a tensor with one dimension a group of axes."""
        node = self.value(access.value)
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
        if dtype is not None and str(node.meta["val"].dtype) != f"torch.{dtype}":
            node = self.call(aten.to.dtype, node, getattr(torch, dtype))
        return node

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
        axis, stride = _outermost(index)
        if len(index.terms) == 1:
            if stride == 1 and equal(size, sizes[axis]):
                return node, [axis]
            end = reduce(index.const + product((stride, reduce(sizes[axis] - 1))) + 1)
            start, stop, step = (self.number(x) for x in (index.const, end, stride))
            return self.call(aten.slice.Tensor, node, p, start, stop, step), [axis]
        rest = ix.Linear(tuple(t for t in index.terms if t[0] != axis), 0)
        count, (whole, left) = exact_div(size, stride), _divided(index.const, stride)
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


def example_environment(converted: Converted) -> Any:
    """The shape environment of a graph with symbolic sizes. Raises Refused for a graph without."""
    for node in converted.positions:
        value = node.meta.get("val")
        for size in value.shape if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt):
                return size.node.shape_env
    raise Refused("a size is not known")


def _outermost(index: ix.Linear) -> tuple[str, Dim]:
    """The term whose coefficient all others divide. Raises Refused."""
    for axis, stride in index.terms:
        if all(exact_div(stride, other) is not None for _, other in index.terms):
            return axis, stride
    raise Refused(f"the index {index} is no merge of axes")


def _divided(const: Dim, by: Dim) -> tuple[Dim, Dim]:
    if isinstance(const, int) and isinstance(by, int):
        return divmod(const, by)
    whole = exact_div(const, by)
    return (0, const) if whole is None else (whole, 0)


def emit(emitter: Emitter, node: ir.Attention) -> fx.Node:
    """Add the operator with its operands, and return its result in the form of `emitter.anchor`. Raises Refused."""
    roles, sizes, spec = dict(node.roles), dict(node.axes), node.spec
    if spec is None:
        raise Refused("no spec", node.name)
    keys = roles["h"][: len(roles["h"]) - len(roles["r"])]
    q = emitter.operand(node.q, (roles["b"], roles["h"], roles["i"], roles["c"]), sizes, spec.dtype)
    k = emitter.operand(node.k, (roles["b"], keys, roles["j"], roles["d"]), sizes, spec.dtype)
    v = emitter.operand(node.v, (roles["b"], keys, roles["j"], roles["e"]), sizes, spec.dtype)
    extras = [_taken(emitter, value, at) for value, at in node.extras]
    if node.weight is not None:
        heads = {a for i in node.weight.index for a in i.axes} - {*roles["c"], *roles["d"]}
        groups = [roles["c"], roles["d"]] if not heads else [roles["h"], roles["c"], roles["d"]]
        place = next(n for n, e in enumerate(spec.extras) if e.name == spec.bilinear)
        extras.insert(place, emitter.operand(node.weight, groups, sizes))
    scalars = [emitter.value(s) if isinstance(s, str) else s for s in node.scalars]
    integers = [emitter.number(n) for n in node.integers]
    for layout in _layouts(emitter.anchor):
        before = len(emitter.made)
        out = emitter.call(
            torch.ops.attncc.attention.default, q, k, v, extras, scalars, integers, spec.json, layout
        )  # fmt: skip
        result = _placed(emitter, node, out, roles, sizes)
        if _same_strides(result, emitter.anchor) or _takes_any_strides(emitter.anchor):
            return result
        if layout != _layouts(emitter.anchor)[-1]:
            for extra in reversed(emitter.made[before:]):
                emitter.graph.erase_node(extra)
            del emitter.made[before:]
    return _with_strides(emitter, result)


def _taken(emitter: Emitter, value: str, at: tuple[Dim | None, ...]) -> fx.Node:
    node = emitter.value(value)
    for p in reversed(range(len(at))):
        position = at[p]
        if position is not None:
            node = emitter.call(aten.select.int, node, p, emitter.number(position))
    return node


def _placed(
    emitter: Emitter, node: ir.Attention, out: fx.Node, roles: Mapping[str, Group], sizes: Mapping[str, Dim]
) -> fx.Node:
    """The operator's [B, H, Sq, E] in the dimensions and dtype of the node that it replaces."""
    merged = [roles["b"], roles["h"], roles["i"], roles["e"]]
    labels = [a for g in merged for a in g]
    if any(len(g) != 1 for g in merged):
        shape = [emitter.number(sizes[a]) for a in labels]
        out = emitter.call(aten.reshape.default, out, shape)
    wanted = [a for d in node.dims for a in d]
    order = [labels.index(a) for a in wanted]
    if order != list(range(len(order))):
        out = emitter.call(aten.permute.default, out, order)
    if any(len(d) != 1 for d in node.dims):
        shape = [emitter.number(product(sizes[a] for a in d)) for d in node.dims]
        out = emitter.call(aten.reshape.default, out, shape)
    dtype = emitter.anchor.meta["val"].dtype
    return out if out.meta["val"].dtype == dtype else emitter.call(aten.to.dtype, out, dtype)


_FREE = ("aten.reshape.default", "aten.contiguous.default")
_MOVES = ("aten.transpose.int", "aten.permute.default")


def _takes_any_strides(node: fx.Node) -> bool:
    """Whether nothing that follows can tell in which order the elements lie."""
    if not node.users:
        return False
    for user in node.users:
        name = str(user.target)
        plain = name in _FREE or (name == "aten.clone.default" and "memory_format" in user.kwargs)
        if not plain and not (name in _MOVES and _takes_any_strides(user)):
            return False
    return True


def _layouts(anchor: fx.Node) -> tuple[str, str]:
    """The layout to try first: the one that makes a transpose before a reshape free."""
    moved = any(str(u.target) in _MOVES for u in anchor.users)
    return ("bshd", "bhsd") if moved and _takes_any_strides(anchor) else ("bhsd", "bshd")


def _strides(node: fx.Node) -> list[Dim]:
    """Strides of the dimensions that have more than one element."""
    value = node.meta["val"]
    return [dim(s) for s, n in zip(value.stride(), value.shape, strict=True) if dim(n) != 1]


def _same_strides(a: fx.Node, b: fx.Node) -> bool:
    return all(map(equal, _strides(a), _strides(b)))


def _with_strides(emitter: Emitter, result: fx.Node) -> fx.Node:
    """A copy that lies as the original does: dense, its dimensions in the same order of strides."""
    strides = [dim(s) for s in emitter.anchor.meta["val"].stride()]
    order = list(range(len(strides)))
    for p in range(len(order)):  # selection sort: symbolic strides compare by divisibility
        first = next(
            (n for n in order[p:] if all(_longer(strides[n], strides[m], n, m) for m in order[p:] if m != n)), order[p]
        )
        order.remove(first)
        order.insert(p, first)
    if order == list(range(len(order))):
        return emitter.call(aten.contiguous.default, result)
    packed = emitter.call(aten.contiguous.default, emitter.call(aten.permute.default, result, order))
    return emitter.call(aten.permute.default, packed, [order.index(p) for p in range(len(order))])


def _longer(a: Dim, b: Dim, p: int, q: int) -> bool:
    if equal(a, b):
        return p < q
    return exact_div(a, b) is not None
