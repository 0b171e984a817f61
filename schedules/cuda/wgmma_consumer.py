"""The computing warpgroups of the wgmma kernel: products, softmax and the store of the result."""

from __future__ import annotations

from typing import Any

from attncc._tvm import T, tirx
from attncc.schedules.cuda.device import (
    SHORT,
    WARP,
    Registers,
    choose,
    div,
    do,
    loop,
    mod,
    once,
    pack,
    ptx,
    when,
    whole,
)  # fmt: skip
from attncc.schedules.cuda.ring import Barriers, Place
from attncc.schedules.cuda.room import COLUMNS, CONSUMER_REGISTERS, STORE_ROWS
from attncc.schedules.cuda.scores import Scores, lane_column
from attncc.schedules.cuda.softmax import OnlineSoftmax
from attncc.schedules.cuda.wgmma_block import GROUP, GROUP_ROWS, SWIZZLE_128, Block

_TURN, _STORE = 2, 8
"""First named barriers: whose turn it is to issue products; a warpgroup that is done with its query rows."""
_STORE_TENSOR = "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group"
_STORE_MATRIX = "stmatrix.sync.aligned.m8n8.x4.shared.b16"


class Consumer:
    """A computing warpgroup."""

    def __init__(self, kernel: Block) -> None:
        self.kernel, self.spec, self.given = kernel, kernel.spec, kernel.given
        self.which = once("which", kernel.group - 1)
        self.lane = mod(kernel.thread, WARP)
        self.row_in_tile = once("row_in_tile", self.which * GROUP_ROWS + kernel.warp * STORE_ROWS)
        self.s = Registers("scores", kernel.keys // 2)
        self.o = Registers("result", -(-self.spec.value_dim // 8) * 4)
        self.p = Registers("weights", kernel.keys // 4, "uint32")
        self.query, self.at_k, self.at_v = (
            Place("query", kernel.query_stages), Place("ring_k", kernel.stages), Place("ring_v", kernel.stages)
        )  # fmt: skip
        panel = kernel.rows * COLUMNS * 2
        first = tirx.BufferLoad(kernel.q, [self.which * GROUP_ROWS * COLUMNS])
        self.describe_q = self._descriptor("describe_q", first, panel)
        self.describe_k = self._descriptor("describe_k", tirx.BufferLoad(kernel.k, [0]), kernel.keys * COLUMNS * 2)
        self.describe_v = self._descriptor("describe_v", tirx.BufferLoad(kernel.v, [0]), kernel.keys * COLUMNS * 2)

    @staticmethod
    def _descriptor(name: str, element: Any, panel: int) -> Registers:
        """Where a matrix lies, as wgmma is told: groups of eight rows are 1024 bytes apart, panels `panel` bytes."""
        register = Registers(name, 1, "uint64")
        address, place = tirx.address_of(register[0]), tirx.address_of(element)
        do(T.cuda.wgmma.encode_matrix_descriptor(address, place, panel // 16, 1024 // 16, SWIZZLE_128))
        return register

    def run(self) -> None:
        kernel = self.kernel
        ptx("setmaxnreg.inc.sync.aligned.u32", CONSUMER_REGISTERS[kernel.consumers])
        with when(tirx.EQ(self.which, 0)):
            self._arrive(whole(_TURN))  # the first turn is this warpgroup's
        kernel.each_tile(self.tile)

    def tile(self, first_row: Any, head: Any, batch: Any) -> None:
        """One query tile: products and softmax, a step behind each other."""
        kernel = self.kernel
        seat = first_row + self.row_in_tile + div(self.lane, 4)
        scores = self.scores = Scores(self.spec, self.given, batch, head, seat)
        softmax = self.softmax = OnlineSoftmax(self.spec, scores.unit)
        visits = self.visits = kernel.visits(scores, first_row, head, batch)
        count = visits.count
        self.query_rows = scores.rows(lambda row: scores.seat + row * 8)
        self.o.fill(0.0)
        softmax.start(scores.sinks(self.query_rows), self.lane)
        kernel.queries.wait_filled(self.query)
        with when(count > 0):
            kernel.key_ring.wait_filled(self.at_k)
            self._wait_turn()
            self._first_product()
            self._pass_turn()
            self._await_scores(0)
            self._soften(whole(0))
            self._pack()
            with loop("step", count - 1) as step:
                kernel.key_ring.wait_filled(self.at_k)
                self._wait_turn()
                self._first_product()
                kernel.value_ring.wait_filled(self.at_v)
                self._second_product()
                self._pass_turn()
                self._await_scores(1)
                self._soften(step + 1)
                self._await_result()
                self._pack()
                softmax.rescale(self.o)
            kernel.value_ring.wait_filled(self.at_v)
            self._second_product()
            self._await_result()
        softmax.finish()
        self._store(first_row, head, batch)
        self.query.advance()

    def _first_product(self) -> None:
        """Issue s = q k^T."""
        kernel = self.kernel
        do(T.ptx.wgmma.fence.sync.aligned())
        kind, count = SHORT[self.spec.dtype], kernel.keys
        for step in range(-(-self.spec.head_dim // 16)):
            panel, inside = divmod(step, 4)
            q = _moved(self.describe_q, self.query.stage, kernel.query_size, panel * kernel.rows * 128 + inside * 32)
            k = _moved(self.describe_k, self.at_k.stage, kernel.key_size, panel * kernel.keys * 128 + inside * 32)
            sums = T.ptx.pred(whole(int(step > 0)))
            ptx(f"wgmma.mma_async.sync.aligned.m64n{count}k16.f32.{kind}.{kind}", *self.s, q, k, sums, 1, 1, 0, 0)
        do(T.ptx.wgmma.commit_group.sync.aligned())

    def _second_product(self) -> None:
        """Issue o += p v."""
        kernel = self.kernel
        do(T.ptx.wgmma.fence.sync.aligned())
        kind, count = SHORT[self.spec.dtype], self.o.count * 2
        for step in range(kernel.keys // 16):
            p = [self.p[step * 4 + n] for n in range(4)]
            v = _moved(self.describe_v, self.at_v.stage, kernel.value_size, step * 16 * 128)
            one = T.ptx.pred(whole(1))
            ptx(f"wgmma.mma_async.sync.aligned.m64n{count}k16.f32.{kind}.{kind}", *self.o, *p, v, one, 1, 1, 1)
        do(T.ptx.wgmma.commit_group.sync.aligned())

    def _await_scores(self, in_flight: int) -> None:
        do(T.ptx.wgmma.wait_group.sync.aligned(in_flight))
        self.s.fence()
        self._release(self.kernel.key_ring, self.at_k)

    def _await_result(self) -> None:
        do(T.ptx.wgmma.wait_group.sync.aligned(0))
        self.o.fence()
        self._release(self.kernel.value_ring, self.at_v)

    def _release(self, ring: Barriers, place: Place) -> None:
        with when(tirx.EQ(self.kernel.thread, 0)):
            ring.free(place)
        place.advance()

    def _soften(self, step: Any) -> None:
        """Scores to weights; the mask is applied only to tiles that some row does not see whole."""
        visit = self.visits.at(step)
        key = once("key", self.visits.key(visit))
        column = key + lane_column(self.lane)
        self.scores.change(self.s, self.query_rows, column)
        with when(self.visits.partial(visit, key)):
            self.scores.hide(self.s, self.query_rows, column, self.given.kv_len)
        self.softmax.update(self.s)

    def _pack(self) -> None:
        """Weights in 16 bits: an accumulator has the layout of a left operand."""
        for n in range(self.p.count):
            self.p[n] = pack(self.s[2 * n], self.s[2 * n + 1], self.spec.dtype)

    def _wait_turn(self) -> None:
        ptx("bar.sync", tirx.Cast("uint32", self.which + _TURN), tirx.const(2 * GROUP, "uint32"))

    def _pass_turn(self) -> None:
        following = choose(tirx.EQ(self.which, self.kernel.consumers - 1), whole(0), self.which + 1)
        self._arrive(following + _TURN)

    @staticmethod
    def _arrive(barrier: Any) -> None:
        ptx("bar.arrive", tirx.Cast("uint32", barrier), tirx.const(2 * GROUP, "uint32"))

    def _store(self, first_row: Any, head: Any, batch: Any) -> None:
        """The result, through the shared memory of its query rows: this warpgroup has read them to the end."""
        kernel, dtype = self.kernel, self.spec.dtype
        ptx("bar.sync", tirx.Cast("uint32", self.which + _STORE), tirx.const(GROUP, "uint32"))
        factors = [self.softmax.inverse(row) for row in range(2)]
        base = self.query.stage * kernel.query_size
        row = self.row_in_tile + mod(self.lane, 16)
        for pair in range(-(-self.spec.value_dim // 16)):
            panel, inside = divmod(pair, 4)
            chunk = tirx.bitwise_xor(inside * 2 + div(self.lane, 16), mod(self.lane, 8))
            place = base + panel * kernel.rows * COLUMNS + row * COLUMNS + chunk * 8
            values = [n if n < self.o.count else n - 4 for n in range(pair * 8, pair * 8 + 8)]
            packed = [
                pack(self.o[values[n]] * factors[n // 2 % 2], self.o[values[n + 1]] * factors[n // 2 % 2], dtype)
                for n in range(0, 8, 2)
            ]
            ptx(_STORE_MATRIX, tirx.address_of(tirx.BufferLoad(kernel.q, [place])), *packed)
        do(T.ptx.fence.proxy.async_.shared__cta())
        do(T.cuda.warp_sync())
        with when(tirx.EQ(self.lane, 0)):
            for panel in range(kernel.wide_v):
                place = base + panel * kernel.rows * COLUMNS + self.row_in_tile * COLUMNS
                source = tirx.address_of(tirx.BufferLoad(kernel.q, [place]))
                tensor = tirx.address_of(kernel.maps["out"])
                ptx(_STORE_TENSOR, tensor, panel * COLUMNS, first_row + self.row_in_tile, head, batch, source)
            ptx("cp.async.bulk.commit_group")
            ptx("cp.async.bulk.wait_group.read", 0)
            kernel.queries.free(self.query)


def _moved(descriptor: Registers, stage: Any, size: int, offset: int) -> Any:
    """A descriptor for the matrix `offset` bytes into stage `stage` of a buffer of `size` elements a stage."""
    return descriptor[0] + tirx.Cast("uint64", stage * (size * 2 // 16) + offset // 16)
