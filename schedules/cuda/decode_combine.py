"""The second kernel of decode: it brings the splits of a row together, reading several of them at once."""

from __future__ import annotations

import math
from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, tirx
from attncc.schedules.cuda.arguments import Arguments, declare
from attncc.schedules.cuda.device import (
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
    whole,
)  # fmt: skip
from attncc.schedules.cuda.scores import Scores
from attncc.spec import AttentionSpec

ROWS = 16
"""Query rows of a tile, which heads of a group and query positions share."""
_COMBINE_WARPS = 4
_IN_FLIGHT = 4
"""Splits that a warp reads at once."""


def workspaces(spec: AttentionSpec) -> list[tuple[Any, ...]]:
    """Sizes of the scratch tensors: unnormalized results of the splits, and their maxima and sums."""
    return [("B", "G", "splits", ROWS, spec.value_dim), ("B", "G", "splits", ROWS, 2)]


def build(spec: AttentionSpec) -> PrimFunc:
    """The kernel that combines splits, where there are several: a grid of packed rows, key heads and batches."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("combine")
            arguments = declare(spec, workspaces(spec))
            splits = split_count(arguments)
            T.device_entry()
            _combine(spec, arguments, splits)
        function: PrimFunc = builder.get()
    return function


def split_count(arguments: Arguments) -> Any:
    """How many splits a call has: the size of its scratch tensors."""
    return bind("n_splits", tirx.Cast("int32", arguments.sizes["splits"]))


def normalized(spec: AttentionSpec, value: Any, total: Any) -> Any:
    """A result in the spec's dtype, given the sum of its weights."""
    empty = number(math.nan if spec.empty_row == "nan" else 0.0)
    return tirx.Cast(spec.dtype, choose(tirx.EQ(total, number(0.0)), empty, value / total))


def out_place(spec: AttentionSpec, batch: Any, kv_head: Any, row: Any, column: Any) -> list[Any]:
    """Where a packed row's result belongs."""
    return [batch, kv_head * spec.group + mod(row, spec.group), div(row, spec.group), column]


def _combine(spec: AttentionSpec, given: Arguments, splits: Any) -> None:
    """One packed row: each warp adds up every fourth split, and the first thread of a column the warps."""
    unit = number(Scores(spec, given, whole(0)).unit)
    results, statistics = given.workspaces
    row, kv_head, batch = T.cta_id([given.q_len * spec.group, given.kv_heads, given.batch])
    thread = T.thread_id([_COMBINE_WARPS * WARP])
    warp, lane = bind("warp", div(thread, WARP)), bind("lane", mod(thread, WARP))
    columns = -(-spec.value_dim // WARP)
    pool = T.SMEMPool()
    shared = pool.alloc((_COMBINE_WARPS, columns * WARP), "float32", align=16)
    pool.commit()
    largest, total = Registers("largest", 1), Registers("total", 1)
    sums = Registers("partial", columns)

    def statistic(split: Any, which: int) -> Any:
        return tirx.BufferLoad(statistics, [batch, kv_head, split, row, which])

    largest.fill(-math.inf)
    with loop("group", ceil_div(splits, WARP)) as group:
        split = group * WARP + lane
        largest[0] = maximum(largest[0], statistic(tirx.min(split, splits - 1), 0))
    over_lanes(largest, 0, maximum, WARP)
    largest[0] = choose(largest[0] > number(-math.inf), largest[0], number(0.0))
    total.fill(0.0)
    with loop("group", ceil_div(splits, WARP)) as group:
        split = group * WARP + lane
        with when(split < splits):
            total[0] = total[0] + statistic(split, 1) * exp2((statistic(split, 0) - largest[0]) * unit)
    over_lanes(total, 0, lambda a, b: a + b, WARP)
    sums.fill(0.0)
    with loop("group", ceil_div(splits, _COMBINE_WARPS * _IN_FLIGHT)) as group:
        for n in range(_IN_FLIGHT):
            split = (group * _IN_FLIGHT + n) * _COMBINE_WARPS + warp
            inside = tirx.min(split, splits - 1)
            weight = exp2((statistic(inside, 0) - largest[0]) * unit)
            for column in range(columns):
                at = tirx.min(column * WARP + lane, spec.value_dim - 1)
                value = tirx.BufferLoad(results, [batch, kv_head, inside, row, at])
                # Not the weight is zero where there is no split: it would make NaN of infinity.
                sums[column] = sums[column] + weight * choose(split < splits, value, number(0.0))
    for column in range(columns):
        T.buffer_store(shared, sums[column], [warp, column * WARP + lane])
    do(T.cuda.cta_sync())
    with loop("part", -(-spec.value_dim // (_COMBINE_WARPS * WARP))) as part:
        at = once("at", part * (_COMBINE_WARPS * WARP) + thread)
        with when(at < spec.value_dim):
            sums[0] = tirx.BufferLoad(shared, [0, at])
            for other in range(1, _COMBINE_WARPS):
                sums[0] = sums[0] + tirx.BufferLoad(shared, [other, at])
            T.buffer_store(given.out, normalized(spec, sums[0], total[0]), out_place(spec, batch, kv_head, row, at))
