"""A measurer for tests of the tuner that builds nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import detect
from attncc.tuning.measure import Candidate, Comparison, Outcome
from attncc.tuning.task import Task

SPEC = AttentionSpec("float32", 16, 16)
FOREVER = float("inf")


def task(q_len: int = 100) -> Task:
    return Task(SPEC, "cpu.fallback", Problem(1, 2, q_len, 100, 2), detect())


@dataclass
class Pretended:
    """A measurer without kernels: time falls with the query block; a key block of 64 fails."""

    asked: list[Candidate] = field(default_factory=list)
    stop_after: int = 1 << 30
    gain: float = 0.2
    lucky: int = 0
    """Comparisons in which everything but the default seems faster than it is."""

    def seconds(self, candidate: Candidate) -> float:
        return 1.0 - self.gain * (candidate.decisions["query_block"] == 16)

    def measure(self, task: Task, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome]]:
        for candidate in candidates:
            if len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(candidate)
            broken = candidate.decisions["key_block"] == 64
            yield candidate, Outcome.failed("crashed") if broken else Outcome.of([self.seconds(candidate)] * 3)

    def compare(self, task: Task, candidates: Sequence[Candidate], *, turns: int = 15) -> Comparison:
        noise = [1.0 + 0.05 * (turn % 3) for turn in range(turns)]
        several, self.lucky = len(candidates) > 1, self.lucky - (len(candidates) > 1)
        luck = 0.5 if several and self.lucky >= 0 else 1.0
        base = [self.seconds(c) * (1.0 if c == task.default else luck) for c in candidates]
        outcomes = [Outcome.of([seconds * one for one in noise]) for seconds in base]
        return Comparison(tuple(outcomes), Outcome.of([2.0]))

    def close(self) -> None:
        pass
