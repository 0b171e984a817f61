"""The operators of `attncc.expr` on TIR expressions of one dtype, with PyTorch's meaning."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from attncc import expr as ex
from attncc._tvm import tirx
from attncc.algorithm import numeric

_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "lt": tirx.LT, "le": tirx.LE, "gt": tirx.GT, "ge": tirx.GE, "eq": tirx.EQ, "ne": tirx.NE,
}  # fmt: skip
COMPARISONS = frozenset(_COMPARISONS)


def compare(name: str, a: Any, b: Any) -> Any:
    """A comparison of two values of one dtype; NaN is unequal to everything (it is not for tirx.NE)."""
    if name == "ne" and numeric.dtype_of(a) in ex.FLOATS:
        return negated(tirx.EQ(a, b))
    return _COMPARISONS[name](a, b)


def negated(condition: Any) -> Any:
    """not condition. (tirx.Not would not do: the simplifier turns it into the opposite comparison, wrong for NaN.)"""
    return tirx.EQ(tirx.Cast("int8", condition), tirx.const(0, "int8"))


def logical(name: str, args: list[Any]) -> Any:
    """An operator on booleans. Raises ValueError for one that gives none."""
    return _found(name, _LOGICAL, "boolean")(*args)


def integral(name: str, args: list[Any]) -> Any:
    """An operator on integers. Raises ValueError for one that gives none."""
    return _found(name, _INTEGRAL, "integer")(*args)


def floating(name: str, args: list[Any]) -> Any:
    """An operator on floats. Raises ValueError for one that gives none."""
    return _found(name, _FLOATING, "float")(*args)


def _found(name: str, table: Mapping[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
    if name not in table:
        raise ValueError(f"operator {name!r} has no {kind} result")
    return table[name]


def _unequal(a: Any, b: Any) -> Any:
    return tirx.NE(tirx.Cast("int8", a), tirx.Cast("int8", b))


def _integer_abs(a: Any) -> Any:
    zero = numeric.const(0, a)
    return tirx.Select(a < zero, zero - a, a)


def _integer_sign(a: Any) -> Any:
    dtype, zero = numeric.dtype_of(a), numeric.const(0, a)
    return tirx.Cast(dtype, a > zero) - tirx.Cast(dtype, a < zero)


def _float_mod(a: Any, b: Any) -> Any:
    return numeric.share(a, lambda a: numeric.share(b, lambda b: a - tirx.floor(a / b) * b))


def _float_sign(a: Any) -> Any:
    zero, one = numeric.const(0.0, a), numeric.const(1.0, a)
    return numeric.share(a, lambda a: tirx.Select(a > zero, one, tirx.Select(a < zero, -one, zero)))


def _power(base: Any, exponent: Any) -> Any:
    """base ** exponent: by multiplication and square roots for the common constants, else libm's pow."""
    if not isinstance(exponent, tirx.FloatImm):
        return tirx.pow(base, exponent)
    power = _POWERS.get(exponent.value)
    return tirx.pow(base, exponent) if power is None else numeric.share(base, power)


_POWERS: Mapping[float, Callable[[Any], Any]] = {
    -1.0: lambda x: 1.0 / x,
    -0.5: lambda x: 1.0 / tirx.sqrt(x),
    0.5: tirx.sqrt,
    1.0: lambda x: x,
    1.5: lambda x: x * tirx.sqrt(x),
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    4.0: lambda x: numeric.share(x * x, lambda y: y * y),
}
_LOGICAL: Mapping[str, Callable[..., Any]] = {
    "and": tirx.And, "or": tirx.Or, "xor": _unequal, "add": tirx.Or, "mul": tirx.And, "max": tirx.Or, "min": tirx.And,
    "not": negated, "neg": negated,
}  # fmt: skip
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
_INTEGRAL: Mapping[str, Callable[..., Any]] = {
    **_ARITHMETIC, "floordiv": tirx.floordiv, "mod": tirx.floormod, "min": tirx.min, "max": tirx.max,
    "neg": lambda a: numeric.const(0, a) - a, "abs": _integer_abs, "sign": _integer_sign, "not": tirx.bitwise_not,
    "and": tirx.bitwise_and, "or": tirx.bitwise_or, "xor": tirx.bitwise_xor,
    **dict.fromkeys(("floor", "ceil", "round"), lambda a: a),
}  # fmt: skip
_FLOATING: Mapping[str, Callable[..., Any]] = {
    **_ARITHMETIC, "div": operator.truediv, "floordiv": lambda a, b: tirx.floor(a / b), "mod": _float_mod,
    "pow": _power, "min": numeric.minimum, "max": numeric.maximum, "neg": operator.neg, "abs": tirx.abs,
    "sign": _float_sign, "exp": numeric.exp, "exp2": numeric.exp2, "log": numeric.log, "log2": numeric.log2,
    "log1p": numeric.log1p, "tanh": numeric.tanh, "sigmoid": numeric.sigmoid, "erf": numeric.erf, "sqrt": tirx.sqrt,
    "rsqrt": lambda x: 1.0 / tirx.sqrt(x), "sin": tirx.sin, "cos": tirx.cos, "floor": tirx.floor, "ceil": tirx.ceil,
    "round": numeric.nearbyint,
}  # fmt: skip
