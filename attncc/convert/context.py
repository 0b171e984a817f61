"""What the conversion of one operator may use: values by FX node, new IR nodes, iteration spaces, broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import fx

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.symbolic import Dim, dim


class Unsupported(Exception):
    """This use of an operator has no form in the IR; the node becomes Opaque and the message its note."""


Lowering = Callable[["Context", fx.Node], ir.Node]
LOWERINGS: dict[str, Lowering] = {}
"""By the operator's full name, `aten.add.Tensor`."""

F = TypeVar("F", bound=Lowering)


def lowers(*names: str) -> Callable[[F], F]:
    """Register the conversion of the operators `names`."""

    def register(function: F) -> F:
        LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return register


class Context:
    """The graph under construction. `value_of` is what reading an FX node gives at the current place of the program."""

    def __init__(self, value_of: Callable[[fx.Node], ir.Node]) -> None:
        self.nodes: dict[str, ir.Node] = {}
        self.value_of = value_of
        self._known: dict[object, str] = {}

    def add(self, node: ir.Node) -> ir.Node:
        """Add a node and return it."""
        self.nodes[node.name] = node
        return node

    def once(self, key: object, make: Callable[[], ir.Node]) -> ir.Node:
        """The node that `make` makes; the one made before for the same `key`, where it is still there."""
        known = self.nodes.get(self._known.get(key, ""))
        if known is None:
            known = make()
            self._known[key] = known.name
        return known

    def value(self, node: Any) -> ir.Node:
        """The value of a tensor argument. Raises Unsupported for anything else."""
        if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
            raise Unsupported(f"{node} is not a tensor")
        return self.value_of(node)

    def scalar(self, argument: Any) -> ex.Expr | ir.Node:
        """A number: a literal, a size as an expression, or a value of no dims that is known at run time."""
        if isinstance(argument, bool | int | float):
            return literal(argument)
        value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
        if isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
            try:
                return ix.size_expression(dim(value))
            except ValueError as error:
                raise Unsupported(str(error)) from error
        if isinstance(value, float):
            return literal(value)
        if isinstance(value, torch.SymFloat) and isinstance(argument, fx.Node):
            if value.node.expr.is_number:  # of sizes that turned out to be fixed: 1 / sqrt(64)
                return literal(float(value.node.expr))
            return self.value_of(argument)
        raise Unsupported(f"{argument} is not a number")


def literal(value: bool | int | float) -> ex.Const:
    """A Python number as an expression, in Python's precision."""
    dtype = {"bool": "bool", "int": "int64", "float": "float64"}[type(value).__name__]
    return ex.Const(value, dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """The IR's name of a dtype. Raises Unsupported for one it does not have (complex, float8, …)."""
    name = str(dtype).removeprefix("torch.")
    if name not in ex.DTYPES:
        raise Unsupported(f"dtype {name}")
    return name


def kept_dtype_name(dtype: torch.dtype) -> str:
    """The same for a value that is only kept, viewed and converted: float8 too."""
    name = str(dtype).removeprefix("torch.")
    return name if name in ex.FLOAT8 else dtype_name(dtype)


def result(node: fx.Node) -> torch.Tensor:
    """The fake tensor that a node makes. Raises Unsupported where it makes none."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise Unsupported(f"{node.target} makes no tensor")
    return value


def shape_of(tensor: torch.Tensor) -> tuple[Dim, ...]:
    """Sizes of a fake tensor. A computed size that is 1 is the number 1: PyTorch broadcasts it."""
    return tuple(1 if _is_one(s) else dim(s) for s in tensor.shape)


def _is_one(size: Any) -> bool:
    """Whether a size that is an expression of others is 1 here; the comparison makes it a guard."""
    if not isinstance(size, torch.SymInt) or size.node.expr.is_Symbol or not size.node.has_hint():
        return False
    return bool(size.node.hint == 1 and size == 1)


def space(shape: Sequence[Dim]) -> tuple[tuple[tuple[str, Dim], ...], tuple[tuple[str, ...], ...]]:
    """Axes and dims of a value: one axis a dimension, none for a dimension of size 1."""
    names = iter(ir.fresh_axes((), len(shape)))
    dims = tuple(() if s == 1 else (next(names),) for s in shape)
    return tuple((d[0], s) for d, s in zip(dims, shape, strict=True) if d), dims


def position(dims: Sequence[tuple[str, ...]], p: int) -> ix.Linear:
    """The index along dimension p of a fresh space."""
    return ix.axis(dims[p][0]) if dims[p] else ix.constant(0)


def broadcast(value: ir.Node, dims: Sequence[tuple[str, ...]]) -> ir.Access:
    """A read of `value` at every position of a space, by PyTorch's broadcasting rule."""
    shape = value.shape
    offset = len(dims) - len(shape)
    index = tuple(ix.constant(0) if s == 1 else position(dims, offset + p) for p, s in enumerate(shape))
    return ir.Access(value.name, index)


def identity(value: ir.Node) -> tuple[tuple[tuple[str, Dim], ...], tuple[tuple[str, ...], ...], ir.Access]:
    """Axes, dims and read of a node that goes over all of `value`."""
    axes, dims = space(value.shape)
    return axes, dims, broadcast(value, dims)


def as_dtype(expr: ex.Expr, dtype: str) -> ex.Expr:
    """`expr` in another dtype; a literal changes in place."""
    if expr.dtype == dtype:
        return expr
    if isinstance(expr, ex.Const):
        kind: Callable[[Any], Any] = bool if dtype == "bool" else float if dtype in ex.FLOATS else int
        return ex.Const(kind(expr.value), dtype)
    return ex.Op("cast", (expr,), dtype)


def map_node(
    c: Context,
    name: str,
    tensor: torch.Tensor,
    arguments: Sequence[ex.Expr | ir.Node],
    body: Callable[..., ex.Expr],
) -> ir.Node:
    """A Map with the shape and dtype of `tensor`: `body` gets an expression for each argument."""
    axes, dims = space(shape_of(tensor))
    operands: list[ir.Access] = []
    leaves: list[ex.Expr] = []
    for argument in arguments:
        if isinstance(argument, ir.Node):
            leaves.append(ex.Arg(len(operands), argument.dtype))
            operands.append(broadcast(argument, dims))
        else:
            leaves.append(argument)
    dtype = dtype_name(tensor.dtype)
    return c.add(ir.Map(name, dtype, axes, dims, tuple(operands), as_dtype(body(*leaves), dtype)))
