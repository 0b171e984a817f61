"""Online-softmax attention for many query rows, as unscheduled S-TIR.

A tile is a block of query rows of one head. Its keys come in blocks, and each step of the key loop does (`key_step`)

    s = q k^T;  x = score_mod(s) under the mask;  m' = max(m, x);  a = exp(m - m');  p = exp(x - m')
    l = l a + sum(p);  o = o a + p v;  m = m'

so that out = o / l after the last one (Milakov and Gimelshein, arXiv:1805.02867; Rabe and Staats, arXiv:2112.05682).
Everything is held transposed, queries last: s[key, query], o[column, query]. A schedule then puts queries in vector
lanes, reads k and v in place and needs no horizontal reduction.

The mask's bounds (`bounds`) cut a tile's key blocks in three: hidden ones are not visited; full ones run a step without
mask code; the edges on both sides share one loop whose step clamps positions and evaluates the mask. A finite fill
makes hidden keys count where a row sees nothing much larger: then, and only then, the tile is done again over all keys.
"""

from __future__ import annotations

import math
from typing import Any

from attncc import expr as ex
from attncc._tvm import IRBuilder, PrimFunc, T, Var, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.bounds import key_bounds
from attncc.algorithm.key_step import EDGE, OPAQUE, Tile, Tiling, finite, key_step, weight_step
from attncc.algorithm.lower_expr import Env, lower
from attncc.algorithm.signature import NAME, Signature, compute_dtype, declare, import_llvm, use_launcher
from attncc.algorithm.storage import pack
from attncc.algorithm.transpose import llvm_text as transpose_text
from attncc.spec import AttentionSpec

REDO_MARGIN = 110.0
"""A key whose x is this far below its row's maximum has probability 0: float32's exp ends at -87.3."""


def build(spec: AttentionSpec, tiling: Tiling) -> PrimFunc:
    """The kernel of `spec`. Its work table has a row a tile: batch, kv head, head, block of `tiling.queries` rows."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(NAME)
            signature = declare(spec)
            use_launcher(signature)
            import_llvm(OPAQUE)
            if "weights" in spec.outputs:
                import_llvm(transpose_text(spec.dtype))
            scalars = _scalars(spec, signature)
            n_tiles = signature.work.shape[0]
            with T.serial(n_tiles) as loop:
                IRBuilder.name("tile_loop", loop)
                with T.sblock("tile"):
                    number = T.axis.spatial(n_tiles, loop)
                    IRBuilder.name("tile", number)
                    accesses(signature.inputs, signature.outputs)
                    _tile(_open_tile(spec, tiling, signature, scalars, number))
        function: PrimFunc = builder.get()
    return function


def _scalars(spec: AttentionSpec, signature: Signature) -> dict[str, Any]:
    """Run-time scalars as expressions use them: floats in the compute dtype."""
    floats = {
        name: let(f"{name}_value", numeric.cast(compute_dtype(spec), signature.scalars[name])) for name in spec.scalars
    }
    return floats | {name: signature.scalars[name] for name in spec.integers}


def _open_tile(spec: AttentionSpec, tiling: Tiling, signature: Signature, scalars: dict[str, Any], number: Var) -> Tile:
    """Where tile `number` is, and its buffers."""
    work, dtype = signature.work, compute_dtype(spec)
    batch, kv_head, head, block = (
        let(name, tirx.Cast("int64", work[number, column]))
        for column, name in enumerate(("batch", "kv_head", "head", "query_block"))
    )
    queries, keys, columns = tiling.queries, tiling.keys, tiling.columns
    # declared without memory where no softmax uses them
    row = tile if spec.normalizer == "softmax" else tirx.decl_buffer
    statistics = ("maximum", "new_maximum", "base", "total", "new_total", "decay", "inverse")
    return Tile(
        spec, tiling, signature, scalars, batch, kv_head, head,
        first_row=let("first_row", block * queries),
        query=tile("query", (spec.head_dim, queries), tiling.storage),
        scores=tile("scores", (keys, queries), dtype),
        probabilities=tile("probabilities", (keys, queries), tiling.storage),
        output=tile("output", (columns, queries), dtype),
        new_output=tile("new_output", (columns, queries), dtype),
        **{name: row(name=name, shape=(queries,), dtype=dtype) for name in statistics},
    )  # fmt: skip


def _tile(t: Tile) -> None:
    """Load the queries, go over the keys, write the rows."""
    with scope("load_query"):
        _load_query(t)
    if t.softmax and t.spec.mask is not None and math.isfinite(t.spec.fill):
        _attempts(t)
    else:
        _start(t)
        _keys(t, None)
    with scope("finish"):
        _write(t)
    if "weights" in t.spec.outputs:
        _weights(t)


def _load_query(t: Tile) -> None:
    spec, q, queries = t.spec, t.signature.q, t.tiling.queries
    if spec.bilinear is None:
        with stage("load_q", "SS", d=spec.head_dim, m=queries) as (d, m):
            store(t.query, [d, m], pack(t.tiling.dtype, q[t.batch, t.head, t.row(m), d]))
        return
    width = spec.query_dim or spec.head_dim
    rows = tile("query_rows", (width, queries), t.dtype)
    projected = tile("projected", (spec.head_dim, queries), t.dtype)
    weight = t.signature.extras[spec.bilinear]
    head = [t.head] if len(weight.shape) == 3 else []
    with stage("load_rows", "SS", c=width, m=queries) as (c, m):
        store(rows, [c, m], numeric.cast(t.dtype, q[t.batch, t.head, t.row(m), c]))
    with stage("project", "SSR", d=spec.head_dim, m=queries, c=width) as (d, m, c):
        with T.init():
            store(projected, [d, m], tirx.const(0.0, t.dtype))
        store(projected, [d, m], projected[d, m] + numeric.cast(t.dtype, weight[(*head, c, d)]) * rows[c, m])
    with stage("load_q", "SS", d=spec.head_dim, m=queries) as (d, m):
        store(t.query, [d, m], pack(t.tiling.dtype, projected[d, m]))


def _start(t: Tile) -> None:
    """Nothing seen so far but the sink, where there is one."""
    with scope("start"):
        if t.softmax:
            _start_statistics(t)
        with stage("start_output", "SS", e=t.tiling.columns, m=t.tiling.queries) as (e, m):
            store(t.output, [e, m], tirx.const(0.0, t.dtype))


def _start_statistics(t: Tile) -> None:
    """The maximum and the sum over the sink's column alone: exp(sink - sink) is 1, 0 for -inf, and NaN otherwise."""
    sink, one, zero = t.spec.sink, tirx.const(1.0, t.dtype), tirx.const(0.0, t.dtype)
    nothing, no_number = tirx.const(-math.inf, t.dtype), tirx.const(math.nan, t.dtype)
    with stage("start_max", "S", m=t.tiling.queries) as (m,):
        store(t.maximum, [m], nothing if sink is None else numeric.cast(t.dtype, lower(sink, t.env(m, None, None))))
    with stage("start_sum", "S", m=t.tiling.queries) as (m,):
        if sink is None:
            store(t.total, [m], zero)
        else:
            known = T.Select(t.maximum[m] < tirx.const(math.inf, t.dtype), one, no_number)  # NaN is not below it
            store(t.total, [m], T.Select(t.maximum[m] == nothing, zero, known))


def _attempts(t: Tile) -> None:
    """With a finite fill: without the hidden blocks first, and with them where a row turns out to need them."""
    redo = tile("redo", (1,), "int32")
    lowest = tile("lowest", (1,), t.dtype)
    with scope("first_attempt"), stage("hope", "S", u=1) as (u,):
        store(redo, [u], 1)
    touched = (*t.reads, redo, lowest), (*t.writes, redo, lowest)
    with repeat("attempt", 2) as attempt:
        accesses(*touched)
        with repeat("work", let("active", redo[0])):
            accesses(*touched)
            _start(t)
            hides = _keys(t, attempt > 0)
            with scope("check"):
                with stage("lowest_max", "SR", u=1, m=t.tiling.queries) as (u, m):
                    with T.init():
                        store(lowest, [u], tirx.const(math.inf, t.dtype))
                    store(lowest, [u], T.min(lowest[u], t.maximum[m]))
                with stage("decide", "S", u=1) as (u,):
                    safe = lowest[u] > tirx.const(t.spec.fill + REDO_MARGIN, t.dtype)
                    store(redo, [u], T.Select(tirx.And(hides, tirx.Not(safe)), 1, 0))


def _keys(t: Tile, all_keys: Any) -> Any:
    """Both loops over key blocks; a condition `all_keys` lifts the mask's bounds. Gives whether they hide any key."""
    limits, edge = tile("limits", (5,), "int64"), tile("edge_block", (1,), "int64")
    with scope("limit"):
        for number, value in enumerate(_limits(t, all_keys)):
            with stage(f"limit{number}", "S", u=1) as (u,):
                store(limits, [u + number], value)
    # read back from memory: TVM's simplifier would carry the mask's bounds into every index that depends on them
    first, full_first, full_steps, end = (limits[number] for number in range(4))
    touched = (*t.reads, limits, edge), (*t.writes, edge)
    with repeat("full_step", let("full_steps", full_steps)) as step:
        accesses(*touched)
        key_step(t, let("full_key", full_first * t.tiling.edge + step * t.tiling.keys), "")
    left = let("left_edges", full_first - first)
    full_end = let("full_end", full_first + full_steps * (t.tiling.keys // t.tiling.edge))
    with repeat("edge_step", let("edges", left + (end - full_end))) as step:
        accesses(*touched)
        with scope("pick_edge"), stage("pick", "S", u=1) as (u,):
            store(edge, [u], T.Select(step < left, first + step, full_end + (step - left)))
        key_step(t, let("edge_key", edge[0] * t.tiling.edge), EDGE)
    return limits[4] > 0


def _limits(t: Tile, all_keys: Any) -> tuple[Any, ...]:
    """In blocks of an edge step: the first to visit, the first full one, *the number of full steps*, the end of all.

    And 1 where the mask's bounds hide a key, else 0.
    """
    size, kv_len = t.tiling.edge, t.signature.sizes["Skv"]
    lo, hi, full_lo, full_hi = _key_ranges(t)
    hides = T.Select(tirx.Or(lo > 0, hi < kv_len), T.int64(1), T.int64(0))
    if all_keys is not None:
        lo, hi = T.Select(all_keys, T.int64(0), lo), T.Select(all_keys, kv_len, hi)
    first = let("first_block", lo // size)
    end = let("end_block", T.max((hi + (size - 1)) // size, first))
    full_first = let("full_first", T.min((full_lo + (size - 1)) // size, end))
    return first, full_first, T.max(full_hi - full_first * size, 0) // t.tiling.keys, end, hides


def _key_ranges(t: Tile) -> tuple[Any, Any, Any, Any]:
    """The keys that some row of the tile may see, and those that all of them do, as values."""
    last_row = let("last_row", T.min(t.first_row + t.tiling.queries, t.signature.sizes["Sq"]) - 1)
    index = {"b": t.batch, "h": t.head, "first": t.first_row, "last": last_row}
    env = Env(t.dtype, index, t.signature.sizes, t.scalars, t.signature.extras)
    found = key_bounds(t.spec.mask)
    index["lo"] = let("visible_lo", lower(found.lo, env))
    index["hi"] = let("visible_hi", lower(found.hi, env))
    # the inner bounds are clamped to the outer ones, and repeat them
    known = {found.lo: ex.Index("lo"), found.hi: ex.Index("hi")}
    full = (ex.substitute(bound, lambda node: known.get(node)) for bound in (found.full_lo, found.full_hi))
    full_lo, full_hi = (let(name, lower(bound, env)) for name, bound in zip(("full_lo", "full_hi"), full, strict=True))
    return index["lo"], index["hi"], full_lo, full_hi


def _write(t: Tile) -> None:
    """out = o / l, with the spec's rule for rows that saw no key, and the statistics where they are wanted."""
    spec, queries, out, more = t.spec, t.tiling.queries, t.signature.out, t.signature.more
    rows = T.min(queries, t.signature.sizes["Sq"] - t.first_row)
    if t.softmax:
        with stage("invert", "S", m=queries) as (m,):
            value = tirx.const(1.0, t.dtype) / t.total[m]
            empty = tirx.const(0.0 if spec.empty_row == "zero" else math.nan, t.dtype)
            store(t.inverse, [m], T.Select(t.total[m] == tirx.const(0.0, t.dtype), empty, value))
    with stage("write", "SS", m=rows, e=spec.value_dim) as (m, e):
        value = t.output[e, m] * t.inverse[m] if t.softmax else t.output[e, m]
        store(out, [t.batch, t.head, t.first_row + m, e], numeric.cast(spec.dtype, value))
    if "max" in more:
        with stage("write_max", "S", m=rows) as (m,):
            store(more["max"], [t.batch, t.head, t.first_row + m], _true_maximum(t, m))
    if "sum" in more:
        with stage("write_sum", "S", m=rows) as (m,):
            store(more["sum"], [t.batch, t.head, t.first_row + m], t.total[m])


def _true_maximum(t: Tile, m: Any) -> Any:
    """The running maximum drops NaN, which the sum keeps. (Of an infinite x the sum is NaN as well.)"""
    lost = tirx.And(numeric.is_nan(t.total[m]), t.maximum[m] < tirx.const(math.inf, t.dtype))
    return T.Select(lost, tirx.const(math.nan, t.dtype), t.maximum[m])


def _weights(t: Tile) -> None:
    """All keys once more, now that each row's maximum and sum are known, to write the weights."""
    size = t.tiling.edge
    reads = [*t.signature.inputs, t.query, t.scores]
    if t.softmax:
        reads += [t.base, t.inverse]
        with scope("last"), stage("last_base", "S", m=t.tiling.queries) as (m,):
            store(t.base, [m], finite(t.maximum[m]))
    with repeat("weight_step", let("weight_steps", (t.signature.sizes["Skv"] + (size - 1)) // size)) as step:
        accesses(reads, (t.scores, t.signature.more["weights"]))
        weight_step(t, let("weight_key", step * size))
