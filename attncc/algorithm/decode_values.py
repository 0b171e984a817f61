"""The weighted sum of a block of keys of a decode tile: o = o a + p v, some rows of v at a time for all rows of q.

Where products take pairs (bfloat16), p is rounded, and two rows of v are interleaved once for all rows of q:

    o[r, e] += p[r, n] v[n, e] + p[r, n + 1] v[n + 1, e]

A last row of v without another is multiplied on its own: there is none that could stand beside it, for nothing times
infinity is no number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attncc._tvm import Buffer, T
from attncc.algorithm.blocks import repeat, scope, stage, store, tile
from attncc.algorithm.decode_parts import Columns, paired_columns, value_columns, value_unit
from attncc.algorithm.numeric import const, widened
from attncc.algorithm.prefetch import prefetch_rows
from attncc.algorithm.storage import in_units, loaded, pack

if TYPE_CHECKING:
    from attncc.algorithm.decode_tile import Tile


def weighted_sum(t: Tile, start: Any, count: Any) -> None:
    """Add the weighted values of the `count` keys from `start` on to the decayed output."""
    tiling, pairs = t.tiling, t.tiling.value_pairs
    parts = value_columns(t.spec, tiling)
    some = tiling.value_rows // pairs
    products = count // pairs
    if t.paired_weights is not None:
        _round_weights(t, t.paired_weights, products)
    with repeat("value_chunk", (products + (some - 1)) // some) as chunk:
        first, steps = chunk * tiling.value_rows, T.min(products - chunk * some, some)
        paired = _pair_values(t, start + first, steps) if parts[0].pairs > 1 else None
        with repeat("output_chunk", t.kernel.row_chunks) as row_chunk:
            for number, part in enumerate(parts):
                _prefetch_values(t, start + first, row_chunk * len(parts) + number)
                _sum_columns(t, number, part, start, first, steps, row_chunk * tiling.row_chunk, paired)
    if pairs > 1:
        _last_value(t, start, count - products * pairs, products * pairs)


def _prefetch_values(t: Tile, first: Any, turn: Any) -> None:
    """One turn's part of as many rows of v as are read together, that come after those from `first` on."""
    if t.kernel.prefetched is not None:
        share = t.kernel.prefetched.value_rows
        rows = T.min(share, t.tiling.value_rows - turn * share)
        prefetch_rows(t.kernel.signature.v, (t.batch, t.kv_head, first + t.tiling.ahead + turn * share), rows)


def _round_weights(t: Tile, rounded: Buffer, products: Any) -> None:
    """p in bfloat16, of an even number of keys."""
    width = t.tiling.strands
    sets = (products * 2 + (width - 1)) // width
    with repeat("round_row", t.kernel.padded_rows) as row, stage("round_weights", "SS", n=sets, l=width) as (n, lane):
        at = n * width + lane
        store(rounded, [row, at], pack("bfloat16", t.weights[row, at]))


def _pair_values(t: Tile, at: Any, steps: Any) -> Buffer:
    """[value_rows / 2, columns, 2]: rows of v from `at` on, interleaved two by two."""
    width = paired_columns(t.spec, t.tiling)
    paired = tile("paired_values", (t.tiling.value_rows // 2, width, 2), "uint16")
    with scope("pair_values"), stage("pair_v", "SSS", n=steps, p=2, e=width) as (n, p, e):
        value = t.kernel.signature.v[t.batch, t.kv_head, at + n * 2 + p, e]
        store(paired, [n, e, p], pack("bfloat16", value))
    return paired


def _decayed(t: Tile, row: Any, column: Any, first: Any) -> Any:
    """An element of the output so far; what the block decays, it decays with its first keys."""
    sofar = t.output[row, column]
    if not t.kernel.normalizes:
        return sofar
    return sofar * T.Select(first == 0, t.decay[row], const(1.0, sofar))


def _sum_columns(
    t: Tile,
    number: int,
    part: Columns,
    start: Any,
    first: Any,
    steps: Any,
    first_row: Any,
    paired: Buffer | None,
) -> None:
    """o = o a + p v for a chunk of rows and some columns, over the keys from `first` of the block on."""
    rows = t.tiling.row_chunk
    with scope(f"weighted_sum.{number}"):
        sums = tile(f"pv{number}", (rows, part.sets, part.width), t.dtype)
        shape = {"r": rows, "c": part.sets, "l": part.width}
        rounded = t.paired_weights
        if part.pairs > 1 and paired is not None and rounded is not None:
            with stage(f"pv.{number}", "SSSRR", **shape, n=steps, p=2) as (vr, vc, vl, vn, vp):
                column, row, key = part.start + vc * part.width + vl, first_row + vr, first + vn * 2 + vp
                # not what the sum starts from, which the instruction knows nothing of
                T.reads(sums[vr, vc, vl], paired[vn, column, vp], rounded[row, key])
                T.writes(sums[vr, vc, vl])
                with T.init():
                    store(sums, [vr, vc, vl], _decayed(t, row, column, first))
                product = widened(paired[vn, column, vp]) * widened(rounded[row, key])
                store(sums, [vr, vc, vl], sums[vr, vc, vl] + product)
        else:
            with stage(f"pv.{number}", "SSSR", **shape, n=steps * t.tiling.value_pairs) as (vr, vc, vl, vn):
                column, row = part.start + vc * part.width + vl, first_row + vr
                with T.init():
                    store(sums, [vr, vc, vl], _decayed(t, row, column, first))
                product = t.weights[row, first + vn] * _value(t, start + first + vn, column)
                store(sums, [vr, vc, vl], sums[vr, vc, vl] + product)
        with stage(f"keep_output.{number}", "SSS", **shape) as (vr, vc, vl):
            store(t.output, [first_row + vr, part.start + vc * part.width + vl], sums[vr, vc, vl])


def _last_value(t: Tile, start: Any, left: Any, at: Any) -> None:
    """The key `at` of the block, where one is `left`."""
    with repeat("last_row", t.kernel.padded_rows * left) as row, scope("last"):
        sums = tile("last_output", (t.spec.value_dim,), t.dtype)
        with stage("last_value", "S", e=t.spec.value_dim) as (column,):
            product = t.weights[row, at] * _value(t, start + at, column)
            store(sums, [column], _decayed(t, row, column, at) + product)
        with stage("keep_last", "S", e=t.spec.value_dim) as (column,):
            store(t.output, [row, column], sums[column])


def _value(t: Tile, key: Any, column: Any) -> Any:
    """An element of v, in units where weights have them."""
    read = loaded if value_unit(t.spec) == 1.0 else in_units
    kind = t.spec.value_dtype or t.spec.dtype
    return read(kind, t.dtype, t.kernel.signature.v[t.batch, t.kv_head, key, column])
