"""Who proposes candidates: all of a small space; through a large one, MetaSchedule's evolutionary search, or for a
GPU's kernels Optuna's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

from attncc.tuning.measure import Candidate, Outcome
from attncc.tuning.task import Task


class Searcher(Protocol):
    """Proposes candidates and learns from what became of them.

    A family whose decisions another library searches better gets its own implementation here; database, measuring and
    report do not change.
    """

    def propose(self, count: int) -> list[Candidate]:
        """About `count` candidates that it has neither proposed nor learnt of; none where it is at its end."""
        ...

    def learn(self, candidates: Sequence[Candidate], outcomes: Sequence[Outcome]) -> None:
        """Take note of outcomes, of candidates of others too: of an earlier run, of a neighbouring task."""
        ...


class Everything:
    """All points of a space, those that differ from the default in fewest decisions first."""

    def __init__(self, points: Iterable[Candidate], default: Candidate) -> None:
        self._left = dict.fromkeys(sorted(points, key=lambda point: _differences(point, default)))

    def propose(self, count: int) -> list[Candidate]:
        """The next `count`."""
        chosen = list(itertools.islice(self._left, count))
        self.learn(chosen, ())
        return chosen

    def learn(self, candidates: Sequence[Candidate], outcomes: Sequence[Outcome]) -> None:
        """Cross off what has been measured."""
        for candidate in candidates:
            self._left.pop(candidate, None)


def searcher_for(task: Task, trials: int, seed: int) -> Searcher:
    """The searcher of a task that is given `trials`."""
    if task.points <= trials:
        return Everything(task.candidates(), task.default)
    if task.target.kind == "cuda":  # most points do not go together, which MetaSchedule cannot be told
        from attncc.tuning.tpe import Tpe

        return Tpe(task.space, task.default, task.candidates(), seed)
    from attncc.tuning.evolution import Evolution

    return Evolution(task.space, task.default, seed)


def _differences(point: Candidate, default: Candidate) -> int:
    return sum(value != default.decisions[name] for name, value in point.decisions.items())
