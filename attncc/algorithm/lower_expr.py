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
from attncc.algorithm import numeric, operators
from attncc.algorithm.int_range import INT32_MAX, narrows

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
    """int64 or int32 values of b, h, i, j (and of any other axis that the expression names)."""
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
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """What float operators become in place of the polynomials here: another kind of machine has its own."""
    inside: Mapping[str, Any] = field(default_factory=dict)
    """The same of `index` where tensors are read at them, if that is not everywhere where scores are computed."""
    longest: int | None = None
    """Positions and sizes are at most this, and are compared in int32 where that is provably the same: a GPU has no
    int64 arithmetic of its own.
    """


def lower(expr: ex.Expr, env: Env) -> Any:
    """The TIR expression for `expr`: in the compute dtype for a float node, else in the node's own dtype.

    Raises ValueError for a leaf that `env` does not give.
    """
    return numeric.bound(lambda: ex.fold(expr, _Lowering(env, _nesting(expr)).node))


def element(load: ex.Load, env: Env) -> Any:
    """The element of a tensor that `load` reads, as it lies there: its address can be taken."""
    lowering = _Lowering(env, {})
    return lowering.element(load, tuple(ex.fold(index, lowering.node) for index in load.index))


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
                return self.cast(self.leaf(node, self.env.index, axis), "int64")
            case ex.Size(name):
                return self.leaf(node, self.env.size, name)
            case ex.Elem(name):
                return self.leaf(node, self.env.element, name)
            case ex.Scalar(name, dtype):
                return self.cast(self.leaf(node, self.env.scalar, name), dtype)
            case ex.Load(_, _, dtype):
                return self.cast(self.element(node, args), dtype)
            case ex.Op():
                return self.op(node, args)
        raise ValueError(f"{type(node).__name__} {node} cannot be lowered to TIR")

    def element(self, load: ex.Load, positions: tuple[Any, ...]) -> Any:
        """The element that `load` reads, in its own dtype."""
        buffer = self.leaf(load, self.env.buffer, load.tensor)
        at = [self.position(*each) for each in zip(load.index, positions, buffer.shape, strict=True)]
        return tirx.BufferLoad(buffer, at)

    def position(self, index: ex.Expr, value: Any, size: Any) -> Any:
        """Where a dimension of `size` is read.

        Axes and literals are checked before a kernel runs; what is computed from run-time numbers stays inside the
        tensor whatever they are.
        """
        if isinstance(index, ex.Index):
            value = self.env.inside.get(index.axis, value)
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
            return operators.compare("ne", value, tirx.const(0, numeric.dtype_of(value)))
        return numeric.cast(dtype, value)

    def op(self, node: ex.Op, args: tuple[Any, ...]) -> Any:
        """One operator: the operands are brought to the dtype they are computed in first."""
        name, result = node.name, self.dtype(node.dtype)
        if name == "cast":
            return self.cast(self.narrowed(node.operands[0], args[0], result), result)
        if name == "where":
            return tirx.Select(self.cast(args[0], "bool"), self.cast(args[1], result), self.cast(args[2], result))
        if name in operators.COMPARISONS:
            return self.comparison(name, self.shortened(node, args))
        if result == "bool":
            return operators.logical(name, [self.cast(a, "bool") for a in args])
        floating = result in ex.FLOATS
        operands = [
            self.cast(self.narrowed(o, a, result) if floating else a, result)
            for o, a in zip(node.operands, args, strict=True)
        ]
        return self.float_op(node, operands) if floating else operators.integral(name, operands)

    def narrowed(self, expr: ex.Expr, value: Any, result: str) -> Any:
        """An int64 operand that becomes a float, computed in int32 where that is provably the same.

        It takes half the vectors, and AVX2 has no conversion from int64 at all.
        """
        if result in ex.FLOATS and expr.dtype == "int64" and narrows(expr, self.env.longest or INT32_MAX):
            return ex.fold(expr, self.node32)
        return value

    def node32(self, node: ex.Expr, args: tuple[Any, ...]) -> Any:
        match node:
            case ex.Op(name):
                return operators.integral(name, list(args))
            case ex.Index(axis):
                return self.cast(self.leaf(node, self.env.index, axis), "int32")
        return self.cast(self.node(node, args), "int32")

    def shortened(self, node: ex.Op, args: tuple[Any, ...]) -> tuple[Any, ...]:
        longest = self.env.longest
        if longest is not None and all(o.dtype in ("int32", "int64") and narrows(o, longest) for o in node.operands):
            return tuple(ex.fold(o, self.node32) for o in node.operands)
        return args

    def comparison(self, name: str, args: tuple[Any, ...]) -> Any:
        dtypes = [numeric.dtype_of(a) for a in args]
        if any(d in ex.FLOATS for d in dtypes):
            common = self.env.compute
        elif dtypes[0] == dtypes[1]:
            common = dtypes[0] if dtypes[0] != "bool" else "int8"
        else:
            common = "int64"
        return operators.compare(name, *(self.cast(a, common) for a in args))

    def float_op(self, node: ex.Op, args: list[Any]) -> Any:
        if node.name in self.env.functions:
            return self.env.functions[node.name](*args)
        if node.name in _POLYNOMIALS and self.nesting[node] > _MOST_NESTED:
            if node.name == "sigmoid":
                return 1.0 / (1.0 + numeric.library("exp", -args[0]))
            return numeric.library(node.name, args[0])
        return operators.floating(node.name, args)
