"""What elements are, as one expression for all of them in the query's row and the key's row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, fx

from attncc.bands.axes import Axes, Dims
from attncc.bands.cells import Block, Cells, Computed, Product, Softmax
from attncc.passes.refused import Refused
from attncc.symbolic import Dim

ROW, KEY = "row", "key"
"""The axes of queries and keys, beside the carried ones."""
UNEVEN = "not every score of a query and a key is made in the same way"
MISPLACED = "an element stands at the place of another query or key"


@dataclass(frozen=True)
class Place:
    """The position along one axis of a value: that of the axis `name`, or the number `at`."""

    size: Dim
    name: str = ""
    at: int = 0


@dataclass(frozen=True)
class Read:
    """An element of the value of `node`: for each of its dimensions the places that make up the position."""

    node: fx.Node
    index: tuple[tuple[Place, ...], ...]

    @property
    def sizes(self) -> dict[str, Dim]:
        """The axes along which it moves."""
        return {p.name: p.size for part in self.index for p in part if p.name}


@dataclass(frozen=True)
class Dot:
    """The product of two elements, summed over axes."""

    left: Read
    right: Read
    summed: tuple[str, ...]
    node: fx.Node


@dataclass(frozen=True)
class Apply:
    """An operator of `attncc.expr` in the dtype of `node`."""

    kind: str
    operands: tuple[Term, ...]
    node: fx.Node


@dataclass(frozen=True)
class Number:
    """A literal."""

    value: float


Term: TypeAlias = Read | Dot | Apply | Number


@dataclass(frozen=True)
class Band:
    """An attention: everything that its plain form is made of."""

    node: fx.Node
    """The product of weights and values."""
    softmax: fx.Node
    score: Term
    value: Read
    rows: int
    keys: int
    before: int | None
    """How many keys a row sees before its own, and after; None: all."""
    after: int | None
    casts: tuple[fx.Node, ...]
    """What the weights are cast to, one after the other."""
    zeroed: tuple[tuple[Term, bool], ...]
    """Conditions that set the weights of a row to 0, each where it is so."""
    dims: Dims
    """Of the result; its concrete axes have names, those of `strides`."""
    strides: tuple[tuple[str, int], ...]
    """The row that a position of the result is of: the sum of its concrete axes times these."""


def leaves(term: Term) -> Iterator[Read]:
    """All reads in a term."""
    match term:
        case Read():
            yield term
        case Dot(left, right):
            yield from (left, right)
        case Apply(_, operands):
            for operand in operands:
                yield from leaves(operand)


def axes_of(term: Term) -> set[str]:
    """The axes along which a term moves."""
    match term:
        case Read():
            return set(term.sizes)
        case Dot(left, right, summed):
            return {*left.sizes, *right.sizes} - set(summed)
        case Apply(_, operands):
            return {axis for operand in operands for axis in axes_of(operand)}
        case Number():
            return set()


def local(block: Block, operand: Tensor, at: Tensor) -> Tensor:
    """The cells of an operand of which the cells `at` of a block are made."""
    return operand.expand(block.shape).reshape(-1)[at - block.start]


def surely(cells: Cells, given: Tensor, number: float) -> Tensor:
    """Which of the given cells are `number` (0 or -inf) whatever the data are, provided that they are finite."""
    result = given == cells.number(number)
    for block, where in cells.parts(given):
        if isinstance(block.made, Computed) and block.node.meta["val"].is_floating_point():
            operands = [local(block, operand, given[where]) for operand in block.made.operands]
            result[where] = _surely(cells, block.made.kind, operands, number)
    return result


def _surely(cells: Cells, kind: str, operands: list[Tensor], number: float) -> Tensor:
    match kind:
        case "cast":
            return surely(cells, operands[0], number)
        case "where":
            return surely(cells, operands[1], number) & surely(cells, operands[2], number)
        case "add" if number == -math.inf:
            infinite = cells.number(math.inf)
            either = surely(cells, operands[0], number) | surely(cells, operands[1], number)
            return either & (operands[0] != infinite) & (operands[1] != infinite)
    return torch.zeros(len(operands[0]), dtype=torch.bool)


@dataclass(frozen=True)
class Pairs:
    """The pairs of a query's row and a key's row that elements stand for, one pair an element."""

    cells: Cells
    axes: Axes
    rows: Tensor
    keys: Tensor
    counts: tuple[int, int]
    """How many rows of queries and of keys there are."""

    def term(self, given: Tensor) -> Term:
        """What the given cells are, one for each pair. Raises Refused where they are not one expression."""
        if int(given.max()) < self.cells.blocks[0].start:
            if bool((given != given[0]).any()):
                raise Refused(UNEVEN)
            return Number(self.cells.numbers[int(given[0])])
        block = self.cells.one_block(given)
        if block is None:
            raise Refused(UNEVEN)
        product = self._product(block, block.made, given) if isinstance(block.made, Product) else None
        whole = product or self.read(given)
        if whole is not None:
            return whole
        if isinstance(block.made, Computed):
            operands = tuple(self.term(local(block, o, given)) for o in block.made.operands)
            return Apply(block.made.kind, operands, block.node)
        raise Refused(MISPLACED)

    def read(self, given: Tensor) -> Read | None:
        """The given cells as a read of one value; None where they do not stand where rows and keys do."""
        block = self.cells.one_block(given)
        if block is None or isinstance(block.made, Softmax):
            return None
        positions = iter(torch.unravel_index(given - block.start, block.concrete) if block.concrete else ())
        index: list[tuple[Place, ...]] = []
        for part in block.dims:
            places: list[Place] = []
            for axis in part:
                place = Place(axis.size, self.axes.root(axis.name)) if axis.name else None
                place = place or self._place(int(axis.size), next(positions))
                if place is None:
                    return None
                places.append(place)
            index.append(tuple(places))
        return Read(block.node, tuple(index))

    def _place(self, size: int, at: Tensor) -> Place | None:
        for name, positions, count in zip((ROW, KEY), (self.rows, self.keys), self.counts, strict=True):
            if size == count and torch.equal(at, positions):
                return Place(size, name)
        return Place(size, at=int(at[0])) if bool((at == at[0]).all()) else None

    def _product(self, block: Block, made: Product, given: Tensor) -> Term | None:
        """A sum of products of two rows, or one number times another; None where it is another sum."""
        if made.left.shape[made.rank :].numel() != 1 or made.right.shape[made.rank :].numel() != 1:
            return None
        left, right = (local(block, o.reshape(o.shape[: made.rank]), given) for o in (made.left, made.right))
        if not made.summed:
            one = self.cells.number(1.0)
            for a, b in ((left, right), (right, left)):
                if bool((a == one).all()):
                    return self.term(b)
            return Apply("mul", (self.term(left), self.term(right)), block.node)
        reads = self.read(left), self.read(right)
        if reads[0] is None or reads[1] is None:
            return None
        return Dot(reads[0], reads[1], tuple(self.axes.root(a.name) for a in made.summed), block.node)
