"""Optuna's search through the spaces of GPU kernels. There is no GPU here: times are those of a made-up model."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pretended import FOREVER, Pretended

from attncc.schedules import Problem
from attncc.schedules.cuda import room
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.database import Database
from attncc.tuning.measure import Candidate, Outcome
from attncc.tuning.search import search, start
from attncc.tuning.searcher import searcher_for
from attncc.tuning.task import Task

pytest.importorskip("optuna")
AMPERE = Target("cuda", "sm_80", "nvptx64-nvidia-cuda", frozenset(), 108, 0, 0, 0)
TASK = Task(AttentionSpec("bfloat16", 64, 64), "cuda.prefill.mma", Problem(1, 16, 4096, 4096, 108), AMPERE)
"""106 candidates, of 288 points of which the others find no room."""


def modelled(candidate: Candidate) -> float:
    """Seconds: keys and values are read once a query tile, queries of a strip once a key tile, and few warps on a
    multiprocessor leave it idle. Nothing of it was measured."""
    d = candidate.decisions
    taken = room.mma(TASK.spec, d)
    warps = d["warps"] * min(d["blocks"], (163 << 10) // taken.shared)
    reading = 64 / d["rows"] + 16 / d["keys"] + (0.0 if d["keep_q"] else 0.3 * d["warps"] * 16 / d["rows"])
    return 1e-3 * (1.0 + reading + 2.0 / warps)


class Modelled(Pretended):
    """Times by the model; kernels of three blocks a multiprocessor crash."""

    def seconds(self, candidate: Candidate) -> float:
        return modelled(candidate)

    def measure(self, task: Task, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome]]:
        for candidate in candidates:
            if len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(candidate)
            crashed = candidate.decisions["blocks"] == 3
            yield candidate, Outcome.failed("crashed") if crashed else Outcome.of([self.seconds(candidate)] * 3)


def test_few_trials_find_nearly_the_best(tmp_path: Path) -> None:
    """What 32 of 106 candidates find, over some seeds: nearer to the best than as many drawn at random."""
    times = sorted(modelled(c) for c in TASK.candidates() if c.decisions["blocks"] < 3)
    found, drawn = [], []
    for seed in range(4):
        measurer = Modelled()
        state = search(start(TASK, measurer), 32, FOREVER, measurer, Database(tmp_path / str(seed)), seed=seed)
        assert len(set(measurer.asked)) == len(measurer.asked) == 32 and state.winner is not None
        found.append(state.winner.seconds or 0.0)
        drawn.append(min(random.Random(seed).sample(times, min(len(times), 24))))
    best = modelled(min((c for c in TASK.candidates() if c.decisions["blocks"] < 3), key=modelled)) * 1.05
    assert sorted(found)[1] <= best, (found, drawn, best)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Trials on record are told to Optuna, failures as failures, and none is measured again."""
    database, stopped = Database(tmp_path / "db"), Modelled(stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        search(start(TASK, stopped), 40, FOREVER, stopped, database)
    measurer = Modelled()
    state = search(start(TASK, measurer), 40, FOREVER, measurer, database)
    assert len(measurer.asked) == 20 == state.measured and not set(measurer.asked) & set(stopped.asked)
    crashed = [c for c in stopped.asked + measurer.asked if c.decisions["blocks"] == 3]
    assert len(crashed) == len(state.failures) > 0
    winner = state.winner
    assert winner is not None and winner.decisions["blocks"] < 3 and winner.target == AMPERE
    best = database.best(TASK.spec.json, AMPERE, TASK.bucket)
    assert best is not None and best.decisions == winner.decisions


@pytest.mark.slow
def test_it_comes_to_the_last_point_and_names_none_that_finds_no_room() -> None:
    searcher, seen = searcher_for(TASK, 64, seed=3), []
    while batch := searcher.propose(8):
        searcher.learn(batch, [Outcome(modelled(c)) for c in batch])
        seen += batch
    assert len(seen) == TASK.points == len(set(seen)) and set(seen) == set(TASK.candidates())
    assert searcher.propose(1) == []


def test_equal_seeds_name_the_same() -> None:
    def run(seed: int) -> list[Candidate]:
        searcher, seen = searcher_for(TASK, 64, seed), []
        for _ in range(4):
            seen += (batch := searcher.propose(8))
            searcher.learn(batch, [Outcome(modelled(c)) for c in batch])
        return seen

    assert run(1) == run(1) != run(2)
