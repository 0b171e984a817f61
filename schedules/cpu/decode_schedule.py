"""The schedule of split-KV decode: head columns in vector lanes, products in register tiles.

    for n < N, r < R, l < L: for d: strands[n, r, l] += q[r, d L + l] * k[n, d L + l]

becomes, with everything but d unrolled and l in a vector,

    strands[N, R, L] = 0
    for d: for n, r (unrolled): for l (vectorised): strands[n, r, l] += q[r, d L + l] * k[n, d L + l]

so that each vector of k is loaded once for R rows, and each of q once for N keys.
"""

from __future__ import annotations

from attncc._tvm import Schedule
from attncc.algorithm.decode_parts import (
    Columns,
    Tiling,
    head_columns,
    paired_columns,
    value_columns,
    weighs_values,
)
from attncc.algorithm.signature import compute_dtype
from attncc.algorithm.visibility import visible
from attncc.expr import FLOAT8
from attncc.schedules.cpu import bf16_intrinsics, code_tables, dot_pairs, row_sums
from attncc.schedules.cpu.loops import Loops
from attncc.spec import AttentionSpec


def llvm_texts(spec: AttentionSpec, tiling: Tiling, unzip: bool = False) -> tuple[str, ...]:
    """The functions that the schedule's intrinsics call, in modules of their own; `unzip` is that of `row_sums`."""
    parts = head_columns(spec.head_dim, tiling)
    paired = any(part.pairs > 1 for part in parts)
    kind = spec.key_dtype or spec.dtype
    dots = [dot_pairs.llvm_text(kind), code_tables.llvm_text({kind} & {*FLOAT8})] if paired else []
    sums = [
        row_sums.llvm_text(tiling.key_chunk, width, compute_dtype(spec), unzip=unzip)
        for width in sorted({part.width for part in parts})
        if row_sums.available(tiling.key_chunk, width)
    ]
    texts = ["".join([*dots, *sums])]
    if paired_columns(spec, tiling):
        texts.append(bf16_intrinsics.llvm_text(tiling.strands, pair_width(spec, tiling)))
    return tuple(filter(None, texts))


def pair_width(spec: AttentionSpec, tiling: Tiling) -> int:
    """Columns of two rows of v that are interleaved at a time: the widest power of two that divides them all."""
    whole = paired_columns(spec, tiling)
    return min(whole & -whole, 2 * tiling.strands)


class DecodeSchedule(Loops):
    """Schedules a function of `attncc.algorithm.decode`, block by block, with primitives alone."""

    def __init__(self, sch: Schedule, spec: AttentionSpec, tiling: Tiling) -> None:
        super().__init__(sch, tiling.strands)
        self.spec = spec
        self.tiling = tiling

    def apply(self) -> None:
        """Schedule everything; `sch.mod` is then ready to compile."""
        for name in ("tile", "combine_head", *(("weigh_head",) if "weights" in self.spec.outputs else ())):
            (loop,) = self.sch.get_loops(name)[-1:]
            self.sch.parallel(loop)
        for number, part in enumerate(head_columns(self.spec.head_dim, self.tiling)):
            self.dot(number, part)
        for number, part in enumerate(value_columns(self.spec, self.tiling)):
            self.weighted_sum(number, part)
        if self.tiling.value_pairs > 1:
            self.pairs()
        self.unrolled(self.loops("keep_score")[-2:])
        self.sch.vectorize(self.loops("modify")[-1])
        if weighs_values(self.spec):
            self.sch.vectorize(self.loops("weigh_values")[-1])
        if self.spec.normalizer == "softmax":
            for name in ("start_sum", "keep_sum", "exp"):
                self.sch.vectorize(self.loops(name)[-1])
            for name in ("lane_max", "lane_sum"):
                self.lane_reduction(name)
        if visible(self.spec) is not None:
            self.seek()
        self.combine()
        for name in ("load_q", "start_output", "partial_output", "write.final", "write.combine"):
            if name != "load_q" or self.spec.bilinear is None:
                self.row(self.loops(name)[-1])

    def dot(self, number: int, part: Columns) -> None:
        """The product into registers, and its strands into one."""
        sch = self.sch
        block, total = sch.get_sblock(f"dot.{number}"), sch.get_sblock(f"sum_strands.{number}")
        sch.set_scope(block, 0, "local")
        sch.set_scope(total, 0, "local")
        if part.pairs > 1:
            r, n, lane, d, _ = self.loops(block)[-5:]
            sch.reorder(d, n, r, lane)
            dot = dot_pairs.register(self.spec.key_dtype or self.spec.dtype)
            self.instruction_tile(block, d, [n, r, lane], dot)
        else:
            r, n, lane, d = self.loops(block)[-4:]
            sch.reorder(d, n, r, lane)
            self.register_tile(block, d, [n, r, lane])
        self.unrolled(self.loops(f"keep_strands.{number}")[-3:])
        r, n, lane = self.loops(total)[-3:]
        if row_sums.available(self.tiling.key_chunk, part.width):
            sch.tensorize(n, row_sums.register(self.tiling.key_chunk, part.width, compute_dtype(self.spec)))
        else:
            sch.unroll(lane)
            sch.unroll(n)
        sch.unroll(r)

    def weighted_sum(self, number: int, part: Columns) -> None:
        sch = self.sch
        block, keep = sch.get_sblock(f"pv.{number}"), sch.get_sblock(f"keep_output.{number}")
        sch.set_scope(block, 0, "local")
        if part.pairs > 1:
            r, c, lane, n, _ = self.loops(block)[-5:]
            sch.reorder(n, r, c, lane)
            self.instruction_tile(block, n, [r, c, lane], bf16_intrinsics.dot("uint16", self.tiling.strands))
        else:
            r, c, lane, n = self.loops(block)[-4:]
            sch.reorder(n, r, c, lane)
            self.register_tile(block, n, [r, c, lane])
        self.unrolled(self.loops(keep)[-3:])

    def pairs(self) -> None:
        """Weights rounded, rows of v interleaved two by two, and a last row on its own."""
        sch = self.sch
        sch.vectorize(self.loops("round_weights")[-1])
        for name in ("last_value", "keep_last"):
            self.row(self.loops(name)[-1])
        if paired_columns(self.spec, self.tiling):
            n, p, column = self.loops("pair_v")[-3:]
            width = pair_width(self.spec, self.tiling)
            outer, inner = sch.split(column, [None, width])
            sch.reorder(n, outer, p, inner)
            sch.tensorize(p, bf16_intrinsics.pair("bfloat16", width))

    def seek(self) -> None:
        """The search for visible keys: both ends from one evaluation of the condition, a vector of keys at a time."""
        block = self.sch.get_sblock("seek")
        end, row, n = self.loops(block)[-3:]
        self.sch.reorder(row, n, end)
        self.sch.unroll(end)
        start = self.sch.decompose_reduction(block, row)
        self.sch.unroll(self.loops(start)[-1])

    def combine(self) -> None:
        """The splits of a row one after the other, each in vectors; as many columns at a time as registers hold."""
        block = self.sch.get_sblock("all_output")
        column, split = self.loops(block)[-2:]
        most, extent = self.tiling.strands * self.tiling.column_sets, int(self.sch.get(column).extent)
        together = max(n for n in range(1, most + 1) if extent % n == 0)
        outer, column = self.sch.split(column, [None, together])
        self.sch.reorder(outer, split, column)
        self.row(column)
        start = self.sch.decompose_reduction(block, split)
        self.sch.vectorize(self.loops(start)[-1])

    def lane_reduction(self, name: str) -> None:
        """A running value a lane, over the vectors of a row."""
        block = self.sch.get_sblock(name)
        lane, v = self.loops(block)[-2:]
        self.sch.reorder(v, lane)
        self.register_tile(block, v, [lane])
