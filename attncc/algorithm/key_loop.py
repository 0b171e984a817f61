"""Which keys a tile of prefill visits, in which kind of step, and how often.

The mask's bounds (`bounds`) cut a tile's key blocks in three: hidden ones are not visited; full ones run a step without
mask code; the edges on both sides share one loop whose step clamps positions and evaluates the mask. Where the mask
reads tensors, or a bias may hide keys, a survey of the data (`survey`) sorts the blocks that the bounds leave.

Hidden keys may count after all, under a finite fill or a bias such as finfo.min: they have weight where a row sees
nothing much larger. Then, and only then, the tile is done again over all keys.
"""

from __future__ import annotations

import math
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer, T, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.bounds import key_bounds
from attncc.algorithm.key_step import EDGE, key_step
from attncc.algorithm.knowledge import Knowledge, knowledge
from attncc.algorithm.lower_expr import Env, lower
from attncc.algorithm.prefill_tile import Tile
from attncc.algorithm.survey import CHUNK, Survey, open_survey, survey_chunk
from attncc.algorithm.visibility import MARGIN, SAFE_MAXIMUM, biases
from attncc.spec import AttentionSpec


def visit_keys(t: Tile) -> None:
    """Compute the tile's sums over its keys, from the start."""
    safe_maximum = _safe_maximum(t.spec)
    if safe_maximum is not None:
        _attempts(t, safe_maximum)
    else:
        _start(t)
        _keys(t, None)


def _safe_maximum(spec: AttentionSpec) -> float | None:
    """What the maximum of a row must be above for hidden keys to have no weight; None where they never have any."""
    if spec.normalizer != "softmax":
        return None
    limits = [SAFE_MAXIMUM] if biases(spec) else []
    if spec.mask is not None and math.isfinite(spec.fill):
        limits.append(spec.fill + MARGIN)
    return max(limits, default=None)


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


def _attempts(t: Tile, safe_maximum: float) -> None:
    """Without the hidden blocks first, and with them where a row's maximum is not above `safe_maximum`."""
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
                    safe = lowest[u] > tirx.const(safe_maximum, t.dtype)
                    store(redo, [u], T.Select(tirx.And(hides, tirx.Not(safe)), 1, 0))


def _keys(t: Tile, all_keys: Any) -> Any:
    """The loops over key blocks; a condition `all_keys` makes them visit all. Gives whether keys left out may count."""
    limits, known = tile("limits", (5,), "int64"), knowledge(t.spec)
    with scope("limit"):
        for number, value in enumerate(_limits(t, all_keys)):
            with stage(f"limit{number}", "S", u=1) as (u,):
                store(limits, [u + number], value)
    if known is None:
        _keys_by_form(t, limits)
        return limits[4] > 0
    survey = _keys_by_data(t, limits, known, all_keys)
    lost = survey.counts[3] > 0
    return tirx.Or(lost, limits[4] > 0) if t.softmax and math.isfinite(t.spec.fill) else lost


def _keys_by_form(t: Tile, limits: Buffer) -> None:
    """The blocks that the mask's form leaves: full ones in the middle, edges on both sides."""
    edge = tile("edge_block", (1,), "int64")
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


def _keys_by_data(t: Tile, limits: Buffer, known: Knowledge, all_keys: Any) -> Survey:
    """Those of them that the data leaves, a chunk at a time."""
    survey = open_survey(t, known)
    first, end = limits[0], limits[3]
    touched = (*t.reads, limits, *survey.buffers), (*t.writes, *survey.buffers)
    with repeat("chunk", let("chunks", (end - first + (CHUNK - 1)) // CHUNK)) as chunk:
        accesses(*touched)
        start = let("chunk_first", first + chunk * CHUNK)
        survey_chunk(t, survey, start, T.min(end - start, CHUNK), all_keys)
        with repeat("full_step", let("full_steps", survey.counts[0])) as step:
            accesses(*touched)
            key_step(t, let("full_key", survey.full[step] * t.tiling.edge), "")
        with repeat("edge_step", let("edges", survey.counts[1])) as step:
            accesses(*touched)
            key_step(t, let("edge_key", survey.edges[step] * t.tiling.edge), EDGE)
    return survey


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
