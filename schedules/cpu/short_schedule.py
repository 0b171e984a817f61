"""The schedule for few keys: keys in vector lanes, then columns of v; rows of q in registers beside each other.

    for r: for b: for l: for d: s[r, b, l] += k[b, d, l] * q[r, d]

becomes, with R rows by B vectors of L keys held in registers,

    s[R, B, L] = 0
    for d: for r < R, b < B (unrolled): for l < L (vectorised): s[r, b, l] += k[b, d, l] * q[r, d]

and the weighted sum the same over keys, with R rows by C vectors of columns.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import Schedule
from attncc.algorithm.decode_parts import columns
from attncc.algorithm.short_parts import Tiling
from attncc.algorithm.signature import compute_dtype
from attncc.schedules.cpu import bf16_intrinsics, row_sums
from attncc.schedules.cpu.loops import Loops
from attncc.schedules.cpu.prefill_schedule import is_light
from attncc.spec import AttentionSpec


def llvm_text(spec: AttentionSpec, tiling: Tiling, unzip: bool = False) -> str:
    """The functions that the schedule's intrinsics call; `unzip` is that of `row_sums`."""
    text = bf16_intrinsics.llvm_text(tiling.lanes, tiling.lanes) if tiling.pairs > 1 else ""
    if spec.normalizer == "softmax":
        for operation in row_sums.OPERATIONS:
            text += row_sums.llvm_text(tiling.rows, tiling.lanes, compute_dtype(spec), operation, unzip)
    return text


class ShortSchedule(Loops):
    """Schedules a function of `attncc.algorithm.short`, block by block, with primitives alone."""

    def __init__(self, sch: Schedule, spec: AttentionSpec, tiling: Tiling) -> None:
        super().__init__(sch, tiling.lanes)
        self.spec = spec
        self.tiling = tiling
        self.paired = tiling.pairs > 1

    def apply(self) -> None:
        """Schedule everything; `sch.mod` is then ready to compile."""
        self.row(self.loops("load_q")[-1])
        if self.spec.bilinear is not None:
            self.project()
        if self.spec.dtype != compute_dtype(self.spec) and not self.paired:
            self.row(self.loops("load_v")[-1])
        self.score()
        if self.spec.normalizer == "softmax":
            self.softmax()
        if self.paired:
            self.unrolled(self.loops("keep")[-2:])
        for number, _ in enumerate(columns(self.spec.value_dim, self.tiling.lanes, self.tiling.column_sets)):
            self.weighted_sum(number)
        (loop,) = self.sch.get_loops("thread")
        self.sch.parallel(loop)

    def project(self) -> None:
        """q W: a row of W after the other, added to the row of the result."""
        block = self.sch.get_sblock("project")
        d, c = self.loops(block)[-2:]
        self.sch.reorder(c, d)
        self.row(d)
        start = self.sch.decompose_reduction(block, c)
        self.row(self.loops(start)[-1])

    def score(self) -> None:
        sch = self.sch
        block, modify = sch.get_sblock("qk"), sch.get_sblock("modify")
        sch.set_scope(block, 0, "local")
        self.product(block, self.paired)
        light = is_light(self.spec)
        self.unrolled(self.loops(modify)[-3:] if light else self.loops(modify)[-1:])

    def softmax(self) -> None:
        sch = self.sch
        for name in ("lane_max", "lane_sum"):
            block = sch.get_sblock(name)
            r, lane, b = self.loops(block)[-3:]
            sch.reorder(b, r, lane)
            self.register_tile(block, b, [r, lane])
        dtype = compute_dtype(self.spec)
        for name, result, operation in (("row_max", "maximum", "max"), ("row_sum", "total", "sum")):
            block = sch.get_sblock(name)
            sch.set_scope(block, 0, "local")
            sch.tensorize(
                self.loops(block)[-2], row_sums.register(self.tiling.rows, self.tiling.lanes, dtype, operation)
            )
            sch.vectorize(self.loops(result)[-1])
        for name in ("base", "invert"):
            sch.vectorize(self.loops(name)[-1])
        self.unrolled(self.loops("weigh")[-2:])

    def weighted_sum(self, number: int) -> None:
        sch = self.sch
        block, write = sch.get_sblock(f"pv.{number}"), sch.get_sblock(f"write.{number}")
        sch.set_scope(block, 0, "local")
        self.product(block, self.paired)
        self.unrolled(self.loops(write)[-3:])

    def product(self, block: Any, paired: bool) -> None:
        """A register tile under the loop of the reduction; the pair inside of that, where there is one, is one
        instruction with the lanes."""
        sch = self.sch
        loops = self.loops(block)
        inner = loops[self.depth(block) :]
        if not paired:
            *tile, reduction = inner
            sch.reorder(reduction, *tile)
            self.register_tile(block, reduction, tile)
            return
        *tile, reduction, _ = inner
        sch.reorder(reduction, *tile)
        self.instruction_tile(block, reduction, tile, bf16_intrinsics.dot("uint16", self.tiling.lanes))

    def depth(self, block: Any) -> int:
        """How many of the loops around a block are not its own."""
        return len(self.loops(block)) - len(self.sch.get(block).iter_vars)
