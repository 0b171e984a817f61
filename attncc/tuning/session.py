"""A run of the tuner over several tasks: what is worth most comes first, and the budget is shared out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attncc.tuning import roofline
from attncc.tuning.carry import carried
from attncc.tuning.database import Database
from attncc.tuning.measure import Measurer
from attncc.tuning.search import Budget, Search, search, start
from attncc.tuning.task import Task

if TYPE_CHECKING:
    from attncc.bench.peak import Peak


@dataclass
class Progress:
    """Where a run stands, for whoever shows it."""

    tasks: int
    """How many there are."""
    number: int
    """Which of them is at work, counted from 1; 0 while defaults are measured."""
    state: Search | None
    """That task's; None while defaults are measured."""
    trials: int
    """What each task is given."""
    left: float | None
    """Seconds until the run ends by its budget, or by the pace of this task; None where there is no telling yet."""
    text: str = ""
    """What is being done, where that is no trial."""


@dataclass
class Session:
    """What a run came to."""

    searches: list[Search] = field(default_factory=list)
    """In the order in which tasks were searched."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Tasks that could not be measured at all, and why."""
    seconds: float = 0.0
    interrupted: bool = False
    """Whether Ctrl-C ended it."""
    peak: Peak | None = None
    """What the machine can do, where it was measured."""

    @property
    def measured(self) -> int:
        """Candidates measured by this run."""
        return sum(state.measured for state in self.searches)


Say = Callable[[Progress], None]


def run(
    tasks: Sequence[Task],
    budget: Budget,
    measurer: Measurer,
    database: Database,
    *,
    peak: Callable[[], Peak] | None = None,
    neighbours: bool = False,
    say: Say = lambda progress: None,
    seed: int = 0,
) -> Session:
    """Search all tasks, those first where most time may be won.

    `peak` measures how much that is at most; with `neighbours` each winner also meets the default at sizes nearby.
    Ctrl-C ends the run as a deadline does: what was found until then is on record, and in the result.
    """
    began = time.monotonic()
    end = began + budget.seconds if budget.seconds is not None else float("inf")
    session = Session()
    try:
        _start_all(tasks, measurer, end, session, say)
        if peak is not None and session.searches:
            say(Progress(len(tasks), 0, None, 0, None, "measuring what the machine can do"))
            session.peak = peak()
            for state in session.searches:
                state.floor = _floor(state.task, session.peak)
        session.searches.sort(key=lambda state: -potential(state))
        for number, state in enumerate(session.searches, 1):
            left = len(session.searches) - number + 1
            now = time.monotonic()
            deadline = now + (end - now) / left
            search(state, budget.trials, deadline, measurer, database, _teller(session, number, budget, end, say), seed)
            if neighbours:
                state.neighbours = carried(state, measurer, database)
    except KeyboardInterrupt:
        session.interrupted = True
    session.seconds = time.monotonic() - began
    return session


def potential(state: Search) -> float:
    """Seconds that a run of the model could win at most: what its calls take beyond what the machine needs."""
    took = state.default.seconds or 0.0
    least = state.floor[0] if state.floor is not None else 0.0
    return state.task.calls * max(took - least, 0.0)


def _start_all(tasks: Sequence[Task], measurer: Measurer, end: float, session: Session, say: Say) -> None:
    """Measure the default of each task beside SDPA."""
    for task in tasks:
        if time.monotonic() >= end:
            session.skipped.append((str(task), "there was no time left to begin with it"))
            continue
        say(Progress(len(tasks), 0, None, 0, None, f"measuring the default: {task}"))
        began = time.monotonic()
        try:
            state = start(task, measurer)
        except (ValueError, RuntimeError) as error:
            session.skipped.append((str(task), str(error)))
            continue
        state.seconds = time.monotonic() - began
        session.searches.append(state)


def _floor(task: Task, peak: Peak) -> tuple[float, str] | None:
    with suppress(ValueError):  # of a mask that only its model's tensors could tell
        return roofline.floor(task, peak)
    return None


def _teller(session: Session, number: int, budget: Budget, end: float, say: Say) -> Callable[[Search], None]:
    began = time.monotonic()

    def tell(state: Search) -> None:
        now = time.monotonic()
        pace = (now - began) / max(state.measured, 1)
        tasks_after = len(session.searches) - number
        by_pace = pace * (budget.trials - len(state.trials) + tasks_after * budget.trials)
        say(Progress(len(session.searches), number, state, budget.trials, min(by_pace, end - now)))

    return tell
