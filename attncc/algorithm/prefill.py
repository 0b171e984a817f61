"""Online-softmax attention for many query rows, as unscheduled S-TIR.

A tile is a block of query rows of one head. Its keys come in blocks, and each step of the key loop does (`key_step`)

    s = q k^T;  x = score_mod(s) under the mask;  m' = max(m, x);  a = exp(m - m');  p = exp(x - m')
    l = l a + sum(p);  o = o a + p v;  m = m'

so that out = o / l after the last one (Milakov and Gimelshein, arXiv:1805.02867; Rabe and Staats, arXiv:2112.05682).
Everything is held transposed, queries last: s[key, query], o[column, query]. A schedule then puts queries in vector
lanes, reads k and v in place and needs no horizontal reduction.

Which keys a tile visits, and in which kind of step, is `key_loop`'s.
"""

from __future__ import annotations

import math
from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, Var, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.key_loop import visit_keys
from attncc.algorithm.key_step import OPAQUE, finite, weight_step
from attncc.algorithm.knowledge import knowledge
from attncc.algorithm.pair_loads import pair_loads
from attncc.algorithm.prefetch import LLVM as PREFETCH
from attncc.algorithm.prefill_tile import Tile, Tiling
from attncc.algorithm.signature import NAME, Signature, compute_dtype, declare, import_llvm, use_launcher
from attncc.algorithm.storage import pack, storage_dtype, unpack
from attncc.algorithm.survey import llvm_text as survey_text
from attncc.algorithm.transpose import Source, transpose
from attncc.algorithm.transpose import llvm_text as transpose_text
from attncc.spec import AttentionSpec


def build(spec: AttentionSpec, tiling: Tiling, around: tuple[str, ...] = ()) -> PrimFunc:
    """The kernel of `spec`. Its work table has a row a tile: batch, kv head, head, block of `tiling.queries` rows.

    `around` names two functions that a schedule wants called before and after each tile: what brings a core into the
    state in which its instructions work.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(NAME)
            signature = declare(spec)
            use_launcher(signature)
            _import_functions(spec, tiling)
            scalars = _scalars(spec, signature)
            n_tiles = signature.work.shape[0]
            with T.serial(n_tiles) as loop:
                IRBuilder.name("tile_loop", loop)
                with T.sblock("tile"):
                    number = T.axis.spatial(n_tiles, loop)
                    IRBuilder.name("tile", number)
                    accesses(signature.inputs, signature.outputs)
                    t = _open_tile(spec, tiling, signature, scalars, number)
                    for name in around[:1]:
                        _call("enter", name)
                    _tile(t)
                    for name in around[1:]:
                        _call("leave", name)
        function: PrimFunc = builder.get()
    return function


def _call(name: str, function: str) -> None:
    with scope(name):
        T.evaluate(T.call_extern("int32", function))


def _import_functions(spec: AttentionSpec, tiling: Tiling) -> None:
    """The functions in LLVM IR that the kernel calls."""
    known = knowledge(spec)
    turned = {spec.dtype} | {load.dtype for load in pair_loads(spec.score_mod, spec.mask)}
    for text in (
        OPAQUE,
        transpose_text(turned, tiling.turning),
        survey_text(known) if known is not None else "",
        PREFETCH if tiling.ahead else "",
    ):
        if text:
            import_llvm(text)


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
    visit_keys(t)
    with scope("finish"):
        _write(t)
    if "weights" in t.spec.outputs:
        _weights(t)


def _load_query(t: Tile) -> None:
    """The query tile, in its dtype; rows are turned over, so that queries lie in lanes."""
    spec, queries = t.spec, t.tiling.queries
    width = spec.query_dim or spec.head_dim
    turned = tile("turned_query", (width, queries), storage_dtype(spec.dtype))
    with repeat("turn_query", 1):
        accesses([t.signature.q], [turned])
        rows = t.signature.sizes["Sq"] - t.first_row
        source = Source(t.signature.q[t.batch, t.head, t.first_row, 0], t.signature.q.strides[2], 1, rows, width)
        transpose(spec.dtype, source, turned[0, 0], queries, (queries, width))
    if spec.bilinear is None:
        with stage("load_q", "SS", d=spec.head_dim, m=queries) as (d, m):
            same = t.tiling.dtype == spec.dtype
            store(t.query, [d, m], turned[d, m] if same else unpack(spec.dtype, t.tiling.dtype, turned[d, m]))
        return
    projected = tile("projected", (spec.head_dim, queries), t.dtype)
    weight = t.signature.extras[spec.bilinear]
    head = [t.head] if len(weight.shape) == 3 else []
    with stage("project", "SSR", d=spec.head_dim, m=queries, c=width) as (d, m, c):
        with T.init():
            store(projected, [d, m], tirx.const(0.0, t.dtype))
        product = numeric.cast(t.dtype, weight[(*head, c, d)]) * unpack(spec.dtype, t.dtype, turned[c, m])
        store(projected, [d, m], projected[d, m] + product)
    with stage("load_q", "SS", d=spec.head_dim, m=queries) as (d, m):
        store(t.query, [d, m], pack(t.tiling.dtype, projected[d, m]))


def _write(t: Tile) -> None:
    """out = o / l, with the spec's rule for rows that saw no key, and the statistics where they are wanted."""
    spec, queries, out, more = t.spec, t.tiling.queries, t.signature.out, t.signature.more
    rows = T.min(queries, t.signature.sizes["Sq"] - t.first_row)
    if t.softmax:
        with stage("invert", "S", m=queries) as (m,):
            value = tirx.const(1.0, t.dtype) / t.total[m]
            empty = tirx.const(0.0 if spec.empty_row == "zero" else math.nan, t.dtype)
            store(t.inverse, [m], T.Select(t.total[m] == tirx.const(0.0, t.dtype), empty, value))
    finished = tile("finished", (spec.value_dim, queries), storage_dtype(spec.dtype))
    with stage("round", "SS", e=spec.value_dim, m=queries) as (e, m):
        value = t.output[e, m] * t.inverse[m] if t.softmax else t.output[e, m]
        store(finished, [e, m], pack(spec.dtype, value))
    with repeat("write", 1):
        accesses([finished], [out])
        target = out[t.batch, t.head, t.first_row, 0]
        transpose(spec.dtype, Source(finished[0, 0], queries, 1, spec.value_dim, rows), target, out.strides[2])
    if "max" in more:
        with stage("write_max", "S", m=rows) as (m,):
            value = numeric.true_maximum(t.maximum[m], t.total[m]) * tirx.const(t.unit, t.dtype)
            store(more["max"], [t.batch, t.head, t.first_row + m], value)
    if "sum" in more:
        with stage("write_sum", "S", m=rows) as (m,):
            store(more["sum"], [t.batch, t.head, t.first_row + m], t.total[m])


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
