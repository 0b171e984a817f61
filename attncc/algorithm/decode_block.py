"""One block of keys of a decode tile: scores, softmax, weighted sum.

    s = q k^T;  x = score_mod(s) under the mask;  m' = max(m, x);  a = exp(m - m');  p = exp(x - m')
    l = l a + sum(p);  o = o a + p v;  m = m'

Without a normalizer p = x, and o = o + p v is all.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attncc._tvm import Buffer, T, tirx
from attncc.algorithm.blocks import repeat, scope, stage, store, tile
from attncc.algorithm.decode_copies import Copies, copy_by_key, from_copies
from attncc.algorithm.decode_parts import Columns, exp, finite, head_columns, value_unit, weighs_values
from attncc.algorithm.decode_values import weighted_sum
from attncc.algorithm.decode_weights import keep_block
from attncc.algorithm.lower_expr import lower
from attncc.algorithm.numeric import cast
from attncc.algorithm.prefetch import prefetch_lines
from attncc.algorithm.storage import loaded

if TYPE_CHECKING:
    from attncc.algorithm.decode_tile import Tile


def emit_block(t: Tile, start: Any, count: Any) -> None:
    """The `count` keys from `start` on."""
    _score(t, start, count)
    with repeat("softmax_row", t.kernel.padded_rows) as row:
        _weigh(t, start, count, row)
    weighted_sum(t, start, count)


def _score(t: Tile, start: Any, count: Any) -> None:
    """s = the sum over columns of element(q, k), a chunk of keys at a time, and of these a chunk of rows.

    Keys are read one or a few at a time, in the order in which they lie, so that hardware sees a stream to prefetch;
    their strands are kept, and summed for a chunk of keys together.
    """
    tiling = t.tiling
    n, r = tiling.key_chunk, tiling.row_chunk
    parts = head_columns(t.spec.head_dim, tiling)
    with (
        repeat("key_chunk", (count + (n - 1)) // n) as key_chunk,
        repeat("row_chunk", t.kernel.row_chunks) as row_chunk,
    ):
        first_key, first_row = key_chunk * n, row_chunk * r
        strands = [tile(f"strands{number}", (r, n, part.width), t.dtype) for number, part in enumerate(parts)]
        steps = (T.min(count - first_key, n) + (tiling.key_rows - 1)) // tiling.key_rows
        with repeat("key_step", steps) as step:
            at = step * tiling.key_rows
            for row in range(tiling.key_rows):
                _prefetch_key(t, start + first_key + at + row, row_chunk)
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


def _prefetch_key(t: Tile, key: Any, row_chunk: Any) -> None:
    """This chunk of rows' part of a row of k that comes later."""
    if t.kernel.prefetched is not None:
        lines = t.kernel.prefetched.key_lines
        prefetch_lines(t.kernel.signature.k, (t.batch, t.kv_head, key + t.tiling.ahead), row_chunk * lines, lines)


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
            value = loaded(t.spec.key_dtype or t.spec.dtype, t.dtype, k[t.batch, t.kv_head, key, column])
            head, _ = t.kernel.place(t.kv_head, first_row + vr)
            env = replace(
                t.kernel.env(b=t.batch, h=head, d=column),
                element={"q": t.number(t.query[first_row + vr, column]), "k": value},
            )
            term = lower(t.spec.element, env)
            store(sums, [vr, vn, vl], sums[vr, vn, vl] + term)
        with stage(f"keep_strands.{number}", "SSS", **shape) as (vr, vn, vl):
            store(strands, [vr, at + vn, vl], sums[vr, vn, vl])


def _weigh(t: Tile, start: Any, count: Any, row: Any) -> None:
    """The weights of a row's keys, from their scores."""
    width = t.tiling.strands
    sets = (count + (width - 1)) // width
    weights = t.scores if t.kernel.normalizes else t.probabilities
    copies = copy_by_key(t, start, count, row) if t.tiling.copy_by_key else {}
    top = tile("top", (width,), t.dtype) if t.kernel.normalizes else None
    with scope("modify_scores"):
        with stage("modify", "SS", v=sets, l=width) as (v, lane):
            at = v * width + lane
            x = _modified(t, copies, row, at, start + T.min(at, count - 1), t.raw[row, at])
            store(weights, [row, at], T.Select(at < count, x, t.kernel.unseen))
        if top is not None:
            with stage("lane_max", "SR", l=width, v=sets) as (lane, v):
                with T.init():
                    store(top, [lane], tirx.const(-math.inf, t.dtype))
                store(top, [lane], T.max(top[lane], t.scores[row, v * width + lane]))
    if t.kernel.kept is not None:
        keep_block(t, t.kernel.kept, row, start, count, weights)
    if top is not None:
        _softmax(t, row, top, sets)
    if weighs_values(t.spec):
        _weigh_values(t, copies, start, count, row, sets)


def _softmax(t: Tile, row: Any, top: Buffer, sets: Any) -> None:
    """The new maximum of a row, p and the new sum."""
    width = t.tiling.strands
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


def _weigh_values(t: Tile, copies: Copies, start: Any, count: Any, row: Any, sets: Any) -> None:
    """The weights with which rows of v are summed, where those have scales of their own or come in units."""
    width, scale = t.tiling.strands, t.spec.value_scale
    with scope("weights"), stage("weigh_values", "SS", v=sets, l=width) as (v, lane):
        at = v * width + lane
        weight = t.probabilities[row, at]
        if scale is not None:
            head, _ = t.kernel.place(t.kv_head, row)
            env = t.kernel.env(b=t.batch, h=head, j=start + T.min(at, count - 1))
            weight = weight * cast(t.dtype, lower(*from_copies(scale, env, copies, at)))
        if value_unit(t.spec) != 1.0:
            weight = weight * tirx.const(value_unit(t.spec), t.dtype)
        store(t.weights, [row, at], weight)


def _modified(t: Tile, copies: Copies, row: Any, at: Any, key: Any, score: Any) -> Any:
    """score_mod under the mask."""
    spec = t.spec
    head, query = t.kernel.place(t.kv_head, row)
    env = t.kernel.env(score, b=t.batch, h=head, i=query, j=key)
    x = lower(*from_copies(spec.score_mod, env, copies, at))
    if spec.mask is None:
        return x
    return T.Select(lower(*from_copies(spec.mask, env, copies, at)), x, tirx.const(spec.fill, t.dtype))
