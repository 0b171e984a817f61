"""Index maps of operands as dimensions of tensors: groups of axes that lie merged, and the digits of one index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attncc import index as ix
from attncc import ir
from attncc.passes.refused import Refused
from attncc.symbolic import Dim, exact_div, product

Group = tuple[str, ...]
"""Axes that make up one dimension, outermost first."""


def joined(
    access: ir.Access, groups: Sequence[Group], sizes: Mapping[str, Dim]
) -> tuple[ir.Access, Sequence[Group], Mapping[str, Dim]]:
    """The same read with every group that lies merged in one dimension already as one axis."""
    left, known, index = list(groups), dict(sizes), list(access.index)
    for number, group in enumerate(groups):
        places = [p for p, i in enumerate(index) if set(i.axes) & set(group)]
        if len(group) < 2 or len(places) != 1:
            continue
        linear = index[places[0]]
        step = linear.coefficient(group[-1])
        part = ix.Linear(tuple(t for t in linear.terms if t[0] in group))
        if step == 0 or part != ix.scaled(ix.merged(group, sizes), step):
            continue
        whole = ".".join(group)
        rest = ix.Linear(tuple(t for t in linear.terms if t[0] not in group), linear.const)
        index[places[0]] = ix.total([rest, ix.scaled(ix.axis(whole), step)])
        known[whole] = product(sizes[a] for a in group)
        left[number] = (whole,)
    return ir.Access(access.value, tuple(index)), left, known


def outermost(index: ix.Linear) -> tuple[str, Dim]:
    """The term whose coefficient all others divide. Raises Refused."""
    for axis, stride in index.terms:
        if all(exact_div(stride, other) is not None for _, other in index.terms):
            return axis, stride
    raise Refused(f"the index {index} is no merge of axes")


def divided(const: Dim, by: Dim) -> tuple[Dim, Dim]:
    """Quotient and rest of an offset; a symbolic one that does not divide is all rest."""
    if isinstance(const, int) and isinstance(by, int):
        return divmod(const, by)
    whole = exact_div(const, by)
    return (0, const) if whole is None else (whole, 0)
