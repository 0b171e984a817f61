"""Lower `attncc.expr` to TIR: the same tree, in the arithmetic that kernels use.

Float arithmetic is done in the compute dtype of the kernel (float32, or float64 for a float64 attention) whatever the
nodes say, so casts between float dtypes are nothing. Integer and boolean arithmetic is real, with PyTorch's meaning:
`floordiv` and `mod` round towards minus infinity, `div` gives a float, casts truncate towards zero, NaN passes through
`min` and `max`.

Every result vectorises when the loop around it does: `where` becomes a select, so *both* arms are evaluated, and the
caller clamps the index values it hands in to rows that exist. In float32 no library is called but for `sin`, `cos`, a
general `pow`, and functions nested deeper than two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer, tirx
from attncc.algorithm import numeric

_INT32_MAX = 2**31 - 1
_COMPARISONS = {"lt": tirx.LT, "le": tirx.LE, "gt": tirx.GT, "ge": tirx.GE, "eq": tirx.EQ, "ne": tirx.NE}
_LOGIC = {
    "and": tirx.And,
    "or": tirx.Or,
    "xor": tirx.NE,
    "add": tirx.Or,
    "mul": tirx.And,
    "max": tirx.Or,
    "min": tirx.And,
}
_BITWISE = {"and": tirx.bitwise_and, "or": tirx.bitwise_or, "xor": tirx.bitwise_xor}
_FLOAT_FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
    "exp": numeric.exp, "exp2": numeric.exp2, "log": numeric.log, "log2": numeric.log2, "log1p": numeric.log1p,
    "tanh": numeric.tanh, "sigmoid": numeric.sigmoid, "erf": numeric.erf, "sqrt": tirx.sqrt,
    "rsqrt": lambda x: 1.0 / tirx.sqrt(x), "sin": tirx.sin, "cos": tirx.cos, "floor": tirx.floor, "ceil": tirx.ceil,
    "round": tirx.nearbyint,
}  # fmt: skip
_POLYNOMIALS = ("exp", "exp2", "log", "log2", "log1p", "tanh", "sigmoid", "erf")
_MOST_NESTED = 2
"""Polynomials inside polynomials, from the leaves up; TVM's compile time is exponential in it."""


@dataclass(frozen=True)
class Env:
    """What the leaves of an expression stand for in a kernel; values are TIR expressions.

    An expression may use only the leaves that are given here: `lower` raises ValueError for any other.
    """

    compute: str
    """Dtype of float arithmetic: float32 or float64."""
    index: Mapping[str, Any] = field(default_factory=dict)
    """int64 values of b, h, i, j (and of any other axis that the expression names)."""
    size: Mapping[str, Any] = field(default_factory=dict)
    """int64 values of B, H, Sq, Skv."""
    scalar: Mapping[str, Any] = field(default_factory=dict)
    """s0, s1, … (float64) and n0, n1, … (int64)."""
    buffer: Mapping[str, Buffer] = field(default_factory=dict)
    """The extras t0, t1, …"""
    score: Any = None
    """The score, in the compute dtype."""
    element: Mapping[str, Any] = field(default_factory=dict)
    """q and k of a score product, in the compute dtype."""


def lower(expr: ex.Expr, env: Env) -> Any:
    """The TIR expression for `expr`: in the compute dtype for a float node, else in the node's own dtype.

    Raises ValueError for a leaf that `env` does not give.
    """
    return numeric.bound(lambda: ex.fold(expr, _Lowering(env, _nesting(expr)).node))


def tensors(expr: ex.Expr | None) -> tuple[str, ...]:
    """Names of the tensors that `expr` reads, sorted; a block that evaluates it declares that it reads them."""
    loads = {node.tensor for node in expr.walk() if isinstance(node, ex.Load)} if expr is not None else set()
    return tuple(sorted(loads))


def int_range(expr: ex.Expr) -> tuple[int, int]:
    """Least and largest value an integer expression can take, given that positions and sizes are below 2^31."""

    def visit(node: ex.Expr, args: tuple[tuple[int, int], ...]) -> tuple[int, int]:
        limits = _dtype_range(node.dtype)
        match node:
            case ex.Const(value) if node.dtype not in ex.FLOATS:
                return int(value), int(value)
            case ex.Index() | ex.Size():
                return 0, _INT32_MAX
            case ex.Op(name) if node.dtype in ex.INTEGERS and all(a.dtype in ex.INTEGERS for a in node.args):
                corners = _corners(name, args)
                if corners and limits[0] <= min(corners) and max(corners) <= limits[1]:
                    return min(corners), max(corners)
        return limits

    result: tuple[int, int] = ex.fold(expr, visit)
    return result


def _corners(name: str, args: tuple[tuple[int, int], ...]) -> list[int]:
    """Values whose hull holds every result of a monotone integer operator; none for the other operators."""
    match name, args:
        case "add", ((a, b), (c, d)):
            return [a + c, b + d]
        case "sub", ((a, b), (c, d)):
            return [a - d, b - c]
        case "mul", ((a, b), (c, d)):
            return [a * c, a * d, b * c, b * d]
        case ("neg", ((a, b),)):
            return [-a, -b]
        case "abs", ((a, b),):
            return [0, max(abs(a), abs(b))]
        case "min", ((a, b), (c, d)):
            return [min(a, c), min(b, d)]
        case "max", ((a, b), (c, d)):
            return [max(a, c), max(b, d)]
        case "cast", ((a, b),):
            return [a, b]
        case "where", (_, (a, b), (c, d)):
            return [min(a, c), max(b, d)]
    return []


def _dtype_range(dtype: str) -> tuple[int, int]:
    if dtype == "bool":
        return 0, 1
    bits = int(dtype.lstrip("uint")) if dtype in ex.INTEGERS else 64
    return (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _narrows(node: ex.Expr) -> bool:
    """Whether int32 arithmetic gives the value of this int64 node, if it does so for the nodes below."""
    if isinstance(node, ex.Op) and node.name not in ("add", "sub", "mul", "neg", "abs", "min", "max"):
        return False
    low, high = int_range(node)
    return isinstance(node, (ex.Const, ex.Index, ex.Size, ex.Op)) and low >= -_INT32_MAX and high <= _INT32_MAX


def _compare(name: str, a: Any, b: Any) -> Any:
    """A comparison of two values of one dtype; NaN is unequal to everything (it is not for tirx.NE)."""
    if name == "ne" and numeric.dtype_of(a) in ex.FLOATS:
        return _negated(tirx.EQ(a, b))
    return _COMPARISONS[name](a, b)


def _negated(condition: Any) -> Any:
    """not condition. (tirx.Not would not do: the simplifier turns it into the opposite comparison, wrong for NaN.)"""
    return tirx.EQ(tirx.Cast("int8", condition), tirx.const(0, "int8"))


def _power(base: Any, exponent: Any) -> Any:
    """base ** exponent: by multiplication and square roots for the common constants, else libm's pow."""
    if not isinstance(exponent, tirx.FloatImm):
        return tirx.pow(base, exponent)
    powers: Mapping[float, Callable[[Any], Any]] = {
        -1.0: lambda x: 1.0 / x,
        -0.5: lambda x: 1.0 / tirx.sqrt(x),
        0.5: tirx.sqrt,
        1.0: lambda x: x,
        1.5: lambda x: x * tirx.sqrt(x),
        2.0: lambda x: x * x,
        3.0: lambda x: x * x * x,
        4.0: lambda x: numeric.share(x * x, lambda y: y * y),
    }
    power = powers.get(exponent.value)
    return tirx.pow(base, exponent) if power is None else numeric.share(base, power)


def _nesting(expr: ex.Expr) -> dict[ex.Expr, int]:
    """How many polynomials lie inside each other at each node and below."""
    depths: dict[ex.Expr, int] = {}

    def visit(node: ex.Expr, args: tuple[int, ...]) -> int:
        depths[node] = max(args, default=0) + (isinstance(node, ex.Op) and node.name in _POLYNOMIALS)
        return depths[node]

    ex.fold(expr, visit)
    return depths


class _Lowering:
    """The visitor of `lower`."""

    def __init__(self, env: Env, nesting: Mapping[ex.Expr, int]) -> None:
        self.env = env
        self.nesting = nesting

    def dtype(self, dtype: str) -> str:
        """The dtype a node of `dtype` has in the kernel."""
        return self.env.compute if dtype in ex.FLOATS else dtype

    def node(self, node: ex.Expr, args: tuple[Any, ...]) -> Any:
        match node:
            case ex.Const(value, dtype):
                literal = float(value) if dtype in ex.FLOATS else int(value)
                return tirx.const(literal, self.dtype(dtype))
            case ex.Score():
                return self.leaf(node, {"score": self.env.score} if self.env.score is not None else {}, "score")
            case ex.Index(axis):
                return self.leaf(node, self.env.index, axis)
            case ex.Size(name):
                return self.leaf(node, self.env.size, name)
            case ex.Elem(name):
                return self.leaf(node, self.env.element, name)
            case ex.Scalar(name, dtype):
                return self.cast(self.leaf(node, self.env.scalar, name), dtype)
            case ex.Load(tensor, index, dtype):
                buffer = self.leaf(node, self.env.buffer, tensor)
                at = [self.position(*each) for each in zip(index, args, buffer.shape, strict=True)]
                return self.cast(tirx.BufferLoad(buffer, at), dtype)
            case ex.Op():
                return self.op(node, args)
        raise ValueError(f"{type(node).__name__} {node} cannot be lowered to TIR")

    def position(self, index: ex.Expr, value: Any, size: Any) -> Any:
        """Where a dimension of `size` is read.

        Axes and literals are checked before a kernel runs; what is computed from run-time numbers stays inside the
        tensor whatever they are.
        """
        position = self.cast(value, "int64")
        if isinstance(index, (ex.Index, ex.Const)):
            return position
        return tirx.max(tirx.min(position, size - 1), tirx.const(0, "int64"))

    def leaf(self, node: ex.Expr, values: Mapping[str, Any], name: str) -> Any:
        if name not in values:
            raise ValueError(
                f"the expression uses {node}, which has no value here; known: {', '.join(values) or 'none'}"
            )
        return values[name]

    def cast(self, value: Any, dtype: str) -> Any:
        """`value` in the kernel's form of `dtype`, with PyTorch's conversions."""
        source, dtype = numeric.dtype_of(value), self.dtype(dtype)
        if source == dtype:
            return value
        if dtype == "bool":
            value = numeric.cast("float32", value) if source == "bfloat16" else value
            return _compare("ne", value, tirx.const(0, numeric.dtype_of(value)))
        return numeric.cast(dtype, value)

    def op(self, node: ex.Op, args: tuple[Any, ...]) -> Any:
        """One operator: the operands are brought to the dtype they are computed in first."""
        name, result = node.name, self.dtype(node.dtype)
        if name == "cast":
            return self.cast(self.narrowed(node.operands[0], args[0], result), result)
        if name == "where":
            return tirx.Select(self.cast(args[0], "bool"), self.cast(args[1], result), self.cast(args[2], result))
        if name in _COMPARISONS:
            return self.comparison(name, args)
        if result == "bool":
            return self.logic(name, [self.cast(a, "bool") for a in args])
        floating = result in ex.FLOATS
        operands = [
            self.cast(self.narrowed(o, a, result) if floating else a, result)
            for o, a in zip(node.operands, args, strict=True)
        ]
        return self.float_op(node, operands) if floating else self.integer_op(name, operands)

    def narrowed(self, expr: ex.Expr, value: Any, result: str) -> Any:
        """An int64 operand that becomes a float, computed in int32 where that is provably the same.

        It takes half the vectors, and AVX2 has no conversion from int64 at all.
        """
        if result in ex.FLOATS and expr.dtype == "int64" and all(_narrows(node) for node in expr.walk()):
            return ex.fold(expr, self.node32)
        return value

    def node32(self, node: ex.Expr, args: tuple[Any, ...]) -> Any:
        if isinstance(node, ex.Op):
            return self.integer_op(node.name, list(args))
        return self.cast(self.node(node, args), "int32")

    def comparison(self, name: str, args: tuple[Any, ...]) -> Any:
        dtypes = [numeric.dtype_of(a) for a in args]
        if any(d in ex.FLOATS for d in dtypes):
            common = self.env.compute
        elif dtypes[0] == dtypes[1]:
            common = dtypes[0] if dtypes[0] != "bool" else "int8"
        else:
            common = "int64"
        return _compare(name, *(self.cast(a, common) for a in args))

    def logic(self, name: str, args: list[Any]) -> Any:
        if name in ("not", "neg"):
            return _negated(args[0])
        if name in ("xor", "ne"):
            args = [tirx.Cast("int8", a) for a in args]
        if name not in _LOGIC:
            raise ValueError(f"operator {name!r} has no boolean result")
        return _LOGIC[name](*args)

    def integer_op(self, name: str, args: list[Any]) -> Any:
        zero = tirx.const(0, numeric.dtype_of(args[0]))
        match name, args:
            case "add", (a, b):
                return a + b
            case "sub", (a, b):
                return a - b
            case "mul", (a, b):
                return a * b
            case "floordiv", (a, b):
                return tirx.floordiv(a, b)
            case "mod", (a, b):
                return tirx.floormod(a, b)
            case "min", (a, b):
                return tirx.min(a, b)
            case "max", (a, b):
                return tirx.max(a, b)
            case "neg", (a,):
                return zero - a
            case "abs", (a,):
                return tirx.Select(a < zero, zero - a, a)
            case "sign", (a,):
                return tirx.Cast(numeric.dtype_of(a), a > zero) - tirx.Cast(numeric.dtype_of(a), a < zero)
            case "not", (a,):
                return tirx.bitwise_not(a)
            case (("floor" | "ceil" | "round"), (a,)):
                return a
            case (("and" | "or" | "xor"), (a, b)):
                return _BITWISE[name](a, b)
        raise ValueError(f"operator {name!r} has no integer result")

    def float_op(self, node: ex.Op, args: list[Any]) -> Any:
        name = node.name
        if name in _POLYNOMIALS and self.nesting[node] > _MOST_NESTED:
            if name == "sigmoid":
                return 1.0 / (1.0 + numeric.library("exp", -args[0]))
            return numeric.library(name, args[0])
        if name in _FLOAT_FUNCTIONS:
            return _FLOAT_FUNCTIONS[name](args[0])
        zero = tirx.const(0.0, self.env.compute)
        match name, args:
            case "add", (a, b):
                return a + b
            case "sub", (a, b):
                return a - b
            case "mul", (a, b):
                return a * b
            case "div", (a, b):
                return a / b
            case "floordiv", (a, b):
                return tirx.floor(a / b)
            case "mod", (a, b):
                return numeric.share(a, lambda a: numeric.share(b, lambda b: a - tirx.floor(a / b) * b))
            case "pow", (a, b):
                return _power(a, b)
            case "min", (a, b):
                return numeric.minimum(a, b)
            case "max", (a, b):
                return numeric.maximum(a, b)
            case "neg", (a,):
                return -a
            case "abs", (a,):
                return tirx.abs(a)
            case "sign", (a,):
                one = tirx.const(1.0, self.env.compute)
                return numeric.share(a, lambda a: tirx.Select(a > zero, one, tirx.Select(a < zero, -one, zero)))
        raise ValueError(f"operator {name!r} has no float result")
