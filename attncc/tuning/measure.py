"""What a search asks of whoever measures: build candidates, check them, time them.

`LocalMeasurer` (`attncc.tuning.local`) does so on this machine, a fleet elsewhere. A measurer never raises for a
candidate: one that does not build, crashes, hangs or computes wrongly has an `Outcome` that says so.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from attncc.target import Target
    from attncc.tuning.task import Task


@dataclass(frozen=True)
class Candidate:
    """One point of a family's space: its decisions, all of them."""

    decisions: Mapping[str, int]

    @property
    def key(self) -> tuple[tuple[str, int], ...]:
        """The decisions in an order that does not depend on who made them."""
        return tuple(sorted(self.decisions.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.key)


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate. It failed where `seconds` is None."""

    seconds: float | None
    """The median of its turns, a call."""
    spread: float = 0.0
    """Seconds between the quartiles of its turns."""
    failure: str = ""
    """Why it may never be chosen, in one line."""
    turns: tuple[float, ...] = ()
    """Seconds a call of each turn, in the order in which they were taken."""

    @classmethod
    def of(cls, turns: Sequence[float]) -> Outcome:
        """The outcome of the times of some turns, at least one."""
        low, _, high = statistics.quantiles(turns, n=4, method="inclusive") if len(turns) > 1 else (0.0, 0.0, 0.0)
        return cls(statistics.median(turns), high - low, turns=tuple(turns))

    @classmethod
    def failed(cls, reason: str) -> Outcome:
        """The outcome of a candidate that has no time, for a reason that is cut to one line."""
        line = (reason.strip().splitlines() or ["no message"])[-1]
        return cls(None, failure=line[:300])


@dataclass(frozen=True)
class Comparison:
    """Outcomes of candidates whose turns were interleaved: the n-th turn of each was taken in the same moment."""

    outcomes: tuple[Outcome, ...]
    sdpa: Outcome | None = None
    """PyTorch's SDPA, right before, where it has this attention and the device has PyTorch."""


class Measurer(Protocol):
    """Builds, checks and times candidates of a task on the device that they are for."""

    @property
    def target(self) -> Target:
        """What kernels are compiled for: tasks must be for it."""
        ...

    @property
    def threads(self) -> int:
        """How many threads PyTorch has where kernels are measured."""
        ...

    def measure(self, task: Task, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome]]:
        """Each candidate with its outcome as soon as that is known, in whatever order.

        The first call for a task also makes its operands: ValueError where they cannot be made up.
        """
        ...

    def compare(self, task: Task, candidates: Sequence[Candidate], *, turns: int = 15) -> Comparison:
        """The candidates against each other in interleaved turns, for the last word on who is faster."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...
