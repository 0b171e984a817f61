"""Prefill on Intel's tile registers (AMX): bfloat16 in, float32 sums, probabilities rounded to bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attncc.schedules.cpu import model
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import check, tiling
from attncc.schedules.family import Decisions, Declined
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule

TILE = 32
"""Rows, lanes and terms that a product takes at a time."""
LANES = 16


@dataclass(frozen=True)
class PrefillAmx(PrefillBf16):
    """See the module's docstring. Decisions: query_block, key_block, edge_block, vectors."""

    name: str = "cpu.prefill.amx"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        needed = {"amx-tile", "amx-bf16", "avx512bf16", "avx512bw"}
        if target.kind != "cpu" or not needed <= target.features:
            return Declined(f"{self.name} needs AMX for bfloat16, which {target.mcpu} lacks, or the system withholds")
        if spec.head_dim % TILE:
            return Declined(f"{self.name} multiplies {TILE} columns at a time, and head_dim is {spec.head_dim}")
        return super().declines(spec, target)

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """Twice the rows of other families: products are so fast here that turning v would show."""
        queries = 2 * model.ROWS
        keys = model.key_block(spec, target, queries, 2, TILE)
        return {"query_block": queries, "key_block": keys, "edge_block": TILE, "vectors": 2}

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        keys = self.decisions(spec, target)["key_block"]
        return {
            "query_block": (64, 128, 256),
            "key_block": model.near(keys, (2 * keys, max(keys // 2, TILE))),
            "edge_block": (TILE, 2 * TILE) if keys % (4 * TILE) == 0 else (TILE,),
            "vectors": (1, 2, 4),
        }

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc.algorithm.prefill import build
        from attncc.schedules.cpu.prefill_schedule import Registers
        from attncc.schedules.cpu.prefill_tiles import TileSchedule

        check({**decisions, "key_rows": TILE}, LANES)
        if decisions["query_block"] % TILE:
            raise ValueError(f"{self.name}: query_block={decisions['query_block']} must be a multiple of {TILE}")
        columns = -(-spec.value_dim // TILE) * TILE
        function = build(spec, tiling(decisions, columns, "bfloat16"), TileSchedule.around)
        registers = Registers(LANES, decisions["vectors"], TILE, TILE)
        return TileSchedule(function, spec, registers, padded=columns != spec.value_dim).module()
