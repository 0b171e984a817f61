"""The weights as an output of decode: x of every key is kept while tiles are computed, and weighed when all is known.

A tile keeps the x of its keys, and that of keys before the first split and after the last, which nothing visits: -inf,
or 0 without a normalizer. The weights follow in a loop of its own, for a tile must not read what tiles write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attncc._tvm import Buffer, IRBuilder, T, tirx
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.decode_parts import Kernel, exp, finite
from attncc.algorithm.numeric import cast

if TYPE_CHECKING:
    from attncc.algorithm.decode_tile import Tile


def keep_block(t: Tile, kept: Buffer, row: Any, start: Any, count: Any, x: Buffer) -> None:
    """x of the keys of a block; a row that repeats another keeps what that one does."""
    with scope("keep"), stage("keep_x", "S", n=count) as (n,):
        store(kept, [t.number_of_head, T.min(row, t.kernel.rows - 1), start + n], x[row, n])


def keep_unseen(t: Tile, kept: Buffer) -> None:
    """x of the keys before the first split and after the last."""
    kernel, kv_len, none = t.kernel, t.kernel.signature.sizes["Skv"], T.int64(0)
    before = T.Select(t.split == 0, t.lo, none)
    after = T.Select(t.split == kernel.splits - 1, kv_len - t.hi, none)
    for name, first, count in (("before", none, before), ("after", t.hi, after)):
        with repeat(f"{name}_row", kernel.rows) as row, stage(f"keep_{name}", "S", n=count) as (n,):
            store(kept, [t.number_of_head, row, first + n], kernel.unseen)


def keep_statistics(t: Tile, sums: Buffer) -> None:
    """Maximum and sum of each row, undivided tiles' too."""
    _, maximum, total = t.kernel.signature.workspaces[:3]
    with scope("keep_statistics"):
        for name, kept, found in (("kept_max", maximum, t.maximum), ("kept_sum", total, sums)):
            with stage(name, "S", r=t.kernel.rows) as (row,):
                store(kept, [t.number_of_head, t.split, row], found[row])


def emit_weights(kernel: Kernel, kept: Buffer) -> None:
    """Weights from x, a key head at a time."""
    signature = kernel.signature
    _, maximum, total = signature.workspaces[:3]
    heads = signature.sizes["B"] * signature.sizes["G"]
    with T.serial(heads) as loop:
        IRBuilder.name("weigh_loop", loop)
        with T.sblock("weigh_head"):
            number = T.axis.spatial(heads, loop)
            accesses([signature.work, maximum, total, kept], [signature.more["weights"]])
            batch, kv_head = (
                let(name, tirx.Cast("int64", signature.work[number * kernel.splits, column]))
                for column, name in enumerate(("batch", "kv_head"))
            )
            with repeat("weigh_row", kernel.rows) as row:
                _weigh_row(kernel, kept, batch, kv_head, row)


def _weigh_row(kernel: Kernel, kept: Buffer, batch: Any, kv_head: Any, row: Any) -> None:
    sizes, weights, dtype = kernel.signature.sizes, kernel.signature.more["weights"], kernel.spec.dtype
    at, (head, query) = batch * sizes["G"] + kv_head, kernel.place(kv_head, row)
    if not kernel.normalizes:
        with stage("give_weights", "S", n=sizes["Skv"]) as (key,):
            store(weights, [batch, head, query, key], cast(dtype, kept[at, row, key]))
        return
    _, maximum, total = kernel.signature.workspaces[:3]
    sums = tile("weigh_total", (1,), kernel.dtype)
    highest = kernel.highest(".weights", at, row)
    with stage("weigh_total", "SR", u=1, s=kernel.splits) as (u, s):
        with T.init():
            store(sums, [u], kernel.zero())
        store(sums, [u], sums[u] + exp(maximum[at, s, row] - finite(highest[0])) * total[at, s, row])
    inverse = kernel.inverse("weights", sums[0])
    with stage("give_weights", "S", n=sizes["Skv"]) as (key,):
        weight = exp(kept[at, row, key] - finite(highest[0])) * inverse[0]
        store(weights, [batch, head, query, key], cast(dtype, weight))
