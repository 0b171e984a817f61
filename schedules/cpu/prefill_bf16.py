"""Prefill with dot products of bfloat16 pairs, AVX512-BF16's or AArch64's: bfloat16 in, float32 sums.

Probabilities are rounded to bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from attncc.schedules.cpu import model
from attncc.schedules.cpu.prefill_fp32 import PrefillFp32, check, prefill_decisions, prefill_space, tiling
from attncc.schedules.family import Decisions, Declined
from attncc.spec import DOT, AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule


@dataclass(frozen=True)
class PrefillBf16(PrefillFp32):
    """See the module's docstring. Decisions: those of `PrefillFp32` but copy_values: v is always made anew."""

    name: str = "cpu.prefill.bf16"
    dtype: str = "bfloat16"
    """What is multiplied."""
    codes: bool = False
    """Whether keys and values may be kept as codes (int8, float8), of which each is a number of that dtype."""

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu" or not {"avx512bf16", "bf16"} & target.features:
            return Declined(f"{self.name} needs AVX512-BF16 or AArch64's bf16, which {target.mcpu} lacks")
        return self.refuses(spec)

    def refuses(self, spec: AttentionSpec) -> Declined | None:
        """The same for what is computed, whatever the target."""
        if spec.dtype != self.dtype:
            return Declined(f"{self.name} multiplies {self.dtype}, not {spec.dtype}")
        if spec.element != DOT:
            return Declined(f"{self.name} multiplies q by k; the score sums {spec.element}")
        if spec.quantized and not self.codes:
            return Declined(f"{self.name} reads keys and values as {self.dtype}, without scales")
        if spec.head_dim % 2:
            return Declined(f"{self.name} multiplies pairs, and head_dim {spec.head_dim} is odd")
        return None

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        found = prefill_decisions(spec, paired(target), 2)
        columns = found["columns"] if spec.value_dim % 2 == 0 else 8  # pairs of columns, so even
        return found | {"columns": columns, "copy_keys": 0}

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        return prefill_space(self.decisions(spec, target), model.lanes(paired(target), 4)) | {"copy_keys": (0, 1)}

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc.algorithm.prefill import build
        from attncc.schedules.cpu.prefill_pairs import PairSchedule
        from attncc.schedules.cpu.prefill_schedule import Registers

        lanes = model.lanes(paired(target), 4)
        check(decisions, lanes)
        if decisions["edge_block"] % 2:
            raise ValueError(f"{self.name}: edge_block={decisions['edge_block']} must be even")
        columns = -(-spec.value_dim // decisions["columns"]) * decisions["columns"]
        function = build(spec, tiling(decisions, columns, "bfloat16", target))
        registers = Registers(lanes, decisions["vectors"], decisions["key_rows"], decisions["columns"])
        return PairSchedule(function, spec, registers, columns != spec.value_dim, bool(decisions["copy_keys"])).module()


def paired(target: Target) -> Target:
    """`target` as dot products of pairs see it: AArch64's `bfdot` is used as NEON has it, also beside SVE."""
    return replace(target, sve_bits=0)
