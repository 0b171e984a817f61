"""One tile of split-KV decode: a run of keys against the query rows of a key head's group.

The keys come in blocks:

    s = q k^T;  x = score_mod(s) under the mask;  m' = max(m, x);  a = exp(m - m');  p = exp(x - m')
    l = l a + sum(p);  o = o a + p v;  m = m'
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

from attncc._tvm import Buffer, T, tirx
from attncc.algorithm.blocks import repeat, scope, stage, store, tile
from attncc.algorithm.decode_parts import Columns, Tile, columns, exp, finite, head_columns
from attncc.algorithm.lower_expr import Env, lower
from attncc.algorithm.numeric import cast


def emit_tile(t: Tile) -> None:
    """Load the queries, go over the keys, write what came out."""
    with scope("load_query"):
        _load_query(t)
    with scope("start"):
        _start(t)
    keys = t.tiling.keys
    with repeat("block", (t.end - t.first + (keys - 1)) // keys) as block:
        start = t.first + block * keys
        count = T.min(t.end - start, keys)
        _score(t, start, count)
        with repeat("softmax_row", t.kernel.padded_rows) as row:
            _softmax(t, start, count, row)
        with repeat("output_chunk", t.kernel.row_chunks) as chunk:
            _weighted_sum(t, start, count, chunk * t.tiling.row_chunk)
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
    """Nothing seen so far."""
    with repeat("start_row", t.kernel.padded_rows) as row:
        with stage("start_max", "S", u=1) as (u,):
            store(t.maximum, [row + u], tirx.const(-math.inf, t.dtype))
        with stage("start_sum", "S", l=t.tiling.strands) as (lane,):
            store(t.total, [row, lane], t.kernel.zero())
        with stage("start_output", "S", e=t.spec.value_dim) as (column,):
            store(t.output, [row, column], t.kernel.zero())


def _score(t: Tile, start: Any, count: Any) -> None:
    """s = the sum over columns of element(q, k), a chunk of rows at a time.

    Keys are read one or a few at a time, in the order in which they lie, so that hardware sees a stream to prefetch;
    their strands are kept, and summed for a chunk of keys together.
    """
    tiling = t.tiling
    n, r = tiling.key_chunk, tiling.row_chunk
    parts = head_columns(t.spec.head_dim, tiling)
    with (
        repeat("row_chunk", t.kernel.row_chunks) as row_chunk,
        repeat("key_chunk", (count + (n - 1)) // n) as key_chunk,
    ):
        first_key, first_row = key_chunk * n, row_chunk * r
        strands = [tile(f"strands{number}", (r, n, part.width), t.dtype) for number, part in enumerate(parts)]
        steps = (T.min(count - first_key, n) + (tiling.key_rows - 1)) // tiling.key_rows
        with repeat("key_step", steps) as step:
            at = step * tiling.key_rows
            for number, part in enumerate(parts):
                _dot(t, number, part, start, count, first_key, first_row, at, strands[number])
        sums = [tile(f"sums{number}", (r, n), t.dtype) for number in range(len(parts))]
        for number, part in enumerate(parts):
            with stage(f"sum_strands.{number}", "SSR", r=r, n=n, l=part.width) as (vr, vn, vl):
                with T.init():
                    store(sums[number], [vr, vn], t.kernel.zero())
                store(sums[number], [vr, vn], sums[number][vr, vn] + strands[number][vr, vn, vl])
        with stage("keep_score", "SS", r=r, n=n) as (vr, vn):
            score = functools.reduce(operator.add, [part[vr, vn] for part in sums])
            store(t.raw, [first_row + vr, first_key + vn], score)


def _dot(
    t: Tile,
    number: int,
    part: Columns,
    start: Any,
    count: Any,
    first_key: Any,
    first_row: Any,
    at: Any,
    strands: Buffer,
) -> None:
    """Strand sums over some columns of a register tile: a chunk of rows, and the keys from `at` of the chunk on."""
    n, r, k = t.tiling.key_rows, t.tiling.row_chunk, t.kernel.signature.k
    shape = {"r": r, "n": n, "l": part.width}
    with scope(f"score_part.{number}"):
        sums = tile(f"dots{number}", tuple(shape.values()), t.dtype)
        pair = {"p": part.pairs} if part.pairs > 1 else {}
        with stage(f"dot.{number}", "SSSR" + "R" * len(pair), **shape, d=part.sets, **pair) as axes:
            vr, vn, vl, vd = axes[:4]
            with T.init():
                store(sums, [vr, vn, vl], t.kernel.zero())
            column = part.start + (vd * part.width + vl) * part.pairs + sum(axes[4:])
            key = start + T.min(first_key + at + vn, count - 1)
            value = cast(t.dtype, k[t.batch, t.kv_head, key, column])
            elements = {"q": t.number(t.query[first_row + vr, column]), "k": value}
            term = lower(t.spec.element, Env(t.dtype, scalar=t.kernel.scalars, element=elements))
            store(sums, [vr, vn, vl], sums[vr, vn, vl] + term)
        with stage(f"keep_strands.{number}", "SSS", **shape) as (vr, vn, vl):
            store(strands, [vr, at + vn, vl], sums[vr, vn, vl])


def _softmax(t: Tile, start: Any, count: Any, row: Any) -> None:
    """x, the new maximum, p and the new sum of a row."""
    width = t.tiling.strands
    sets = (count + (width - 1)) // width
    top = tile("top", (width,), t.dtype)
    with scope("modify_scores"):
        with stage("modify", "SS", v=sets, l=width) as (v, lane):
            at = v * width + lane
            x = _modified(t, row, start + T.min(at, count - 1), t.raw[row, at])
            store(t.scores, [row, at], T.Select(at < count, x, tirx.const(-math.inf, t.dtype)))
        with stage("lane_max", "SR", l=width, v=sets) as (lane, v):
            with T.init():
                store(top, [lane], tirx.const(-math.inf, t.dtype))
            # a NaN score may be lost here: it makes its probability NaN, and with it the whole row
            store(top, [lane], T.max(top[lane], t.scores[row, v * width + lane]))
    with scope("online_max"):
        with stage("row_max", "SR", u=1, l=width) as (u, lane):
            with T.init():
                store(t.new_maximum, [row + u], t.maximum[row + u])
            store(t.new_maximum, [row + u], T.max(t.new_maximum[row + u], top[lane]))
        with stage("base", "S", u=1) as (u,):
            store(t.base, [row + u], finite(t.new_maximum[row + u]))
        with stage("decay", "S", u=1) as (u,):
            store(t.decay, [row + u], exp(t.maximum[row + u] - t.base[row + u]))
    with scope("commit_max"), stage("keep_max", "S", u=1) as (u,):
        store(t.maximum, [row + u], t.new_maximum[row + u])
    with scope("weigh"):
        with stage("exp", "SS", v=sets, l=width) as (v, lane):
            at = v * width + lane
            store(t.probabilities, [row, at], exp(t.scores[row, at] - t.base[row]))
        with stage("lane_sum", "SR", l=width, v=sets) as (lane, v):
            with T.init():
                store(t.new_total, [row, lane], t.total[row, lane] * t.decay[row])
            store(t.new_total, [row, lane], t.new_total[row, lane] + t.probabilities[row, v * width + lane])
    with scope("commit_sum"), stage("keep_sum", "S", l=width) as (lane,):
        store(t.total, [row, lane], t.new_total[row, lane])


def _modified(t: Tile, row: Any, key: Any, score: Any) -> Any:
    """score_mod under the mask."""
    spec = t.spec
    head, query = t.kernel.place(t.kv_head, row)
    index = {"b": t.batch, "h": head, "i": query, "j": key}
    env = Env(t.dtype, index, t.kernel.signature.sizes, t.kernel.scalars, t.kernel.signature.extras, score)
    x = lower(spec.score_mod, env)
    return x if spec.mask is None else T.Select(lower(spec.mask, env), x, tirx.const(spec.fill, t.dtype))


def _weighted_sum(t: Tile, start: Any, count: Any, first_row: Any) -> None:
    """o = o a + p v for a chunk of rows, a register tile of columns at a time."""
    rows, v = t.tiling.row_chunk, t.kernel.signature.v
    for number, part in enumerate(columns(t.spec.value_dim, t.tiling.strands, t.tiling.column_sets)):
        with scope(f"weighted_sum.{number}"):
            sums = tile(f"pv{number}", (rows, part.sets, part.width), t.dtype)
            shape = {"r": rows, "c": part.sets, "l": part.width}
            with stage(f"pv.{number}", "SSSR", **shape, n=count) as (vr, vc, vl, vn):
                column, row = part.start + vc * part.width + vl, first_row + vr
                with T.init():
                    store(sums, [vr, vc, vl], t.output[row, column] * t.decay[row])
                value = cast(t.dtype, v[t.batch, t.kv_head, start + vn, column])
                store(sums, [vr, vc, vl], sums[vr, vc, vl] + t.probabilities[row, vn] * value)
            with stage(f"keep_output.{number}", "SSS", **shape) as (vr, vc, vl):
                store(t.output, [first_row + vr, part.start + vc * part.width + vl], sums[vr, vc, vl])


def _write(t: Tile) -> None:
    """Partial results to the workspaces; with one split, rows to `out`."""
    kernel = t.kernel
    place = [t.batch * kernel.signature.sizes["G"] + t.kv_head, t.split]
    output, maximum, total, _ = kernel.signature.workspaces
    sums = tile("row_total", (t.kernel.rows,), t.dtype)
    with repeat("total_row", kernel.rows) as row, stage("row_total", "SR", u=1, l=t.tiling.strands) as (u, lane):
        with T.init():
            store(sums, [row + u], kernel.zero())
        store(sums, [row + u], sums[row + u] + t.total[row, lane])
    with repeat("final_row", T.Select(kernel.splits == 1, kernel.rows, T.int64(0))) as row:
        kernel.write_row("final", t.batch, t.kv_head, row, sums[row], lambda e: t.output[row, e])
    with repeat("partial_row", T.Select(kernel.splits == 1, T.int64(0), kernel.rows)) as row:
        with stage("partial_max", "S", u=1) as (u,):
            store(maximum, [*place, row + u], t.maximum[row + u])
        with stage("partial_sum", "S", u=1) as (u,):
            store(total, [*place, row + u], sums[row + u])
        with stage("partial_output", "S", e=t.spec.value_dim) as (column,):
            store(output, [*place, row, column], t.output[row, column])
