"""Measuring in worker processes: kernels that are right are timed, all others fail in words, and do no harm."""

import json
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest
import torch
import torch.nn.functional as F
import treacherous
from treacherous import CRASHES, HANGS, RIGHT, UNBUILDABLE, WRONG, Treacherous

import attncc
from attncc import schedules
from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import detect
from attncc.tuning.database import Database
from attncc.tuning.local import LocalMeasurer
from attncc.tuning.measure import Candidate, Outcome
from attncc.tuning.task import Task

TILES = {"query_block": 8, "key_block": 32}


@pytest.fixture(scope="module")
def measurer() -> Iterator[LocalMeasurer]:
    """One for all: its processes take seconds to start."""
    made = LocalMeasurer(patience=300.0, builders=1)
    yield made
    made.close()


@pytest.fixture
def treacherous_task(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(schedules, "CPU", (*schedules.CPU, Treacherous()))
    cloudpickle.register_pickle_by_value(treacherous)  # workers do not import from here
    return Task(AttentionSpec("float32", 16, 16), "test.treacherous", Problem(1, 2, 33, 45, 2), detect())


def measured(measurer: LocalMeasurer, task: Task, *kinds: int) -> dict[int, Outcome]:
    candidates = [Candidate({**TILES, "mischief": kind}) for kind in kinds]
    return {candidate.decisions["mischief"]: outcome for candidate, outcome in measurer.measure(task, candidates)}


def test_a_model_is_tuned(measurer: LocalMeasurer, tmp_path: Path) -> None:
    """A real search, of an attention of few keys, whose space is tried whole."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    x, heard = torch.randn(1, 2, 40, 16), []
    tuned = attncc.tune(model, x, trials=8, database=tmp_path / "db", measurer=measurer, progress=heard.append)
    (state,) = tuned.searches
    assert state.task.family == "cpu.short" and tuned.measured == len(state.trials) == state.task.points
    assert not state.failures and state.finals and state.sdpa is not None and not tuned.nothing
    assert len(Database(tmp_path / "db").records()) == len(state.trials) + len(state.finals)
    assert "cpu.short" in str(tuned) and json.loads(tuned.to_json())["tasks"][0]["points"] == state.task.points
    assert heard[-1].state is state and heard[-1].trials == 8
    again = attncc.tune(model, x, trials=8, database=tmp_path / "db", measurer=measurer)
    assert again.measured == 0 and "on record already" in again.nothing


@pytest.mark.slow
def test_candidates_that_crash_or_err_fail_and_harm_no_other(measurer: LocalMeasurer, treacherous_task: Task) -> None:
    found = measured(measurer, treacherous_task, CRASHES, WRONG, UNBUILDABLE, RIGHT)
    assert "crashed" in found[CRASHES].failure and "wrong result: out" in found[WRONG].failure
    assert "do not go together" in found[UNBUILDABLE].failure
    assert found[RIGHT].seconds is not None and found[RIGHT].spread >= 0


@pytest.mark.slow
def test_candidates_that_hang_fail_and_harm_no_other(treacherous_task: Task) -> None:
    """Of a measurer that is less patient, but long enough for a busy machine to build and run the others."""
    measurer = LocalMeasurer(patience=30.0, builders=1)
    try:
        found = measured(measurer, treacherous_task, HANGS, RIGHT)
        assert "hung" in found[HANGS].failure and found[RIGHT].seconds is not None
        other = Candidate({**TILES, "query_block": 4, "mischief": RIGHT})
        compared = measurer.compare(treacherous_task, [treacherous_task.default, other])
        assert all(outcome.seconds for outcome in compared.outcomes) and compared.sdpa is not None
    finally:
        measurer.close()
