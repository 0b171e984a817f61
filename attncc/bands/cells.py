"""What the elements of values are: cells, integers that name a number or an element of a value that was computed.

A step that only moves elements moves their cells, whatever it is called: PyTorch itself runs it on them. A step that
computes makes a `Block` of new cells and remembers the cells of its operands; nothing is compared or simplified here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from attncc.bands.axes import Axis, Dims, lengths
from attncc.passes.refused import Refused

LARGEST = 2**25
"""Cells of the largest value that is followed."""
_FIRST = 2**20
"""The cells below are numbers."""


@dataclass(frozen=True)
class Computed:
    """`kind` of `operators.POINTWISE` on the cells of operands that broadcast to the block."""

    kind: str
    operands: tuple[Tensor, ...]


@dataclass(frozen=True)
class Product:
    """The sum over carried axes (`summed`) and over the last dimensions of both operands, the first of which (`rank`
    of them) broadcast to the block."""

    left: Tensor
    right: Tensor
    rank: int
    summed: tuple[Axis, ...]


@dataclass(frozen=True)
class Softmax:
    """Of the cells `scores` along their dimension `along`."""

    scores: Tensor
    along: int


@dataclass(frozen=True)
class Block:
    """The cells of the value that `node` computes, row-major from `start` on."""

    node: fx.Node
    dims: Dims
    start: int
    made: Computed | Product | Softmax | None
    """None where it is not known of what it is made."""

    @property
    def shape(self) -> list[int]:
        return lengths(self.dims)

    @property
    def concrete(self) -> list[int]:
        """The sizes of all concrete axes."""
        return [int(a.size) for part in self.dims for a in part if not a.name]


@dataclass
class Cells:
    """The cells of one graph; on the device "meta" none are made, and only the axes are followed."""

    device: str
    numbers: list[float] = field(default_factory=lambda: [0.0])
    blocks: list[Block] = field(default_factory=list)
    _known: dict[float, int] = field(default_factory=lambda: {0.0: 0})
    _next: int = _FIRST

    def number(self, value: float) -> int:
        """The cell of a number; that of 0 and False is 0, which operators fill gaps with."""
        if math.isnan(value):
            raise Refused("NaN is written between scores or weights")
        if value not in self._known:
            if len(self.numbers) == _FIRST:
                raise Refused("too many numbers stand between scores or weights")
            self._known[value] = len(self.numbers)
            self.numbers.append(float(value))
        return self._known[value]

    def values(self, cells: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The numbers that cells are; None where some are none."""
        if self.device == "meta" or bool((cells >= _FIRST).any()):
            return None
        return torch.tensor(self.numbers, dtype=torch.float64)[cells].to(dtype)

    def of_values(self, values: Tensor) -> Tensor:
        """The cells of numbers."""
        distinct, inverse = values.to(torch.float64).unique(return_inverse=True)
        return torch.tensor([self.number(v) for v in distinct.tolist()], dtype=torch.int64)[inverse]

    def filled(self, dims: Dims, value: float) -> Tensor:
        """Cells of one number."""
        self._check(dims)
        return torch.full(lengths(dims), self.number(value), dtype=torch.int64, device=self.device)

    def block(self, node: fx.Node, dims: Dims, made: Computed | Product | Softmax | None) -> Tensor:
        """New cells."""
        self._check(dims)
        self.blocks.append(Block(node, dims, self._next, made))
        count = math.prod(lengths(dims))
        made_cells = torch.arange(self._next, self._next + count, device=self.device).reshape(lengths(dims))
        self._next += count
        return made_cells

    def parts(self, cells: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """The blocks that cells (of one dimension) lie in, each with the positions of those that do."""
        starts = torch.tensor([b.start for b in self.blocks], dtype=torch.int64)
        which = torch.searchsorted(starts, cells, right=True)
        for number in which.bincount().nonzero().flatten().tolist():
            if number > 0:
                yield self.blocks[number - 1], (which == number).nonzero()[:, 0]

    def one_block(self, cells: Tensor) -> Block | None:
        """The block that all cells lie in, if it is one."""
        found = list(self.parts(cells))
        return found[0][0] if len(found) == 1 and len(found[0][1]) == len(cells) else None

    @staticmethod
    def _check(dims: Dims) -> None:
        if math.prod(lengths(dims)) > LARGEST:
            raise Refused(f"more than {LARGEST} positions would have to be followed")
