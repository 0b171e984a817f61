"""The schedule that the prefill families share: queries in vector lanes, products in register tiles.

    for n: for m: for d: s[n, m] += k[n, d] * q[d, m]

becomes, with R keys by V vectors of L lanes held in registers,

    for n0: for m0:
        r[R, V, L] = 0
        for d: for n1 < R, m1 < V (unrolled): for m2 < L (vectorised):
            r[n1, m1, m2] += k[n0 R + n1, d] * q[d, (m0 V + m1) L + m2]
        x[..] = score_mod(r)

and the weighted sum the same with keys as the reduction. k and v enter as scalars, broadcast from where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attncc._tvm import IRModule, PrimFunc, Schedule
from attncc.algorithm.key_step import EDGE
from attncc.algorithm.signature import NAME


@dataclass(frozen=True)
class Registers:
    """Register tiles: `vectors` of `lanes` queries, times `keys` scores or `columns` of the output."""

    lanes: int
    vectors: int
    keys: int
    columns: int


def schedule(function: PrimFunc, registers: Registers, inline_loads: bool) -> IRModule:
    """`function`, built by `attncc.algorithm.prefill`, as a module ready to compile."""
    sch = Schedule(IRModule({NAME: function}))
    sch.work_on(NAME)
    PrefillSchedule(sch, registers, inline_loads).apply()
    return sch.mod


class PrefillSchedule:
    """Schedules a function of `attncc.algorithm.prefill`, block by block, with primitives alone."""

    def __init__(self, sch: Schedule, registers: Registers, inline_loads: bool) -> None:
        self.sch = sch
        self.registers = registers
        self.inline_loads = inline_loads

    def apply(self) -> None:
        """Schedule everything; `sch.mod` is then ready to compile."""
        (tiles,) = self.sch.get_loops("tile")
        self.sch.parallel(tiles)
        for suffix in ("", EDGE):
            self.loads(suffix)
            self.score(suffix)
            self.maximum(suffix)
            self.probabilities(suffix)
            self.weighted_sum(suffix)
            for name in ("base", "decay", "keep_max", "keep_sum", "keep_output"):
                self.lanes(self.loops(name + suffix)[-1])
        for name in ("start_max", "start_sum", "start_output", "invert"):
            self.lanes(self.loops(name)[-1])

    def loads(self, suffix: str) -> None:
        """k and v are read in place where they have the tile's dtype already; else their tiles are made row by row."""
        for name in ("load_k", "load_v"):
            if self.inline_loads:
                self.sch.compute_inline(name + suffix)
            else:
                self.vectorise_row(name + suffix)

    def score(self, suffix: str) -> None:
        """The product into registers, and score_mod on it there."""
        sch, r = self.sch, self.registers
        qk, modify = sch.get_sblock("qk" + suffix), sch.get_sblock("modify" + suffix)
        sch.set_scope(qk, 0, "local")
        n, m, d = self.loops(qk)[-3:]
        n0, n1 = sch.split(n, [None, r.keys])
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        sch.reorder(n0, m0, d, n1, m1, m2)
        sch.reverse_compute_at(modify, m0, preserve_unit_loops=True)
        self.register_tile(qk, d, [n1, m1, m2])
        n, m = self.loops(modify)[-2:]
        self.lanes(m)
        sch.unroll(n)

    def maximum(self, suffix: str) -> None:
        sch, r = self.sch, self.registers
        block = sch.get_sblock("row_max" + suffix)
        copy = sch.cache_write(block, 0, "local")
        m, n = self.loops(block)[-2:]
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        sch.reorder(m0, n, m1, m2)
        sch.reverse_compute_at(copy, m0, preserve_unit_loops=True)
        self.register_tile(block, n, [m1, m2])
        self.lanes(self.loops(copy)[-1])

    def probabilities(self, suffix: str) -> None:
        """exp, its rounding and its sum in one loop over keys, a register tile wide."""
        sch, r = self.sch, self.registers
        exp, keep, total = (sch.get_sblock(name + suffix) for name in ("exp", "keep_p", "row_sum"))
        copy = sch.cache_write(total, 0, "local")
        sch.set_scope(exp, 0, "local")
        n, m = self.loops(exp)[-2:]
        m0, m1 = sch.split(m, [None, r.vectors * r.lanes])
        sch.reorder(m0, n, m1)
        sch.reverse_compute_at(keep, n, preserve_unit_loops=True)
        sch.reverse_compute_at(total, n, preserve_unit_loops=True)
        sch.reverse_compute_at(copy, m0, preserve_unit_loops=True)
        self.lanes(self.loops(total)[-2])
        start = sch.decompose_reduction(total, n)
        for block in (exp, keep, copy, start):
            self.lanes(self.loops(block)[-1])

    def weighted_sum(self, suffix: str) -> None:
        """The product into registers, on top of the decayed sum so far."""
        sch, r = self.sch, self.registers
        pv = sch.get_sblock("pv" + suffix)
        copy = sch.cache_write(pv, 0, "local")
        e, m, n = self.loops(pv)[-3:]
        e0, e1 = sch.split(e, [None, r.columns])
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        sch.reorder(m0, e0, n, e1, m1, m2)
        sch.reverse_compute_at(copy, e0, preserve_unit_loops=True)
        self.register_tile(pv, n, [e1, m1, m2])
        e, m = self.loops(copy)[-2:]
        self.lanes(m)
        sch.unroll(e)

    def register_tile(self, block: Any, reduction: Any, tile: list[Any]) -> None:
        """Unroll and vectorise the loops `tile` inside `reduction`, and give the start of the sum a nest of its own."""
        *unrolled, last = tile
        self.sch.vectorize(
            last
        )  # before the split: what is left of `block` after it no longer says that it is a reduction
        for loop in unrolled:
            self.sch.unroll(loop)
        start = self.sch.decompose_reduction(block, reduction)
        *unrolled, last = self.loops(start)[-len(tile) :]
        self.sch.vectorize(last)
        for loop in unrolled:
            self.sch.unroll(loop)

    def lanes(self, loop: Any) -> None:
        """Run `loop` over queries in vectors, unrolled where it is a register tile."""
        outer, inner = self.sch.split(loop, [None, self.registers.lanes])
        self.sch.vectorize(inner)
        self.sch.unroll(outer)

    def vectorise_row(self, name: str) -> None:
        """Run the innermost loop of `name` in vectors of the widest power of two that divides it."""
        loop = self.loops(name)[-1]
        extent = int(self.sch.get(loop).extent)
        width = min(extent & -extent, self.registers.lanes)
        _, inner = self.sch.split(loop, [None, width])
        self.sch.vectorize(inner)

    def loops(self, block: Any) -> list[Any]:
        return list(self.sch.get_loops(block))
