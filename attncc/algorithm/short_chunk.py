"""Some query rows of `short`, over all keys: scores, softmax, weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attncc._tvm import Buffer, T, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import let, repeat, scope, stage, store, tile
from attncc.algorithm.bounds import key_bounds
from attncc.algorithm.decode_parts import columns, exp, finite
from attncc.algorithm.lower_expr import Env, lower
from attncc.algorithm.short_parts import Tiling
from attncc.algorithm.signature import Signature, compute_dtype
from attncc.algorithm.storage import pack
from attncc.spec import AttentionSpec


@dataclass(frozen=True)
class Tile:
    """A tile under construction: where it is, and the buffers that live as long as it does."""

    spec: AttentionSpec
    tiling: Tiling
    signature: Signature
    scalars: Mapping[str, Any]
    batch: Any
    kv_head: Any
    head: Any
    keys: Buffer
    """[blocks, head_dim / pairs, lanes, pairs]"""
    values: Buffer | None
    """[keys / pairs, value_dim, pairs]; None where v is read where it lies"""
    weights: Buffer
    """[rows, keys]: p, in the compute dtype"""
    scores: Buffer
    """[rows, keys]: x; `weights` where x is the weight"""
    factors: Buffer
    """[rows, keys]: p as it is multiplied; `weights` where that is the same"""

    @property
    def dtype(self) -> str:
        """The compute dtype."""
        return compute_dtype(self.spec)

    @property
    def softmax(self) -> bool:
        """Whether weights are normalised; else x itself is the weight."""
        return self.spec.normalizer == "softmax"

    @property
    def kv_len(self) -> Any:
        return self.signature.sizes["Skv"]

    @property
    def paired(self) -> bool:
        return self.tiling.pairs > 1

    def zero(self) -> Any:
        return tirx.const(0.0, self.dtype)

    def widened(self, value: Any) -> Any:
        """A number of a packed tile in the compute dtype."""
        return numeric.widened(value) if self.paired else numeric.cast(self.dtype, value)

    def env(self, row: Any, key: Any, score: Any = None) -> Env:
        """What the leaves of the spec's expressions are at a place."""
        index = {"b": self.batch, "h": self.head, "i": row, "j": key}
        return Env(self.dtype, index, self.signature.sizes, self.scalars, self.signature.extras, score)


@dataclass(frozen=True)
class Chunk:
    """Some rows of a tile."""

    t: Tile
    first_row: Any
    end: Any
    """The keys that some of the rows may see lie before it."""
    blocks: Any
    """Vectors of keys before it."""
    query: Buffer
    """[rows, head_dim]"""
    base: Buffer
    """[rows]: what is subtracted from x; the maximum, or 0 where that is -inf"""
    maximum: Buffer
    total: Buffer
    inverse: Buffer
    """[rows]: 1 / the sum of p, or what an empty row gives"""

    @property
    def rows(self) -> int:
        return self.t.tiling.rows

    def row(self, r: Any) -> Any:
        """Position of a row; those past the end repeat the last one."""
        return T.min(self.first_row + r, self.t.signature.sizes["Sq"] - 1)


def open_chunk(t: Tile, first_row: Any) -> Chunk:
    """The rows from `first_row` on, and the keys that they may see."""
    rows, dtype, spec = t.tiling.rows, t.dtype, t.spec
    end = t.kv_len
    hidden_is_nothing = spec.fill == (-math.inf if t.softmax else 0.0) and "weights" not in spec.outputs
    if spec.mask is not None and hidden_is_nothing:
        last = let("last_row", T.min(first_row + rows, t.signature.sizes["Sq"]) - 1)
        index = {"b": t.batch, "h": t.head, "first": first_row, "last": last}
        env = Env(dtype, index, t.signature.sizes, t.scalars, t.signature.extras)
        end = let("end", lower(key_bounds(spec.mask).hi, env))
    return Chunk(
        t, first_row, end,
        blocks=let("blocks", (end + (t.tiling.lanes - 1)) // t.tiling.lanes),
        query=tile("query", (rows, spec.head_dim), t.keys.ty.dtype),
        **{name: tile(name, (rows,), dtype) for name in ("base", "maximum", "total", "inverse")},
    )  # fmt: skip


def emit_chunk(c: Chunk) -> None:
    """Scores, weights and weighted sums of some rows, and all outputs of theirs."""
    with scope("load_query"):
        _load_query(c)
    sets = c.t.tiling.key_sets
    with repeat("key_sets", let("tiles", (c.blocks + (sets - 1)) // sets)) as number:
        _score(c, number * sets)
    with scope("softmax"):
        if c.t.softmax:
            _softmax(c)
        if c.t.paired:
            with stage("keep", "SSS", b=c.blocks, r=c.rows, l=c.t.tiling.lanes) as (b, r, lane):
                at = b * c.t.tiling.lanes + lane
                store(c.t.factors, [r, at], pack("bfloat16", c.t.weights[r, at]))
    for number, _ in enumerate(columns(c.t.spec.value_dim, c.t.tiling.lanes, c.t.tiling.column_sets)):
        _weighted_sum(c, number)
    _write_more(c)


def _load_query(c: Chunk) -> None:
    """The rows of q, or of q W."""
    t, spec, q = c.t, c.t.spec, c.t.signature.q
    if spec.bilinear is None:
        with stage("load_q", "SS", r=c.rows, d=spec.head_dim) as (r, d):
            value = q[t.batch, t.head, c.row(r), d]
            store(c.query, [r, d], tirx.reinterpret("uint16", value) if t.paired else numeric.cast(t.dtype, value))
        return
    width, weight = spec.query_dim or spec.head_dim, t.signature.extras[spec.bilinear]
    at = [t.head] if len(weight.shape) == 3 else []
    projected = tile("projected", (c.rows, spec.head_dim), t.dtype)
    with stage("project", "SSR", r=c.rows, d=spec.head_dim, c=width) as (r, d, w):
        with T.init():
            store(projected, [r, d], t.zero())
        term = numeric.cast(t.dtype, q[t.batch, t.head, c.row(r), w]) * numeric.cast(t.dtype, weight[(*at, w, d)])
        store(projected, [r, d], projected[r, d] + term)
    with stage("load_q", "SS", r=c.rows, d=spec.head_dim) as (r, d):
        store(c.query, [r, d], pack("bfloat16", projected[r, d]) if t.paired else projected[r, d])


def _score(c: Chunk, first_block: Any) -> None:
    """x = score_mod(q k^T) under the mask, for some vectors of keys; no weight past the end of the keys."""
    t, spec, lanes, pairs = c.t, c.t.spec, c.t.tiling.lanes, c.t.tiling.pairs
    shape = {"r": c.rows, "b": t.tiling.key_sets, "l": lanes}
    with scope("score"):
        s = tile("raw", tuple(shape.values()), t.dtype)
        pair = {"p": pairs} if t.paired else {}
        with stage("qk", "SSSR" + "R" * len(pair), **shape, d=spec.head_dim // pairs, **pair) as axes:
            r, b, lane, d = axes[:4]
            p = axes[4] if t.paired else 0
            with T.init():
                store(s, [r, b, lane], t.zero())
            column = d * pairs + p
            elements = {"q": t.widened(c.query[r, column]), "k": t.widened(t.keys[first_block + b, d, lane, p])}
            index = {"b": t.batch, "h": t.head, "d": numeric.cast("int64", column)}
            env = Env(t.dtype, index, t.signature.sizes, t.scalars, t.signature.extras, None, elements)
            term = elements["k"] * elements["q"] if t.paired else lower(spec.element, env)
            store(s, [r, b, lane], s[r, b, lane] + term)
        with stage("modify", "SSS", **shape) as (r, b, lane):
            key = (first_block + b) * lanes + lane
            env = t.env(c.row(r), T.min(key, t.kv_len - 1), s[r, b, lane])
            x = lower(spec.score_mod, env)
            if spec.mask is not None:
                x = T.Select(lower(spec.mask, env), x, tirx.const(spec.fill, t.dtype))
            nothing = tirx.const(-math.inf if t.softmax else 0.0, t.dtype)
            store(c.t.scores, [r, key], T.Select(key < t.kv_len, x, nothing))


def _softmax(c: Chunk) -> None:
    t, rows, lanes = c.t, c.rows, c.t.tiling.lanes
    top, sums = tile("top", (rows, lanes), t.dtype), tile("sums", (rows, lanes), t.dtype)
    highest, whole = tile("highest", (rows,), t.dtype), tile("whole", (rows,), t.dtype)
    with stage("lane_max", "SSR", r=rows, l=lanes, b=c.blocks) as (r, lane, b):
        with T.init():
            store(top, [r, lane], tirx.const(-math.inf, t.dtype))
        # a NaN score may be lost here: it makes its weight NaN, and with it the whole row
        store(top, [r, lane], T.max(top[r, lane], c.t.scores[r, b * lanes + lane]))
    with stage("row_max", "SR", r=rows, l=lanes) as (r, lane):
        with T.init():
            store(highest, [r], tirx.const(-math.inf, t.dtype))
        store(highest, [r], T.max(highest[r], top[r, lane]))
    with stage("maximum", "S", r=rows) as (r,):
        store(c.maximum, [r], _with_sink(c, r, highest[r]))
    with stage("base", "S", r=rows) as (r,):
        store(c.base, [r], finite(c.maximum[r]))
    with stage("weigh", "SSS", b=c.blocks, r=rows, l=lanes) as (b, r, lane):
        at = b * lanes + lane
        store(c.t.weights, [r, at], exp(c.t.scores[r, at] - c.base[r]))
    with stage("lane_sum", "SSR", r=rows, l=lanes, b=c.blocks) as (r, lane, b):
        with T.init():
            store(sums, [r, lane], t.zero())
        store(sums, [r, lane], sums[r, lane] + c.t.weights[r, b * lanes + lane])
    with stage("row_sum", "SR", r=rows, l=lanes) as (r, lane):
        with T.init():
            store(whole, [r], t.zero())
        store(whole, [r], whole[r] + sums[r, lane])
    with stage("total", "S", r=rows) as (r,):
        sink = _sink(c, r)
        store(c.total, [r], whole[r] if sink is None else whole[r] + exp(sink - c.base[r]))
    with stage("invert", "S", r=rows) as (r,):
        empty = tirx.const(0.0 if t.spec.empty_row == "zero" else math.nan, t.dtype)
        store(c.inverse, [r], T.Select(c.total[r] == t.zero(), empty, tirx.const(1.0, t.dtype) / c.total[r]))


def _sink(c: Chunk, r: Any) -> Any:
    if c.t.spec.sink is None:
        return None
    return numeric.cast(c.t.dtype, lower(c.t.spec.sink, c.t.env(c.row(r), None)))


def _with_sink(c: Chunk, r: Any, highest: Any) -> Any:
    sink = _sink(c, r)
    return highest if sink is None else T.max(highest, sink)


def _weighted_sum(c: Chunk, number: int) -> None:
    """out = p v / sum(p), for a register tile of columns."""
    t, pairs, out = c.t, c.t.tiling.pairs, c.t.signature.out
    part = list(columns(t.spec.value_dim, t.tiling.lanes, t.tiling.column_sets))[number]
    shape = {"r": c.rows, "c": part.sets, "l": part.width}
    with scope(f"weighted_sum.{number}"):
        sums = tile(f"pv{number}", tuple(shape.values()), t.dtype)
        pair = {"p": pairs} if t.paired else {}
        extent = (c.end + (pairs - 1)) // pairs
        with stage(f"pv.{number}", "SSSR" + "R" * len(pair), **shape, n=extent, **pair) as axes:
            r, at, lane, n = axes[:4]
            p = axes[4] if t.paired else 0
            column = part.start + at * part.width + lane
            with T.init():
                store(sums, [r, at, lane], t.zero())
            if t.values is None:
                term = c.t.factors[r, n] * t.signature.v[t.batch, t.kv_head, n, column]
            else:
                term = t.widened(t.values[n, column, p]) * t.widened(c.t.factors[r, n * pairs + p])
            store(sums, [r, at, lane], sums[r, at, lane] + term)
        with stage(f"write.{number}", "SSS", **shape) as (r, at, lane):
            column = part.start + at * part.width + lane
            value = sums[r, at, lane] * c.inverse[r] if t.softmax else sums[r, at, lane]
            store(out, [t.batch, t.head, c.row(r), column], numeric.cast(t.spec.dtype, value))


def _write_more(c: Chunk) -> None:
    """The outputs that are asked for beside `out`."""
    t, more = c.t, c.t.signature.more
    if "max" in more:
        with stage("write_max", "S", r=c.rows) as (r,):
            store(more["max"], [t.batch, t.head, c.row(r)], numeric.true_maximum(c.maximum[r], c.total[r]))
    if "sum" in more:
        with stage("write_sum", "S", r=c.rows) as (r,):
            store(more["sum"], [t.batch, t.head, c.row(r)], c.total[r])
    if "weights" in more:
        with stage("write_weights", "SS", r=c.rows, n=t.kv_len) as (r, n):
            value = c.t.weights[r, n] * c.inverse[r] if t.softmax else c.t.weights[r, n]
            store(more["weights"], [t.batch, t.head, c.row(r), n], numeric.cast(t.spec.dtype, value))
