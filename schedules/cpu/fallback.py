"""Any attention on any CPU that LLVM knows: the prefill algorithm in small tiles, spread over threads, else as it is.

No vector width, register count or instruction is assumed; what LLVM vectorises by itself is welcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from attncc.schedules.cpu.work import prefill_launch
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule


@dataclass(frozen=True)
class Fallback(Family):
    """See the module's docstring. Decisions: query_block and key_block, any positive numbers."""

    name: str = "cpu.fallback"
    regime: Literal["prefill", "decode", "any"] = "any"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu":
            return Declined(f"{self.name} is for CPUs, and the target is {target.kind}")
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return True

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        return {"query_block": 8, "key_block": 32}

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        return {"query_block": (4, 8, 16), "key_block": (16, 32, 64)}

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc._tvm import IRModule, Schedule
        from attncc.algorithm.prefill import build
        from attncc.algorithm.prefill_tile import Tiling
        from attncc.algorithm.signature import NAME, compute_dtype

        query_block, key_block = decisions["query_block"], decisions["key_block"]
        if min(query_block, key_block) < 1:
            raise ValueError(f"{self.name}: query_block={query_block} and key_block={key_block} must be positive")
        sch = Schedule(
            IRModule({NAME: build(spec, Tiling(query_block, key_block, spec.value_dim, compute_dtype(spec)))})
        )
        sch.work_on(NAME)
        (tiles,) = sch.get_loops("tile")
        sch.parallel(tiles)
        return sch.mod

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        return prefill_launch(spec, decisions["query_block"], problem)
