"""Prefill in tiles of one vector of queries: for few query rows, and where larger tiles would leave threads idle.

A tile costs the same however many of its rows exist, and one thread computes it. Smaller ones load keys and values more
often for each product, and are otherwise as good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attncc.schedules.cpu import model
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16, paired
from attncc.schedules.cpu.prefill_fp32 import MIN_ROWS, PrefillFp32, size_of
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

ROWS = 16
"""Query rows of a tile, or as few more as make a whole vector."""
GAIN = 0.92
"""What a row costs in prefill's own tiles, of its cost here."""


def _suits(problem: Problem) -> bool:
    """Whether all threads are done sooner than with prefill's own tiles."""
    if problem.q_len < MIN_ROWS:
        return False
    heads = problem.batch * problem.heads

    def finished(rows: int) -> int:
        return rows * -(-heads * -(-problem.q_len // rows) // problem.threads)

    return finished(ROWS) < GAIN * finished(model.ROWS)


def _narrow(decisions: Mapping[str, int], lanes: int) -> dict[str, int]:
    return {**decisions, "vectors": 1, "query_block": max(ROWS, lanes)}


def _held(space: Mapping[str, tuple[int, ...]], decisions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """A space without other tiles."""
    return {**space, **{name: (decisions[name],) for name in ("query_block", "vectors")}}


@dataclass(frozen=True)
class NarrowFp32(PrefillFp32):
    """See the module's docstring. Decisions: those of `PrefillFp32`."""

    name: str = "cpu.narrow.fp32"

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return _suits(problem)

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        return _narrow(super().decisions(spec, target), model.lanes(target, size_of(spec)))

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        return _held(super().space(spec, target), self.decisions(spec, target))


@dataclass(frozen=True)
class NarrowBf16(PrefillBf16):
    """See the module's docstring. Decisions: those of `PrefillBf16`."""

    name: str = "cpu.narrow.bf16"

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return _suits(problem)

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        return _narrow(super().decisions(spec, target), model.lanes(paired(target), 4))

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        return _held(super().space(spec, target), self.decisions(spec, target))
