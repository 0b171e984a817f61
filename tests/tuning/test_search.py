"""The search of a task: what is recorded when, what is not measured twice, who wins. No kernel is built here."""

from pathlib import Path

import pytest
from pretended import FOREVER, SPEC, Pretended, task

from attncc import schedules
from attncc.schedules import Problem
from attncc.schedules.cpu.fallback import Fallback
from attncc.target import detect
from attncc.tuning import session
from attncc.tuning.database import Database
from attncc.tuning.measure import Candidate
from attncc.tuning.search import Budget, search, start
from attncc.tuning.task import Task


def test_a_search_records_every_trial_and_the_winner(tmp_path: Path) -> None:
    database, measurer = Database(tmp_path / "db"), Pretended()
    state = search(start(task(), measurer), 64, FOREVER, measurer, database)
    assert len(state.trials) == 9 == len(measurer.asked) and measurer.asked[0] == task().default
    assert len(state.failures) == 3 and state.winner is not None and state.winner.decisions["query_block"] == 16
    assert state.winner.gain == pytest.approx(0.25) and state.winner.sdpa_seconds == 2.0
    records = database.records()
    assert [r.status for r in records].count("failed") == 3
    assert len([r for r in records if r.default_seconds is None]) == 9
    best = database.best(SPEC.json, detect(), task().bucket)
    assert best is not None and best.decisions == state.winner.decisions


def test_what_is_on_record_is_not_measured_again(tmp_path: Path) -> None:
    """Stopped in the middle of its fifth candidate, a run has lost that one and goes on with it."""
    database, stopped = Database(tmp_path / "db"), Pretended(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        search(start(task(), stopped), 64, FOREVER, stopped, database)
    measurer = Pretended()
    state = search(start(task(), measurer), 64, FOREVER, measurer, database)
    assert len(measurer.asked) == 5 == state.measured and not set(measurer.asked) & set(stopped.asked)
    assert state.winner is not None and len(state.trials) == 9
    again = search(start(task(), measurer), 64, FOREVER, measurer, database)
    assert again.measured == again.comparisons == 0 and again.winner == state.winner


def test_a_run_killed_before_its_comparison_is_taken_up_there(tmp_path: Path) -> None:
    database, measurer = Database(tmp_path / "db"), Pretended()
    search(start(task(), measurer), 64, FOREVER, measurer, database)
    trials = Database(tmp_path / "trials")
    trials.append(*[record for record in database.records() if record.default_seconds is None])
    state = search(start(task(), measurer), 64, FOREVER, measurer, trials)
    assert state.measured == 0 and state.comparisons == 2 and state.winner is not None


def test_a_gain_within_the_noise_is_no_win_and_on_record_as_such(tmp_path: Path) -> None:
    database, measurer = Database(tmp_path / "db"), Pretended(gain=0.01)
    state = search(start(task(), measurer), 64, FOREVER, measurer, database)
    assert state.winner is None and any(r.default_seconds is not None for r in database.records())
    assert database.best(SPEC.json, detect(), task().bucket) is None


def test_who_wins_by_luck_does_not_win_twice(tmp_path: Path) -> None:
    """All three finalists seem to win; each meets the default once more, and none does."""
    database, measurer = Database(tmp_path / "db"), Pretended(gain=0.0, lucky=1)
    state = search(start(task(), measurer), 64, FOREVER, measurer, database)
    assert state.winner is None and len(state.finals) == 4
    assert len([r for r in database.records() if r.wins]) == 3
    assert database.best(SPEC.json, detect(), task().bucket) is None  # the later measurement is what counts


def test_winners_of_other_buckets_are_tried_first(tmp_path: Path) -> None:
    database, measurer = Database(tmp_path / "db"), Pretended()
    found = search(start(task(), measurer), 64, FOREVER, measurer, database).winner
    assert found is not None
    measurer.asked.clear()
    search(start(task(300), measurer), 9, FOREVER, measurer, database)
    assert measurer.asked[0] == task().default and Candidate(found.decisions) in measurer.asked[1:4]


def test_a_session_orders_tasks_by_what_they_can_win_and_shares_time(tmp_path: Path) -> None:
    rare, often = task(100), Task(SPEC, "cpu.fallback", Problem(1, 2, 300, 100, 2), detect(), calls=10)
    heard: list[session.Progress] = []
    found = session.run([rare, often], Budget(trials=3), Pretended(), Database(tmp_path / "db"), say=heard.append)
    assert [state.task for state in found.searches] == [often, rare] and found.measured == 6
    assert {p.number for p in heard} == {0, 1, 2} and all(p.left is not None for p in heard if p.state is not None)
    late = session.run([rare], Budget(seconds=-1.0), Pretended(), Database(tmp_path / "other"))
    assert late.measured == 0 and "no time left" in late.skipped[0][1]


def test_a_search_without_time_says_nothing_of_the_default(tmp_path: Path) -> None:
    database, measurer = Database(tmp_path / "db"), Pretended()
    state = search(start(task(), measurer), 9, 0.0, measurer, database)
    assert not state.trials and not state.finals and not database.records()


def test_ctrl_c_ends_a_session_with_what_was_found(tmp_path: Path) -> None:
    found = session.run([task()], Budget(9), Pretended(stop_after=3), Database(tmp_path / "db"))
    assert found.interrupted and found.measured == 3


def test_winners_are_carried_to_the_buckets_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "CPU", (Fallback(),))  # the family that the task names
    database = Database(tmp_path / "db")
    found = session.run([task()], Budget(9), Pretended(), database, neighbours=True)
    near = found.searches[0].neighbours
    assert [(r.problem.q_len, r.problem.kv_len) for r in near] == [(50, 50), (200, 200)]
    assert all(r.gain == pytest.approx(0.25) and r in database.records() for r in near)
