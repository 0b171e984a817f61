"""Prefill with AArch64's matrix products of bfloat16 (`bfmmla`), on the schedule of AMX: both multiply whole tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from attncc.schedules.cpu.prefill_amx import PrefillAmx

if TYPE_CHECKING:
    from attncc.schedules.cpu.prefill_tiles import TileSchedule


@dataclass(frozen=True)
class PrefillMmla(PrefillAmx):
    """See the module's docstring. Decisions: those of `PrefillAmx`."""

    name: str = "cpu.prefill.mmla"
    instructions: str = "bfmmla"
    needed: frozenset[str] = frozenset({"neon", "bf16"})
    lanes: int = 4

    def schedule(self) -> type[TileSchedule]:
        from attncc.schedules.cpu.prefill_tiles import MatrixSchedule

        return MatrixSchedule
