"""Prefill by `mma.sync` and `cp.async`: every NVIDIA GPU since Ampere (sm_80).

A thread block computes a tile of query rows of one head; its warps share the keys and values that it copies to shared
memory and each owns 16 or 32 rows. One key tile and one value tile are in flight: values are copied during the first
product, the next keys during softmax and second product, and the second block of a multiprocessor fills the gaps (Dao,
"FlashAttention-2", 2023).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, tirx
from attncc.schedules.cuda import tensor_core
from attncc.schedules.cuda.arguments import Arguments, declare
from attncc.schedules.cuda.device import (
    WARP,
    Registers,
    attribute,
    bind,
    ceil_div,
    div,
    do,
    loop,
    mod,
    once,
    pack,
    ptx,
    when,
    whole,
)
from attncc.schedules.cuda.scores import Scores, lane_column
from attncc.schedules.cuda.softmax import OnlineSoftmax
from attncc.schedules.cuda.survey import LISTS
from attncc.schedules.cuda.surveyed import surveyed
from attncc.schedules.cuda.visits import visits
from attncc.schedules.family import Decisions
from attncc.spec import AttentionSpec


def build(spec: AttentionSpec, decisions: Decisions) -> PrimFunc:
    """The kernel of `spec`: a grid of query tiles, heads and batches, the tiles that see most keys first."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("attention")
            arguments = declare(spec, LISTS if surveyed(spec) else (), scratch="int32")
            T.device_entry()
            _Tile(spec, decisions, arguments).compute()
        function: PrimFunc = builder.get()
    return function


class _Tile:
    """One thread block's work."""

    def __init__(self, spec: AttentionSpec, decisions: Decisions, arguments: Arguments) -> None:
        self.spec, self.arguments = spec, arguments
        self.rows, self.keys, self.warps = decisions["rows"], decisions["keys"], decisions["warps"]
        self.strips = self.rows // (16 * self.warps)
        """16-row strips that each warp owns."""
        self.threads = self.warps * WARP
        self.pitch_k, self.pitch_v = tensor_core.pitch(spec.head_dim), tensor_core.pitch(spec.value_dim)
        self.steps = -(-spec.head_dim // 16)
        self.keep_q = bool(decisions["keep_q"])
        attribute("tirx.launch_bounds_min_blocks_per_sm", decisions["blocks"])
        self._place()
        self._allocate()

    def _place(self) -> None:
        tiles = ceil_div(self.arguments.q_len, self.rows)
        block, self.head, self.batch = T.cta_id([tiles, self.arguments.heads, self.arguments.batch])
        thread = self.thread = T.thread_id([self.threads])
        self.first_row = bind("first_row", (tiles - 1 - block) * self.rows)
        self.kv_head = bind("kv_head", div(self.head, self.spec.group))
        self.warp, self.lane = bind("warp", div(thread, WARP)), bind("lane", mod(thread, WARP))
        self.row = bind("row", mod(self.lane, 8))  # within a group of eight rows of shared memory
        seat = self.first_row + self.warp * (self.strips * 16) + div(self.lane, 4)
        self.scores = Scores(self.spec, self.arguments, self.batch, self.head, seat)

    def _allocate(self) -> None:
        dtype = self.spec.dtype
        pool = T.SMEMPool()
        self.shared_q = pool.alloc((self.rows * self.pitch_k,), dtype, align=128)
        self.shared_k = pool.alloc((self.keys * self.pitch_k,), dtype, align=128)
        self.shared_v = pool.alloc((self.keys * self.pitch_v,), dtype, align=128)
        pool.commit()
        self.q = Registers("q_tile", self.strips * 4 * (self.steps if self.keep_q else 1), "uint32")
        self.b = Registers("b_tile", 4, "uint32")
        self.p = Registers("p_tile", self.strips * 4, "uint32")
        self.s = [Registers(f"scores{strip}", self.keys // 2) for strip in range(self.strips)]
        self.o = [Registers(f"result{strip}", -(-self.spec.value_dim // 16) * 8) for strip in range(self.strips)]
        self.softmax = [
            OnlineSoftmax(self.spec, self.scores.unit, str(strip), chains=1) for strip in range(self.strips)
        ]

    def compute(self) -> None:
        last = tirx.min(self.first_row + self.rows, self.arguments.q_len) - 1
        place = (self.batch, self.head, self.first_row, last)
        self.visits = visits(self.spec, self.scores, place, self.rows, self.keys)
        count, given = self.visits.count, self.arguments
        self._copy(self.shared_q, self.pitch_k, given.q, self.head, self.first_row, given.q_len, self.rows)
        with when(count > 0):
            self._copy_keys(self.visits.key(self.visits.at(whole(0))))
        tensor_core.commit()
        self.query_rows = [self.scores.rows(partial(self._query, strip)) for strip in range(self.strips)]
        self._start()
        if self.keep_q:
            _wait()
            for strip in range(self.strips):
                for step in range(self.steps):
                    self._load_q(strip, step)
        with loop("tile", count) as tile:
            key = once("key", self.visits.key(self.visits.at(tile)))
            _wait()
            self._copy(self.shared_v, self.pitch_v, given.v, self.kv_head, key, given.kv_len, self.keys)
            tensor_core.commit()
            self._first_product()
            self._change(tile, key)
            _wait()
            with when(tile + 1 < count):
                self._copy_keys(self.visits.key(self.visits.at(tile + 1)))
            tensor_core.commit()
            for strip in range(self.strips):
                self.softmax[strip].update(self.s[strip])
                self.softmax[strip].rescale(self.o[strip])
            self._second_product()
        self._store()

    def _start(self) -> None:
        for strip in range(self.strips):
            self.o[strip].fill(0.0)
            self.softmax[strip].start(self.scores.sinks(self.query_rows[strip]), self.lane)

    def _query(self, strip: int, row: int) -> Any:
        """Query row of this thread in a strip: its first (0) or second (1)."""
        return self.scores.seat + strip * 16 + row * 8

    def _copy_keys(self, key: Any) -> None:
        given = self.arguments
        self._copy(self.shared_k, self.pitch_k, given.k, self.kv_head, key, given.kv_len, self.keys)

    def _copy(self, to: Any, pitch: int, source: Any, head: Any, first: Any, length: Any, rows: int) -> None:
        """Start copying `rows` rows to shared memory; zeros stand for what does not exist."""
        chunks = pitch // tensor_core.CHUNK
        for start in range(0, rows * chunks, self.threads):
            if self.threads % (8 * chunks) == 0:  # every copy of a thread has the same chunk and the same swizzle
                row, chunk = div(self.thread, chunks), mod(self.thread, chunks)
                place = tensor_core.swizzled(row, chunk, pitch) + start // chunks * pitch
                row = row + start // chunks
            else:
                row, chunk = div(self.thread + start, chunks), mod(self.thread + start, chunks)
                place = tensor_core.swizzled(row, chunk, pitch)
            at = (self.batch, head, tirx.min(first + row, length - 1))
            tensor_core.copy(source, at, chunk, first + row < length, to, place)

    def _load_q(self, strip: int, step: int) -> None:
        row = (self.warp * self.strips + strip) * 16 + mod(self.lane, 16)
        chunk = tensor_core.flipped(tirx.bitwise_xor(self.row, div(self.lane, 16)), step * 2)
        place = row * self.pitch_k + chunk * tensor_core.CHUNK
        tensor_core.load(self.q, self._q_at(strip, step), self.shared_q, place)

    def _q_at(self, strip: int, step: int) -> int:
        return ((strip * self.steps + step) if self.keep_q else strip) * 4

    def _first_product(self) -> None:
        """s = q k^T, 16 columns of q and k at a time; a loaded piece of k serves every strip."""
        for strip in range(self.strips):
            self.s[strip].fill(0.0)
        high = mod(div(self.lane, 8), 2)
        for step in range(self.steps):
            if not self.keep_q:
                for strip in range(self.strips):
                    self._load_q(strip, step)
            chunk = tensor_core.flipped(tirx.bitwise_xor(self.row, high), step * 2)
            for pair in range(self.keys // 16):
                row = pair * 16 + self.row + div(self.lane, 16) * 8
                tensor_core.load(self.b, 0, self.shared_k, row * self.pitch_k + chunk * tensor_core.CHUNK)
                for strip in range(self.strips):
                    for half in range(2):
                        at, q_at = (pair * 2 + half) * 4, self._q_at(strip, step)
                        tensor_core.multiply(self.spec.dtype, self.s[strip], at, self.q, q_at, self.b, half * 2)

    def _change(self, tile: Any, key: Any) -> None:
        """Score function everywhere; the mask only in tiles that some row does not see whole."""
        column = key + lane_column(self.lane)
        for strip in range(self.strips):
            self.scores.change(self.s[strip], self.query_rows[strip], column)
        with when(self.visits.partial(self.visits.at(tile), key)):
            for strip in range(self.strips):
                self.scores.hide(self.s[strip], self.query_rows[strip], column, self.arguments.kv_len)

    def _second_product(self) -> None:
        """o += p v, 16 keys at a time; an accumulator of scores has the layout of a left operand."""
        chunk = tirx.bitwise_xor(self.row, div(self.lane, 16))
        for step in range(self.keys // 16):
            for strip in range(self.strips):
                for n in range(4):
                    first = step * 8 + n * 2
                    self.p[strip * 4 + n] = pack(self.s[strip][first], self.s[strip][first + 1], self.spec.dtype)
            row = step * 16 + mod(self.lane, 16)
            for pair in range(-(-self.spec.value_dim // 16)):
                place = row * self.pitch_v + tensor_core.flipped(chunk, pair * 2) * tensor_core.CHUNK
                tensor_core.load(self.b, 0, self.shared_v, place, transposed=True)
                for strip in range(self.strips):
                    for half in range(2):
                        at = (pair * 2 + half) * 4
                        tensor_core.multiply(self.spec.dtype, self.o[strip], at, self.p, strip * 4, self.b, half * 2)

    def _store(self) -> None:
        for strip in range(self.strips):
            softmax = self.softmax[strip]
            softmax.finish()
            for row in range(2):
                query = self._query(strip, row)
                with when(query < self.arguments.q_len):
                    self._store_row(self.o[strip], row, query, softmax.inverse(row))

    def _store_row(self, o: Registers, row: int, query: Any, factor: Any) -> None:
        for tile in range(self.spec.value_dim // 8):
            at = tile * 4 + row * 2
            column = tile * 8 + lane_column(self.lane)
            address = tensor_core.address(self.arguments.out, (self.batch, self.head, query, column))
            ptx("st.global.b32", address, pack(o[at] * factor, o[at + 1] * factor, self.spec.dtype))


def _wait() -> None:
    """Everything copied so far has arrived, for all threads, and all of them are done with what they read before."""
    tensor_core.wait(0)
    do(T.cuda.cta_sync())
