"""Sizes: Python ints where they are static, sympy expressions of the tracer's size symbols where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
from torch.utils._sympy.functions import FloorDiv

Dim: TypeAlias = int | sympy.Expr
"""A size, stride or offset, in elements."""


def dim(value: Any) -> Dim:
    """The size that an int, a SymInt or a sympy expression stands for."""
    if isinstance(value, int):
        return int(value)
    expression = value.node.expr if hasattr(value, "node") else value
    return reduce(expression)


def reduce(expression: Any) -> Dim:
    """An int where the expression is a number; else the expanded expression."""
    if isinstance(expression, int):
        return expression
    if expression.is_Symbol:
        return expression
    if expression.has(FloorDiv):  # (2*s0**2)//s0 is 2*s0
        expression = expression.replace(FloorDiv, lambda a, b: _quotient(a, b))
    expanded = sympy.expand(expression)
    return int(expanded) if expanded.is_Integer else expanded


def _quotient(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    exact = exact_div(reduce(a) if a.has(FloorDiv) else a, b)
    return FloorDiv(a, b) if exact is None else sympy.sympify(exact)


def equal(a: Dim, b: Dim) -> bool:
    """Whether two sizes are the same whatever the symbols are; False where that is not known."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(a == b) or _equal(sympy.sympify(a), sympy.sympify(b))


@lru_cache(4096)
def _equal(a: sympy.Expr, b: sympy.Expr) -> bool:
    return reduce(a - b) == 0


def product(sizes: Any) -> Dim:
    """The product of sizes; 1 for none."""
    total: Dim = 1
    for size in sizes:
        if total == 1 or size == 1:
            total = size if total == 1 else total
        else:
            total = total * size if isinstance(total, int) and isinstance(size, int) else reduce(total * size)
    return total


def exact_div(a: Dim, b: Dim) -> Dim | None:
    """a / b where that is a whole number for every value of the symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    return _exact_div(sympy.sympify(a), sympy.sympify(b))


@lru_cache(4096)
def _exact_div(a: sympy.Expr, b: sympy.Expr) -> Dim | None:
    if b == 0:
        return None
    quotient = sympy.expand(a / b)
    for term in sympy.Add.make_args(quotient):
        coefficient, rest = term.as_coeff_Mul()
        if not coefficient.is_Integer or rest.as_numer_denom()[1] != 1:
            return None
    return reduce(quotient)


def at_least(a: Dim, b: Dim) -> bool:
    """Whether a >= b can be proved from what is known of the symbols (sizes are at least 1)."""
    if isinstance(a, int) and isinstance(b, int):
        return a >= b
    return _at_least(sympy.sympify(a), sympy.sympify(b))


@lru_cache(4096)
def _at_least(a: sympy.Expr, b: sympy.Expr) -> bool:
    return _non_negative(sympy.expand(a - b))


def _non_negative(expression: sympy.Expr) -> bool:
    if expression.is_number:
        return bool(expression >= 0)
    # A polynomial whose coefficients are all >= 0 once every symbol s >= m is written as m + t, t >= 0.
    shift = {s: s + 1 for s in expression.free_symbols if s.is_positive}
    if not all(s.is_nonnegative for s in expression.free_symbols):
        return False
    shifted = sympy.expand(expression.subs(shift, simultaneous=True))
    return all(term.as_coeff_Mul()[0] >= 0 for term in sympy.Add.make_args(shifted))


def symbols(size: Dim) -> frozenset[sympy.Symbol]:
    """The symbols a size is made of."""
    return frozenset() if isinstance(size, int) else frozenset(size.free_symbols)


def value(size: Dim, hints: Mapping[str, int]) -> int | None:
    """The size under example values of the symbols; None where one of them has none."""
    if isinstance(size, int):
        return size
    if not all(str(s) in hints for s in size.free_symbols):
        return None
    return int(size.subs({s: hints[str(s)] for s in size.free_symbols}))
