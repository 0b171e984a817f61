"""Pointwise operators: every one becomes a Map with an expression of `attncc.expr`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from attncc import expr as ex
from attncc import ir
from attncc.convert.context import Context, Unsupported, as_dtype, dtype_name, identity, lowers, map_node, result
from attncc.expr import op

UNARY = {
    "neg": "neg", "abs": "abs", "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2", "log1p": "log1p",
    "sqrt": "sqrt", "rsqrt": "rsqrt", "tanh": "tanh", "sigmoid": "sigmoid", "erf": "erf", "sin": "sin", "cos": "cos",
    "floor": "floor", "ceil": "ceil", "round": "round", "sign": "sign",
}  # fmt: skip
ARITHMETIC = {"mul": "mul", "multiply": "mul", "minimum": "min", "maximum": "max", "remainder": "mod",
              "floor_divide": "floordiv", "true_divide": "div"}  # fmt: skip
COMPARISONS = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne", "less": "lt", "less_equal": "le",
               "greater": "gt", "greater_equal": "ge", "not_equal": "ne"}  # fmt: skip
LOGIC = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor",
         "__and__": "and", "__or__": "or", "__xor__": "xor",
         "logical_and": "and", "logical_or": "or", "logical_xor": "xor"}  # fmt: skip
_OVERLOADS = ("default", "Tensor", "Scalar", "Tensor_Scalar", "Tensor_Tensor", "Scalar_Tensor")

Body = Callable[..., ex.Expr]


def argument(c: Context, value: Any) -> ex.Expr | ir.Node:
    """An operand of a pointwise operator: a tensor, or a number."""
    if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor):
        return c.value(value)
    return c.scalar(value)


def _fake(value: Any) -> Any:
    return value.meta["val"] if isinstance(value, fx.Node) else value


def promoted(values: Sequence[Any]) -> str:
    """The dtype in which PyTorch computes with these arguments: tensors, 0-d tensors and numbers rank in this order."""
    fakes = [v if not isinstance(v, torch.SymInt | torch.SymFloat) else (1 if isinstance(v, torch.SymInt) else 1.0)
             for v in map(_fake, values)]  # fmt: skip
    best = functools.reduce(lambda a, b: torch.empty((), dtype=torch.result_type(a, b)), fakes[1:], fakes[0])
    exact = torch.result_type(fakes[0], fakes[1]) if len(fakes) == 2 else torch.result_type(best, best)
    return dtype_name(exact)


def pointwise(c: Context, node: fx.Node, values: Sequence[Any], body: Body, dtype: str | None = None) -> ir.Node:
    """A Map of `values` by `body`, which gets them in `dtype` (None: in the dtype of the result)."""
    tensor = result(node)
    common = dtype or dtype_name(tensor.dtype)
    if dtype is None and common in ("int8", "int16", "uint8"):
        raise Unsupported(f"arithmetic in {common}, which wraps around")
    arguments = [argument(c, v) for v in values]
    return map_node(c, node.name, tensor, arguments, lambda *leaves: body(*(as_dtype(x, common) for x in leaves)))


def _scaled_by(alpha: Any, value: ex.Expr) -> ex.Expr:
    return value if alpha == 1 else op("mul", value, as_dtype(ex.Const(alpha, value.dtype), value.dtype))


@lowers("aten.add.Tensor", "aten.add.Scalar", "aten.sub.Tensor", "aten.sub.Scalar", "aten.subtract.Tensor",
        "aten.rsub.Scalar", "aten.rsub.Tensor", "aten.__radd__.default")  # fmt: skip
def add(c: Context, node: fx.Node) -> ir.Node:
    """a ± alpha * b."""
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    if not isinstance(alpha, int | float):
        raise Unsupported("alpha is not a plain number")
    a, b = node.args[:2]
    if "rsub" in str(node.target):
        a, b = b, a
    name = "sub" if "sub" in str(node.target) else "add"
    left, right = (alpha, 1) if "rsub" in str(node.target) else (1, alpha)
    if left != 1:  # rsub computes other - alpha * self; a and b are swapped above
        left, right = 1, alpha
    return pointwise(c, node, (a, b), lambda x, y: op(name, x, _scaled_by(right, y)))


@lowers("aten.div.Tensor", "aten.div.Scalar", "aten.divide.Tensor", "aten.reciprocal.default")
def div(c: Context, node: fx.Node) -> ir.Node:
    """True division."""
    values = (1.0, node.args[0]) if "reciprocal" in str(node.target) else node.args[:2]
    return pointwise(c, node, values, lambda x, y: op("div", x, y))


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(c: Context, node: fx.Node) -> ir.Node:
    """Division rounded down."""
    tensor = result(node)
    if node.kwargs.get("rounding_mode") != "floor" or tensor.dtype.is_floating_point:
        raise Unsupported(f"division with rounding mode {node.kwargs.get('rounding_mode')}")
    return pointwise(c, node, node.args[:2], lambda x, y: op("floordiv", x, y))


@lowers("aten.pow.Tensor_Scalar")
def power(c: Context, node: fx.Node) -> ir.Node:
    """The frequent exponents in simpler operators."""
    base, exponent = node.args
    special: dict[Any, Body] = {
        1: lambda x: x,
        2: lambda x: op("mul", x, x),
        0.5: lambda x: op("sqrt", x),
        -0.5: lambda x: op("rsqrt", x),
    }
    if exponent in special:
        return pointwise(c, node, (base,), special[exponent])
    return pointwise(c, node, (base, exponent), lambda x, y: op("pow", x, y))


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(c: Context, node: fx.Node) -> ir.Node:
    """Selection by a boolean."""
    return _select(c, node, *node.args)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(c: Context, node: fx.Node) -> ir.Node:
    """A number where the mask holds."""
    value, mask, fill = node.args
    return _select(c, node, mask, fill, value)


def _select(c: Context, node: fx.Node, condition: Any, yes: Any, no: Any) -> ir.Node:
    tensor = result(node)
    dtype = dtype_name(tensor.dtype)
    arguments = [argument(c, v) for v in (condition, yes, no)]

    def body(k: ex.Expr, x: ex.Expr, y: ex.Expr) -> ex.Expr:
        return op("where", as_dtype(k, "bool"), as_dtype(x, dtype), as_dtype(y, dtype))

    return map_node(c, node.name, tensor, arguments, body)


@lowers("aten.clamp.default", "aten.clamp_min.default", "aten.clamp_max.default", "aten.clip.default")
def clamp(c: Context, node: fx.Node) -> ir.Node:
    """Limits from below and above."""
    if "clamp_max" in str(node.target):
        low, high = None, node.args[1]
    else:
        low, high = (*node.args[1:3], None, None)[:2]
    low = node.kwargs.get("min", low)
    high = node.kwargs.get("max", high)
    limits = [(name, limit) for name, limit in (("max", low), ("min", high)) if limit is not None]

    def body(x: ex.Expr, *bounds: ex.Expr) -> ex.Expr:
        for (name, _), bound in zip(limits, bounds, strict=True):
            x = op(name, x, bound)
        return x

    return pointwise(c, node, (node.args[0], *(limit for _, limit in limits)), body)


@lowers("aten.max.other", "aten.min.other")
def extreme(c: Context, node: fx.Node) -> ir.Node:
    """The larger (smaller) of two values."""
    name = "max" if "max" in str(node.target) else "min"
    return pointwise(c, node, node.args[:2], lambda x, y: op(name, x, y))


@lowers("aten.relu.default")
def relu(c: Context, node: fx.Node) -> ir.Node:
    """max(x, 0)."""
    return pointwise(c, node, (node.args[0], 0), lambda x, zero: op("max", x, zero))


@lowers("aten.logical_not.default", "aten.bitwise_not.default", "aten.__invert__.default")
def negation(c: Context, node: fx.Node) -> ir.Node:
    """not x, of booleans."""
    if "logical" not in str(node.target) and result(node).dtype != torch.bool:
        raise Unsupported("bitwise not of integers")
    return pointwise(c, node, node.args[:1], lambda x: op("not", x), dtype="bool")


@lowers("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other", "aten._to_copy.default",
        "aten.type_as.default", "aten.to.prim_dtype", "aten._to_dtype.default")  # fmt: skip
def cast(c: Context, node: fx.Node) -> ir.Node:
    """Another dtype, or the same value."""
    tensor = result(node)
    if not isinstance(node.args[0], fx.Node):  # a number, where vmap was written out
        return map_node(c, node.name, tensor, [c.scalar(node.args[0])], lambda x: as_dtype(x, dtype_name(tensor.dtype)))
    source = c.value(node.args[0])
    if tensor.device != _fake(node.args[0]).device:
        raise Unsupported("a copy to another device")
    dtype = dtype_name(tensor.dtype)
    if dtype == source.dtype:
        axes, dims, access = identity(source)
        return c.add(ir.View(node.name, dtype, axes, dims, access))
    return map_node(c, node.name, tensor, [source], lambda x: as_dtype(x, dtype))


def _unary(name: str) -> None:
    @lowers(f"aten.{name}.default", f"aten.special_{name}.default")
    def convert(c: Context, node: fx.Node) -> ir.Node:
        if node.kwargs:
            raise Unsupported(f"{node.target} with keywords")
        return pointwise(c, node, node.args[:1], lambda x: op(UNARY[name], x))


def _binary(name: str, operator: str, kind: str) -> None:
    @lowers(*(f"aten.{name}.{overload}" for overload in _OVERLOADS))
    def convert(c: Context, node: fx.Node) -> ir.Node:
        values = node.args[:2]
        if kind == "logic" and "logical" not in name and result(node).dtype != torch.bool:
            raise Unsupported(f"{name} of integers")
        dtype = {"arithmetic": None, "logic": "bool"}.get(kind) if kind != "comparison" else promoted(values)
        return pointwise(c, node, values, lambda x, y: op(operator, x, y), dtype)


for _name in UNARY:
    _unary(_name)
for _table, _kind in ((ARITHMETIC, "arithmetic"), (COMPARISONS, "comparison"), (LOGIC, "logic")):
    for _name, _operator in _table.items():
        _binary(_name, _operator, _kind)
