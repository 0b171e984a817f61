"""One step of prefill's key loop: a block of keys against a tile of queries.

Every scope is a pipeline, as schedule primitives want it: nothing is read that a later stage writes. Running values are
therefore computed into new buffers, and committed by a copy in a scope of its own. The step exists twice in a kernel;
the blocks of the one for the edges carry the suffix ".edge". A third one, ".weights", gives the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer, T, Var, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.distances import diagonals, distance_elements, distance_terms, from_diagonals
from attncc.algorithm.lower_expr import lower
from attncc.algorithm.pair_loads import elements, from_tiles, pair_loads, turned
from attncc.algorithm.prefetch import prefetched_row
from attncc.algorithm.prefill_tile import Tile
from attncc.algorithm.storage import loaded, pack, storage_dtype
from attncc.algorithm.transpose import Source, transpose

OPAQUE = """
define i64 @attncc_opaque(i64 %value) alwaysinline {
  %same = call i64 asm sideeffect "", "=r,0"(i64 %value)
  ret i64 %same
}
"""
"""LLVM IR of a function that hides where a number comes from. Row positions are the same in all steps: LLVM would
compute their vectors before the loop, keep them in registers all through it, and spill the products' accumulators."""

EDGE = ".edge"
"""Suffix of the names of blocks that handle mask and sequence ends."""

WEIGHTS = ".weights"
"""Suffix of the names of blocks that make the weights, once a row's maximum and sum are known."""


def key_step(t: Tile, first_key: Var, suffix: str) -> None:
    """Emit the step for the keys from `first_key` on; `EDGE` where they may be masked or past the sequence's end."""
    step = _step(t, first_key, suffix)
    step.score()
    if t.softmax:
        step.online_max()
        step.commit_max()
    step.probabilities()
    if t.softmax:
        step.commit_sum()
    step.weighted_sum()
    step.commit_output()


def weight_step(t: Tile, first_key: Var) -> None:
    """Emit what writes the weights of the keys from `first_key` on, given `base` and `inverse` of every row."""
    step = _step(t, first_key, WEIGHTS)
    step.score()
    step.weights()


def _step(t: Tile, first_key: Var, suffix: str) -> _Step:
    """The step, with tiles of the tensors that it reads by query and key, and of what differs by their distance."""
    spec, sizes, keys = t.spec, t.signature.sizes, t.tiling.edge if suffix else t.tiling.keys
    masks = [spec.mask] if suffix and spec.mask is not None else []
    env = replace(t.env(0, first_key, None), index={"b": t.batch, "h": t.head, "i": t.first_row, "j": first_key})
    existing = sizes["Sq"] - t.first_row, sizes["Skv"] - first_key
    loads = pair_loads(t.score_mod, *masks)
    pairs = turned(suffix or "full", loads, env, (t.tiling.queries, keys), existing)
    terms = distance_terms(t.score_mod)
    if terms:  # hidden as below: vectors of their positions would stay in registers all through the key loop
        row = let("diagonal_row", T.call_extern("int64", "attncc_opaque", t.first_row))
        env = replace(env, index={**env.index, "i": row})
    distances = diagonals(suffix, terms, env, (t.tiling.queries, keys))
    trees = [from_tiles(tree, pairs) for tree in (from_diagonals(t.score_mod), *masks)]
    if any(node == ex.Index("i") for tree in trees for node in tree.walk()):
        # hidden from LLVM where expressions depend on row positions
        t = replace(t, first_row=let("step_row", T.call_extern("int64", "attncc_opaque", t.first_row)))
    return _Step(t, first_key, suffix, pairs, distances, trees[0], trees[1] if masks else None)


@dataclass(frozen=True)
class _Step:
    t: Tile
    first_key: Var
    suffix: str
    pairs: Mapping[ex.Load, Buffer]
    """[keys, queries]: tiles of what is read by query and key"""
    distances: tuple[Buffer, ...]
    """[queries + keys]: terms that differ by diagonal"""
    score_mod: ex.Expr
    """The tile's, reading those tiles"""
    mask: ex.Expr | None
    """Likewise, where this step has a mask"""

    @property
    def edge(self) -> bool:
        """Whether keys may be masked or past the end."""
        return self.suffix != ""

    @property
    def keys(self) -> int:
        return self.t.tiling.edge if self.edge else self.t.tiling.keys

    @property
    def short(self) -> bool:
        """Whether exponentials to 1e-4 will do: they are rounded to bfloat16, and their sum is not asked for."""
        return self.t.tiling.dtype == "bfloat16" and "sum" not in self.t.spec.outputs

    def name(self, stage_name: str) -> str:
        return stage_name + self.suffix

    def key(self, n: Any) -> Any:
        """Position of key n of the block, which may lie past the end in an edge block."""
        return self.first_key + n

    def key_row(self, n: Any) -> Any:
        """The same, but always a row that exists."""
        return T.min(self.key(n), self.t.signature.sizes["Skv"] - 1) if self.edge else self.key(n)

    def score(self) -> None:
        """x = score_mod(q k^T), the fill where the mask is false, no weight past the end; and the new maximum."""
        t, spec, keys, queries = self.t, self.t.spec, self.keys, self.t.tiling.queries
        with scope(self.name("score")):
            k = tile("k_tile", (keys, spec.head_dim), t.tiling.storage)
            s = tile("raw_score", (keys, queries), t.dtype)
            with stage(self.name("load_k"), "SS", n=keys, d=spec.head_dim) as (n, d):
                store(k, [n, d], self.packed(spec.key_dtype, t.signature.k[t.batch, t.kv_head, self.key_row(n), d]))
            with stage(self.name("qk"), "SSR", n=keys, m=queries, d=spec.head_dim) as (n, m, d):
                with T.init():
                    store(s, [n, m], tirx.const(0.0, t.dtype))
                elements = {"q": t.unpack(t.query[d, m]), "k": t.unpack(k[n, d])}
                store(s, [n, m], s[n, m] + lower(spec.element, t.element_env(d, elements)))
            with stage(self.name("modify"), "SS", n=keys, m=queries) as (n, m):
                store(t.scores, [n, m], self.modified(n, m, s[n, m]))
            if t.tiling.ahead and not self.suffix:
                self.ask_ahead()
            if t.softmax and self.suffix != WEIGHTS:
                with stage(self.name("row_max"), "SR", m=queries, n=keys) as (m, n):
                    with T.init():
                        store(t.new_maximum, [m], t.maximum[m])
                    # a NaN score may be lost here: it makes its probability NaN, and with it the whole row
                    store(t.new_maximum, [m], T.max(t.new_maximum[m], t.scores[n, m]))

    def ask_ahead(self) -> None:
        """Ask memory for keys that come `ahead` rows later, and for the values that this step needs after its scores.

        A block of its own for each key, so that a schedule spreads them over the product. It reads the key's scores in
        name only: that places it behind them.
        """
        t = self.t
        asked = tile("asked", (self.keys,), "int32")
        with stage(self.name("ask_ahead"), "SS", n=self.keys, m=1) as (n, m):
            T.reads(t.scores[n, m * t.tiling.queries : (m + 1) * t.tiling.queries])
            T.writes(asked[n])
            ahead = prefetched_row(t.signature.k, (t.batch, t.kv_head, self.key(n) + t.tiling.ahead))
            store(asked, [n], ahead + prefetched_row(t.signature.v, (t.batch, t.kv_head, self.key(n))))

    def modified(self, n: Any, m: Any, s: Any) -> Any:
        t = self.t
        values = elements(self.pairs, t.dtype, n, m) | distance_elements(self.distances, self.keys, n, m)
        env = replace(t.env(m, self.key_row(n), s), element=values)
        x = lower(self.score_mod, env)
        if not self.edge:
            return x
        if self.mask is not None:
            x = T.Select(lower(self.mask, env), x, tirx.const(t.spec.fill, t.dtype))
        nothing = tirx.const(-math.inf if t.softmax else 0.0, t.dtype)
        return T.Select(self.key(n) < t.signature.sizes["Skv"], x, nothing)

    def online_max(self) -> None:
        """What to subtract, and the factor for earlier sums."""
        t, queries = self.t, self.t.tiling.queries
        with scope(self.name("online_max")):
            with stage(self.name("base"), "S", m=queries) as (m,):
                store(t.base, [m], finite(t.new_maximum[m]))
            with stage(self.name("decay"), "S", m=queries) as (m,):
                store(t.decay, [m], self.exp(t.maximum[m] - t.base[m]))

    def commit_max(self) -> None:
        with (
            scope(self.name("commit_max")),
            stage(self.name("keep_max"), "S", m=self.t.tiling.queries) as (m,),
        ):
            store(self.t.maximum, [m], self.t.new_maximum[m])

    def probabilities(self) -> None:
        """p = exp(x - m) (x itself without a normalizer), kept in the tile's dtype, and the new sum of them."""
        t, keys, queries = self.t, self.keys, self.t.tiling.queries
        with scope(self.name("probabilities")):
            p = tile("p", (keys, queries), t.dtype)
            with stage(self.name("weigh"), "SS", n=keys, m=queries) as (n, m):
                store(p, [n, m], self.weight(n, m))
            with stage(self.name("keep_p"), "SS", n=keys, m=queries) as (n, m):
                store(t.probabilities, [n, m], pack(t.tiling.dtype, p[n, m]))
            if not t.softmax:
                return
            with stage(self.name("row_sum"), "SR", m=queries, n=keys) as (m, n):
                with T.init():
                    store(t.new_total, [m], t.total[m] * t.decay[m])
                store(t.new_total, [m], t.new_total[m] + p[n, m])

    def weight(self, n: Any, m: Any) -> Any:
        """The weight of a key before its row is normalised."""
        t = self.t
        return self.exp(t.scores[n, m] - t.base[m]) if t.softmax else t.scores[n, m]

    def exp(self, x: Any) -> Any:
        """e**x in the tile's unit, where no x is above 0 (rounding aside)."""
        factor = numeric.const(self.t.unit * numeric.LOG2E, x)
        return numeric.exp2(x * factor, at_most_zero=True, short=self.short)

    def commit_sum(self) -> None:
        with (
            scope(self.name("commit_sum")),
            stage(self.name("keep_sum"), "S", m=self.t.tiling.queries) as (m,),
        ):
            store(self.t.total, [m], self.t.new_total[m])

    def weighted_sum(self) -> None:
        """o' = o a + p v."""
        t, keys, queries, columns = self.t, self.keys, self.t.tiling.queries, self.t.tiling.columns
        with scope(self.name("weighted_sum")):
            v = tile("v_tile", (keys, columns), t.tiling.storage)
            with stage(self.name("load_v"), "SS", n=keys, e=columns) as (n, e):
                store(v, [n, e], self.value(n, e))
            product = tile("product", (columns, queries), t.dtype)
            with stage(self.name("pv"), "SSR", e=columns, m=queries, n=keys) as (e, m, n):
                with T.init():
                    store(product, [e, m], tirx.const(0.0, t.dtype))
                term = t.unpack(t.probabilities[n, m]) * t.unpack(v[n, e])
                store(product, [e, m], product[e, m] + term)
            with stage(self.name("accumulate"), "SS", e=columns, m=queries) as (e, m):
                earlier = t.output[e, m] * t.decay[m] if t.softmax else t.output[e, m]
                store(t.new_output, [e, m], earlier + product[e, m])

    def value(self, n: Any, e: Any) -> Any:
        """An element of v as its tile holds it; 0 past the end, where infinity times no probability would be NaN."""
        t = self.t
        column = e if t.tiling.columns == t.spec.value_dim else T.min(e, t.spec.value_dim - 1)
        value = self.packed(t.spec.value_dtype, t.signature.v[t.batch, t.kv_head, self.key_row(n), column], n)
        if not self.edge:
            return value
        return T.Select(self.key(n) < t.signature.sizes["Skv"], value, tirx.const(0, t.tiling.storage))

    def packed(self, dtype: str | None, value: Any, scaled: Any = None) -> Any:
        """An element of k or v, kept in `dtype`, as its tile holds it; of v times the scale of its row `scaled`."""
        t, scale = self.t, self.t.spec.value_scale
        if scaled is not None and scale is not None:
            env = t.env(0, self.key_row(scaled), None)
            value = loaded(dtype or t.spec.dtype, t.dtype, value) * numeric.cast(t.dtype, lower(scale, env))
        elif dtype is not None:
            value = loaded(dtype, t.dtype, value)
        return pack(t.tiling.dtype, value)

    def commit_output(self) -> None:
        with (
            scope(self.name("commit_output")),
            stage(self.name("keep_output"), "SS", e=self.t.tiling.columns, m=self.t.tiling.queries) as (e, m),
        ):
            store(self.t.output, [e, m], self.t.new_output[e, m])

    def weights(self) -> None:
        """The normalised weights of the block, written to the rows they belong to."""
        t, spec = self.t, self.t.spec
        out, sizes = t.signature.more["weights"], t.signature.sizes
        with scope("weights"):
            p = tile("weight_tile", (self.keys, t.tiling.queries), t.dtype)
            kept = tile("kept_weights", (self.keys, t.tiling.queries), storage_dtype(spec.dtype))
            with stage("normalise", "SS", n=self.keys, m=t.tiling.queries) as (n, m):
                store(p, [n, m], self.weight(n, m) * t.inverse[m] if t.softmax else self.weight(n, m))
            with stage("keep_weights", "SS", n=self.keys, m=t.tiling.queries) as (n, m):
                store(kept, [n, m], pack(spec.dtype, p[n, m]))
            with repeat("write_weights", 1):
                accesses([kept], [out])
                keys = T.min(sizes["Skv"] - self.first_key, self.keys)
                rows = T.min(sizes["Sq"] - t.first_row, t.tiling.queries)
                source = Source(kept[0, 0], t.tiling.queries, 1, keys, rows)
                target = out[t.batch, t.head, t.first_row, self.first_key]
                transpose(spec.dtype, source, target, sizes["Skv"])


def finite(maximum: Any) -> Any:
    """The maximum, but 0 for -inf: with nothing seen so far, x - m must not become -inf + inf."""
    return T.Select(maximum == numeric.const(-math.inf, maximum), numeric.const(0.0, maximum), maximum)
