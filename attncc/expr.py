"""Pointwise expressions: the one language that IR Maps, score functions, masks and kernels share.

An expression is a tree of frozen nodes over a closed set of operators. It knows dtypes and nothing of torch or TVM:
the tracer writes it, passes rewrite it, `attncc.algorithm` lowers it to TIR, `attncc.reference` evaluates it.

Expressions serialise as nested JSON lists: `["add:float32", ["score"], ["load:float32", "t0", ["index", "j"]]]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FLOATS = ("float64", "float32", "bfloat16", "float16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
DTYPES = (*FLOATS, *INTEGERS, "bool")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
"""What caches of keys and values may hold beside `DTYPES`; no expression is computed in them."""

# Operator -> arity. The result dtype is written on the node; comparisons and logic are bool.
OPERATORS: Mapping[str, int] = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "floordiv": 2, "mod": 2, "pow": 2, "min": 2, "max": 2,
    "neg": 1, "abs": 1, "exp": 1, "exp2": 1, "log": 1, "log2": 1, "log1p": 1, "sqrt": 1, "rsqrt": 1,
    "tanh": 1, "sigmoid": 1, "erf": 1, "sin": 1, "cos": 1, "floor": 1, "ceil": 1, "round": 1, "sign": 1,
    "lt": 2, "le": 2, "gt": 2, "ge": 2, "eq": 2, "ne": 2, "and": 2, "or": 2, "xor": 2, "not": 1,
    "where": 3, "cast": 1,
}  # fmt: skip
AXES = ("b", "h", "i", "j")
"""Index axes of an attention: batch, query head, query row, key row."""
SIZES = ("B", "H", "Sq", "Skv")
"""Run-time sizes of an attention: batch, query heads, query rows, key rows."""


class Expr:
    """A node of a pointwise expression; every node has a `dtype` and a tuple of `args`."""

    dtype: str

    @property
    def args(self) -> tuple[Expr, ...]:
        """The nodes right below this one."""
        return ()

    def walk(self) -> Iterator[Expr]:
        """This node and all below it, parents first."""
        yield self
        for arg in self.args:
            yield from arg.walk()

    def __str__(self) -> str:
        return pretty(self)


@dataclass(frozen=True)
class Const(Expr):
    """A literal."""

    value: float | int | bool
    dtype: str


@dataclass(frozen=True)
class Arg(Expr):
    """The n-th operand of an IR Map (never part of an AttentionSpec)."""

    number: int
    dtype: str


@dataclass(frozen=True)
class Score(Expr):
    """The score of the query row and key row at hand, before any modification."""

    dtype: str = "float32"


@dataclass(frozen=True)
class Index(Expr):
    """The position along an axis: one of `AXES` in a spec, an axis name in an IR Map."""

    axis: str

    dtype = "int64"


@dataclass(frozen=True)
class Size(Expr):
    """A run-time size: one of `SIZES` in a spec."""

    name: str

    dtype = "int64"


@dataclass(frozen=True)
class Scalar(Expr):
    """A run-time scalar argument: `s0, s1, …` are floats, `n0, n1, …` integers."""

    name: str
    dtype: str


@dataclass(frozen=True)
class Elem(Expr):
    """One element of a score product: `q` is q[i, d], `k` is k[j, d]."""

    name: str
    dtype: str = "float32"


@dataclass(frozen=True)
class Load(Expr):
    """An element of a named tensor; `index` holds one integer expression a dimension."""

    tensor: str
    index: tuple[Expr, ...]
    dtype: str

    @property
    def args(self) -> tuple[Expr, ...]:
        return self.index


@dataclass(frozen=True)
class Op(Expr):
    """An operator of `OPERATORS` applied to `operands`, giving `dtype`."""

    name: str
    operands: tuple[Expr, ...]
    dtype: str

    def __post_init__(self) -> None:
        if OPERATORS.get(self.name) != len(self.operands):
            raise ValueError(f"expression operator {self.name!r} with {len(self.operands)} operands is not defined")

    @property
    def args(self) -> tuple[Expr, ...]:
        return self.operands


Visitor = Callable[[Expr, tuple[Any, ...]], Any]


def fold(expr: Expr, visit: Visitor) -> Any:
    """Bottom-up fold: `visit(node, results of its args)`; shared subtrees are visited once."""
    done: dict[Expr, Any] = {}

    def go(node: Expr) -> Any:
        if node not in done:
            done[node] = visit(node, tuple(go(a) for a in node.args))
        return done[node]

    return go(expr)


def with_args(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """`expr` with other arguments (itself where they are the same)."""
    if args == expr.args:
        return expr
    if isinstance(expr, Op):
        return Op(expr.name, args, expr.dtype)
    if isinstance(expr, Load):
        return Load(expr.tensor, args, expr.dtype)
    raise TypeError(f"{type(expr).__name__} takes no arguments")


def substitute(expr: Expr, replace: Callable[[Expr], Expr | None]) -> Expr:
    """`expr` with every node for which `replace` gives an expression replaced, bottom-up."""

    def visit(node: Expr, args: tuple[Expr, ...]) -> Expr:
        rebuilt = with_args(node, args)
        other = replace(rebuilt)
        return rebuilt if other is None else other

    result: Expr = fold(expr, visit)
    return result


def to_json(expr: Expr) -> Any:
    """The expression as nested JSON lists; infinities and NaN as strings."""

    def visit(node: Expr, args: tuple[Any, ...]) -> Any:
        match node:
            case Const(value, dtype):
                finite = not isinstance(value, float) or math.isfinite(value)
                return [f"const:{dtype}", value if finite else str(value)]
            case Arg(number, dtype):
                return [f"arg:{dtype}", number]
            case Score(dtype):
                return [f"score:{dtype}"]
            case Index(axis):
                return ["index", axis]
            case Size(name):
                return ["size", name]
            case Scalar(name, dtype):
                return [f"scalar:{dtype}", name]
            case Elem(name, dtype):
                return [f"elem:{dtype}", name]
            case Load(tensor, _, dtype):
                return [f"load:{dtype}", tensor, *args]
            case Op(name, _, dtype):
                return [f"{name}:{dtype}", *args]
        raise TypeError(f"not an expression: {node!r}")

    return fold(expr, visit)


def from_json(data: Any) -> Expr:
    """The inverse of `to_json`. Raises ValueError on anything else."""
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        raise ValueError(f"not an expression: {data!r}")
    head, _, dtype = data[0].partition(":")
    rest = data[1:]
    if dtype and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r} in expression {data!r}")
    leaves: dict[str, Callable[..., Expr]] = {
        "const": lambda value: Const(float(value) if isinstance(value, str) else value, dtype),
        "arg": lambda number: Arg(number, dtype),
        "score": lambda: Score(dtype),
        "index": Index,
        "size": Size,
        "scalar": lambda name: Scalar(name, dtype),
        "elem": lambda name: Elem(name, dtype),
    }
    try:
        if head in leaves:
            return leaves[head](*rest)
        if head == "load":
            return Load(rest[0], tuple(from_json(a) for a in rest[1:]), dtype)
        return Op(head, tuple(from_json(a) for a in rest), dtype)
    except (TypeError, IndexError) as error:
        raise ValueError(f"not an expression: {data!r}") from error


_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "eq": "==", "ne": "!=", "and": "&", "or": "|", "xor": "^",
}  # fmt: skip


def pretty(expr: Expr) -> str:
    """The expression as a person would write it, without dtypes: `(score * s0) + t0[h]`."""

    def visit(node: Expr, args: tuple[str, ...]) -> str:
        match node:
            case Const(value):
                return f"{value:g}" if isinstance(value, float) else str(value)
            case Arg(number):
                return f"${number}"
            case Score():
                return "score"
            case Index(name) | Size(name) | Scalar(name) | Elem(name):
                return name
            case Load(tensor):
                return f"{tensor}[{', '.join(args)}]"
            case Op(name, _, dtype):
                if name in _INFIX:
                    return f"({args[0]} {_INFIX[name]} {args[1]})"
                return f"{dtype}({args[0]})" if name == "cast" else f"{name}({', '.join(args)})"
        raise TypeError(f"not an expression: {node!r}")

    text: str = fold(expr, visit)
    return text


def op(name: str, *args: Expr, dtype: str | None = None) -> Op:
    """`Op` with the dtype that follows from the operator: bool for comparisons and logic, else the last argument's."""
    if dtype is None:
        boolean = name in ("lt", "le", "gt", "ge", "eq", "ne")
        dtype = "bool" if boolean else args[-1].dtype
    return Op(name, args, dtype)
