"""Measuring in worker processes: kernels that are right are timed, all others fail in words, and do no harm."""

import cloudpickle
import pytest
import treacherous
from treacherous import CRASHES, HANGS, RIGHT, UNBUILDABLE, WRONG, Treacherous

from attncc import schedules
from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import detect
from attncc.tuning.local import LocalMeasurer
from attncc.tuning.measure import Candidate
from attncc.tuning.task import Task


def test_candidates_that_crash_hang_or_err_fail_and_never_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "CPU", (*schedules.CPU, Treacherous()))
    cloudpickle.register_pickle_by_value(treacherous)  # workers do not import from here
    task = Task(AttentionSpec("float32", 16, 16), "test.treacherous", Problem(1, 2, 33, 45, 2), detect())
    tiles = {"query_block": 8, "key_block": 32}
    measurer = LocalMeasurer(patience=20.0)
    try:
        kinds = (RIGHT, CRASHES, WRONG, UNBUILDABLE, HANGS)
        candidates = [Candidate({**tiles, "mischief": kind}) for kind in kinds]
        found = {candidate.decisions["mischief"]: outcome for candidate, outcome in measurer.measure(task, candidates)}
        assert found[RIGHT].seconds is not None and found[RIGHT].spread >= 0
        assert "crashed" in found[CRASHES].failure and "hung" in found[HANGS].failure
        assert "wrong result: out" in found[WRONG].failure and "do not go together" in found[UNBUILDABLE].failure
        compared = measurer.compare(task, [task.default, Candidate({**tiles, "query_block": 4, "mischief": RIGHT})])
        assert all(outcome.seconds for outcome in compared.outcomes) and compared.sdpa is not None
    finally:
        measurer.close()
