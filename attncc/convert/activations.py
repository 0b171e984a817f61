"""Activations and other composed functions of one tensor, by the operators of `attncc.expr`; padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from attncc import expr as ex
from attncc import ir
from attncc.convert.attention import exp_parts
from attncc.convert.context import Context, Unsupported, dtype_name, lowers, map_node, result, space
from attncc.convert.contractions import in_dtype
from attncc.convert.pointwise import argument, pointwise
from attncc.expr import op
from attncc.symbolic import Dim, dim, reduce


def _number(value: float, like: ex.Expr) -> ex.Const:
    return ex.Const(value, like.dtype)


def _given(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _plain(node: fx.Node, position: int, name: str, default: float) -> float:
    value = _given(node, position, name, default)
    if not isinstance(value, bool | int | float):
        raise Unsupported(f"{node.target} with {name} known only at run time")
    return float(value)


@lowers("aten.square.default")
def square(c: Context, node: fx.Node) -> ir.Node:
    """x²."""
    return pointwise(c, node, node.args[:1], lambda x: op("mul", x, x))


@lowers("aten.silu.default")
def silu(c: Context, node: fx.Node) -> ir.Node:
    """x sigmoid(x)."""
    return pointwise(c, node, node.args[:1], lambda x: op("mul", x, op("sigmoid", x)))


@lowers("aten.gelu.default")
def gelu(c: Context, node: fx.Node) -> ir.Node:
    """x Φ(x), by erf or by PyTorch's tanh approximation."""
    if _given(node, 1, "approximate", "none") == "tanh":

        def body(x: ex.Expr) -> ex.Expr:
            cube = op("mul", op("mul", op("mul", x, x), x), _number(0.044715, x))
            inner = op("mul", op("add", x, cube), _number(math.sqrt(2 / math.pi), x))
            return op("mul", op("mul", x, _number(0.5, x)), op("add", op("tanh", inner), _number(1.0, x)))

    else:

        def body(x: ex.Expr) -> ex.Expr:
            inner = op("mul", x, _number(math.sqrt(0.5), x))
            return op("mul", op("mul", x, _number(0.5, x)), op("add", op("erf", inner), _number(1.0, x)))

    return pointwise(c, node, node.args[:1], body)


@lowers("aten.leaky_relu.default")
def leaky_relu(c: Context, node: fx.Node) -> ir.Node:
    """x, times the slope where it is negative."""
    slope = _plain(node, 1, "negative_slope", 0.01)
    return pointwise(
        c, node, node.args[:1],
        lambda x: op("where", op("gt", x, _number(0.0, x)), x, op("mul", x, _number(slope, x))),
    )  # fmt: skip


@lowers("aten.elu.default")
def elu(c: Context, node: fx.Node) -> ir.Node:
    """scale x above 0, scale alpha (exp(x input_scale) - 1) below."""
    alpha, scale, inner = (
        _plain(node, p, name, 1.0) for p, name in ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    )  # fmt: skip

    def body(x: ex.Expr) -> ex.Expr:
        # min keeps exp from overflowing where the other branch is taken.
        low = op("min", op("mul", x, _number(inner, x)), _number(0.0, x))
        below = op("mul", op("sub", op("exp", low), _number(1.0, x)), _number(alpha * scale, x))
        return op("where", op("gt", x, _number(0.0, x)), op("mul", x, _number(scale, x)), below)

    return pointwise(c, node, node.args[:1], body)


@lowers("aten.softplus.default")
def softplus(c: Context, node: fx.Node) -> ir.Node:
    """log(1 + exp(beta x)) / beta, in the form that does not overflow."""
    beta = _plain(node, 1, "beta", 1.0)
    if _plain(node, 2, "threshold", 20.0) < 20:
        raise Unsupported("softplus with a low threshold")

    def body(x: ex.Expr) -> ex.Expr:
        y = op("mul", x, _number(beta, x))
        tail = op("log1p", op("exp", op("neg", op("abs", y))))
        return op("div", op("add", op("max", y, _number(0.0, x)), tail), _number(beta, x))

    return pointwise(c, node, node.args[:1], body)


@lowers("aten.log_sigmoid.default")
def log_sigmoid(c: Context, node: fx.Node) -> ir.Node:
    """log(sigmoid(x)), in the form that does not overflow."""

    def body(x: ex.Expr) -> ex.Expr:
        return op("sub", op("min", x, _number(0.0, x)), op("log1p", op("exp", op("neg", op("abs", x)))))

    return pointwise(c, node, node.args[:1], body)


@lowers("aten.relu6.default", "aten.hardtanh.default")
def hardtanh(c: Context, node: fx.Node) -> ir.Node:
    """x between two limits."""
    low, high = (0.0, 6.0) if "relu6" in str(node.target) else (
        _plain(node, 1, "min_val", -1.0), _plain(node, 2, "max_val", 1.0)
    )  # fmt: skip
    return pointwise(c, node, node.args[:1], lambda x: op("min", op("max", x, _number(low, x)), _number(high, x)))


@lowers("aten.hardsigmoid.default")
def hardsigmoid(c: Context, node: fx.Node) -> ir.Node:
    """min(max(x + 3, 0), 6) / 6."""

    def body(x: ex.Expr) -> ex.Expr:
        shifted = op("max", op("add", x, _number(3.0, x)), _number(0.0, x))
        return op("div", op("min", shifted, _number(6.0, x)), _number(6.0, x))

    return pointwise(c, node, node.args[:1], body)


@lowers("aten.isnan.default", "aten.isinf.default", "aten.isneginf.default")
def is_special(c: Context, node: fx.Node) -> ir.Node:
    """Whether x is NaN, infinite, -inf."""
    name = str(node.target).split(".")[1]

    def body(x: ex.Expr) -> ex.Expr:
        if x.dtype not in ex.FLOATS:
            raise Unsupported(f"{name} of {x.dtype}")
        if name == "isnan":
            return op("ne", x, x)
        return op("eq", op("abs", x), _number(math.inf, x)) if name == "isinf" else op("eq", x, _number(-math.inf, x))

    return map_node(c, node.name, result(node), [c.value(node.args[0])], body)


@lowers("aten.nan_to_num.default")
def nan_to_num(c: Context, node: fx.Node) -> ir.Node:
    """NaN by a number, and infinities by the largest numbers (or by the numbers given)."""
    tensor = result(node)
    if not tensor.is_floating_point():
        raise Unsupported("nan_to_num of integers")
    limits = torch.finfo(tensor.dtype)
    nothing, high, low = (_given(node, p, name, None) for p, name in ((1, "nan"), (2, "posinf"), (3, "neginf")))

    def body(x: ex.Expr) -> ex.Expr:
        number = op("where", op("ne", x, x), _number(float(nothing or 0.0), x), x)
        if high is None and low is None:
            return op("min", op("max", number, _number(limits.min, x)), _number(limits.max, x))
        above = op("eq", number, _number(math.inf, x))
        number = op("where", above, _number(limits.max if high is None else float(high), x), number)
        below = op("eq", number, _number(-math.inf, x))
        return op("where", below, _number(limits.min if low is None else float(low), x), number)

    return pointwise(c, node, node.args[:1], body)


@lowers("aten.log_softmax.int", "aten._log_softmax.default", "aten.special_log_softmax.int")
def log_softmax(c: Context, node: fx.Node) -> ir.Node:
    """x - max - log(sum)."""
    dtype = dtype_name(result(node).dtype)
    source = in_dtype(c, f"{node.name}.input", c.value(node.args[0]), dtype)
    top, _, summed = exp_parts(c, node.name, source, int(node.args[1]) % len(source.shape))
    return map_node(
        c, node.name, result(node), [source, top, summed], lambda x, m, s: op("sub", op("sub", x, m), op("log", s))
    )


@lowers("aten.pad.default", "aten.constant_pad_nd.default")
def pad(c: Context, node: fx.Node) -> ir.Node:
    """A number before and after along the last dimensions: a concatenation."""
    source = c.value(node.args[0])
    if _given(node, 2, "mode", "constant") != "constant" and "constant" not in str(node.target):
        raise Unsupported(f"padding by {node.args[2]}")
    value = _given(node, 2, "value", 0) if "constant" in str(node.target) else _given(node, 3, "value", None)
    number = argument(c, value or 0)
    if not isinstance(number, ex.Const):
        raise Unsupported("padding by a value known only at run time")
    widths = [dim(w.meta["val"] if isinstance(w, fx.Node) else w) for w in node.args[1]]
    changed = [(len(source.shape) - 1 - n // 2, widths[n], widths[n + 1]) for n in range(0, len(widths), 2)]
    changed = [(along, before, after) for along, before, after in changed if (before, after) != (0, 0)]
    if not changed:
        raise Unsupported("padding by nothing")
    for step, (along, before, after) in enumerate(changed):
        last = step == len(changed) - 1
        source = _padded(c, node.name if last else f"{node.name}.along{along}", source, along, (before, after), number)
    return source


def _padded(c: Context, name: str, source: ir.Node, along: int, widths: tuple[Dim, Dim], number: ex.Const) -> ir.Node:
    """`source` between constants along one dimension."""
    if any(not isinstance(w, int) or w < 0 for w in widths):
        raise Unsupported("padding that cuts off, or whose width is not fixed")
    kind: Any = bool if source.dtype == "bool" else float if source.dtype in ex.FLOATS else int
    parts = [source.name]
    for place, width in enumerate(widths):
        if width:
            shape = tuple(width if p == along else s for p, s in enumerate(source.shape))
            axes, dims = space(shape)
            border = c.add(ir.Const(f"{name}.border{place}", source.dtype, axes, dims, kind(number.value)))
            parts.insert(0 if place == 0 else len(parts), border.name)
    total = reduce(source.shape[along] + sum(w for w in widths if isinstance(w, int)))
    axes, dims = space(tuple(total if p == along else s for p, s in enumerate(source.shape)))
    return c.add(ir.Concat(name, source.dtype, axes, dims, tuple(parts), along))
