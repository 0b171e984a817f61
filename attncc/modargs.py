"""Run-time arguments of score and mask functions: captured tensors, their sizes, and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from attncc import expr as ex


@dataclass
class Operands:
    """What functions read beside scores and indices, as run-time arguments of the spec."""

    first_extra: int = 0
    """Number of the first extra: those before it belong to the caller. So does the float scalar s0, the scale."""
    tensors: list[Tensor] = field(default_factory=list)
    """Captured tensors, in order of extras."""
    scalars: list[float] = field(default_factory=list)
    """Values of the float scalars s1, s2, …"""
    integers: list[int | tuple[int, int]] = field(default_factory=list)
    """For each integer scalar n0, n1, … its value, or (position in `tensors`, dimension) of a size."""

    def extra(self, tensor: Tensor) -> int:
        """The position of `tensor` among the captured ones; the same one each time it is read."""
        for at, known in enumerate(self.tensors):
            if known is tensor:
                return at
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def name(self, tensor: Tensor) -> str:
        """The extra's name of `tensor`."""
        return f"t{self.first_extra + self.extra(tensor)}"

    def integer(self, value: int | tuple[int, int]) -> ex.Expr:
        """A number, or the size of a captured tensor, as a run-time scalar."""
        if value not in self.integers:
            self.integers.append(value)
        return ex.Scalar(f"n{self.integers.index(value)}", "int64")

    def scalar(self, value: float, dtype: str) -> ex.Expr:
        """A number as a run-time scalar."""
        if value not in self.scalars:
            self.scalars.append(value)
        return ex.Scalar(f"s{1 + self.scalars.index(value)}", dtype)


def lift_numbers(expr: ex.Expr, operands: Operands) -> ex.Expr:
    """`expr` with its numbers as run-time scalars, so that one kernel serves every window, cap and slope.

    Left as constants are small and special numbers, and integer factors, divisors and exponents: what the compiler
    makes of them is worth more than a shared kernel.
    """
    kept = {"pow", "mul", "floordiv", "mod"}

    def visit(node: ex.Expr, args: tuple[ex.Expr, ...]) -> ex.Expr:
        rebuilt = ex.with_args(node, args)
        if not isinstance(rebuilt, ex.Op) or rebuilt.name == "pow":
            return rebuilt
        return ex.with_args(rebuilt, tuple(lift(arg, rebuilt.name) for arg in rebuilt.operands))

    def lift(node: ex.Expr, under: str) -> ex.Expr:
        if not isinstance(node, ex.Const) or isinstance(node.value, bool) or abs(node.value) <= 2:
            return node
        if node.dtype in ("float32", "float64"):
            return operands.scalar(float(node.value), node.dtype) if math.isfinite(node.value) else node
        return operands.integer(int(node.value)) if node.dtype == "int64" and under not in kept else node

    result: ex.Expr = ex.fold(expr, visit)
    return result
