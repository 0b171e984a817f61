"""What operators that move elements do to cells: run as they are, on the axes that are concrete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from attncc.bands import pointwise as _registers_pointwise  # noqa: F401
from attncc.bands import products as _registers_products  # noqa: F401
from attncc.bands.axes import Axis, Dims, MustBeConcrete, Part, lengths
from attncc.bands.pointwise import cast
from attncc.bands.walk import Unknown, Value, Walk, follows
from attncc.convert.context import shape_of
from attncc.passes.refused import Refused
from attncc.symbolic import Dim, dim, equal, product

aten = torch.ops.aten


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def cut(part: Part) -> Part:
    """A dimension that an operator cuts. Raises MustBeConcrete where an axis of it is carried."""
    if any(axis.name for axis in part):
        raise MustBeConcrete([axis.name for axis in part])
    return part


def plain(cells: Tensor, dims: Dims, along: Sequence[int]) -> Value:
    """Cells that an operator made, their dimensions `along` anew."""
    rest = tuple(
        (() if n == 1 else (Axis(n),)) if p in along else part
        for p, (part, n) in enumerate(zip(dims, cells.shape, strict=True))
    )
    return Value(cells, rest)


@follows(
    "aten.alias.default", "aten.contiguous.default", "aten.clone.default", "aten.detach.default",
    "aten.lift_fresh_copy.default", "aten.lift_fresh.default",
)  # fmt: skip
def same(walk: Walk, node: fx.Node) -> Value:
    """The operand."""
    return walk.value(node.args[0])


@follows("aten.dropout.default", "aten.feature_dropout.default")
def dropout(walk: Walk, node: fx.Node) -> Value:
    """The operand, in evaluation."""
    if node.args[2] and node.args[1] != 0:
        raise Unknown
    return walk.value(node.args[0])


@follows(
    "aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other", "aten._to_copy.default",
    "aten.type_as.default", "attncc.copy",
)  # fmt: skip
def converted(walk: Walk, node: fx.Node) -> Value:
    """The operand in another dtype; what `copy_` writes."""
    source: Any = node.args[1 if str(node.target).startswith("aten.copy_") else 0]
    return cast(walk, node, source)


@follows(
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
    "aten.squeeze.default", "aten.unflatten.int", "aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.view_as.default", "aten.reshape_as.default", "aten._reshape_alias.default",
)  # fmt: skip
def reshape(walk: Walk, node: fx.Node) -> Value:
    """The operand in another shape."""
    source = walk.value(node.args[0])
    dims = walk.axes.regrouped(source.dims, shape_of(node.meta["val"]))
    return Value(source.cells.reshape(lengths(dims)), dims)


@follows("aten.permute.default", "aten.transpose.int", "aten.swapaxes.default", "aten.movedim.int",
         "aten.t.default", "aten.numpy_T.default", "aten.mT.default")  # fmt: skip
def permute(walk: Walk, node: fx.Node) -> Value:
    """The operand with its dimensions in another order."""
    source = walk.value(node.args[0])
    target: Any = node.target
    probe = target(torch.empty([p + 2 for p in range(len(source.dims))], device="meta"), *node.args[1:])
    order = [int(n) - 2 for n in probe.shape]
    return Value(source.cells.permute(order), tuple(source.dims[p] for p in order))


@follows("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(walk: Walk, node: fx.Node) -> Value:
    """The operand again and again along new dimensions."""
    source, shape = walk.value(node.args[0]), shape_of(node.meta["val"])
    made = walk.fresh(node, shape)
    new = len(shape) - len(source.dims)
    dims = made[:new] + tuple(part or fresh for part, fresh in zip(source.dims, made[new:], strict=True))
    return Value(source.cells.expand(lengths(dims)), dims)


@follows("aten.slice.Tensor", "aten.narrow.default")
def slice_(walk: Walk, node: fx.Node) -> Value:
    """Some positions of a dimension, all of them if it has as many as before."""
    source = walk.value(node.args[0])
    along = int(argument(node, 1, "dim", 0)) % len(source.dims)
    part, size = source.dims[along], shape_of(node.meta["val"])[along]
    if equal(size, product(a.size for a in part)):
        return Value(source.cells.view(source.cells.shape), source.dims)
    cut(part)
    return plain(_run(node, source.cells), source.dims, [along])


@follows("aten.select.int")
def select(walk: Walk, node: fx.Node) -> Value:
    """One position of a dimension."""
    source = walk.value(node.args[0])
    along = int(node.args[1]) % len(source.dims)
    cut(source.dims[along])
    return Value(source.cells.select(along, _int(node.args[2])), source.dims[:along] + source.dims[along + 1 :])


@follows("aten.unbind.int", "aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default",
         "aten.chunk.default")  # fmt: skip
def pieces(walk: Walk, node: fx.Node) -> list[Value]:
    """All positions of a dimension, one by one or some at a time."""
    source = walk.value(node.args[0])
    unbound = str(node.target) == "aten.unbind.int"
    along = int(argument(node, 1 if unbound else 2, "dim", 0)) % len(source.dims)
    cut(source.dims[along])
    made = _run(node, source.cells)
    if unbound:
        return [Value(cells, source.dims[:along] + source.dims[along + 1 :]) for cells in made]
    return [plain(cells, source.dims, [along]) for cells in made]


@follows("<built-in function getitem>")
def getitem(walk: Walk, node: fx.Node) -> Value:
    """One piece of several."""
    known, number = walk.values.get(node.args[0]), node.args[1]
    if not isinstance(known, list) or not isinstance(number, int) or not known:
        raise Unknown
    return known[number]


@follows("aten.unfold.default")
def unfold(walk: Walk, node: fx.Node) -> Value:
    """Overlapping windows of a dimension, the positions in a window as a new last one."""
    source = walk.value(node.args[0])
    along = int(node.args[1]) % len(source.dims)
    cut(source.dims[along])
    cells = source.cells.unfold(along, _int(node.args[2]), _int(node.args[3]))
    return plain(cells, (*source.dims, ()), [along, len(source.dims)])


@follows("aten.flip.default", "aten.roll.default", "aten.tril.default", "aten.triu.default")
def turned(walk: Walk, node: fx.Node) -> Value:
    """The same positions of some dimensions in another order, or zeros for them."""
    source, name = walk.value(node.args[0]), str(node.target)
    given = argument(node, 2 if "roll" in name else 1, "dims", ()) if "tri" not in name else (-2, -1)
    along = [int(p) % len(source.dims) for p in given]
    for p in along or range(len(source.dims)):
        cut(source.dims[p])
    return Value(_run(node, source.cells), source.dims)


@follows("aten.pad.default", "aten.constant_pad_nd.default")
def pad(walk: Walk, node: fx.Node) -> Value:
    """A number before and behind."""
    source = walk.value(node.args[0])
    widths = [_int(w) for w in argument(node, 1, "pad")]
    mode = argument(node, 2, "mode", "constant") if "aten.pad" in str(node.target) else "constant"
    value = argument(node, 3 if "aten.pad" in str(node.target) else 2, "value", 0)
    if mode != "constant":
        raise Unknown
    last = len(source.dims) - 1
    along = [last - n // 2 for n in range(0, len(widths), 2) if widths[n] or widths[n + 1]]
    for p in along:
        cut(source.dims[p])
    number = walk.cells.number(float(value or 0))
    return plain(torch.constant_pad_nd(source.cells, widths, number), source.dims, along)


@follows("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(walk: Walk, node: fx.Node) -> Value:
    """Values joined along a dimension."""
    given: Any = node.args[0]
    values = [walk.value(n) for n in given]
    if len({n.meta["val"].dtype for n in given}) > 1 or len({len(v.dims) for v in values}) > 1:
        raise Unknown
    along = int(argument(node, 1, "dim", 0)) % len(values[0].dims)
    for value in values:
        cut(value.dims[along])
    dims = tuple(() if p == along else walk.meet(*(v.dims[p] for v in values)) for p in range(len(values[0].dims)))
    return plain(torch.cat([v.cells for v in values], along), dims, [along])


@follows(*(f"aten.{name}.default" for name in ("zeros", "zeros_like", "new_zeros", "zero")),
         *(f"aten.{name}.default" for name in ("ones", "ones_like", "new_ones")),
         "aten.full.default", "aten.full_like.default", "aten.new_full.default", "aten.fill.Scalar",
         "aten.scalar_tensor.default")  # fmt: skip
def constant(walk: Walk, node: fx.Node) -> Value:
    """One number everywhere."""
    name = str(node.target)
    at = 0 if "scalar_tensor" in name else 2 if "new_full" in name else 1
    number: Any = 0 if "zero" in name else 1 if "one" in name else argument(node, at, "fill_value")
    if not isinstance(number, bool | int | float):
        raise Unknown
    dims = walk.fresh(node)
    return Value(walk.cells.filled(dims, torch.tensor(number, dtype=node.meta["val"].dtype).item()), dims)


@follows("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(walk: Walk, node: fx.Node) -> Value:
    """Numbers, where the positions are told apart."""
    (part,) = walk.fresh(node)
    if any(axis.name for axis in part):
        raise Unknown
    given = [_int(a) for a in node.args]
    made = torch.arange(*given, dtype=node.meta["val"].dtype)
    if walk.cells.device == "meta":
        return Value(made.to("meta", torch.int64), (part,))
    return Value(walk.cells.of_values(made), (part,))


@follows("aten.as_strided.default")
def as_strided(walk: Walk, node: fx.Node) -> Value:
    """The elements at places of memory: carried axes go the same way as before, the others are looked up."""
    source = walk.value(node.args[0])
    fake = node.args[0].meta["val"]
    strides = [dim(s) for s in fake.stride()]
    wanted = list(zip(shape_of(node.meta["val"]), map(dim, node.meta["val"].stride()), strict=True))
    offset = dim(node.meta["val"].storage_offset() - fake.storage_offset())
    carried = [p for p, part in enumerate(source.dims) if any(a.name for a in part)]
    place: dict[int, int] = {}
    for p in carried:
        size = product(a.size for a in source.dims[p])
        at = [n for n, (m, s) in enumerate(wanted) if n not in place and equal(m, size) and equal(s, strides[p])]
        if not at or not all(a.name for a in source.dims[p]):
            raise MustBeConcrete([a.name for a in source.dims[p]])
        place[at[0]] = p
    dims = tuple(
        source.dims[place[n]] if n in place else () if m == 1 else (Axis(m),) for n, (m, _) in enumerate(wanted)
    )
    for part in dims:
        if any(not a.name and not isinstance(a.size, int) for a in part):
            raise Refused("overlapping views of a length that is not a fixed number")
    if walk.cells.device == "meta":
        return Value(torch.empty(lengths(dims), dtype=torch.int64, device="meta"), dims)
    known = _places([1 if p in carried else n for p, n in enumerate(source.cells.shape)], strides)
    asked = _places([1 if n in place else m for n, (m, _) in enumerate(wanted)], [s for _, s in wanted]) + _int(offset)
    ordered, order = known.flatten().sort()
    at_hand = torch.searchsorted(ordered, asked.flatten()).clamp(max=len(ordered) - 1)
    if not bool((ordered[at_hand] == asked.flatten()).all()):
        raise Refused("overlapping views show memory that is not the tensor's")
    return Value(source.cells.flatten()[order[at_hand]].reshape(lengths(dims)), dims)


def _places(shape: Sequence[Dim], strides: Sequence[Dim]) -> Tensor:
    """Where in memory every element lies."""
    result = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(shape, strides, strict=True):
        steps = torch.arange(_int(size)) * (_int(stride) if size != 1 else 0)
        result = result.unsqueeze(-1) + steps
    return result


def _run(node: fx.Node, cells: Tensor) -> Any:
    """The operator of `node` on cells, its other arguments being numbers."""
    target: Any = node.target
    args, kwargs = fx.map_arg((node.args[1:], node.kwargs), _int)
    return target(cells, *args, **kwargs)


def _int(number: Any) -> int:
    if isinstance(number, fx.Node):
        number = number.meta["val"]
    known = number if isinstance(number, int) else dim(number)
    if not isinstance(known, int):
        raise Refused(f"the length {known} is not a fixed number")
    return known
