"""The search of one task: trials by a searcher, each on record at once, then a paired comparison of the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from attncc.tuning.database import Database
from attncc.tuning.measure import Candidate, Measurer, Outcome
from attncc.tuning.paired import Paired
from attncc.tuning.record import Record, machine, outside
from attncc.tuning.searcher import searcher_for
from attncc.tuning.task import Task
from attncc.tuning.versions import Versions

ROUND = 8
"""Candidates that are built side by side, before they are timed one after another."""
FINALISTS = 3
SEEDS = 3
"""Winners of neighbouring buckets that are tried first."""


@dataclass(frozen=True)
class Budget:
    """When a search ends, whichever comes first."""

    trials: int = 64
    """Candidates a task, those counted that an earlier run has measured."""
    seconds: float | None = None
    """For all tasks together."""


@dataclass(frozen=True)
class Trial:
    """One candidate and what became of it."""

    candidate: Candidate
    outcome: Outcome
    measured: bool
    """Whether this run measured it; else an earlier one did."""


@dataclass
class Search:
    """The state of one task's search, and in the end its result."""

    task: Task
    default: Outcome
    """The default's decisions, measured on their own before the search."""
    sdpa: Outcome | None
    trials: list[Trial] = field(default_factory=list)
    finals: list[Record] = field(default_factory=list)
    """The finalists, each in interleaved turns with the default: what the runtime goes by."""
    comparisons: int = 0
    """How often this run had candidates meet the default."""
    neighbours: list[Record] = field(default_factory=list)
    """The winner against the default in the buckets next to its own, where that was asked for."""
    seconds: float = 0.0
    """What it took."""
    floor: tuple[float, str] | None = None
    """The least time that the machine allows, and by what; None where its peak is not known."""

    @property
    def best(self) -> Trial | None:
        """The fastest trial so far."""
        timed = [trial for trial in self.trials if trial.outcome.seconds is not None]
        return min(timed, key=lambda trial: trial.outcome.seconds or 0.0, default=None)

    @property
    def winner(self) -> Record | None:
        """The finalist that beats the default by most, where one does by more than the noise."""
        return max((r for r in self.finals if r.wins), key=lambda r: r.gain or 0.0, default=None)

    @property
    def measured(self) -> int:
        """Candidates that this run measured."""
        return sum(trial.measured for trial in self.trials)

    @property
    def failures(self) -> list[Trial]:
        """Candidates that did not build, crashed, hung or computed wrongly."""
        return [trial for trial in self.trials if trial.outcome.seconds is None]


Say = Callable[[Search], None]
"""Told of the state after each trial."""


def start(task: Task, measurer: Measurer) -> Search:
    """Measure the default beside SDPA. Raises RuntimeError where the default itself fails."""
    found = measurer.compare(task, [task.default], turns=5)
    if found.outcomes[0].seconds is None:
        raise RuntimeError(f"{task}: the default decisions failed: {found.outcomes[0].failure}")
    return Search(task, found.outcomes[0], found.sdpa)


def search(
    state: Search,
    trials: int,
    deadline: float,
    measurer: Measurer,
    database: Database,
    say: Say = lambda state: None,
    seed: int = 0,
) -> Search:
    """Search the task of `state` until it has `trials`, or `time.monotonic()` is past `deadline`; gives `state`.

    Every trial is in the database before the next one begins, and is not measured again by a later run.
    """
    began = time.monotonic()
    known = latest_of(state.task, database.records())
    state.trials += [Trial(candidate, outcome, False) for candidate, outcome in known.items()]
    searcher = searcher_for(state.task, trials, seed)
    searcher.learn(list(known), list(known.values()))
    first = _first(state.task, database.records(), known)
    while len(state.trials) < trials and time.monotonic() < deadline:
        count = min(ROUND, trials - len(state.trials))
        batch = first[:count] if first else searcher.propose(count)[:count]
        first = first[count:]
        if not batch:
            break
        done: list[Trial] = []
        for candidate, outcome in measurer.measure(state.task, batch):
            done.append(Trial(candidate, outcome, True))
            state.trials.append(done[-1])
            database.append(_trial_record(state, done[-1]))
            say(state)
            if time.monotonic() >= deadline:
                break
        searcher.learn([trial.candidate for trial in done], [trial.outcome for trial in done])
    state.finals = compared(state.task, database.records())
    if not state.finals:
        _finish(state, measurer, database)
    state.seconds += time.monotonic() - began
    return state


def latest_of(task: Task, records: Iterable[Record]) -> dict[Candidate, Outcome]:
    """The last outcome of each candidate that was measured for exactly this task, by kernels as they are now."""
    found: dict[Candidate, Outcome] = {}
    for record in _of(task, records):
        # a paired measurement is not one more trial, and its time is of another moment
        if record.default_seconds is None and not outside(record.decisions, task.schedules, task.spec, task.target):
            spread = (record.spread or 0.0) * (record.seconds or 0.0)
            found[Candidate(record.decisions)] = Outcome(record.seconds, spread, record.failure)
    return found


def _of(task: Task, records: Iterable[Record]) -> Iterator[Record]:
    """Records of this very task: attention, family, sizes, machine and versions."""
    versions = Versions.current(task.target)
    for record in records:
        same = record.spec == task.spec.json and record.family == task.family and record.problem == task.problem
        if same and machine(record.target) == machine(task.target) and record.versions == versions:
            yield record


def _first(task: Task, records: Iterable[Record], known: Mapping[Candidate, Outcome]) -> list[Candidate]:
    """What is tried before anything else: the default, and what won for sizes nearby."""
    near = [
        record for record in records
        if record.wins and record.spec == task.spec.json and record.family == task.family
        and not outside(record.decisions, task.schedules, task.spec, task.target)
    ]  # fmt: skip
    near.sort(key=lambda record: (record.bucket.distance(task.bucket), -(record.gain or 0.0)))
    candidates = dict.fromkeys([task.default, *[Candidate(dict(record.decisions)) for record in near]])
    return [candidate for candidate in candidates if candidate not in known][: 1 + SEEDS]


def _trial_record(state: Search, trial: Trial) -> Record:
    task, outcome = state.task, trial.outcome
    return Record(
        spec=task.spec.json, family=task.family, decisions=dict(trial.candidate.decisions), problem=task.problem,
        target=task.target, status="ok" if outcome.seconds is not None else "failed", failure=outcome.failure,
        seconds=outcome.seconds, spread=outcome.spread / outcome.seconds if outcome.seconds else None,
        trials=len(state.trials), versions=Versions.current(task.target),
    )  # fmt: skip


def compared(task: Task, records: Iterable[Record]) -> list[Record]:
    """The last paired measurement of each candidate of this very task that came after its last trial."""
    found: dict[Candidate, Record] = {}
    for record in _of(task, records):
        if record.default_seconds is None:
            found.clear()
        else:
            found[Candidate(record.decisions)] = record
    return list(found.values())


def _finish(state: Search, measurer: Measurer, database: Database) -> None:
    """Compare the fastest trials with the default, turn by turn, and put what came of it on record, wins or not.

    Who comes out first of several has had luck as well, so it meets the default once more, and that is what counts.
    """
    task = state.task
    timed = [trial for trial in state.trials if trial.outcome.seconds is not None and trial.candidate != task.default]
    if all(trial.candidate == task.default for trial in state.trials):
        return  # no news, and "nothing beat the default" would be some
    timed.sort(key=lambda trial: trial.outcome.seconds or 0.0)
    _compare(state, [task.default, *[trial.candidate for trial in timed[:FINALISTS]]], measurer, database)
    confirmed: set[Candidate] = set()
    while (winner := state.winner) is not None and (first := Candidate(dict(winner.decisions))) not in confirmed:
        confirmed.add(first)
        _compare(state, [task.default, first], measurer, database)


def _compare(state: Search, candidates: list[Candidate], measurer: Measurer, database: Database) -> None:
    """One comparison; what it says of a candidate takes the place of what an earlier one said."""
    found = measurer.compare(state.task, candidates)
    if any(outcome.seconds is None for outcome in found.outcomes):
        return  # what passed a moment ago fails now: the machine is in no state to say who wins
    state.comparisons += 1
    state.default, state.sdpa = found.outcomes[0], found.sdpa or state.sdpa
    made = [_final_record(state, *pair) for pair in zip(candidates, found.outcomes, strict=True)]
    database.append(*made)
    new = [record.candidate for record in made]
    state.finals = made + [record for record in state.finals if record.candidate not in new]


def _final_record(state: Search, candidate: Candidate, outcome: Outcome) -> Record:
    """The record of a finalist; the default is one, so that the database knows where nothing beat it."""
    task = state.task
    return Record(
        spec=task.spec.json,
        family=task.family,
        decisions=dict(candidate.decisions),
        problem=task.problem,
        target=task.target,
        **asdict(Paired.of(outcome.turns, state.default.turns)),
        default_family=task.family,
        default_decisions=dict(task.default.decisions),
        sdpa_seconds=state.sdpa.seconds if state.sdpa is not None else None,
        trials=len(state.trials),
        versions=Versions.current(task.target),
    )
