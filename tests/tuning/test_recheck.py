"""Measuring records again: what is measured, what is recorded of it, and what the runtime does from then on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tuning_records import FAMILY, PROBLEM, SPEC, another, decisions, failed, record

from attncc.target import detect
from attncc.tuning import sources
from attncc.tuning.choose import choice
from attncc.tuning.database import Database
from attncc.tuning.measure import Candidate, Comparison, Outcome
from attncc.tuning.recheck import recheck
from attncc.tuning.record import Record
from attncc.tuning.task import Task

OTHER = decisions(edge_block=16)


@dataclass
class Pretended:
    """A measurer without kernels: candidates gain on the default what they are told to; others fail."""

    gains: dict[int, float]
    """By edge_block."""
    measured: list[Candidate] = field(default_factory=list)
    unsteady: bool = False
    noise: float = 0.0
    """By which every other turn of the default takes longer."""
    refuses: str = ""

    def measure(self, task: Task, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome]]:
        if self.refuses:
            raise ValueError(self.refuses)
        for candidate in candidates:
            self.measured.append(candidate)
            known = candidate.decisions["edge_block"] in self.gains
            yield candidate, Outcome.of([1.0]) if known else Outcome.failed("wrong result: out is off by 3")

    def compare(self, task: Task, candidates: Sequence[Candidate], *, turns: int = 15) -> Comparison:
        if self.unsteady or any(c.decisions["edge_block"] not in self.gains for c in candidates):
            return Comparison(tuple(Outcome.failed("it took more than 60 s") for _ in candidates))
        fast = [1.0 if c == task.default else 1 / (1 + self.gains[c.decisions["edge_block"]]) for c in candidates]
        slow = [1.0 + self.noise * (turn % 2) for turn in range(turns)]
        times = [
            [one * (late if c == task.default else 1.0) for late in slow]
            for one, c in zip(fast, candidates, strict=True)
        ]
        return Comparison(tuple(Outcome.of(turns) for turns in times), Outcome.of([3.0]))

    def close(self) -> None:
        pass


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("ATTNCC_DATABASE", str(tmp_path / "tuned.jsonl"))
    monkeypatch.setattr(sources, "SHIPPED", tmp_path / "shipped")
    sources.shipped.cache_clear()
    sources._sources.cache_clear()
    yield Database()
    sources.shipped.cache_clear()
    sources._sources.cache_clear()


def edge(found: Record) -> int:
    return found.decisions["edge_block"]


def test_a_confirmed_record_stays_in_use(db: Database) -> None:
    db.append(
        record(0.3, OTHER),
        record(0.1),
        record(-0.1, decisions(key_rows=another("key_rows"))),
        failed(given=decisions(columns=another("columns"))),
    )
    heard = []
    (verdict,) = recheck(db, measurer=Pretended({16: 0.2, 32: 0.1}), progress=lambda *facts: heard.append(facts))
    assert (verdict.state, verdict.bad, edge(verdict.record)) == ("confirmed", False, 16)
    assert verdict.reason == "+20.0% ± 0.0%, and +30.0% when it was recorded"
    assert [(number, count) for _, number, count in heard] == [(0, 1)]
    now = db.records()[-1]
    assert now == verdict.measured and now.gain == pytest.approx(0.2) and now.sdpa_seconds == 3.0
    assert choice(SPEC, FAMILY, detect(), PROBLEM).record == now


def test_where_a_record_loses_the_next_best_is_measured(db: Database) -> None:
    db.append(record(0.3, OTHER), record(0.1))
    first, second = recheck(db, measurer=Pretended({16: -0.2, 32: 0.15}))
    assert (first.state, first.bad, second.state, edge(second.record)) == ("regressed", True, "confirmed", 32)
    assert choice(SPEC, FAMILY, detect(), PROBLEM).decisions == decisions()
    assert [verdict.state for verdict in recheck(db, measurer=Pretended({32: 0.005}))] == ["lost"]
    assert choice(SPEC, FAMILY, detect(), PROBLEM).record is None
    assert recheck(db, measurer=Pretended({})) == [], "nothing is claimed any longer"


def test_a_wrong_kernel_is_on_record_as_such(db: Database) -> None:
    db.append(record(0.3, OTHER))
    (verdict,) = recheck(db, measurer=Pretended({32: 0.0}))
    assert (verdict.state, verdict.bad) == ("failed", True)
    assert db.records()[-1].failure == "wrong result: out is off by 3"
    assert choice(SPEC, FAMILY, detect(), PROBLEM).record is None


def test_a_moment_of_trouble_takes_nothing_back(db: Database) -> None:
    db.append(record(0.3, OTHER))
    (verdict,) = recheck(db, measurer=Pretended({16: 0.3}, unsteady=True))
    assert (verdict.state, verdict.measured) == ("skipped", None)
    assert choice(SPEC, FAMILY, detect(), PROBLEM).record is not None


def test_a_busy_machine_takes_nothing_back(db: Database) -> None:
    db.append(record(0.3, OTHER))
    (verdict,) = recheck(db, measurer=Pretended({16: 0.0, 32: 0.0}, noise=0.5))
    assert (verdict.state, verdict.bad, verdict.measured) == ("unclear", False, None)
    assert "quiet machine" in verdict.reason and len(db.records()) == 1


def test_records_of_an_older_release_become_this_ones_where_they_still_win(db: Database) -> None:
    old = replace(record().versions, attncc="0.0.1", tvm="0.1")
    db.append(record(0.3, OTHER, versions=old))
    assert choice(SPEC, FAMILY, detect(), PROBLEM).record is None
    (verdict,) = recheck(db, measurer=Pretended({16: 0.3, 32: 0.0}))
    assert verdict.state == "confirmed"
    assert choice(SPEC, FAMILY, detect(), PROBLEM).decisions == OTHER


def test_what_cannot_be_measured_says_why(db: Database) -> None:
    few = replace(PROBLEM, q_len=100, kv_len=100)
    db.append(record(0.3, OTHER), record(0.3, problem=few))
    skipped = recheck(db, measurer=Pretended({}, refuses="n0 may be any position; tune it from its model"))
    reasons = [
        "n0 may be any position; tune it from its model",
        "cpu.short is the default now, and the record is of cpu.prefill.fp32",
    ]
    assert [(verdict.state, verdict.measured, verdict.reason) for verdict in skipped] == [
        ("skipped", None, reason) for reason in reasons
    ]


def test_sizes_that_no_machine_has_room_for_are_not_measured(db: Database) -> None:
    """Anybody may have written them."""
    db.append(record(0.3, OTHER, problem=replace(PROBLEM, batch=1 << 40)))
    (verdict,) = recheck(db, measurer=Pretended({16: 0.3, 32: 0.0}))
    assert (verdict.state, verdict.reason) == ("skipped", "its operands have 5e+16 elements")


def test_what_does_not_fit_here_is_not_built(db: Database) -> None:
    """Neither decisions that are in no space, nor those for another kind of machine."""
    db.append(record(0.3, decisions(query_block=10**9)), record(0.3, target=replace(detect(), kind="cuda")))
    assert recheck(db, measurer=Pretended({})) == []


def test_shipped_records_are_measured_too_and_the_users_file_says_what_came_of_it(db: Database, tmp_path: Path) -> None:
    Database(tmp_path / "shipped" / "cpu.jsonl").append(record(0.3, OTHER))
    assert choice(SPEC, FAMILY, detect(), PROBLEM).decisions == OTHER
    assert [verdict.state for verdict in recheck(db, measurer=Pretended({16: -0.3, 32: 0.0}))] == ["regressed"]
    assert len(db.records()) == 1
    assert choice(SPEC, FAMILY, detect(), PROBLEM).record is None
