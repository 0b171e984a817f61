"""Attention over few keys, as unscheduled S-TIR: all scores of some query rows at once, so no online softmax.

    s = q k^T;  x = score_mod(s) under the mask;  m = max(x);  p = exp(x - m);  out = p v / sum(p)

A tile is a run of query rows of one head, taken a chunk of rows at a time. Keys are packed first (`short_pack`), so
that a vector holds a column of neighbouring keys; q enters as scalars, and so do weights in the second product, whose
vectors are rows of v as they lie. Nothing but the keys is turned over. The tiles of a thread follow each other in one
iteration of the parallel loop, which keeps the buffers, and the keys where they are those of the tile before.

The work table starts with a row a thread: its first tile, the end of its tiles (as rows of the table), the number of
threads. Then come the tiles: batch, kv head, head, run (`short_parts.RUN_BITS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attncc._tvm import Buffer, IRBuilder, PrimFunc, T, Var, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.short_chunk import Tile, emit_chunk, open_chunk
from attncc.algorithm.short_pack import keys_text, pack_keys, pack_values, values_text
from attncc.algorithm.short_parts import RUN_BITS, Tiling
from attncc.algorithm.signature import NAME, Signature, compute_dtype, declare, import_llvm, use_launcher
from attncc.spec import AttentionSpec


def build(spec: AttentionSpec, tiling: Tiling, llvm_text: str = "") -> PrimFunc:
    """The kernel of `spec`; `llvm_text` holds functions that a schedule's intrinsics call."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(NAME)
            signature = declare(spec)
            use_launcher(signature)
            import_llvm(llvm_text + _functions(spec, tiling))
            dtype = compute_dtype(spec)
            scalars = {
                name: let(f"{name}_value", numeric.cast(dtype, signature.scalars[name])) for name in spec.scalars
            }
            scalars |= {name: signature.scalars[name] for name in spec.integers}
            threads = let("threads", tirx.Cast("int64", signature.work[0, 2]))
            with T.serial(threads) as loop:
                IRBuilder.name("thread_loop", loop)
                with T.sblock("thread"):
                    number = T.axis.spatial(threads, loop)
                    IRBuilder.name("thread", number)
                    accesses(signature.inputs, signature.outputs)
                    _tiles(spec, tiling, signature, scalars, number)
        function: PrimFunc = builder.get()
    return function


def _functions(spec: AttentionSpec, tiling: Tiling) -> str:
    text = keys_text(spec.dtype, compute_dtype(spec), tiling.pairs, tiling.lanes, spec.head_dim)
    return text + (values_text(spec.value_dim) if tiling.pairs > 1 else "")


def _tiles(spec: AttentionSpec, tiling: Tiling, signature: Signature, scalars: Mapping[str, Any], thread: Var) -> None:
    """The tiles of a thread, one after the other."""
    dtype, pairs, work = compute_dtype(spec), tiling.pairs, signature.work
    stored = "uint16" if pairs > 1 else dtype
    keys = tile("keys", (tiling.keys // tiling.lanes, spec.head_dim // pairs, tiling.lanes, pairs), stored)
    values = tile("values", (tiling.keys // pairs, spec.value_dim, pairs), stored) if spec.dtype != dtype else None
    weights = tile("weights", (tiling.rows, tiling.keys), dtype)
    scores = tile("scores", (tiling.rows, tiling.keys), dtype) if spec.normalizer == "softmax" else weights
    factors = tile("factors", (tiling.rows, tiling.keys), stored) if pairs > 1 else weights
    kept = list({id(b): b for b in (keys, values, weights, scores, factors) if b is not None}.values())
    for buffer in kept:
        _hold(buffer)
    first, end = (let(name, tirx.Cast("int64", work[thread, n])) for n, name in enumerate(("first_tile", "end_tile")))
    touched = [*signature.inputs, *kept], [*kept, *signature.outputs]
    with repeat("tile", end - first) as number:
        accesses(*touched)
        batch, kv_head, head, run = (
            let(name, tirx.Cast("int64", work[first + number, column]))
            for column, name in enumerate(("batch", "kv_head", "head", "run"))
        )
        t = Tile(spec, tiling, signature, scalars, batch, kv_head, head, keys, values, weights, scores, factors)
        with repeat("pack", let("packs", run & 1)):
            accesses([signature.k, signature.v], kept)
            _pack(t)
        first_chunk = let("first_chunk", run >> (RUN_BITS + 1))
        with repeat("chunk", let("chunks", (run >> 1) & ((1 << RUN_BITS) - 1))) as chunk:
            accesses(*touched)
            emit_chunk(open_chunk(t, let("first_row", (first_chunk + chunk) * tiling.rows)))


def _hold(buffer: Buffer) -> None:
    """Touch both ends of a buffer: TVM would make it as small as the accesses that it understands, by every chunk's own
    number of keys, while the functions in LLVM IR fill all of it."""
    for number, at in enumerate(([0] * len(buffer.shape), [int(n) - 1 for n in buffer.shape])):
        with scope(f"hold{number}_{buffer.name}"), stage(f"touch{number}_{buffer.name}", "S", u=1) as (u,):
            store(buffer, [*at[:-1], at[-1] + u], tirx.const(0, buffer.ty.dtype))


def _pack(t: Tile) -> None:
    k = t.signature.k
    with repeat("pack_keys", 1):
        accesses([k], [t.keys])
        pack_keys(k[t.batch, t.kv_head, 0, 0], k.strides[2], t.kv_len, t.keys[0, 0, 0, 0])
    if t.values is not None:
        _load_values(t, t.values)


def _load_values(t: Tile, values: Buffer) -> None:
    v = t.signature.v
    if t.paired:
        with repeat("pack_values", 1):
            accesses([v], [values])
            pack_values(v[t.batch, t.kv_head, 0, 0], v.strides[2], t.kv_len, values[0, 0, 0])
        return
    with stage("load_v", "SS", n=t.kv_len, e=t.spec.value_dim) as (n, e):
        store(values, [n, e, 0], numeric.cast(t.dtype, v[t.batch, t.kv_head, n, e]))
