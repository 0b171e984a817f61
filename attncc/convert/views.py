"""Operators that only say where elements are: every one becomes a View with a linear index map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from attncc import index as ix
from attncc import ir
from attncc.convert.context import (
    Context,
    Unsupported,
    broadcast,
    dtype_name,
    lowers,
    position,
    result,
    shape_of,
    space,
)
from attncc.convert.contractions import first_of_max
from attncc.symbolic import Dim, dim, equal, exact_div


@lowers(
    "aten.alias.default", "aten.contiguous.default", "aten.clone.default", "aten.detach.default",
    "aten.detach_.default", "aten.lift_fresh_copy.default", "aten.lift_fresh.default", "aten.lift.default",
    "aten.resolve_conj.default",
    "aten.resolve_neg.default", "aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default",
)  # fmt: skip
def same_elements(c: Context, node: fx.Node) -> ir.Node:
    """The elements of the operand, broadcast."""
    source = c.value(node.args[0])
    axes, dims = space(shape_of(result(node)))
    return c.add(ir.View(node.name, source.dtype, axes, dims, broadcast(source, dims)))


@lowers(
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
    "aten.squeeze.default", "aten.unflatten.int", "aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.view_as.default",
    "aten._reshape_alias.default", "aten.reshape_as.default", "aten.unsafe_view.default",
)  # fmt: skip
def reshape(c: Context, node: fx.Node) -> ir.Node:
    """The operand in another shape, row-major."""
    source = c.value(node.args[0])
    shape = shape_of(result(node))
    axes, dims, index = regroup(source.shape, shape)
    return c.add(ir.View(node.name, source.dtype, axes, dims, ir.Access(source.name, index)))


def regroup(
    old: Sequence[Dim], new: Sequence[Dim]
) -> tuple[tuple[tuple[str, Dim], ...], tuple[tuple[str, ...], ...], tuple[ix.Linear, ...]]:
    """Axes of the coarsest space in which both shapes are merges, the dims of `new`, the index of each dim of `old`.

    Raises Unsupported where there is no such space, as for (4, 6) and (8, 3).
    """
    inner = list(reversed(old))
    outer = list(reversed(new))
    old_axes: list[list[str]] = [[] for _ in old]
    new_axes: list[list[str]] = [[] for _ in new]
    names = iter(ir.fresh_axes((), 4 * (len(old) + len(new)) + 4))
    sizes: dict[str, Dim] = {}
    a = b = 0
    while a < len(inner) or b < len(outer):
        if a < len(inner) and inner[a] == 1:
            a += 1
        elif b < len(outer) and outer[b] == 1:
            b += 1
        elif a >= len(inner) or b >= len(outer):
            raise Unsupported(f"reshape from {tuple(old)} to {tuple(new)}")
        else:
            size = _common(inner[a], outer[b])
            if size is None or size == 0:
                raise Unsupported(f"reshape from {tuple(old)} to {tuple(new)} regroups no whole axes")
            name = next(names)
            sizes[name] = size
            old_axes[a].insert(0, name)
            new_axes[b].insert(0, name)
            inner[a] = exact_div(inner[a], size) or 0
            outer[b] = exact_div(outer[b], size) or 0
    dims = tuple(tuple(d) for d in reversed(new_axes))
    index = tuple(ix.merged(d, sizes) for d in reversed(old_axes))
    return tuple((n, sizes[n]) for d in dims for n in d), dims, index


def _common(a: Dim, b: Dim) -> Dim | None:
    """The smaller of two sizes where it divides the other."""
    if equal(a, b):
        return a
    if exact_div(a, b) is not None:
        return b
    return a if exact_div(b, a) is not None else None


def _dims_argument(node: fx.Node, position: int, rank: int) -> list[int]:
    given = node.args[position]
    return [int(d) % rank for d in (given if isinstance(given, list | tuple) else [given])]


@lowers("aten.permute.default", "aten.transpose.int", "aten.swapaxes.default", "aten.movedim.int",
        "aten.movedim.intlist", "aten.t.default", "aten.numpy_T.default", "aten.mT.default", "aten.adjoint.default",
        "aten.swapdims.default",
        "aten.matrix_H.default", "aten.mH.default")  # fmt: skip
def permute(c: Context, node: fx.Node) -> ir.Node:
    """The operand with its dimensions in another order; which one, PyTorch itself is asked."""
    source = c.value(node.args[0])
    rank = len(source.shape)
    # Distinct sizes show where each dimension goes, whatever the operator's own conventions are.
    probe = torch.empty([p + 2 for p in range(rank)], device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)
    order = [int(s) - 2 for s in moved.shape]
    axes, dims = space(shape_of(result(node)))
    index = tuple(position(dims, order.index(p)) for p in range(rank))
    return c.add(ir.View(node.name, source.dtype, axes, dims, ir.Access(source.name, index)))


@lowers("aten.repeat_interleave.self_int")
def repeat_interleave(c: Context, node: fx.Node) -> ir.Node:
    """Every position several times in a row."""
    source = c.value(node.args[0])
    given = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if given is None:
        raise Unsupported("repeat_interleave of a flattened tensor")
    along, times = int(given) % len(source.shape), dim(_number(node.args[1]))
    return _repeated(c, node, source, [(1, times if p == along else 1) for p in range(len(source.shape))])


@lowers("aten.repeat.default")
def repeat(c: Context, node: fx.Node) -> ir.Node:
    """The whole several times along each dimension."""
    source = c.value(node.args[0])
    times = [dim(_number(n)) for n in node.args[1]]
    return _repeated(c, node, source, [(n, 1) for n in times])


def _repeated(c: Context, node: fx.Node, source: ir.Node, times: Sequence[tuple[Dim, Dim]]) -> ir.Node:
    """`source` with each dimension between an outer and an inner one over which it stands still."""
    new = len(times) - len(source.shape)
    names = iter(ir.fresh_axes((), 3 * len(times)))
    axes: list[tuple[str, Dim]] = []
    dims: list[tuple[str, ...]] = []
    index: list[ix.Linear] = []
    for p, (outer, inner) in enumerate(times):
        sizes = (outer, source.shape[p - new] if p >= new else 1, inner)
        made = [(next(names), size) if size != 1 else None for size in sizes]
        axes += [axis for axis in made if axis]
        dims.append(tuple(axis[0] for axis in made if axis))
        if p >= new:
            index.append(ix.axis(made[1][0]) if made[1] else ix.constant(0))
    access = ir.Access(source.name, tuple(index))
    return c.add(ir.View(node.name, source.dtype, tuple(axes), tuple(dims), access))


@lowers("aten.select.int")
def select(c: Context, node: fx.Node) -> ir.Node:
    """One position along a dimension."""
    source = c.value(node.args[0])
    (along,) = _dims_argument(node, 1, len(source.shape))
    return picked(c, node, node.name, source, along, _offset(node.args[2], source.shape[along]))


def picked(c: Context, node: fx.Node, name: str, source: ir.Node, along: int, at: Dim) -> ir.Node:
    """`source` at position `at` of dimension `along`, which goes away."""
    axes, dims = space(shape_of(result(node)))
    rest = iter(range(len(dims)))
    index = tuple(
        ix.constant(at) if p == along else position(dims, next(rest)) for p in range(len(source.shape))
    )  # fmt: skip
    return c.add(ir.View(name, source.dtype, axes, dims, ir.Access(source.name, index)))


@lowers("aten.slice.Tensor")
def slice_(c: Context, node: fx.Node) -> ir.Node:
    """Every `step`-th position from `start` on."""
    source = c.value(node.args[0])
    given = list(node.args[1:])
    along, start, _, step = given + [0, None, None, 1][len(given) :]
    along = int(along) % len(source.shape)
    first = _start(start or 0, source.shape[along], shape_of(result(node))[along])
    return sliced(c, node, source, along, first, dim(_number(step)))


@lowers("aten.narrow.default")
def narrow(c: Context, node: fx.Node) -> ir.Node:
    """Consecutive positions."""
    source = c.value(node.args[0])
    (along,) = _dims_argument(node, 1, len(source.shape))
    return sliced(c, node, source, along, _offset(node.args[2], source.shape[along]), 1)


def sliced(c: Context, node: fx.Node, source: ir.Node, along: int, start: Dim, step: Dim) -> ir.Node:
    """`source` read from `start` in steps along one dimension, in the shape that `node` has."""
    shape = shape_of(result(node))
    axes, dims = space(shape)
    index = tuple(
        ix.total([ix.scaled(position(dims, p), step)], start)
        if p == along
        else position(dims, p) for p in range(len(shape))
    )  # fmt: skip
    return c.add(ir.View(node.name, source.dtype, axes, dims, ir.Access(source.name, index)))


def _start(argument: object, size: Dim, length: Dim) -> Dim:
    """Where a slice begins: counted from the back where negative, and never outside."""
    if equal(size, length):
        return 0
    at = dim(_number(argument))
    if isinstance(at, int) and isinstance(size, int):
        return min(max(at + size if at < 0 else at, 0), size)
    return _offset(argument, size)


def _number(argument: object) -> object:
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _offset(argument: object, size: Dim) -> Dim:
    """A position counted from the front; negative ones count from the back."""
    at = dim(_number(argument))
    if isinstance(at, int):
        return at if at >= 0 else dim(size + at)
    if at.is_nonnegative:
        return at
    raise Unsupported(f"the sign of the offset {at} is not known")


@lowers("<built-in function getitem>")
def getitem(c: Context, node: fx.Node) -> ir.Node:
    """One output of an operator that makes several."""
    maker, number = node.args
    if not isinstance(maker, fx.Node) or not isinstance(number, int):
        raise Unsupported("getitem of no node")
    if str(maker.target) == "aten.max.dim" and number == 0:
        return first_of_max(c, node, maker)
    parts = _parts(c, maker)
    if parts is None:
        raise Unsupported(f"output {number} of {maker.target}")
    source, along, starts = parts
    if starts is None:
        return picked(c, node, node.name, source, along, number % int(source.shape[along]))
    return sliced(c, node, source, along, starts[number], 1)


def _parts(c: Context, maker: fx.Node) -> tuple[ir.Node, int, list[Dim] | None] | None:
    """Source, dimension and starts of the pieces that unbind (starts None), split and chunk make."""
    name = str(maker.target)
    if name == "aten.unbind.int":
        source = c.value(maker.args[0])
        return source, int(maker.args[1] if len(maker.args) > 1 else 0) % len(source.shape), None
    along_at = {"aten.split.Tensor": 2, "aten.split.sizes": 2, "aten.split_with_sizes.default": 2,
                "aten.chunk.default": 2, "aten.split.default": 2}.get(name)  # fmt: skip
    if along_at is None:
        return None
    source = c.value(maker.args[0])
    along = maker.args[along_at] if len(maker.args) > along_at else maker.kwargs.get("dim", 0)
    along = int(along) % len(source.shape)
    starts: list[Dim] = [0]
    for piece in maker.meta["val"]:
        starts.append(dim(starts[-1] + dim(piece.shape[along])))
    return source, along, starts


@lowers("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
def cat(c: Context, node: fx.Node) -> ir.Node:
    """Values joined along a dimension; empty one-dimensional ones do not count, as in PyTorch."""
    parts = [c.value(p) for p in node.args[0]]
    tensor = result(node)
    axes, dims = space(shape_of(tensor))
    parts = [p for p in parts if p.shape != (0,)]
    if len(parts) == 1 and parts[0].dtype == dtype_name(tensor.dtype):
        return c.add(ir.View(node.name, parts[0].dtype, axes, dims, broadcast(parts[0], dims)))
    along = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % tensor.ndim
    dtype = dtype_name(tensor.dtype)
    return c.add(ir.Concat(node.name, dtype, axes, dims, tuple(p.name for p in parts), along))
