"""Index maps: where in a value a node reads, as linear functions of the node's own axes.

Reshape, permute, expand, select, slice, split and unbind are all the same thing here: a dimension of the value that is
read gets the index `const + sum(coefficient * axis)`, and a dimension of the value that is made is a tuple of axes,
merged row-major. `bind` goes back through a merge: it divides a linear index into the digits of a mixed radix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attncc import expr as ex
from attncc.symbolic import Dim, at_least, equal, exact_div, product, reduce


class NeedsSplit(Exception):
    """A merge can be undone only after `axis` is split into an outer axis and an inner one of size `inner`."""

    def __init__(self, axis: str, inner: Dim) -> None:
        super().__init__(f"axis {axis} has to be split at {inner}")
        self.axis = axis
        self.inner = inner


@dataclass(frozen=True)
class Linear:
    """`const + sum(coefficient * axis)`; terms are sorted by axis name and none is zero."""

    terms: tuple[tuple[str, Dim], ...] = ()
    const: Dim = 0

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis for axis, _ in self.terms)

    def coefficient(self, axis: str) -> Dim:
        return dict(self.terms).get(axis, 0)

    def is_axis(self, axis: str) -> bool:
        """Whether this is that axis and nothing else."""
        return self.const == 0 and self.terms == ((axis, 1),)

    def substitute(self, at: Mapping[str, Linear]) -> Linear:
        """This index with axes replaced by indices."""
        return total([scaled(at[a], c) if a in at else Linear(((a, c),)) for a, c in self.terms], self.const)

    def __str__(self) -> str:
        parts = [a if c == 1 else f"{a} * ({c})" if not isinstance(c, int) else f"{a} * {c}" for a, c in self.terms]
        if self.const != 0 or not parts:
            parts.append(str(self.const) if isinstance(self.const, int) else f"({self.const})")
        return " + ".join(parts)


def axis(name: str) -> Linear:
    """The index that is one axis."""
    return Linear(((name, 1),))


def constant(value: Dim) -> Linear:
    """An index that does not move."""
    return Linear((), value)


def scaled(index: Linear, factor: Dim) -> Linear:
    """factor * index."""
    if factor == 0:
        return Linear()
    return Linear(tuple((a, product((c, factor))) for a, c in index.terms), product((index.const, factor)))


def total(parts: Sequence[Linear], const: Dim = 0) -> Linear:
    """The sum of several indices and a constant."""
    sums: dict[str, Dim] = {}
    for part in parts:
        const = reduce(const + part.const)
        for name, coefficient in part.terms:
            sums[name] = reduce(sums.get(name, 0) + coefficient)
    return Linear(tuple(sorted((a, c) for a, c in sums.items() if c != 0)), const)


def merged(axes: Sequence[str], sizes: Mapping[str, Dim]) -> Linear:
    """The row-major index of several axes merged into one dimension."""
    parts, stride = [], 1
    for name in reversed(axes):
        parts.append(Linear(((name, stride),)))
        stride = product((stride, sizes[name]))
    return total(parts)


def bounds(index: Linear, sizes: Mapping[str, Dim]) -> tuple[Dim, Dim] | None:
    """Smallest and largest value of an index over its axes; None where a coefficient has no known sign."""
    low = high = index.const
    for name, coefficient in index.terms:
        reach = product((coefficient, reduce(sizes[name] - 1)))
        if at_least(coefficient, 0):
            high = reduce(high + reach)
        elif isinstance(coefficient, int):
            low = reduce(low + reach)
        else:
            return None
    return low, high


def bind(index: Linear, digits: Sequence[tuple[str, Dim]], sizes: Mapping[str, Dim]) -> dict[str, Linear] | None:
    """The value of every digit (axis, size; outermost first) of a merged dimension read at `index`.

    None where the index does not fall apart into the digits; raises NeedsSplit where it would after a split of one of
    its own axes (of which `sizes` are the sizes).
    """
    bound: dict[str, Linear] = {}
    for position in range(len(digits) - 1, 0, -1):
        name, size = digits[position]
        parts = _divmod(index, size, sizes)
        if parts is None:
            return None
        index, bound[name] = parts
    if digits:
        bound[digits[0][0]] = index
    return bound


def _divmod(index: Linear, size: Dim, sizes: Mapping[str, Dim]) -> tuple[Linear, Linear] | None:
    """`index // size` and `index % size`, both linear."""
    high: list[tuple[str, Dim]] = []
    low: list[tuple[str, Dim]] = []
    for name, coefficient in index.terms:
        quotient = exact_div(coefficient, size)
        if quotient is None:
            low.append((name, coefficient))
        else:
            high.append((name, quotient))
    if isinstance(index.const, int) and isinstance(size, int):
        const_high, const_low = divmod(index.const, size)
    else:
        whole = exact_div(index.const, size)
        const_high, const_low = (0, index.const) if whole is None else (whole, 0)
    rest = Linear(tuple(low), const_low)
    reach = bounds(rest, sizes)
    if reach is not None and at_least(reach[0], 0) and at_least(reduce(size - 1), reach[1]):
        return Linear(tuple(high), const_high), rest
    for name, coefficient in low:
        inner = exact_div(size, coefficient)
        if inner is not None and inner != 1 and not equal(inner, sizes[name]):
            outer = exact_div(sizes[name], inner)
            if outer is not None and outer != 1:
                raise NeedsSplit(name, inner)
    return None


_FOLDED = {"Add": "add", "Mul": "mul", "Max": "max", "Min": "min"}
"""sympy's functions of any number of sizes, by the operator of two."""


def size_expression(size: Dim) -> ex.Expr:
    """A size as an expression in `Size` leaves named after the symbols. Raises ValueError for other functions."""
    if isinstance(size, int):
        return ex.Const(size, "int64")
    if size.is_Integer:
        return ex.Const(int(size), "int64")
    if size.is_Symbol:
        return ex.Size(str(size))
    folded = _FOLDED.get(size.func.__name__)
    if folded is not None:
        result, *rest = (size_expression(part) for part in size.args)
        for part in rest:
            result = ex.op(folded, result, part)
        return result
    if size.is_Pow and size.exp.is_Integer and size.exp > 0:
        base = size_expression(size.base)
        return base if size.exp == 1 else ex.op("mul", base, size_expression(size.base ** (size.exp - 1)))
    if size.func.__name__ in ("FloorDiv", "Mod", "PythonMod"):
        name = "floordiv" if size.func.__name__ == "FloorDiv" else "mod"
        return ex.op(name, *(size_expression(part) for part in size.args))
    raise ValueError(f"no expression for the size {size}")


def to_expression(index: Linear) -> ex.Expr:
    """A linear index as an expression in `Index` leaves."""
    parts: list[ex.Expr] = []
    for name, coefficient in index.terms:
        leaf: ex.Expr = ex.Index(name)
        parts.append(leaf if coefficient == 1 else ex.op("mul", leaf, size_expression(coefficient)))
    if index.const != 0 or not parts:
        parts.append(size_expression(index.const))
    result, *rest = parts
    for part in rest:
        result = ex.op("add", result, part)
    return result
