"""Prefill on Intel's tile registers (AMX): bfloat16 or float16 in, float32 sums, probabilities rounded to the same.

float16 has room for a softmax's probabilities, which are at most 1. Small ones are exact to 2^-25 of a row's largest:
over 2^15 keys that adds up to half a unit in the last place of a result, at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attncc.schedules.cpu import model
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import NEVER, check, deal_from, tiling
from attncc.schedules.family import Decisions, Declined
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule
    from attncc.schedules.cpu.prefill_tiles import TileSchedule

TILE = 32
"""Rows, lanes and terms that a product takes at a time."""


@dataclass(frozen=True)
class PrefillAmx(PrefillBf16):
    """See the module's docstring. Decisions: query_block, key_block, edge_block, vectors, copy_keys, deal_from and
    ahead, as of `PrefillFp32`."""

    name: str = "cpu.prefill.amx"
    codes: bool = True

    instructions: str = "AMX"
    needed: frozenset[str] = frozenset({"amx-tile", "amx-bf16", "avx512bf16", "avx512bw"})
    """Features of the target."""
    lanes: int = 16
    """float32 numbers of a vector register."""

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu" or not self.needed <= target.features:
            reason = f"{self.name} needs {self.instructions} for {self.dtype}"
            return Declined(f"{reason}, which {target.mcpu} lacks, or the system withholds")
        if spec.head_dim % TILE:
            return Declined(f"{self.name} multiplies {TILE} columns at a time, and head_dim is {spec.head_dim}")
        return self.refuses(spec)

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """Twice the rows of other families: products are so fast here that turning v would show."""
        queries = 2 * model.ROWS
        keys = model.key_block(spec, target, queries, 2, TILE)
        blocks = {"query_block": queries, "key_block": keys, "edge_block": TILE}
        must = int(spec.key_dtype is not None)
        return {**blocks, "vectors": 2, "copy_keys": must, "deal_from": deal_from(spec, target, 2), "ahead": TILE}

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        default = self.decisions(spec, target)
        keys = default["key_block"]
        return {
            "query_block": (64, 128, 256),
            "key_block": model.near(keys, (2 * keys, max(keys // 2, TILE))),
            "edge_block": (TILE, 2 * TILE) if keys % (4 * TILE) == 0 else (TILE,),
            "vectors": (1, 2, 4),
            "copy_keys": (0, 1) if spec.key_dtype is None else (1,),
            "deal_from": model.near(default["deal_from"], (1, NEVER)),
            "ahead": (TILE, 2 * TILE),
        }

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc.algorithm.prefill import build
        from attncc.schedules.cpu.prefill_schedule import Registers

        schedule = self.schedule()
        check({**decisions, "key_rows": TILE}, self.lanes)
        if decisions["query_block"] % TILE:
            raise ValueError(f"{self.name}: query_block={decisions['query_block']} must be a multiple of {TILE}")
        if spec.key_dtype is not None and not decisions["copy_keys"]:
            raise ValueError(f"{self.name}: keys that are not {self.dtype} are copied, and {dict(decisions)}")
        columns = -(-spec.value_dim // TILE) * TILE
        function = build(spec, tiling(decisions, columns, self.dtype, target), schedule.around)
        registers = Registers(self.lanes, decisions["vectors"], TILE, TILE)
        return schedule(function, spec, registers, columns != spec.value_dim, bool(decisions["copy_keys"])).module()

    def schedule(self) -> type[TileSchedule]:
        """What moves the algorithm's blocks."""
        from attncc.schedules.cpu.prefill_tiles import TileSchedule

        return TileSchedule


@dataclass(frozen=True)
class PrefillAmxFp16(PrefillAmx):
    """The same with products of float16. Decisions: those of `PrefillAmx`."""

    name: str = "cpu.prefill.amx.fp16"
    dtype: str = "float16"
    codes: bool = False
    needed: frozenset[str] = frozenset({"amx-tile", "amx-fp16", "avx512bw"})

    def refuses(self, spec: AttentionSpec) -> Declined | None:
        if spec.normalizer != "softmax" or spec.bilinear is not None:
            return Declined(
                f"{self.name} keeps weights of a softmax and queries in float16; others may exceed its range"
            )
        return super().refuses(spec)
