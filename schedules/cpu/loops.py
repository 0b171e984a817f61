"""The moves that the CPU schedules share, on the loops of a function's blocks."""

from __future__ import annotations

from typing import Any

from attncc._tvm import Schedule


class Loops:
    """A schedule in the making, of vectors of `width` numbers."""

    def __init__(self, sch: Schedule, width: int) -> None:
        self.sch = sch
        self.width = width

    def loops(self, block: Any) -> list[Any]:
        """The loops around a block, given as such or by name, from outside in."""
        return list(self.sch.get_loops(block))

    def register_tile(self, block: Any, reduction: Any, tile: list[Any]) -> None:
        """Unroll and vectorise the loops `tile` inside `reduction`, and give the start of the sum a nest of its own."""
        self.unrolled(tile)  # first: what is left of `block` after the split no longer says that it is a reduction
        self.start_tile(block, reduction, len(tile))

    def instruction_tile(self, block: Any, reduction: Any, tile: list[Any], instruction: str) -> None:
        """The same where `instruction` takes the last of the loops, and what of the reduction is inside of it."""
        *outer, lanes = tile
        for loop in outer:
            self.sch.unroll(loop)
        self.start_tile(block, reduction, len(tile))
        self.sch.tensorize(lanes, instruction)

    def start_tile(self, block: Any, reduction: Any, depth: int) -> None:
        """Give the start of the sum, of `depth` loops, a nest of its own before the loop `reduction`."""
        start = self.sch.decompose_reduction(block, reduction)
        self.unrolled(self.loops(start)[-depth:])

    def unrolled(self, loops: list[Any]) -> None:
        """Vectorise the last of the loops and unroll the others."""
        *outer, last = loops
        self.sch.vectorize(last)
        for loop in outer:
            self.sch.unroll(loop)

    def row(self, loop: Any) -> None:
        """Run a loop over the columns of a row in vectors of the widest power of two that divides it."""
        extent = int(self.sch.get(loop).extent)
        _, inner = self.sch.split(loop, [None, min(extent & -extent, self.width)])
        self.sch.vectorize(inner)
