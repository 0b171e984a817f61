"""Dimensions of values as axes: most are carried along by every step, and one position then stands for all of them.

An axis with a name is carried: what stands at a position of it depends on nothing but the same position of what it was
made of, in the same way for all. Where an operator does anything else with an axis (cuts it, pads it, reverses it), it
has to be concrete, each of its positions followed by itself: the walk begins anew with what it has learnt
(`MustBeConcrete`, `MustSplit`). Carried axes that meet in one dimension of a result are one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from attncc.passes.refused import Refused
from attncc.symbolic import Dim, equal, exact_div


@dataclass(frozen=True)
class Axis:
    """A part of a dimension; concrete if it has no name."""

    size: Dim
    name: str = ""


Part: TypeAlias = tuple[Axis, ...]
"""The axes that make up one dimension, outermost first; none for a dimension of size 1."""
Dims: TypeAlias = tuple[Part, ...]


class MustBeConcrete(Exception):
    """The axes `names` cannot be carried."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(n for n in names if n)
        super().__init__(", ".join(self.names))


class MustSplit(Exception):
    """The axis `name` has to be an outer and an inner one of size `inner`."""

    def __init__(self, name: str, inner: Dim) -> None:
        self.name, self.inner = name, inner
        super().__init__(name)


@dataclass
class Axes:
    """What is known of the axes of one graph, and which of the carried ones are the same."""

    concrete: set[str] = field(default_factory=set)
    splits: dict[str, Dim] = field(default_factory=dict)
    _same: dict[str, str] = field(default_factory=dict)

    def again(self, problem: MustBeConcrete | MustSplit) -> Axes:
        """What is known now; which axes are the same is found again."""
        if isinstance(problem, MustSplit):
            return Axes(self.concrete, {**self.splits, problem.name: problem.inner})
        roots = {self.root(n) for n in problem.names}
        alike = {n for n in self._same if self.root(n) in roots}
        return Axes(self.concrete | alike | {*problem.names}, self.splits)

    def fresh(self, name: str, size: Dim) -> Part:
        """The axes of a dimension of a new value. Raises Refused where one would have to be a number and is none."""
        if size == 1:
            return ()
        inner = self.splits.get(name)
        if inner is not None:
            outer = exact_div(size, inner)
            if outer is None:
                raise Refused(f"a dimension of {size} does not divide into pieces of {inner}")
            return merged(self.fresh(f"{name}.outer", outer) + self.fresh(f"{name}.inner", inner))
        if name not in self.concrete:
            return (Axis(size, name),)
        if not isinstance(size, int):
            raise Refused(f"the length {size} is not a fixed number")
        return (Axis(size),)

    def root(self, name: str) -> str:
        """The name that stands for all axes that are the same as this one."""
        while self._same.get(name, name) != name:
            name = self._same[name]
        return name

    def join(self, a: Part, b: Part) -> Part:
        """One dimension in which two values meet, of the same size or one of them of size 1 and broadcast."""
        if not a or not b:
            return a or b
        left, right, joined = list(merged(a)), list(merged(b)), list[Axis]()
        while left and right:
            x, y = left.pop(), right.pop()
            if not equal(x.size, y.size):
                large, small, rest = (x, y, left) if exact_div(x.size, y.size) is not None else (y, x, right)
                outer = exact_div(large.size, small.size)
                if outer is not None and large.name:
                    raise MustSplit(large.name, small.size)
                if outer is None or small.name:
                    raise MustBeConcrete((large.name, small.name))
                rest.append(Axis(outer))
                x = y = small
            if bool(x.name) != bool(y.name):
                raise MustBeConcrete((x.name, y.name))
            if x.name:
                self._same.setdefault(x.name, x.name)
                self._same[self.root(y.name)] = self.root(x.name)
            joined.insert(0, x)
        if left or right:
            raise Refused("two values of unlike shapes meet")
        return tuple(joined)

    def regrouped(self, dims: Dims, shape: Sequence[Dim]) -> Dims:
        """The dimensions of the same elements in another shape, row-major."""
        left = list(merged(axis for part in dims for axis in part))
        made: list[Part] = []
        for size in shape:
            part: list[Axis] = []
            while size != 1:
                if not left:
                    raise Refused("a reshape changes the number of elements")
                first = left.pop(0)
                rest, inner = exact_div(size, first.size), exact_div(first.size, size)
                if rest is not None:
                    part.append(first)
                    size = rest
                elif inner is not None and not first.name:
                    part.append(Axis(size))
                    left.insert(0, Axis(inner))
                    size = 1
                elif inner is not None:
                    raise MustSplit(first.name, inner)
                else:
                    raise MustBeConcrete([a.name for a in (first, *part, *left) if a.name][:1])
            made.append(tuple(part))
        return tuple(made)

    def check_distinct(self, parts: Iterable[Part]) -> None:
        """Raises MustBeConcrete where an axis stands in two places: what a position of it means would be unclear."""
        seen: set[str] = set()
        for axis in (a for part in parts for a in part if a.name):
            if self.root(axis.name) in seen:
                raise MustBeConcrete([axis.name])
            seen.add(self.root(axis.name))


def merged(axes: Iterable[Axis]) -> Part:
    """The same axes with concrete ones that stand side by side as one."""
    made: list[Axis] = []
    for axis in axes:
        if made and not axis.name and not made[-1].name:
            made[-1] = Axis(made[-1].size * axis.size)
        else:
            made.append(axis)
    return tuple(made)


def length(part: Part) -> int:
    """The number of positions of a dimension that are told apart."""
    return math.prod(int(a.size) for a in part if not a.name)


def lengths(dims: Dims) -> list[int]:
    """The shape of the cells of a value."""
    return [length(part) for part in dims]
