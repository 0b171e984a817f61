"""Split-KV attention for few query rows, as unscheduled S-TIR (the split is that of Flash-Decoding, Dao et al. 2023).

The query rows of all heads that share a key head ride together, so that the cache is read once a group: row r is query
r // group of head r % group in the group. A tile is a run of keys for one batch and key head (`decode_tile`); its
output, maximum and sum of probabilities go to workspaces. A second loop combines the splits of each key head:

    w = exp(m_s - max m);  out = sum(w o_s) / sum(w l_s)

With one split a tile writes `out` itself, and there is no second loop.

Work table: batch, kv head, first, end. The last two bound the tile's keys as fractions, in units of 2^-20, of the keys
that a tile's rows can see (`decode_range`): those are known in the kernel only. All key heads have the same number of
splits, and tiles are ordered by batch, kv head and split; undivided ones of which data say the length in any order.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, tirx
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.decode_parts import Kernel, Prefetched, RowState, Tiling, exp, finite, value_columns
from attncc.algorithm.decode_redo import Attempt, attempts
from attncc.algorithm.decode_tile import emit_tile, open_tile
from attncc.algorithm.decode_weights import emit_weights
from attncc.algorithm.numeric import cast
from attncc.algorithm.prefetch import LLVM as PREFETCH
from attncc.algorithm.prefetch import row_lines
from attncc.algorithm.signature import NAME, Signature, compute_dtype, declare, import_llvm, use_launcher
from attncc.algorithm.visibility import safe_maximum
from attncc.spec import AttentionSpec


def build(spec: AttentionSpec, tiling: Tiling, llvm_texts: tuple[str, ...] = ()) -> PrimFunc:
    """The kernel of `spec`.

    Workspaces, with n = B * G and the letters above: o [n, splits, rows, value_dim], then m, l and w [n, splits, rows];
    two more [n] where the kernel may need a second attempt (`decode_redo`); x [n, rows, Skv] where weights are asked
    for. `llvm_texts` hold functions that a schedule's intrinsics call.
    """
    safe = safe_maximum(spec)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(NAME)
            ranks = (4, 3, 3, 3, *(() if safe is None else (1, 1)), *((3,) if "weights" in spec.outputs else ()))
            signature = declare(spec, ranks)
            use_launcher(signature)
            for text in llvm_texts:
                import_llvm(text)
            kernel = _open_kernel(spec, tiling, signature)
            if safe is None:
                _tiles(kernel)
            else:
                hidden, again = signature.workspaces[4:6]
                attempts(kernel, Attempt(None, hidden, again, safe), _tiles)
        function: PrimFunc = builder.get()
    return function


def _tiles(kernel: Kernel) -> None:
    """All tiles in parallel, then the splits of each key head into one."""
    signature, attempt = kernel.signature, kernel.attempt
    n_tiles = signature.work.shape[0]
    kept = [kernel.kept] if kernel.kept is not None else []
    touched = signature.inputs, [*signature.outputs, *signature.workspaces[:3], *kept]
    if attempt is not None:
        touched = (*signature.inputs, attempt.again), [*touched[1], attempt.hidden]
    with scope("tiles"), T.serial(n_tiles) as loop:
        IRBuilder.name("tile_loop", loop)
        with T.sblock("tile"):
            number = T.axis.spatial(n_tiles, loop)
            IRBuilder.name("tile", number)
            accesses(*touched)
            if attempt is None and kernel.kept is None:
                emit_tile(open_tile(kernel, number))
            else:  # a block around it: TVM takes a buffer that several blocks right below a tile write for a dependence
                active = 1 if attempt is None else let("tile_active", _active(kernel, attempt, number))
                with repeat("tile_work", active):
                    accesses(*touched)
                    emit_tile(open_tile(kernel, number))
    with repeat("combine", T.min(kernel.splits - 1, 1)):
        _combine(kernel)
    if kernel.kept is not None:
        with scope("weights"):
            emit_weights(kernel, kernel.kept)


def _active(kernel: Kernel, attempt: Attempt, number: Any) -> Any:
    """How often, 0 or 1, a tile is computed in an attempt."""
    work = kernel.signature.work
    batch, kv_head = (tirx.Cast("int64", work[number, column]) for column in (0, 1))
    return attempt.active(batch * kernel.signature.sizes["G"] + kv_head)


def _open_kernel(spec: AttentionSpec, tiling: Tiling, signature: Signature) -> Kernel:
    dtype = compute_dtype(spec)
    scalars = {name: let(f"{name}_value", cast(dtype, signature.scalars[name])) for name in spec.scalars}
    scalars |= {name: signature.scalars[name] for name in spec.integers}
    rows = let("rows", signature.sizes["Sq"] * spec.group)
    row_chunks = let("row_chunks", (rows + (tiling.row_chunk - 1)) // tiling.row_chunk)
    splits = signature.workspaces[0].shape[1]
    prefetched = _prefetched(spec, tiling, signature, row_chunks) if tiling.ahead else None
    return Kernel(spec, tiling, signature, scalars, rows, row_chunks, splits, prefetched, None)


def _prefetched(spec: AttentionSpec, tiling: Tiling, signature: Signature, row_chunks: Any) -> Prefetched:
    import_llvm(PREFETCH)
    lines, parts = row_lines(signature.k), row_chunks * len(value_columns(spec, tiling))
    return Prefetched(
        let("key_lines", (lines + (row_chunks - 1)) // row_chunks),
        let("value_share", (tiling.value_rows + (parts - 1)) // parts),
    )


def _combine(kernel: Kernel) -> None:
    """The splits of each key head into `out`."""
    work, sizes = kernel.signature.work, kernel.signature.sizes
    n = sizes["B"] * sizes["G"]
    with T.serial(n) as loop:
        IRBuilder.name("head_loop", loop)
        with T.sblock("combine_head"):
            at = T.axis.spatial(n, loop)
            IRBuilder.name("at", at)
            *partial, weight = kernel.signature.workspaces[:4]
            accesses([work, *partial], [*kernel.signature.outputs, weight])
            batch, kv_head = (
                let(name, tirx.Cast("int64", work[at * kernel.splits, column]))
                for column, name in enumerate(("batch", "kv_head"))
            )
            with repeat("combine_row", kernel.rows) as row:
                _combine_row(kernel, at, batch, kv_head, row)


def _combine_row(kernel: Kernel, at: Any, batch: Any, kv_head: Any, row: Any) -> None:
    dtype, splits = kernel.dtype, kernel.splits
    partial, maximum, total, weight = kernel.signature.workspaces[:4]
    sums, output = tile("all_total", (1,), dtype), tile("all_output", (kernel.spec.value_dim,), dtype)
    highest = kernel.highest("", at, row) if kernel.normalizes else sums
    if kernel.normalizes:
        with stage("weight", "S", s=splits) as (s,):
            store(weight, [at, s, row], exp(maximum[at, s, row] - finite(highest[0])))
        with stage("all_total", "SR", u=1, s=splits) as (u, s):
            with T.init():
                store(sums, [u], kernel.zero())
            store(sums, [u], sums[u] + weight[at, s, row] * total[at, s, row])
    with stage("all_output", "SR", e=kernel.spec.value_dim, s=splits) as (e, s):
        with T.init():
            store(output, [e], kernel.zero())
        part = partial[at, s, row, e]
        store(output, [e], output[e] + (weight[at, s, row] * part if kernel.normalizes else part))
    kernel.write_row("combine", batch, kv_head, row, RowState(highest[0], sums[0], lambda e: output[e]))
