"""Prefill in tiles of one vector of queries: for few query rows, and where wider tiles would leave threads idle.

A tile of prefill's own width costs the same however many of its rows exist. One vector of queries needs more loads for
each product, and is otherwise as good.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import MIN_ROWS, PrefillFp32
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

WIDE = 64
"""Query rows of prefill's own tiles, roughly; it depends on the target."""
BUSY = 0.9
"""The share of their time that threads have to be busy with wide tiles."""


def _suits(problem: Problem) -> bool:
    """Whether wide tiles would be half empty, or too few to share."""
    if problem.q_len < MIN_ROWS:
        return False
    tiles = problem.batch * problem.heads * -(-problem.q_len // WIDE)
    rounds = -(-tiles // problem.threads)
    return problem.q_len <= WIDE // 2 or tiles < BUSY * problem.threads * rounds


def _narrow(decisions: dict[str, int]) -> dict[str, int]:
    lanes = decisions["query_block"] // (2 * decisions["vectors"])
    return {**decisions, "vectors": 1, "query_block": lanes}


@dataclass(frozen=True)
class NarrowFp32(PrefillFp32):
    """See the module's docstring. Decisions: those of `PrefillFp32`."""

    name: str = "cpu.narrow.fp32"

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return _suits(problem)

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        return _narrow(super().decisions(spec, target))


@dataclass(frozen=True)
class NarrowBf16(PrefillBf16):
    """See the module's docstring. Decisions: those of `PrefillBf16`."""

    name: str = "cpu.narrow.bf16"

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return _suits(problem)

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        return _narrow(super().decisions(spec, target))
