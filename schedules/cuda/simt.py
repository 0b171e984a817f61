"""Attention without tensor cores: any dtype, head size, stride, score and output, on any NVIDIA GPU.

A thread block of 8 x 16 threads computes a tile of query rows of one head. A row belongs to the 16 threads of half a
warp, each of which holds every 16th key's score and some columns of the result; keys, values and weights pass through
shared memory in the dtype of the arithmetic. The softmax is online, as in the other kernels. Weights that are returned
take a second look at all keys, for only then are maxima and sums known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, tirx
from attncc.algorithm.lower_expr import Env, lower
from attncc.algorithm.storage import loaded
from attncc.schedules.cuda.arguments import Arguments, declare
from attncc.schedules.cuda.device import (
    LOG2E,
    WARP,
    Registers,
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
    over_lanes,
    when,
)  # fmt: skip
from attncc.schedules.cuda.functions import library
from attncc.schedules.cuda.gpu import LONGEST
from attncc.schedules.cuda.scores import Scores
from attncc.schedules.cuda.simt_tile import LANES, THREADS, Tile
from attncc.schedules.family import Decisions
from attncc.spec import DOT, AttentionSpec

_LOADS = 16
"""Reads of memory that a thread has under way."""
_AT_ONCE = 4
"""Columns of a product that are read together: 16 bytes of float32."""


def build(spec: AttentionSpec, decisions: Decisions) -> PrimFunc:
    """The kernel of `spec`: a grid of query tiles, heads and batches, the tiles that see most keys first."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("attention")
            arguments = declare(spec, strided=True)
            T.device_entry()
            _Block(spec, Tile(spec, decisions), arguments).compute()
        function: PrimFunc = builder.get()
    return function


class _Block:
    """One thread block's work."""

    def __init__(self, spec: AttentionSpec, tile: Tile, given: Arguments) -> None:
        self.spec, self.tile, self.given = spec, tile, given
        self.compute_dtype = tile.dtype
        tiles = ceil_div(given.q_len, tile.rows)
        block, self.head, self.batch = T.cta_id([tiles, given.heads, given.batch])
        self.thread = T.thread_id([THREADS])
        self.lane, self.strip = bind("lane", mod(self.thread, LANES)), bind("strip", div(self.thread, LANES))
        self.first_row = bind("first_row", (tiles - 1 - block) * tile.rows)
        self.kv_head = bind("kv_head", div(self.head, spec.group))
        self.scores = Scores(spec, given, self.batch, self.head)
        pool = T.SMEMPool()
        self.q = pool.alloc((tile.rows * tile.pitch_k,), tile.dtype, align=16)
        self.kv = pool.alloc((tile.keys * max(tile.pitch_k, tile.pitch_v),), tile.dtype, align=16)
        self.p = pool.alloc((tile.rows * tile.pitch_p,), tile.dtype, align=16)
        pool.commit()
        self.s = Registers("scores", tile.thread_rows * tile.thread_keys, tile.dtype)
        self.o = Registers("result", tile.thread_rows * tile.columns, tile.dtype)
        self.left = Registers("left", tile.thread_rows * _AT_ONCE, tile.dtype)
        self.right = Registers("right", max(tile.thread_keys, tile.columns) * _AT_ONCE, tile.dtype)
        self.maxima, self.sums = (Registers(name, tile.thread_rows, tile.dtype) for name in ("maxima", "sums"))
        self.factor = Registers("factor", tile.thread_rows, tile.dtype)

    def compute(self) -> None:
        given, tile = self.given, self.tile
        seen = self.scores.keys(self.first_row, tirx.min(self.first_row + tile.rows, given.q_len) - 1)
        self._load_q()
        self._start()
        begin, count = once("begin", seen.lo), ceil_div(tirx.max(seen.hi - seen.lo, 0), tile.keys)
        with loop("tile", once("count", count)) as number_of:
            key = once("key", begin + number_of * tile.keys)
            self._scores(key, seen.hi)
            self._weigh(key)
            self._copy(given.v, key, tile.pitch_v, self.spec.value_dim, self.spec.value_dtype or self.spec.dtype)
            self._second_product()
        self._finish()
        if "weights" in self.spec.outputs:
            with loop("again", ceil_div(given.kv_len, tile.keys)) as number_of:
                key = once("key_again", number_of * tile.keys)
                self._scores(key, given.kv_len)
                self._store_weights(key)

    def _number(self, value: float) -> Any:
        return tirx.const(value, self.compute_dtype)

    def _row(self, row: int) -> Any:
        """Query row number `row` of this thread."""
        return self.first_row + self.strip * self.tile.thread_rows + row

    def _key(self, first: Any, key: int) -> Any:
        return first + self.lane + key * LANES

    def _rows(self, count: int, width: int, body: Callable[[Any, Any], None]) -> None:
        """`body(row, column)` for every element of `count` rows: a warp takes a row, and its lanes the columns."""
        warp, lane = div(self.thread, WARP), mod(self.thread, WARP)
        step = THREADS // WARP
        blocks = -(-width // WARP)
        together = min(count // step, 1 << max(0, (_LOADS // blocks).bit_length() - 1))  # powers of two, all of them
        with loop("rows", -(-count // (step * together))) as group:
            for n in range(together):
                row = (group * together + n) * step + warp
                for block in range(blocks):
                    body(row, block * WARP + lane)

    def _load_q(self) -> None:
        """Query rows, times the matrix of a bilinear score; zeros for what does not exist."""
        tile, spec, given = self.tile, self.spec, self.given
        total = Registers("total", 1, tile.dtype)

        def load(row: Any, column: Any) -> None:
            inside = tirx.min(self.first_row + row, given.q_len - 1)
            total[0] = self._number(0.0)
            with when(tirx.all(self.first_row + row < given.q_len, column < spec.head_dim)):
                place = [self.batch, self.head, inside]
                if spec.bilinear is None:
                    total[0] = self._wide(tirx.BufferLoad(given.q, [*place, column]))
                else:
                    matrix = given.extras[spec.bilinear]
                    with loop("inner", spec.query_dim or spec.head_dim) as inner:
                        at_matrix = [self.head, inner, column][3 - len(matrix.shape) :]
                        left = self._wide(tirx.BufferLoad(given.q, [*place, inner]))
                        total[0] = total[0] + left * self._wide(tirx.BufferLoad(matrix, at_matrix))
            T.buffer_store(self.q, total[0], [row * tile.pitch_k + column])

        self._rows(tile.rows, spec.head_dim, load)

    def _wide(self, value: Any) -> Any:
        return tirx.Cast(self.compute_dtype, value)

    def _copy(self, source: Any, first: Any, pitch: int, width: int, kept: str) -> None:
        """Keys or values of dtype `kept` to shared memory, zeros for what does not exist, between two barriers."""
        given = self.given

        def load(row: Any, column: Any) -> None:
            exists, at = first + row < given.kv_len, column
            if width % WARP:
                exists, at = tirx.all(exists, column < width), tirx.min(column, width - 1)
            place = [self.batch, self.kv_head, tirx.min(first + row, given.kv_len - 1), at]
            value = choose(exists, loaded(kept, self.compute_dtype, tirx.BufferLoad(source, place)), self._number(0.0))
            T.buffer_store(self.kv, value, [row * pitch + column])

        do(T.cuda.cta_sync())
        self._rows(self.tile.keys, width, load)
        do(T.cuda.cta_sync())

    def _start(self) -> None:
        self.o.fill(0.0)
        self.sums.fill(0.0)
        self.maxima.fill(-math.inf)
        if self.spec.sink is not None:
            for row in range(self.tile.thread_rows):
                self.maxima[row] = lower(self.spec.sink, self._env(row))
                counts = self.maxima[row] > self._number(-math.inf)
                self.sums[row] = choose(counts, self._number(1.0), self._number(0.0))

    def _env(self, row: int, key: Any = None, score: Any = None, **more: Any) -> Env:
        """What an expression's leaves are at a row and a key, inside the tensors where one is read at them."""
        given = self.given
        index = {"b": self.batch, "h": self.head, "i": self._row(row)} | ({} if key is None else {"j": key})
        last = {"i": given.q_len - 1, "j": given.kv_len - 1}
        inside = {name: tirx.Cast("int64", tirx.min(index[name], last[name])) for name in last if name in index}
        index |= {name: more.pop(name) for name in ("d",) if name in more}
        wide = {name: tirx.Cast("int64", value) for name, value in index.items()}
        return Env(
            self.compute_dtype, wide, given.sizes, given.scalars, given.extras, score, more,
            functions=library(self.compute_dtype), inside=inside, longest=LONGEST,
        )  # fmt: skip

    def _scores(self, key: Any, end: Any) -> None:
        """s becomes x of a tile: score, score function, mask; -inf (0 without a softmax) from `end` on."""
        tile, spec = self.tile, self.spec
        self._copy(self.given.k, key, tile.pitch_k, spec.head_dim, spec.key_dtype or spec.dtype)
        self._first_product()
        outside = self._number(-math.inf if spec.normalizer == "softmax" else 0.0)
        for row in range(tile.thread_rows):
            for n in range(tile.thread_keys):
                at, place = row * tile.thread_keys + n, self._key(key, n)
                self.s[at] = lower(spec.score_mod, self._env(row, place, self.s[at]))
                if spec.mask is not None:
                    seen = lower(spec.mask, self._env(row, place))
                    self.s[at] = choose(seen, self.s[at], self._number(spec.fill))
                self.s[at] = choose(place < end, self.s[at], outside)

    def _first_product(self) -> None:
        """s = the sum over columns of the spec's element of q and k."""
        tile, spec = self.tile, self.spec
        self.s.fill(0.0)
        step = _AT_ONCE if spec.element == DOT else 1
        with loop("column", -(-spec.head_dim // step)) as group:
            column = group * step
            for d in range(step):
                for row in range(tile.thread_rows):
                    place = (self.strip * tile.thread_rows + row) * tile.pitch_k + column + d
                    self.left[row * _AT_ONCE + d] = tirx.BufferLoad(self.q, [place])
                for n in range(tile.thread_keys):
                    place = (self.lane + n * LANES) * tile.pitch_k + column + d
                    self.right[n * _AT_ONCE + d] = tirx.BufferLoad(self.kv, [place])
            for d in range(step):
                for row in range(tile.thread_rows):
                    for n in range(tile.thread_keys):
                        at = row * tile.thread_keys + n
                        q, k = self.left[row * _AT_ONCE + d], self.right[n * _AT_ONCE + d]
                        term = q * k if spec.element == DOT else self._element(row, q, k, column)
                        self.s[at] = self.s[at] + term

    def _element(self, row: int, q: Any, k: Any, column: Any) -> Any:
        return lower(self.spec.element, self._env(row, None, None, q=q, k=k, d=column))

    def _weigh(self, key: Any) -> None:
        """s becomes weights relative to the new maxima, and goes to shared memory; o and sums follow.

        What is kept there has the scales of the values in it.
        """
        tile = self.tile
        for row in range(tile.thread_rows):
            own = range(row * tile.thread_keys, (row + 1) * tile.thread_keys)
            if self.spec.normalizer == "softmax":
                self.factor[row] = self.maxima[row]
                for at in own:
                    self.factor[row] = maximum(self.factor[row], self.s[at])
                over_lanes(self.factor, row, maximum, LANES)
                # -inf less anything is -inf, whose weight is 0: earlier sums of nothing stay nothing.
                self.left[row] = self._exp(self.maxima[row] - self._base(self.factor[row]))
                self.maxima[row] = self.factor[row]
                self.factor[row] = self.left[row]
                self.sums[row] = self.sums[row] * self.factor[row]
                self.left[row] = self._number(0.0)
                for at in own:
                    self.s[at] = self._exp(self.s[at] - self._base(self.maxima[row]))
                    self.left[row] = self.left[row] + self.s[at]
                over_lanes(self.left, row, lambda a, b: a + b, LANES)
                self.sums[row] = self.sums[row] + self.left[row]
                for column in range(tile.columns):
                    at = row * tile.columns + column
                    self.o[at] = self.o[at] * self.factor[row]
            for n, at in enumerate(own):
                place = (self.strip * tile.thread_rows + row) * tile.pitch_p + self.lane + n * LANES
                T.buffer_store(self.p, self._scaled(self.s[at], row, self._key(key, n)), [place])

    def _scaled(self, weight: Any, row: int, key: Any) -> Any:
        scale = self.spec.value_scale
        return weight if scale is None else weight * lower(scale, self._env(row, key))

    def _base(self, largest: Any) -> Any:
        """What weights are relative to: -inf - -inf would be NaN."""
        return choose(largest > self._number(-math.inf), largest, self._number(0.0))

    def _exp(self, x: Any) -> Any:
        if self.compute_dtype == "float64":
            return library("float64")["exp"](x)
        return exp2(x * number(LOG2E))

    def _second_product(self) -> None:
        """o += p v."""
        tile = self.tile
        with loop("inner_key", tile.keys // _AT_ONCE) as group:
            for n in range(_AT_ONCE):
                key = group * _AT_ONCE + n
                for row in range(tile.thread_rows):
                    place = (self.strip * tile.thread_rows + row) * tile.pitch_p + key
                    self.left[row * _AT_ONCE + n] = tirx.BufferLoad(self.p, [place])
                for column in range(tile.columns):
                    self.right[column] = tirx.BufferLoad(self.kv, [key * tile.pitch_v + tile.column(self.lane, column)])
                for row in range(tile.thread_rows):
                    for column in range(tile.columns):
                        at = row * tile.columns + column
                        self.o[at] = self.o[at] + self.left[row * _AT_ONCE + n] * self.right[column]

    def _finish(self) -> None:
        """Store the result, maxima and sums; `factor` becomes what weights are to be multiplied by."""
        tile, spec, given = self.tile, self.spec, self.given
        self.factor.fill(1.0)
        for row in range(tile.thread_rows):
            if spec.normalizer == "softmax":
                empty = self._number(math.nan if spec.empty_row == "nan" else 0.0)
                nothing = tirx.EQ(self.sums[row], self._number(0.0))  # and not `> 0`: NaN is to stay NaN
                self.factor[row] = choose(nothing, empty, self._number(1.0) / self.sums[row])
            with when(self._row(row) < given.q_len):
                place = [self.batch, self.head, self._row(row)]
                for column in range(tile.columns):
                    at = tile.column(self.lane, column)
                    with when(at < spec.value_dim):
                        value = self.o[row * tile.columns + column] * self.factor[row]
                        T.buffer_store(given.out, tirx.Cast(spec.dtype, value), [*place, at])
                with when(tirx.EQ(self.lane, 0)):
                    for name, register in (("max", self.maxima), ("sum", self.sums)):
                        if name in spec.outputs:
                            T.buffer_store(given.more[name], register[row], place)

    def _store_weights(self, key: Any) -> None:
        tile, spec, given = self.tile, self.spec, self.given
        for row in range(tile.thread_rows):
            for n in range(tile.thread_keys):
                at, place = self.s[row * tile.thread_keys + n], self._key(key, n)
                weight = at
                if spec.normalizer == "softmax":
                    weight = self._exp(at - self._base(self.maxima[row])) * self.factor[row]
                with when(tirx.all(self._row(row) < given.q_len, place < given.kv_len)):
                    where = [self.batch, self.head, self._row(row), place]
                    T.buffer_store(given.more["weights"], tirx.Cast(spec.dtype, weight), where)
