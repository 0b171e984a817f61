"""Which attentions the CUDA kernels take, their tile sizes, and how a call is split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from attncc import expr as ex
from attncc.algorithm.bounds import key_bounds
from attncc.schedules.cuda import room
from attncc.schedules.cuda.family import WORK, CudaFamily, Prefill
from attncc.schedules.cuda.gpu import capability, shared_limit
from attncc.schedules.cuda.room import CODES, COLUMNS, DECODE_ROWS, STORE_ROWS, Room
from attncc.schedules.cuda.simt_tile import Tile
from attncc.schedules.cuda.surveyed import surveyed
from attncc.schedules.cuda.visited import visited
from attncc.schedules.family import Decisions, Declined, Launch, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import PrimFunc

__all__ = ["CUDA", "CudaFamily", "Decode", "PrefillMma", "PrefillWgmma", "Simt", "SimtFew", "plain_scores"]

_UNEVEN_TILES = 12
"""Tiles of a head, from which on a fixed order cannot even out tiles that see different numbers of keys."""
_LEAST_TILE = {"rows": 8, "keys": 16}
_RESULT_REGISTERS = 64
"""That a thread may give to its part of the result."""


class PrefillMma(Prefill):
    """Many query rows, by mma.sync."""

    name = "cuda.prefill.mma"
    oldest = 80
    values: Mapping[str, tuple[int, ...]] = {
        "rows": (32, 64, 128, 256), "keys": (32, 64, 96, 128), "warps": (2, 4, 8), "keep_q": (0, 1),
        "blocks": (1, 2, 3),
    }  # fmt: skip

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        widest = max(spec.head_dim, spec.value_dim)
        rows = 128 if widest <= 128 else 64  # a strip of 16 rows and 128 columns takes 64 registers of each thread
        found = {
            "rows": rows,
            "keys": 64,
            "warps": 4,
            "keep_q": int(spec.head_dim <= 64),
            "blocks": 2 if widest <= 128 else 1,
        }
        return found | {"keys": 32} if room.busy(spec) and room.mma(spec, found).crowded else found

    def uneven(self, decisions: Decisions) -> str | None:
        strips = decisions["rows"] / (16 * decisions["warps"])
        return None if strips in (1, 2) else f"a warp has one or two strips of 16 rows, not {strips:g}"

    def room(self, spec: AttentionSpec, decisions: Decisions) -> Room:
        return room.mma(spec, decisions)

    def attention(self, spec: AttentionSpec, decisions: Decisions) -> PrimFunc:
        from attncc.schedules.cuda import prefill_mma

        return prefill_mma.build(spec, decisions)

    def grid(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> tuple[int, int, int]:
        return (-(-problem.q_len // decisions["rows"]), problem.heads, problem.batch)


class PrefillWgmma(Prefill):
    """Many query rows, by wgmma and TMA."""

    name = "cuda.prefill.wgmma"
    oldest = 90
    gpus = "sm_90a"
    values: Mapping[str, tuple[int, ...]] = {
        "rows": (128, 192), "keys": (64, 80, 96, 128, 160, 176, 192), "stages": (2, 3, 4), "query_stages": (1, 2),
    }  # fmt: skip

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind == "cuda" and capability(target) != 90:
            return Declined(f"wgmma is an instruction of sm_90a, and the GPU is {target.mcpu}")
        return super().declines(spec, target)

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return super().suits(spec, problem) and problem.q_len >= 64

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        widest = max(spec.head_dim, spec.value_dim)
        # Three warpgroups leave each thread 160 registers, two leave 240; a window wastes less of shorter tiles.
        if (
            widest <= 64
            and plain_scores(spec)
            and not room.busy(spec)
            and key_bounds(spec.mask).lo == ex.Const(0, "int64")
        ):
            return {"rows": 192, "keys": 128, "stages": 2, "query_stages": 2}
        keys = 128 if widest <= 128 else 64 if room.busy(spec) else 96 if widest <= 192 else 80
        return {"rows": 128, "keys": keys, "stages": 2, "query_stages": 2 if widest <= 128 else 1}

    def blocks(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> int:
        """One a multiprocessor; or one a tile, where tiles differ so much that the GPU had better deal them out."""
        rows = decisions["rows"]
        tiles = -(-problem.q_len // rows)
        if tiles >= _UNEVEN_TILES and spec.mask is not None and math.isinf(spec.fill):
            if surveyed(spec) is not None:
                return tiles * problem.heads * problem.batch
            counts = [visited(spec.mask, problem, n * rows, (n + 1) * rows - 1) for n in (tiles // 4, tiles - 2)]
            if None not in counts and counts[0] != counts[1]:
                return tiles * problem.heads * problem.batch
        return problem.threads

    def room(self, spec: AttentionSpec, decisions: Decisions) -> Room:
        return room.wgmma(spec, decisions)

    def attention(self, spec: AttentionSpec, decisions: Decisions) -> PrimFunc:
        from attncc.schedules.cuda import prefill_wgmma

        return prefill_wgmma.build(spec, decisions)

    def grid(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> tuple[int, int, int]:
        return (self.blocks(spec, decisions, problem), 1, 1)

    def boxes(self, decisions: Decisions) -> dict[str, tuple[int, int]]:
        rows = {"q": decisions["rows"], "k": decisions["keys"], "v": decisions["keys"], "out": STORE_ROWS}
        return {name: (count, COLUMNS) for name, count in rows.items()}


class Decode(CudaFamily):
    """Few query rows over many keys."""

    name = "cuda.decode"
    regime = "decode"
    oldest = 80
    converts = True
    values: Mapping[str, tuple[int, ...]] = {
        "warps": (2, 4, 8), "keys": (16, 32, 64), "stages": (2, 3, 4, 5, 6), "blocks": (1, 2, 3, 4),
    }  # fmt: skip

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        found = super().declines(spec, target)
        if found is None and self.room(spec, self.decisions(spec, target)).shared > shared_limit(target):
            return Declined(f"rings of such rows take more than the {shared_limit(target)} bytes of shared memory")
        return found

    def refuses(self, spec: AttentionSpec) -> Declined | None:
        for name, kept, width in (
            ("head_dim", spec.key_dtype, spec.head_dim),
            ("value_dim", spec.value_dtype, spec.value_dim),
        ):
            if kept is not None and width % CODES:
                return Declined(f"{name} {width} is not a multiple of the {CODES} codes that are read at once")
        if spec.normalizer != "softmax":
            return Declined("splits are combined by their maxima and sums, and this attention has none")
        if spec.group > DECODE_ROWS:
            return Declined(f"a tile holds the heads of a group, and {spec.group} are more than {DECODE_ROWS}")
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return super().suits(spec, problem) and problem.q_len * spec.group <= DECODE_ROWS

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """The deepest ring that shared memory holds, of tiles of 32 keys if possible."""
        limit = shared_limit(target)
        for keys in (32, 16):
            for stages in (6, 5, 4, 3, 2):
                found = {"warps": 4, "keys": keys, "stages": stages, "blocks": 1}
                if self.room(spec, found).shared <= limit:
                    return found
        return found

    def room(self, spec: AttentionSpec, decisions: Decisions) -> Room:
        return room.decode(spec, decisions)

    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        from attncc.schedules.cuda import decode, decode_combine

        return {"attention": decode.build(spec, decisions), "combine": decode_combine.build(spec)}

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        """As many splits as fill the GPU once; `problem.threads` counts its multiprocessors."""
        kv_heads = problem.heads // spec.group
        step = decisions["warps"] * decisions["keys"]
        wanted = problem.threads * decisions["blocks"] // (problem.batch * kv_heads)
        splits = max(1, min(wanted, -(-problem.kv_len // (2 * step))))
        shape = (problem.batch, kv_heads, splits, DECODE_ROWS)
        return Launch(WORK, ((*shape, spec.value_dim), (*shape, 2)))

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
    values: Mapping[str, tuple[int, ...]] = {"rows": (8, 16, 32, 64), "keys": (16, 32, 64, 128)}

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cuda":
            return Declined(f"the target is a {target.kind}")
        if capability(target) < self.oldest:
            return Declined(f"needs sm_{self.oldest} or newer, and the GPU is {target.mcpu}")
        needed, limit = self.room(spec, self.decisions(spec, target)).shared, shared_limit(target)
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

    def room(self, spec: AttentionSpec, decisions: Decisions) -> Room:
        return room.simt(spec, decisions)

    def functions(self, spec: AttentionSpec, decisions: Decisions) -> dict[str, PrimFunc]:
        from attncc.schedules.cuda import simt

        return {"attention": simt.build(spec, decisions)}

    def grids(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> dict[str, tuple[int, int, int]]:
        return {"attention": (-(-problem.q_len // decisions["rows"]), problem.heads, problem.batch)}


class SimtFew(Simt):
    """The same for few query rows, of which a larger tile would be empty for the most part."""

    name = "cuda.simt.few"
    regime = "decode"
    values: Mapping[str, tuple[int, ...]] = {"rows": (8,), "keys": (16, 32, 64, 128)}

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
