"""Decode by `mma.sync`: few query rows over many keys, on any NVIDIA GPU since Ampere (sm_80).

The time is that of reading keys and values once. So all query rows that share them (the heads of a group, times the
query length) are packed into one 16-row tile, the keys of a head are split over thread blocks, and every warp streams
keys of its own through a ring of its own: no warp ever waits for another. A second kernel combines the splits (Dao et
al., "Flash-Decoding for long-context inference", 2023).
"""

from __future__ import annotations

import math
from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, tirx
from attncc.schedules.cuda import tensor_core
from attncc.schedules.cuda.arguments import Arguments, declare
from attncc.schedules.cuda.decode_combine import ROWS, normalized, out_place, split_count, workspaces
from attncc.schedules.cuda.device import (
    WARP,
    Registers,
    attribute,
    bind,
    ceil_div,
    choose,
    div,
    do,
    exp2,
    loop,
    maximum,
    mod,
    number,
    once,
    pack,
    ptx,
    when,
    whole,
)  # fmt: skip
from attncc.schedules.cuda.room import shares_queries
from attncc.schedules.cuda.rows import rows
from attncc.schedules.cuda.scores import Scores, lane_column
from attncc.schedules.cuda.softmax import OnlineSoftmax
from attncc.schedules.cuda.value_scales import ValueScales
from attncc.schedules.family import Decisions
from attncc.spec import AttentionSpec


def build(spec: AttentionSpec, decisions: Decisions) -> PrimFunc:
    """The kernel that reads keys and values: a grid of splits, key heads and batches."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("attention")
            arguments = declare(spec, workspaces(spec))
            splits = split_count(arguments)
            T.device_entry()
            _Split(spec, decisions, arguments, splits).compute()
        function: PrimFunc = builder.get()
    return function


class _Split:
    """One thread block: some keys of one head of one batch."""

    def __init__(self, spec: AttentionSpec, decisions: Decisions, given: Arguments, splits: Any) -> None:
        self.spec, self.given = spec, given
        self.warps, self.keys, self.stages = decisions["warps"], decisions["keys"], decisions["stages"]
        self.k = rows(spec.key_dtype, spec.dtype, spec.head_dim, "k")
        self.v = rows(spec.value_dtype, spec.dtype, spec.value_dim, "v")
        self.steps = self.k.steps
        self.shares_q = shares_queries(spec)
        attribute("tirx.launch_bounds_min_blocks_per_sm", decisions["blocks"])
        self.splits = splits
        self.split, self.kv_head, self.batch = T.cta_id([self.splits, given.kv_heads, given.batch])
        self.thread = T.thread_id([self.warps * WARP])
        self.warp, self.lane = bind("warp", div(self.thread, WARP)), bind("lane", mod(self.thread, WARP))
        self.packed = bind("packed", given.q_len * spec.group)
        self._allocate()
        self.scores = Scores(spec, given, self.batch, seat=div(self.lane, 4))
        self.scores.heads = lambda r: self.kv_head * spec.group + mod(self.scores.seat + r * 8, spec.group)
        self.softmax = OnlineSoftmax(spec, self.scores.unit)
        self.scales = ValueScales(spec, self.scores, self.keys)

    def _allocate(self) -> None:
        pool, spec = T.SMEMPool(), self.spec
        shape = (self.warps, self.stages, self.keys)
        self.ring_k = pool.alloc((shape[0], shape[1], shape[2] * self.k.pitch), self.k.memory, align=128)
        self.ring_v = pool.alloc((shape[0], shape[1], shape[2] * self.v.pitch), self.v.memory, align=128)
        self.results = pool.alloc((self.warps, ROWS, spec.value_dim), "float32", align=16)
        self.statistics = pool.alloc((self.warps + 1, ROWS, 2), "float32", align=16)
        if self.shares_q:
            self.shared_q = pool.alloc((self.steps, WARP, 4), "uint32", align=16)
        pool.commit()
        kept = self.k.chunk // 8 if self.shares_q else self.steps
        """Steps of the first product whose query columns are in registers."""
        self.q = Registers("q_tile", kept * 4, "uint32")
        self.b, self.p = Registers("b_tile", 4, "uint32"), Registers("weights", 4, "uint32")
        self.s, self.o = Registers("scores", self.keys // 2), Registers("result", self.v.steps * 8)

    def _packed_row(self, row: int) -> Any:
        return div(self.lane, 4) + row * 8

    def _query(self, row: int) -> Any:
        return div(self._packed_row(row), self.spec.group)

    def compute(self) -> None:
        given, stages = self.given, self.stages
        seen = self.scores.keys(whole(0), given.q_len - 1)
        step = self.warps * self.keys
        chunk = once("chunk", ceil_div(div(seen.hi - seen.lo + self.splits - 1, self.splits), step) * step)
        self.first = once("first", seen.lo + self.split * chunk)
        self.end = once("end", tirx.min(seen.hi, self.first + chunk))
        tiles = ceil_div(tirx.max(self.end - self.first, 0), self.keys)
        self.count = once("count", div(tirx.max(tiles - self.warp, 0) + (self.warps - 1), self.warps))
        for stage in range(stages - 1):
            with when(self.count > stage):
                self._copy(whole(stage), whole(stage))
            tensor_core.commit()
        self._load_q()
        self.query_rows = self.scores.rows(lambda row: div(self.scores.seat + row * 8, self.spec.group))
        self.o.fill(0.0)
        self.softmax.start(self._sinks(), self.lane)
        with loop("tile", self.count) as tile:
            ahead = tile + (stages - 1)
            with when(ahead < self.count):
                self._copy(ahead, mod(ahead, stages))
            tensor_core.commit()
            tensor_core.wait(stages - 1)
            do(T.cuda.warp_sync())
            self._compute_tile(tile, mod(tile, stages), seen)
            do(T.cuda.warp_sync())
        self._merge()

    def _sinks(self) -> tuple[Any, Any] | None:
        """Sinks count in one warp of one split."""
        found = self.scores.sinks(self.query_rows)
        if found is None:
            return None
        counts = tirx.all(tirx.EQ(self.split, 0), tirx.EQ(self.warp, 0))
        return choose(counts, found[0], number(-math.inf)), choose(counts, found[1], number(-math.inf))

    def _copy(self, tile: Any, stage: Any) -> None:
        """Start copying this warp's keys and values of a tile into a stage of its ring."""
        first = self.first + (tile * self.warps + self.warp) * self.keys
        given = self.given
        for source, ring, lines in ((given.k, self.ring_k, self.k), (given.v, self.ring_v, self.v)):
            chunks = lines.chunks
            for start in range(0, self.keys * chunks, WARP):
                row = (
                    div(self.lane + start, chunks)
                    if chunks > WARP or WARP % chunks
                    else start // chunks + div(self.lane, chunks)
                )
                chunk = mod(self.lane + start, chunks)
                at = (self.batch, self.kv_head, tirx.min(first + row, given.kv_len - 1))
                place = (self.warp, stage, lines.place(row, chunk))
                tensor_core.copy(source, at, chunk, first + row < self.end, ring, place, lines.chunk)

    def _load_q(self) -> None:
        """Query rows for the first product; where they are shared, each warp loads some of their columns."""
        if not self.shares_q:
            for step in range(self.steps):
                self._load_step(step, step * 4)
            return
        for step in range(self.steps):
            with when(tirx.EQ(self.warp, step % self.warps)):
                self._load_step(step, 0)
                for n in range(4):
                    T.buffer_store(self.shared_q, self.q[n], [step, self.lane, n])
        do(T.cuda.cta_sync())

    def _load_step(self, step: int, to: int) -> None:
        """16 columns straight from memory into the layout of a left operand; zeros for rows that do not exist."""
        first, second = self.k.query_columns(self.lane)
        for n in range(4):
            row, column = self._packed_row(n % 2), step * 16 + (second if n // 2 else first)
            self.q[to + n] = tirx.const(0, "uint32")
            exists = row < self.packed
            if (step + 1) * 16 > self.spec.head_dim:
                exists = tirx.all(exists, column < self.spec.head_dim)
            head = self.kv_head * self.spec.group + mod(row, self.spec.group)
            with when(exists):
                place = (self.batch, head, self._query(n % 2), column)
                ptx("ld.global.b32", self.q[to + n], tensor_core.address(self.given.q, place))
        self.k.arrange(self.q, to)

    def _compute_tile(self, tile: Any, stage: Any, seen: Any) -> None:
        key = once("key", self.first + (tile * self.warps + self.warp) * self.keys)
        self._first_product(stage)
        column = key + lane_column(self.lane)
        self.scores.change(self.s, self.query_rows, column)
        with when(tirx.any(key < seen.full_lo, key + self.keys > seen.full_hi, key + self.keys > self.end)):
            self.scores.hide(self.s, self.query_rows, column, self.end)
        self.softmax.update(self.s)
        self.scales.weigh(self.s, self.query_rows, column, self.softmax)
        self.softmax.rescale(self.o)
        self._second_product(stage)

    def _first_product(self, stage: Any) -> None:
        self.s.fill(0.0)
        high = mod(div(self.lane, 8), 2)
        inside = mod(self.lane, 8)
        for load in range(self.k.loads):
            if self.shares_q:
                for at in range(self.q.count):
                    step = min(load * (self.q.count // 4) + at // 4, self.steps - 1)
                    self.q[at] = tirx.BufferLoad(self.shared_q, [step, self.lane, at % 4])
            chunk = tensor_core.flipped(tirx.bitwise_xor(self.k.twist(inside), high), load * 2)
            for pair in range(self.keys // 16):
                row = pair * 16 + inside + div(self.lane, 16) * 8
                tensor_core.load(self.b, 0, self.ring_k, (self.warp, stage, row * self.k.pitch + chunk * self.k.chunk))
                for step, half, b, b_at in self.k.keys(load, self.b):
                    tensor_core.multiply(
                        self.spec.dtype, self.s, (pair * 2 + half) * 4, self.q, step * 4 % self.q.count, b, b_at
                    )

    def _second_product(self, stage: Any) -> None:
        chunk = tirx.bitwise_xor(self.v.twist(mod(self.lane, 8)), div(self.lane, 16))
        for step in range(self.keys // 16):
            for n in range(4):
                self.p[n] = pack(self.s[step * 8 + n * 2], self.s[step * 8 + n * 2 + 1], self.spec.dtype)
            row = step * 16 + mod(self.lane, 16)
            for load in range(self.v.loads):
                column = tensor_core.flipped(chunk, load * 2) * self.v.chunk
                place = (self.warp, stage, row * self.v.pitch + column)
                tensor_core.load(self.b, 0, self.ring_v, place, transposed=True)
                for tile, b, b_at in self.v.values(load, self.b):
                    tensor_core.multiply(self.spec.dtype, self.o, tile * 4, self.p, 0, b, b_at)

    def _merge(self) -> None:
        """Bring the warps' results together, and store them: as the result, or as one of several splits."""
        softmax, unit = self.softmax, number(self.softmax.unit)
        largest = Registers("largest", 2)
        for row in range(2):
            softmax.combine_sums(row)
            with when(tirx.EQ(mod(self.lane, 4), 0)):
                self._remember(self.warp, row, softmax.maxima[row], softmax.sums[row])
        do(T.cuda.cta_sync())
        for row in range(2):
            packed = self._packed_row(row)
            largest[row] = self._statistic(0, packed, 0)
            for warp in range(1, self.warps):
                largest[row] = maximum(largest[row], self._statistic(warp, packed, 0))
            base = choose(largest[row] > number(-math.inf), largest[row], number(0.0))
            softmax.factor[row] = exp2((softmax.maxima[row] - base) * unit) * self.scales.factor(self.query_rows, row)
            softmax.sums[row] = number(0.0)
            for warp in range(self.warps):
                weight = exp2((self._statistic(warp, packed, 0) - base) * unit)
                softmax.sums[row] = softmax.sums[row] + self._statistic(warp, packed, 1) * weight
        for n in range(self.o.count):
            column = self.v.column(self.lane, n)
            value = self.o[n] * softmax.factor[n // 2 % 2]
            with when(column < self.spec.value_dim):
                T.buffer_store(self.results, value, [self.warp, self._packed_row(n // 2 % 2), column])
        with when(tirx.all(tirx.EQ(self.warp, 0), tirx.EQ(mod(self.lane, 4), 0))):
            for row in range(2):
                self._remember(whole(self.warps), row, largest[row], softmax.sums[row])
        do(T.cuda.cta_sync())
        self._store()

    def _remember(self, place: Any, row: int, largest: Any, total: Any) -> None:
        T.buffer_store(self.statistics, largest, [place, self._packed_row(row), 0])
        T.buffer_store(self.statistics, total, [place, self._packed_row(row), 1])

    def _statistic(self, place: int, row: Any, which: int) -> Any:
        return tirx.BufferLoad(self.statistics, [place, row, which])

    def _store(self) -> None:
        spec, given = self.spec, self.given
        results, statistics = given.workspaces
        total = Registers("total", 1)
        with loop("part", -(-ROWS * spec.value_dim // (self.warps * WARP))) as part:
            at = once("at", part * (self.warps * WARP) + self.thread)
            row, column = div(at, spec.value_dim), mod(at, spec.value_dim)
            with when(row < self.packed):
                total[0] = tirx.BufferLoad(self.results, [0, row, column])
                for warp in range(1, self.warps):
                    total[0] = total[0] + tirx.BufferLoad(self.results, [warp, row, column])
                split = [self.batch, self.kv_head, self.split, row]
                with T.If(tirx.EQ(self.splits, 1)):
                    with T.Then():
                        final = normalized(spec, total[0], self._statistic(self.warps, row, 1))
                        T.buffer_store(given.out, final, out_place(spec, self.batch, self.kv_head, row, column))
                    with T.Else():
                        T.buffer_store(results, total[0], [*split, column])
                        with when(column < 2):
                            statistic = tirx.BufferLoad(self.statistics, [self.warps, row, column])
                            T.buffer_store(statistics, statistic, [*split, column])
