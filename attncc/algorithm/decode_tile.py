"""One tile of split-KV decode: a run of keys against the query rows of a key head's group.

The keys come in blocks (`decode_block`); here is what stands before and after them: where the tile is, its buffers, the
queries, what came out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from attncc._tvm import Buffer, T, Var, tirx
from attncc.algorithm.blocks import let, repeat, scope, stage, store, tile
from attncc.algorithm.decode_block import emit_block
from attncc.algorithm.decode_parts import Kernel, RowState, Tiling, exp, finite, weighs_values
from attncc.algorithm.decode_range import key_range
from attncc.algorithm.decode_redo import note
from attncc.algorithm.decode_weights import keep_statistics, keep_unseen
from attncc.algorithm.decode_work import FRACTION_BITS
from attncc.algorithm.lower_expr import lower
from attncc.algorithm.numeric import cast, widened
from attncc.algorithm.visibility import by_data
from attncc.spec import AttentionSpec


@dataclass(frozen=True)
class Tile:
    """A tile under construction: where it is, and the buffers that live as long as it does."""

    kernel: Kernel
    batch: Any
    kv_head: Any
    split: Any
    first: Any
    end: Any
    lo: Any
    """First key that is visited in any split, and the end of them."""
    hi: Any
    hides: Any
    """Whether keys are left out for which there may have to be another attempt."""
    query: Buffer
    """[rows, head_dim]: in the compute dtype, or as the bits of bfloat16 where the dot product takes pairs"""
    raw: Buffer
    """[rows, keys]: s"""
    scores: Buffer
    """[rows, keys]: x"""
    probabilities: Buffer
    """[rows, keys]: p"""
    weights: Buffer
    """[rows, keys]: p, times the scales and the unit of v where it has any"""
    paired_weights: Buffer | None
    """[rows, keys]: the weights as the bits of bfloat16, where v is multiplied in pairs"""
    output: Buffer
    """[rows, value_dim]: the sum of p v so far"""
    maximum: Buffer
    """[rows]: the largest x so far"""
    new_maximum: Buffer
    base: Buffer
    """[rows]: what is subtracted from x; the maximum, or 0 where that is -inf"""
    decay: Buffer
    """[rows]: what a block multiplies earlier sums with"""
    total: Buffer
    """[rows, strands]: the sum of p so far, a strand a lane"""
    new_total: Buffer

    @property
    def spec(self) -> AttentionSpec:
        return self.kernel.spec

    def number(self, value: Any) -> Any:
        """An element of `query` in the compute dtype."""
        return widened(value) if self.tiling.pairs > 1 else value

    @property
    def number_of_head(self) -> Any:
        """Of all key heads of all batches."""
        return self.batch * self.kernel.signature.sizes["G"] + self.kv_head

    @property
    def tiling(self) -> Tiling:
        return self.kernel.tiling

    @property
    def dtype(self) -> str:
        return self.kernel.dtype


def open_tile(kernel: Kernel, number: Var) -> Tile:
    """Where tile `number` is, and its buffers."""
    spec, tiling, dtype, signature = kernel.spec, kernel.tiling, kernel.dtype, kernel.signature
    batch, kv_head, first, end = (
        let(name, tirx.Cast("int64", signature.work[number, column]))
        for column, name in enumerate(("batch", "kv_head", "first_part", "end_part"))
    )
    kv_len = signature.sizes["Skv"]
    lo, hi = key_range(kernel, batch, kv_head)
    hides = let("hides", tirx.Or(lo > 0, hi < kv_len)) if kernel.attempt is not None else None
    if kernel.attempt is not None:
        lo, hi = (
            let(name, value) for name, value in zip(("from", "to"), kernel.attempt.widened(lo, hi, kv_len), strict=True)
        )
    first, end = (lo + (((hi - lo) * part) >> FRACTION_BITS) for part in (first, end))
    split = number - (batch * signature.sizes["G"] + kv_head) * kernel.splits
    if by_data(spec):  # undivided tiles come in any order
        split = T.Select(kernel.splits == 1, T.int64(0), split)
    rows, keys = kernel.padded_rows, tiling.keys
    probabilities = tile("probabilities", (rows, keys), dtype)
    return Tile(
        kernel, batch, kv_head,
        split=let("split", split),
        first=let("first", first),
        end=let("end", end),
        lo=lo,
        hi=hi,
        hides=hides,
        query=tile("query", (rows, spec.head_dim), dtype if tiling.pairs == 1 else "uint16"),
        raw=tile("raw", (rows, keys), dtype),
        scores=tile("scores", (rows, keys), dtype),
        probabilities=probabilities,
        weights=_weights(kernel, probabilities),
        paired_weights=tile("paired_weights", (rows, keys), "uint16") if tiling.value_pairs > 1 else None,
        output=tile("output", (rows, spec.value_dim), dtype),
        **{name: tile(name, (rows,), dtype) for name in ("maximum", "new_maximum", "base", "decay")},
        **{name: tile(name, (rows, tiling.strands), dtype) for name in ("total", "new_total")},
    )  # fmt: skip


def _weights(kernel: Kernel, probabilities: Buffer) -> Buffer:
    return tile("weights", probabilities.shape, kernel.dtype) if weighs_values(kernel.spec) else probabilities


def emit_tile(t: Tile) -> None:
    """Load the queries, go over the keys, write what came out."""
    with scope("load_query"):
        _load_query(t)
    with scope("start"):
        _start(t)
        if t.kernel.kept is not None:
            keep_unseen(t, t.kernel.kept)
    keys = t.tiling.keys
    with repeat("block", (t.end - t.first + (keys - 1)) // keys) as block:
        start = t.first + block * keys
        emit_block(t, start, T.min(t.end - start, keys))
    _write(t)


def _load_query(t: Tile) -> None:
    """The rows of q, or of q W, in the compute dtype."""
    spec, q = t.spec, t.kernel.signature.q
    with repeat("query_row", t.kernel.padded_rows) as row:
        head, query = t.kernel.place(t.kv_head, row)
        if spec.bilinear is None:
            with stage("load_q", "S", d=spec.head_dim) as (d,):
                value = q[t.batch, head, query, d]
                paired = t.tiling.pairs > 1
                store(t.query, [row, d], tirx.reinterpret("uint16", value) if paired else cast(t.dtype, value))
            return
        width = spec.query_dim or spec.head_dim
        weight = t.kernel.signature.extras[spec.bilinear]
        at = [head] if len(weight.shape) == 3 else []
        with stage("project", "SR", d=spec.head_dim, c=width) as (d, c):
            with T.init():
                store(t.query, [row, d], t.kernel.zero())
            term = cast(t.dtype, q[t.batch, head, query, c]) * cast(t.dtype, weight[(*at, c, d)])
            store(t.query, [row, d], t.query[row, d] + term)


def _start(t: Tile) -> None:
    """Nothing seen so far but the sink, which counts in one of the splits: x = sink, p = 1, no value."""
    with repeat("start_row", t.kernel.padded_rows) as row:
        if t.kernel.normalizes:
            with stage("start_max", "S", u=1) as (u,):
                store(t.maximum, [row + u], _first_maximum(t, row))
            with stage("start_sum", "S", l=t.tiling.strands) as (lane,):
                # of the sink's maximum: 0 for -inf, NaN for NaN and infinity; in one lane of all
                weight, zero = exp(t.maximum[row] - finite(t.maximum[row])), t.kernel.zero()
                store(t.total, [row, lane], zero if t.spec.sink is None else T.Select(lane == 0, weight, zero))
        with stage("start_output", "S", e=t.spec.value_dim) as (column,):
            store(t.output, [row, column], t.kernel.zero())


def _first_maximum(t: Tile, row: Any) -> Any:
    nothing = tirx.const(-math.inf, t.dtype)
    if t.spec.sink is None:
        return nothing
    head, query = t.kernel.place(t.kv_head, row)
    sink = cast(t.dtype, lower(t.spec.sink, t.kernel.env(b=t.batch, h=head, i=query)))
    return T.Select(t.split == 0, sink, nothing)


def _write(t: Tile) -> None:
    """Partial results to the workspaces; with one split, rows to the outputs."""
    kernel = t.kernel
    at = t.number_of_head
    output, maximum, total = kernel.signature.workspaces[:3]
    sums = tile("row_total", (kernel.rows,), t.dtype)
    if kernel.normalizes:
        with repeat("total_row", kernel.rows) as row, stage("row_total", "SR", u=1, l=t.tiling.strands) as (u, lane):
            with T.init():
                store(sums, [row + u], kernel.zero())
            store(sums, [row + u], sums[row + u] + t.total[row, lane])
    with repeat("final_row", T.Select(kernel.splits == 1, kernel.rows, T.int64(0))) as row:
        state = RowState(t.maximum[row], sums[row], lambda e: t.output[row, e])
        kernel.write_row("final", t.batch, t.kv_head, row, state)
    with repeat("partial_row", T.Select(kernel.splits == 1, T.int64(0), kernel.rows)) as row:
        if kernel.normalizes:
            with stage("partial_max", "S", u=1) as (u,):
                store(maximum, [at, t.split, row + u], t.maximum[row + u])
            with stage("partial_sum", "S", u=1) as (u,):
                store(total, [at, t.split, row + u], sums[row + u])
        with stage("partial_output", "S", e=t.spec.value_dim) as (column,):
            store(output, [at, t.split, row, column], t.output[row, column])
    if kernel.kept is not None and kernel.normalizes:
        keep_statistics(t, sums)
    if kernel.attempt is not None:
        with scope("note"):
            note(kernel, kernel.attempt, at, t.split, t.maximum, t.hides)
