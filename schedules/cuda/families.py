"""Which attentions the CUDA kernels take, their tile sizes, and how a call is split."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import numpy as np

from attncc import expr as ex
from attncc.algorithm.bounds import key_bounds
from attncc.schedules.cuda.gpu import capability, shared_bytes, shared_limit
from attncc.schedules.cuda.simt_tile import Tile
from attncc.schedules.cuda.visited import visited
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import DOT, AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule, PrimFunc

_WORK = np.zeros((0, 4), np.int32)
_DTYPES = ("bfloat16", "float16")
_WIDEST = 256
_MOST_ROWS = 2**29
"""Of q or k, so that positions and their sums are int32."""
_DECODE_ROWS = 16
_UNEVEN_TILES = 12
"""Tiles of a head, from which on a fixed order cannot even out tiles that see different numbers of keys."""
_LEAST_TILE = {"rows": 8, "keys": 16}
_RESULT_REGISTERS = 64
"""That a thread may give to its part of the result."""
_MOST_BLOCKS = 2**16
"""In the second and third dimension of a grid, where heads and batches go."""
COLUMNS = 64
"""16-bit columns of the widest swizzled row, 128 bytes. Wider rows lie in panels of this width, one after another."""
STORE_ROWS = 16
"""Query rows of a warp: what one TMA store writes."""


class CudaFamily(Family):
    """What the families share: 16-bit dot products, head sizes that are multiples of 8."""

    oldest: int
    """The least compute capability, times 10."""

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cuda":
            return Declined(f"the target is a {target.kind}")
        if capability(target) < self.oldest:
            return Declined(f"needs sm_{self.oldest} or newer, and the GPU is {target.mcpu}")
        if spec.dtype not in _DTYPES:
            return Declined(f"tensor cores multiply {' and '.join(_DTYPES)}, not {spec.dtype}")
        for name, width in (("head_dim", spec.head_dim), ("value_dim", spec.value_dim)):
            if width % 8 or width > _WIDEST:
                return Declined(f"{name} {width} is not a multiple of 8 up to {_WIDEST}")
        if spec.quantized:
            return Declined("keys or values are codes with scales")
        if spec.element != DOT or spec.bilinear is not None:
            return Declined("the score is no dot product of q and k")
        if spec.outputs != ("out",):
            return Declined(f"gives only the result, not {', '.join(spec.outputs[1:])}")
        return self.refuses(spec)

    def refuses(self, spec: AttentionSpec) -> Declined | None:
        """Reasons of this family's own."""
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return max(problem.q_len, problem.kv_len) < _MOST_ROWS and max(problem.heads, problem.batch) < _MOST_BLOCKS

    row_alignment = 8
    """Elements: strides of q, k and v are multiples of it, but for the last, which is 1."""
    pointer_alignment = 16
    """Bytes: where q, k and v start."""

    @abstractmethod
    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        """Thread blocks of each kernel of a call, in the order in which they are started."""

    def boxes(self, decisions: Decisions) -> dict[str, tuple[int, int]]:
        """Rows and columns that TMA copies at once, by tensor; of those alone that it copies."""
        return {}

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc._tvm import IRModule

        return IRModule(self.functions(spec, decisions))

    @abstractmethod
    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        """The kernels by name; "attention" is called first, "combine" after it where a call has several splits."""

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        return Launch(_WORK)

    def blocks(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> int:
        """The argument `processors`: thread blocks of a persistent kernel. `problem.threads` counts multiprocessors."""
        return problem.threads


class PrefillMma(CudaFamily):
    """Many query rows, by mma.sync."""

    name = "cuda.prefill.mma"
    regime = "prefill"
    oldest = 80

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        widest = max(spec.head_dim, spec.value_dim)
        rows = 128 if widest <= 128 else 64  # a strip of 16 rows and 128 columns takes 64 registers of each thread
        return {
            "rows": rows,
            "keys": 64,
            "warps": 4,
            "keep_q": int(spec.head_dim <= 64),
            "blocks": 2 if widest <= 128 else 1,
        }

    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        from attncc.schedules.cuda import prefill_mma

        return {"attention": prefill_mma.build(spec, decisions)}

    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        return {"attention": (-(-problem.q_len // decisions["rows"]), problem.heads, problem.batch)}


class PrefillWgmma(CudaFamily):
    """Many query rows, by wgmma and TMA."""

    name = "cuda.prefill.wgmma"
    regime = "prefill"
    oldest = 90

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind == "cuda" and capability(target) != 90:
            return Declined(f"wgmma is an instruction of sm_90a, and the GPU is {target.mcpu}")
        return super().declines(spec, target)

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return super().suits(spec, problem) and problem.q_len >= 64

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        widest = max(spec.head_dim, spec.value_dim)
        # Three warpgroups leave each thread 160 registers, two leave 240; a window wastes less of shorter tiles.
        if widest <= 64 and plain_scores(spec) and key_bounds(spec.mask).lo == ex.Const(0, "int64"):
            return {"rows": 192, "keys": 128, "stages": 2, "query_stages": 2}
        keys = 128 if widest <= 128 else 96 if widest <= 192 else 80
        return {"rows": 128, "keys": keys, "stages": 2, "query_stages": 2 if widest <= 128 else 1}

    def blocks(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> int:
        """One a multiprocessor; or one a tile, where tiles differ so much that the GPU had better deal them out."""
        rows = decisions["rows"]
        tiles = -(-problem.q_len // rows)
        if tiles >= _UNEVEN_TILES and spec.mask is not None and math.isinf(spec.fill):
            counts = [visited(spec.mask, problem, n * rows, (n + 1) * rows - 1) for n in (tiles // 4, tiles - 2)]
            if None not in counts and counts[0] != counts[1]:
                return tiles * problem.heads * problem.batch
        return problem.threads

    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        from attncc.schedules.cuda import prefill_wgmma, wgmma_block

        limit = shared_bytes(self.oldest)
        if wgmma_block.shared_bytes(spec, decisions) > limit:
            raise ValueError(f"{dict(decisions)} takes more than the {limit} bytes of shared memory")
        return {"attention": prefill_wgmma.build(spec, decisions)}

    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        return {"attention": (self.blocks(spec, decisions, problem), 1, 1)}

    def boxes(self, decisions: Decisions) -> dict[str, tuple[int, int]]:
        rows = {"q": decisions["rows"], "k": decisions["keys"], "v": decisions["keys"], "out": STORE_ROWS}
        return {name: (count, COLUMNS) for name, count in rows.items()}


class Decode(CudaFamily):
    """Few query rows over many keys."""

    name = "cuda.decode"
    regime = "decode"
    oldest = 80

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        found = super().declines(spec, target)
        if found is None and self.shared_bytes(spec, self.decisions(spec, target)) > shared_limit(target):
            return Declined(f"rings of such rows take more than the {shared_limit(target)} bytes of shared memory")
        return found

    def refuses(self, spec: AttentionSpec) -> Declined | None:
        if spec.normalizer != "softmax":
            return Declined("splits are combined by their maxima and sums, and this attention has none")
        if spec.group > _DECODE_ROWS:
            return Declined(f"a tile holds the heads of a group, and {spec.group} are more than {_DECODE_ROWS}")
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return super().suits(spec, problem) and problem.q_len * spec.group <= _DECODE_ROWS

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """The deepest ring that shared memory holds, of tiles of 32 keys if possible."""
        limit = shared_limit(target)
        for keys in (32, 16):
            for stages in (6, 5, 4, 3, 2):
                found = {"warps": 4, "keys": keys, "stages": stages, "blocks": 1}
                if self.shared_bytes(spec, found) <= limit:
                    return found
        return found

    def shared_bytes(self, spec: AttentionSpec, decisions: Decisions) -> int:
        """Of a thread block: the rings, and the warps' results with their maxima and sums."""
        warps = decisions["warps"]
        row = sum(-(-width // COLUMNS) * COLUMNS * 2 for width in (spec.head_dim, spec.value_dim))
        ring = warps * decisions["stages"] * decisions["keys"] * row
        return ring + warps * _DECODE_ROWS * spec.value_dim * 4 + (warps + 1) * _DECODE_ROWS * 8

    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        from attncc.schedules.cuda import decode, decode_combine

        return {"attention": decode.build(spec, decisions), "combine": decode_combine.build(spec)}

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        """As many splits as fill the GPU once; `problem.threads` counts its multiprocessors."""
        kv_heads = problem.heads // spec.group
        step = decisions["warps"] * decisions["keys"]
        wanted = problem.threads * decisions["blocks"] // (problem.batch * kv_heads)
        splits = max(1, min(wanted, -(-problem.kv_len // (2 * step))))
        shape = (problem.batch, kv_heads, splits, _DECODE_ROWS)
        return Launch(_WORK, ((*shape, spec.value_dim), (*shape, 2)))

    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        batch, kv_heads, splits, _, _ = self.launch(spec, decisions, problem).workspaces[0]
        grids = {"attention": (splits, kv_heads, batch)}
        if splits > 1:
            grids["combine"] = (problem.q_len * spec.group, kv_heads, batch)
        return grids


class Simt(CudaFamily):
    """Everything that the others decline."""

    name = "cuda.simt"
    regime: Literal["prefill", "decode", "any"] = "any"
    oldest = 75
    row_alignment = 0
    pointer_alignment = 1

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cuda":
            return Declined(f"the target is a {target.kind}")
        if capability(target) < self.oldest:
            return Declined(f"needs sm_{self.oldest} or newer, and the GPU is {target.mcpu}")
        if spec.quantized:
            return Declined("keys and values are numbers of the dtype of q, not codes with scales")
        needed, limit = Tile(spec, self.decisions(spec, target)).shared_bytes, shared_limit(target)
        if needed > limit:
            return Declined(f"rows of {spec.head_dim} and {spec.value_dim} columns take {needed} bytes, of {limit}")
        return None

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """The largest tile of which a multiprocessor holds two and whose result stays in registers; else the least."""
        limit = shared_limit(target) // 2
        for rows, keys in ((64, 64), (32, 64), (32, 32), (16, 32), (16, 16)):
            found = {"rows": rows, "keys": keys}
            tile = Tile(spec, found)
            registers = tile.thread_rows * tile.columns * (2 if spec.dtype == "float64" else 1)
            if tile.shared_bytes <= limit and registers <= _RESULT_REGISTERS:
                return found
        return dict(_LEAST_TILE)

    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        from attncc.schedules.cuda import simt

        return {"attention": simt.build(spec, decisions)}

    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        return {"attention": (-(-problem.q_len // decisions["rows"]), problem.heads, problem.batch)}


class SimtFew(Simt):
    """The same for few query rows, of which a larger tile would be empty for the most part."""

    name = "cuda.simt.few"
    regime = "decode"

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return super().suits(spec, problem) and problem.q_len <= _LEAST_TILE["rows"]

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        for keys in (64, 32):
            found = {**_LEAST_TILE, "keys": keys}
            if Tile(spec, found).shared_bytes <= shared_limit(target) // 2:
                return found
        return dict(_LEAST_TILE)


def plain_scores(spec: AttentionSpec) -> bool:
    """Whether nothing but a factor is between a score and the softmax."""
    nodes = sum(1 for _ in spec.score_mod.walk())
    return nodes <= 3 and spec.sink is None and spec.normalizer == "softmax" and not math.isfinite(spec.fill)


CUDA: tuple[CudaFamily, ...] = (Decode(), PrefillWgmma(), PrefillMma(), SimtFew(), Simt())
"""From special to general."""
