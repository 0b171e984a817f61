"""Nodes of the IR that passes made as FX nodes: an Attention as one operator on views of values that exist.

Operands are read as [B, H, S, D] through select, slice, view, permute and expand only, which copy nothing; a reshape
follows where several axes make up one (heads of a group, a batch of several dimensions), and copies only where the
strides do not merge. The result has the shape, dtype and strides of the node that it replaces, unless all that follows
takes any strides: then it lies so that the transpose that follows is free.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from attncc import ir
from attncc.emit_index import Group
from attncc.emit_values import emit_value
from attncc.emitter import Emitter, is_same
from attncc.passes.refused import Refused
from attncc.runtime import op as _registers_the_operator  # noqa: F401
from attncc.symbolic import Dim, dim, equal, exact_div, product

aten = torch.ops.aten


def emit(emitter: Emitter, name: str, original: fx.Node) -> fx.Node:
    """Add what makes the value `name`, in the form of `original`, whose place it takes. Raises Refused."""
    layouts = _layouts(original) if not emitter.made else (emitter.layout,)
    for layout in layouts:
        emitter.layout = layout
        result = emitter.value(name)
        if result.meta["val"].dtype != original.meta["val"].dtype:
            result = emitter.call(aten.to.dtype, result, original.meta["val"].dtype)
        value = result.meta["val"]
        if same_strides(value, original.meta["val"]) or _unnoticed(value, original):
            return result
        if layout != layouts[-1]:
            emitter.undo()
    return _with_strides(emitter, result, original)


def make(emitter: Emitter, node: ir.Node) -> fx.Node:
    """The value of a node that a pass made, in the dimensions of the node. Raises Refused."""
    match node:
        case ir.Attention():
            return _attention(emitter, node)
        case ir.Output(attention=name, kind=kind):
            emitter.value(name)
            attention = emitter.new(name)
            rows = "bhi" if kind != "weights" else "bhij"
            return _placed(emitter, node, emitter.outputs[name][kind], [dict(attention.roles)[r] for r in rows])
    return emit_value(emitter, node)


def _attention(emitter: Emitter, node: ir.Attention) -> fx.Node:
    """The operator with its operands, and its first result in the dimensions of the node."""
    roles, sizes, spec = dict(node.roles), dict(node.axes), node.spec
    if spec is None:
        raise Refused("no spec", node.name)
    keys = roles["h"][: len(roles["h"]) - len(roles["r"])]
    q = emitter.operand(node.q, (roles["b"], roles["h"], roles["i"], roles["c"]), sizes, spec.dtype)
    k = emitter.operand(node.k, (roles["b"], keys, roles["j"], roles["d"]), sizes, spec.key_dtype or spec.dtype)
    v = emitter.operand(node.v, (roles["b"], keys, roles["j"], roles["e"]), sizes, spec.value_dtype or spec.dtype)
    extras = [_taken(emitter, value, at) for value, at in node.extras]
    if node.weight is not None:
        heads = {a for i in node.weight.index for a in i.axes} - {*roles["c"], *roles["d"]}
        groups = [roles["c"], roles["d"]] if not heads else [roles["h"], roles["c"], roles["d"]]
        place = next(n for n, e in enumerate(spec.extras) if e.name == spec.bilinear)
        extras.insert(place, emitter.operand(node.weight, groups, sizes, spec.extras[place].dtype))
    scalars = [emitter.value(s) if isinstance(s, str) else s for s in node.scalars]
    integers = [emitter.number(n) for n in node.integers]
    arguments = (q, k, v, extras, scalars, integers, spec.json, emitter.layout)
    if spec.outputs == ("out",):
        out = emitter.call(torch.ops.attncc.attention.default, *arguments)
    else:
        several = emitter.call(torch.ops.attncc.attention_outputs.default, *arguments)
        found = {kind: emitter.call(operator.getitem, several, n) for n, kind in enumerate(spec.outputs)}
        emitter.outputs[node.name], out = found, found["out"]
    return _placed(emitter, node, out, [roles[r] for r in "bhie"])


def _taken(emitter: Emitter, value: str, at: tuple[Dim | None, ...]) -> fx.Node:
    node = emitter.value(value)
    for p in reversed(range(len(at))):
        position = at[p]
        if position is not None:
            node = emitter.call(aten.select.int, node, p, emitter.number(position))
    return node


def _placed(emitter: Emitter, node: ir.Node, value: fx.Node, merged: list[Group]) -> fx.Node:
    """A tensor of one dimension a group of axes, in the dimensions and the dtype of `node`."""
    sizes: Mapping[str, Dim] = node.sizes
    labels, source = [a for g in merged for a in g], value
    if any(len(g) != 1 for g in merged):
        value = emitter.call(aten.reshape.default, value, [emitter.number(sizes[a]) for a in labels])
    order = [labels.index(a) for d in node.dims for a in d]
    if order != list(range(len(order))):
        value = emitter.call(aten.permute.default, value, order)
    if any(len(d) != 1 for d in node.dims):
        shape = [emitter.number(product(sizes[a] for a in d)) for d in node.dims]
        value = emitter.call(aten.reshape.default, value, shape)
    value = source if is_same(source, value) else value
    dtype = getattr(torch, node.dtype)
    return value if value.meta["val"].dtype == dtype else emitter.call(aten.to.dtype, value, dtype)


_MOVES = (aten.transpose.int, aten.permute.default)
_PACKS = (aten.reshape.default, aten.contiguous.default, aten.clone.default)


def _unnoticed(value: torch.Tensor, node: fx.Node) -> bool:
    """Whether nothing can tell that `node` lies in memory as the fake `value` does.

    So it is where the one thing that follows packs the elements anew, into the same strides as before. Were there two,
    both could become views of one memory where they were copies, and a change of one would show in the other.
    """
    if len(node.users) != 1:
        return False
    (user,) = node.users
    if user.target not in (*_MOVES, *_PACKS):
        return False
    args, kwargs = fx.map_arg((user.args, user.kwargs), lambda n: value if n is node else n.meta["val"])
    after = user.target(*args, **kwargs)
    return _unnoticed(after, user) if user.target in _MOVES else same_strides(after, user.meta["val"])


def _layouts(anchor: fx.Node) -> tuple[str, str]:
    """The layout to try first: the one that makes a transpose before a reshape free."""
    return ("bshd", "bhsd") if any(u.target in _MOVES for u in anchor.users) else ("bhsd", "bshd")


def _strides(value: torch.Tensor) -> list[Dim]:
    """Strides of the dimensions that have more than one element."""
    return [dim(s) for s, n in zip(value.stride(), value.shape, strict=True) if dim(n) != 1]


def same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the elements of two tensors of one shape lie alike; dimensions of size 1 do not count."""
    return all(map(equal, _strides(a), _strides(b)))


def _with_strides(emitter: Emitter, result: fx.Node, original: fx.Node) -> fx.Node:
    """A copy that lies as the original does: dense, its dimensions in the same order of strides."""
    strides = [dim(s) for s in original.meta["val"].stride()]
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
