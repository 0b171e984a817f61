"""softmax, its relatives and whole attention calls, taken apart into Contract, Map and Reduce."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_or_false

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.convert.context import (
    Context,
    Unsupported,
    as_dtype,
    broadcast,
    dtype_name,
    identity,
    lowers,
    map_node,
    position,
    result,
    space,
)
from attncc.convert.contractions import cast_operand, in_dtype, reduce_over
from attncc.expr import op
from attncc.symbolic import Dim, equal, exact_div

MINUS_INFINITY = float("-inf")


def exp_parts(c: Context, name: str, source: ir.Node, along: int) -> tuple[ir.Node, ir.Node, ir.Node]:
    """max over `along`, exp(source - max) and its sum, the reductions with the dimension kept."""
    top = reduce_over(c, f"{name}.max", "max", source, [along], keep=True)
    axes, dims = space(source.shape)
    reads = (broadcast(source, dims), broadcast(top, dims))
    body = op("exp", op("sub", ex.Arg(0, source.dtype), ex.Arg(1, source.dtype)))
    raised = c.once(
        ("exp", source.name, along),
        lambda: c.add(ir.Map(f"{name}.exp", source.dtype, axes, dims, reads, body)),
    )
    return top, raised, reduce_over(c, f"{name}.sum", "sum", raised, [along], keep=True)


@lowers("aten.softmax.int", "aten._softmax.default", "aten.special_softmax.default")
def softmax(c: Context, node: fx.Node) -> ir.Node:
    """exp(x - max) / sum."""
    source = c.value(node.args[0])
    dtype = dtype_name(result(node).dtype)
    along = int(node.args[1]) % len(source.shape)
    source = in_dtype(c, f"{node.name}.input", source, dtype)
    _, raised, summed = exp_parts(c, node.name, source, along)
    return map_node(c, node.name, result(node), [raised, summed], lambda e, s: op("div", e, s))


@lowers("aten.logsumexp.default")
def logsumexp(c: Context, node: fx.Node) -> ir.Node:
    """max + log(sum of exp(x - max))."""
    source = c.value(node.args[0])
    over = [int(d) % len(source.shape) for d in node.args[1]]
    keep = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    if len(over) != 1:
        raise Unsupported("logsumexp over several dimensions")
    top, _, summed = exp_parts(c, node.name, source, over[0])
    if not keep:
        top, summed = (without_dimension(c, f"{x.name}.flat", x, over[0]) for x in (top, summed))
    return map_node(c, node.name, result(node), [top, summed], lambda m, s: op("add", m, op("log", s)))


def without_dimension(c: Context, name: str, source: ir.Node, along: int) -> ir.Node:
    """`source` without its dimension `along`, which is of size 1."""
    axes, dims = space([s for p, s in enumerate(source.shape) if p != along])
    rest = iter(range(len(dims)))
    index = tuple(ix.constant(0) if p == along else position(dims, next(rest)) for p in range(len(source.shape)))
    return c.add(ir.View(name, source.dtype, axes, dims, ir.Access(source.name, index)))


@lowers("aten._safe_softmax.default")
def safe_softmax(c: Context, node: fx.Node) -> ir.Node:
    """softmax, 0 in a row of nothing but -inf."""
    tensor = result(node)
    source = in_dtype(c, f"{node.name}.input", c.value(node.args[0]), dtype_name(tensor.dtype))
    top, raised, summed = exp_parts(c, node.name, source, int(node.args[1]) % len(source.shape))

    def body(e: ex.Expr, s: ex.Expr, m: ex.Expr) -> ex.Expr:
        return op("where", op("eq", m, ex.Const(MINUS_INFINITY, m.dtype)), ex.Const(0.0, e.dtype), op("div", e, s))

    return map_node(c, node.name, tensor, [raised, summed, top], body)


@lowers("aten.dropout.default", "aten.feature_dropout.default", "aten.native_dropout.default")
def dropout(c: Context, node: fx.Node) -> ir.Node:
    """Nothing, where nothing is dropped."""
    probability, training = node.args[1:3]
    if training and probability != 0:
        raise Unsupported(f"dropout with p={probability} draws random numbers")
    source = c.value(node.args[0])
    axes, dims, access = identity(source)
    return c.add(ir.View(node.name, source.dtype, axes, dims, access))


@lowers("aten.scaled_dot_product_attention.default")
def scaled_dot_product_attention(c: Context, node: fx.Node) -> ir.Node:
    """softmax(q kᵀ scale + mask) v, with 0 for rows that see no key (PyTorch's `_safe_softmax`)."""
    given: list[Any] = list(node.args)
    q_node, k_node, v_node, mask, dropout_p, causal = given + [None, None, None, None, 0.0, False][len(given) :]
    mask = node.kwargs.get("attn_mask", mask)
    if node.kwargs.get("dropout_p", dropout_p) != 0:
        raise Unsupported(f"dropout with p={node.kwargs.get('dropout_p', dropout_p)} draws random numbers")
    dtype = dtype_name(result(node).dtype)
    if not guard_or_false(result(k_node).shape[-2] == result(v_node).shape[-2]):
        raise Unsupported("as many values as keys are needed")  # caches of two symbols: PyTorch itself does not ask
    q, k, v = (cast_operand(c, node.name, n, c.value(x), dtype) for n, x in enumerate((q_node, k_node, v_node)))
    grouped = bool(node.kwargs.get("enable_gqa", False))
    product, keys = _scores(c, node, q, k, grouped)
    scores = _masked(c, node, q, product, mask, bool(node.kwargs.get("is_causal", causal)))
    weights = _safe_softmax(c, node, scores)
    return _weighted_sum(c, node, weights, v, keys)


def _heads(q: ir.Node, k: ir.Node, grouped: bool) -> int:
    """Query heads a key head serves."""
    if not grouped or len(q.shape) < 3 or len(k.shape) < 3 or equal(q.shape[-3], k.shape[-3]):
        return 1
    group = exact_div(q.shape[-3], k.shape[-3])
    if not isinstance(group, int):
        raise Unsupported(f"{q.shape[-3]} query heads over {k.shape[-3]} key heads: the ratio is not a fixed number")
    return group


def _batched(
    value: ir.Node, dims: tuple[tuple[str, ...], ...], rank: int, rows: tuple[ix.Linear, ix.Linear]
) -> ir.Access:
    """A read of [..., row, column]; a head dimension of two axes is (key head, member): keys have only the first."""
    index: list[ix.Linear] = []
    for p, size in enumerate(value.shape[:-2]):
        axes = dims[p + rank - len(value.shape)]
        index.append(ix.constant(0) if size == 1 or not axes else ix.axis(axes[0]))
    return ir.Access(value.name, (*index, *rows))


def _scores(c: Context, node: fx.Node, q: ir.Node, k: ir.Node, grouped: bool) -> tuple[ir.Node, int]:
    """q kᵀ over the broadcast batch, and the group size."""
    group = _heads(q, k, grouped)
    rank = max(len(q.shape), len(k.shape))
    batch: list[Dim] = []
    for p in range(rank - 2):
        sides = [x.shape[p - rank + len(x.shape)] for x in (q, k) if p - rank + len(x.shape) >= 0]
        batch.append(next((s for s in sides if s != 1), 1))
    sizes = (*batch, q.shape[-2], k.shape[-2], q.shape[-1])
    axes, dims = space(sizes)
    row, column, inner = (position(dims, p) for p in (rank - 2, rank - 1, rank))
    read_q = _batched(q, dims, rank, (row, inner))
    plain = ir.Contract(f"{node.name}.product", q.dtype, axes, dims[:-1], (read_q,))
    if group > 1:
        head = dims[rank - 3][0]
        split = plain.split(head, group)
        outer, member = split.dims[rank - 3]
        dims = tuple((outer,) if d == (head,) else d for d in dims)
        axes = split.axes
        if len(axes) and plain.sizes[head] == group:
            raise Unsupported("one key head given as a group")  # pragma: no cover - split refuses it before
        read_q = split.accesses[0]
        read_k = _batched(k, dims, rank, (column, inner))
        out = tuple((outer, member) if d == (outer,) else d for d in dims[:-1])
        return c.add(ir.Contract(plain.name, q.dtype, axes, out, (read_q, read_k))), group
    read_k = _batched(k, dims, rank, (column, inner))
    return c.add(ir.Contract(plain.name, q.dtype, axes, dims[:-1], (read_q, read_k))), group


def _masked(c: Context, node: fx.Node, q: ir.Node, product: ir.Node, mask: Any, causal: bool) -> ir.Node:
    """Scale, then the additive or boolean mask, then the triangle (of the top-left corner)."""
    width = q.shape[-1]
    scale = node.kwargs.get("scale")
    factor: ex.Expr | ir.Node
    if scale is not None:
        factor = c.scalar(scale)
    elif isinstance(width, int):
        factor = ex.Const(1.0 / math.sqrt(width), "float64")
    else:
        raise Unsupported("the default scale of a head size that is not a fixed number")
    shape = product.shape
    axes, dims = space(shape)
    operands = [broadcast(product, dims)]
    dtype = q.dtype

    def operand(value: ir.Node) -> ex.Expr:
        operands.append(broadcast(value, dims))
        return ex.Arg(len(operands) - 1, value.dtype)

    number = operand(factor) if isinstance(factor, ir.Node) else factor
    body: ex.Expr = op("mul", ex.Arg(0, dtype), as_dtype(number, dtype))
    nothing = ex.Const(MINUS_INFINITY, dtype)
    if mask is not None:
        given = c.value(mask)
        seen = operand(given)
        masked = op("where", seen, body, nothing) if given.dtype == "bool" else op("add", body, as_dtype(seen, dtype))
        body = masked
    if causal:
        row, column = (ex.Index(d[0]) if d else ex.Const(0, "int64") for d in dims[-2:])
        body = op("where", op("le", column, row), body, nothing)
    return c.add(ir.Map(f"{node.name}.masked", dtype, axes, dims, tuple(operands), body))


def _safe_softmax(c: Context, node: fx.Node, scores: ir.Node) -> ir.Node:
    """softmax over the last dimension, 0 where all of it is -inf."""
    top, raised, summed = exp_parts(c, node.name, scores, len(scores.shape) - 1)
    axes, dims = space(scores.shape)
    reads = tuple(broadcast(x, dims) for x in (raised, summed, top))
    e, s, m = (ex.Arg(n, scores.dtype) for n in range(3))
    empty = op("eq", m, ex.Const(MINUS_INFINITY, scores.dtype))
    body = op("where", empty, ex.Const(0.0, scores.dtype), op("div", e, s))
    return c.add(ir.Map(f"{node.name}.weights", scores.dtype, axes, dims, reads, body))


def _weighted_sum(c: Context, node: fx.Node, weights: ir.Node, v: ir.Node, group: int) -> ir.Node:
    """weights v, in the shape of the node."""
    rank = max(len(weights.shape), len(v.shape))
    batch = [s for s in weights.shape[:-2]]
    for p, size in enumerate(v.shape[:-2]):
        at = p + rank - len(v.shape)
        if at < len(batch) and batch[at] == 1:
            batch[at] = size
    sizes = (*batch, weights.shape[-2], v.shape[-1], weights.shape[-1])
    axes, dims = space(sizes)
    row, column, inner = (position(dims, p) for p in (rank - 2, rank - 1, rank))
    read_p = _batched(weights, dims, rank, (row, inner))
    node_dims = dims[:-1]
    if group > 1:
        head = dims[rank - 3][0]
        split = ir.Contract(node.name, v.dtype, axes, node_dims, (read_p,)).split(head, group)
        read_p, axes, node_dims = split.accesses[0], split.axes, split.dims
        outer = split.dims[rank - 3][0]
        dims = tuple((outer,) if d == (head,) else d for d in dims)
    read_v = _batched(v, dims, rank, (inner, column))
    return c.add(ir.Contract(node.name, dtype_name(result(node).dtype), axes, node_dims, (read_p, read_v)))


def is_attention(target: Any) -> bool:
    """Whether an operator is an attention by itself: one that is left opaque deserves a reason."""
    return target in (torch.ops.aten.scaled_dot_product_attention.default,)
