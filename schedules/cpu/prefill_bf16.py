"""Prefill with AVX512-BF16's dot products: bfloat16 in, float32 sums, probabilities rounded to bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attncc.schedules.cpu.prefill_fp32 import PrefillFp32, check, prefill_decisions, prefill_space, tiling
from attncc.schedules.family import Decisions, Declined
from attncc.spec import DOT, AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule

LANES = 16


@dataclass(frozen=True)
class PrefillBf16(PrefillFp32):
    """See the module's docstring. Decisions: query_block, key_block, edge_block, vectors, key_rows, columns."""

    name: str = "cpu.prefill.bf16"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu" or "avx512bf16" not in target.features:
            return Declined(f"{self.name} needs AVX512-BF16, which {target.mcpu} lacks")
        if spec.dtype != "bfloat16":
            return Declined(f"{self.name} multiplies bfloat16, not {spec.dtype}")
        if spec.element != DOT:
            return Declined(f"{self.name} multiplies q by k; the score sums {spec.element}")
        if spec.quantized:
            return Declined(f"{self.name} reads keys and values as bfloat16, without scales")
        if spec.head_dim % 2:
            return Declined(f"{self.name} multiplies pairs, and head_dim {spec.head_dim} is odd")
        return None

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        found = prefill_decisions(spec, target, 2)
        return found | {"columns": found["columns"] if spec.value_dim % 2 == 0 else 8}  # pairs of columns, so even

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        return prefill_space(self.decisions(spec, target), LANES)

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc.algorithm.prefill import build
        from attncc.schedules.cpu.prefill_pairs import PairSchedule
        from attncc.schedules.cpu.prefill_schedule import Registers

        check(decisions, LANES)
        if decisions["edge_block"] % 2:
            raise ValueError(f"{self.name}: edge_block={decisions['edge_block']} must be even")
        columns = -(-spec.value_dim // decisions["columns"]) * decisions["columns"]
        function = build(spec, tiling(decisions, columns, "bfloat16"))
        registers = Registers(LANES, decisions["vectors"], decisions["key_rows"], decisions["columns"])
        return PairSchedule(function, spec, registers, padded=columns != spec.value_dim).module()
