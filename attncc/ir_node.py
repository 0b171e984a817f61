"""What all nodes of the IR have: axes, dimensions made of them, reads (`Access`) of other values. See `attncc.ir`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from attncc import index as ix
from attncc.symbolic import Dim, exact_div, product


@dataclass(frozen=True)
class Access:
    """A read of `value`: one index a dimension, linear in the axes of the reading node."""

    value: str
    index: tuple[ix.Linear, ...]

    def substitute(self, at: Mapping[str, ix.Linear]) -> Access:
        """The same read with axes replaced by indices."""
        return Access(self.value, tuple(i.substitute(at) for i in self.index))


@dataclass(frozen=True)
class Node:
    """What all nodes have: a name, the dtype of the value, the iteration space, the value's dimensions."""

    name: str
    dtype: str
    axes: tuple[tuple[str, Dim], ...] = ()
    """Axis names and sizes, in the order of the value's dimensions; axes that are summed over come last."""
    dims: tuple[tuple[str, ...], ...] = ()
    """The axes that make up each dimension of the value, outermost first."""

    @cached_property
    def sizes(self) -> Mapping[str, Dim]:
        """Size of every axis."""
        return dict(self.axes)

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Size of every dimension of the value."""
        return tuple(product(self.sizes[a] for a in d) for d in self.dims)

    @property
    def reduced(self) -> tuple[str, ...]:
        """The axes that the value no longer has."""
        kept = {a for d in self.dims for a in d}
        return tuple(a for a, _ in self.axes if a not in kept)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values this node reads, in order, with repetitions."""
        return tuple(a.value for a in self.accesses)

    @property
    def accesses(self) -> tuple[Access, ...]:
        """The reads that go through an index map."""
        return ()

    def with_accesses(self, accesses: tuple[Access, ...]) -> Node:
        """The same node with other accesses, in the order of `accesses`."""
        if accesses:
            raise TypeError(f"{type(self).__name__} reads nothing through index maps")
        return self

    def split(self, axis: str, inner: Dim) -> Node:
        """The same value, its axis `axis` written as an outer and an inner axis of size `inner`."""
        outer_size = exact_div(self.sizes[axis], inner)
        if outer_size is None:
            raise ValueError(f"axis {axis} of {self.name} does not divide into pieces of {inner}")
        names = fresh_axes((a for a, _ in self.axes), 2)
        at = {axis: ix.merged(names, {names[0]: outer_size, names[1]: inner})}
        axes: list[tuple[str, Dim]] = []
        for name, size in self.axes:
            axes += [(names[0], outer_size), (names[1], inner)] if name == axis else [(name, size)]
        dims = tuple(tuple(n for a in d for n in (names if a == axis else (a,))) for d in self.dims)
        renamed = replace(self, axes=tuple(axes), dims=dims)
        return renamed.substituted(at)

    def substituted(self, at: Mapping[str, ix.Linear]) -> Node:
        """The node with its axes replaced by indices wherever it uses them."""
        return self if not self.accesses else self.with_accesses(tuple(a.substitute(at) for a in self.accesses))


def fresh_axes(taken: Iterable[str], count: int) -> tuple[str, ...]:
    """Axis names that are not taken: a, b, …, z, a1, b1, …"""
    used = set(taken)
    names: list[str] = []
    number = 0
    while len(names) < count:
        name = chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")
        if name not in used:
            names.append(name)
        number += 1
    return tuple(names)
