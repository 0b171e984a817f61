"""One tile of split-KV decode: a run of keys against the query rows of a key head's group.

The keys come in blocks:

    s = q k^T;  x = score_mod(s) under the mask;  m' = max(m, x);  a = exp(m - m');  p = exp(x - m')
    l = l a + sum(p);  o = o a + p v;  m = m'

Rows lie along head columns: a dot product is a sum over *strands*, columns equal modulo the number of strands, and the
sum of the strands comes last. A schedule puts strands in vector lanes. Columns past the last whole set of strands are a
stage of their own, as narrow as they are.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer, T, Var, tirx
from attncc.algorithm.blocks import let, repeat, scope, stage, store, tile
from attncc.algorithm.bounds import key_bounds
from attncc.algorithm.key_step import exp, finite
from attncc.algorithm.lower_expr import Env, lower
from attncc.algorithm.numeric import cast
from attncc.algorithm.signature import Signature, compute_dtype
from attncc.spec import AttentionSpec

FRACTION_BITS = 20
"""Keys of a tile are given in units of 2^-FRACTION_BITS of all keys that the mask leaves."""


@dataclass(frozen=True)
class Tiling:
    """What the algorithm must know of a schedule: the tile sizes baked into it."""

    row_chunk: int
    """Rows of a register tile."""
    keys: int
    """Keys of a block: a multiple of `key_chunk` and of `strands`."""
    key_chunk: int
    """Keys of a register tile of scores."""
    strands: int
    """Strands of a dot product."""
    column_sets: int
    """Most sets of `strands` columns in a register tile of the output."""


@dataclass(frozen=True)
class Columns:
    """`sets` sets of `width` columns from `start` on."""

    start: int
    sets: int
    width: int


def columns(total: int, strands: int, most: int) -> Iterator[Columns]:
    """`total` columns in runs of at most `most` sets of `strands`, then what is left as one narrower set."""
    whole = total // strands
    for first in range(0, whole, most):
        yield Columns(first * strands, min(most, whole - first), strands)
    if total % strands:
        yield Columns(whole * strands, 1, total % strands)


@dataclass(frozen=True)
class Kernel:
    """The kernel under construction."""

    spec: AttentionSpec
    tiling: Tiling
    signature: Signature
    scalars: Mapping[str, Any]
    rows: Any
    """Query rows of a tile: query length times group."""
    row_chunks: Any
    """Chunks of rows; the last may hold rows that repeat."""
    splits: Any
    """Tiles of a key head."""

    @property
    def dtype(self) -> str:
        """The compute dtype."""
        return compute_dtype(self.spec)

    @property
    def padded_rows(self) -> Any:
        """Rows of all chunks."""
        return self.row_chunks * self.tiling.row_chunk

    def place(self, kv_head: Any, row: Any) -> tuple[Any, Any]:
        """Head and query position of a row; rows past the end repeat the last one."""
        row = T.min(row, self.rows - 1)
        if self.spec.group == 1:
            return kv_head, row
        return kv_head * self.spec.group + row % self.spec.group, row // self.spec.group

    def zero(self) -> Any:
        return tirx.const(0.0, self.dtype)

    def write_row(self, name: str, batch: Any, kv_head: Any, row: Any, total: Any, value: Any) -> None:
        """out = value / total for each column of a row, by the spec's rule where no key was seen."""
        spec, out = self.spec, self.signature.out
        inverse = tile("inverse", (1,), self.dtype)
        head, query = self.place(kv_head, row)
        with stage(f"invert.{name}", "S", u=1) as (u,):
            empty = tirx.const(0.0 if spec.empty_row == "zero" else math.nan, self.dtype)
            quotient = tirx.const(1.0, self.dtype) / total
            store(inverse, [u], T.Select(total == self.zero(), empty, quotient))
        with stage(f"write.{name}", "S", e=spec.value_dim) as (column,):
            store(out, [batch, head, query, column], cast(spec.dtype, value(column) * inverse[0]))


@dataclass(frozen=True)
class Tile:
    """A tile under construction: where it is, and the buffers that live as long as it does."""

    kernel: Kernel
    batch: Any
    kv_head: Any
    split: Any
    first: Any
    end: Any
    query: Buffer
    """[rows, head_dim]"""
    raw: Buffer
    """[rows, keys]: s"""
    scores: Buffer
    """[rows, keys]: x"""
    probabilities: Buffer
    """[rows, keys]"""
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
    lo, hi = (let(name, value) for name, value in zip(("lo", "hi"), _visible(kernel, batch, kv_head), strict=True))
    first, end = (lo + (((hi - lo) * part) >> FRACTION_BITS) for part in (first, end))
    rows, keys = kernel.padded_rows, tiling.keys
    return Tile(
        kernel, batch, kv_head,
        split=let("split", number - (batch * signature.sizes["G"] + kv_head) * kernel.splits),
        first=let("first", first),
        end=let("end", end),
        query=tile("query", (rows, spec.head_dim), dtype),
        raw=tile("raw", (rows, keys), dtype),
        scores=tile("scores", (rows, keys), dtype),
        probabilities=tile("probabilities", (rows, keys), dtype),
        output=tile("output", (rows, spec.value_dim), dtype),
        **{name: tile(name, (rows,), dtype) for name in ("maximum", "new_maximum", "base", "decay")},
        **{name: tile(name, (rows, tiling.strands), dtype) for name in ("total", "new_total")},
    )  # fmt: skip


def _visible(kernel: Kernel, batch: Any, kv_head: Any) -> tuple[Any, Any]:
    """The keys that any row of a tile may see. Under a finite fill hidden keys may count, and all are visited."""
    spec, sizes = kernel.spec, kernel.signature.sizes
    if spec.mask is None or math.isfinite(spec.fill):
        return T.int64(0), sizes["Skv"]
    bounds = key_bounds(spec.mask)
    by_head = any(node == ex.Index("h") for end in (bounds.lo, bounds.hi) for node in end.walk())
    ranges = []
    for member in range(spec.group if by_head else 1):
        index = {"b": batch, "h": kv_head * spec.group + member, "first": T.int64(0), "last": sizes["Sq"] - 1}
        env = Env(kernel.dtype, index, sizes, kernel.scalars, kernel.signature.extras)
        ranges.append((lower(bounds.lo, env), lower(bounds.hi, env)))
    lo, hi = ranges[0]
    for other_lo, other_hi in ranges[1:]:
        lo, hi = T.min(lo, other_lo), T.max(hi, other_hi)
    return lo, hi


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
                store(t.query, [row, d], cast(t.dtype, q[t.batch, head, query, d]))
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
    """s = the sum over columns of element(q, k), a register tile of keys and rows at a time."""
    tiling = t.tiling
    n, r = tiling.key_chunk, tiling.row_chunk
    with (
        repeat("key_chunk", (count + (n - 1)) // n) as key_chunk,
        repeat("row_chunk", t.kernel.row_chunks) as row_chunk,
    ):
        first_key, first_row = key_chunk * n, row_chunk * r
        parts = [
            _part_score(t, number, part, start, count, first_key, first_row)
            for number, part in enumerate(columns(t.spec.head_dim, tiling.strands, t.spec.head_dim))
        ]
        with stage("keep_score", "SS", r=r, n=n) as (vr, vn):
            store(
                t.raw,
                [first_row + vr, first_key + vn],
                functools.reduce(operator.add, [part[vr, vn] for part in parts]),
            )


def _part_score(t: Tile, number: int, part: Columns, start: Any, count: Any, first_key: Any, first_row: Any) -> Buffer:
    """The sum over some columns, for a register tile. Keys past the end repeat the last one."""
    n, r, k = t.tiling.key_chunk, t.tiling.row_chunk, t.kernel.signature.k
    strands = tile(f"strands{number}", (r, n, part.width), t.dtype)
    sums = tile(f"sums{number}", (r, n), t.dtype)
    with stage(f"dot.{number}", "SSSR", r=r, n=n, l=part.width, d=part.sets) as (vr, vn, vl, vd):
        with T.init():
            store(strands, [vr, vn, vl], t.kernel.zero())
        column = part.start + vd * part.width + vl
        key = start + T.min(first_key + vn, count - 1)
        elements = {"q": t.query[first_row + vr, column], "k": cast(t.dtype, k[t.batch, t.kv_head, key, column])}
        term = lower(t.spec.element, Env(t.dtype, scalar=t.kernel.scalars, element=elements))
        store(strands, [vr, vn, vl], strands[vr, vn, vl] + term)
    with stage(f"sum_strands.{number}", "SSR", r=r, n=n, l=part.width) as (vr, vn, vl):
        with T.init():
            store(sums, [vr, vn], t.kernel.zero())
        store(sums, [vr, vn], sums[vr, vn] + strands[vr, vn, vl])
    return sums


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
