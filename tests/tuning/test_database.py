"""The database file: nothing recorded is lost, whoever dies or writes beside, and no foreign file is read."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_records import PROBLEM, SPEC, another, decisions, failed, record

from attncc.schedules import Problem
from attncc.target import detect
from attncc.tuning import database as module
from attncc.tuning.database import Database, default_path, latest, winners
from attncc.tuning.inventory import essence
from attncc.tuning.record import Record


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(tmp_path / "folder" / "tuned.jsonl")


def test_records_come_back_in_order(db: Database) -> None:
    assert db.records() == ()
    given = [record(trials=n) for n in range(5)]
    db.append(given[0])
    db.append(*given[1:])
    db.append()
    assert db.records() == tuple(given)
    assert db.path.stat().st_mode & 0o777 == 0o600
    assert db.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_line_torn_at_any_byte_costs_itself_alone(db: Database) -> None:
    """Whatever a killed writer left of its line, the records before it and after it are whole."""
    db.append(record(trials=1))
    whole = db.content()
    line = record(trials=2).to_json().encode()
    for end in (*range(0, len(line), 41), len(line) - 1, len(line)):
        db.path.write_bytes(whole + line[:end])
        contents = db.read()
        assert not contents.rejected, "a last line may be one that is being written"
        assert [r.trials for r in contents.records] == ([1, 2] if end == len(line) else [1])
        db.append(record(trials=3))
        assert [r.trials for r in db.records()] == ([1, 2, 3] if end == len(line) else [1, 3])
        assert len(db.read().rejected) == (0 < end < len(line))


def test_bad_lines_are_named_and_the_others_read(db: Database) -> None:
    good = record().to_json()
    db.append(record())
    db.path.write_text("\n".join([good, "nonsense", "x" * 3_000_000, "", '{"format": 7}', good, "\0\0\0", good, ""]))
    contents = db.read()
    assert len(contents.records) == 3
    assert [line.number for line in contents.rejected] == [2, 3, 5, 7]
    assert "3000000 bytes" in contents.rejected[1].reason


def writer(path: Path, number: int, told: int) -> None:
    """Append records for ever; say which one is next, and which one has been recorded."""
    mine = Database(path)
    for trial in range(1 << 20):
        mine.append(record(trials=number * 1_000_000 + trial))
        os.write(told, f"{number * 1_000_000 + trial}\n".encode())


def start(path: Path, number: int, told: int) -> int:
    """A writer in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            writer(path, number, told)
        finally:
            os._exit(1)
    return child


def kill_writers(path: Path, kills: int, writers: int, longest: float) -> None:
    """Kill -9 one of several writers at random moments, starting another each time; compare with what they said.

    A moment is counted from something having been recorded since the last kill, however slow the machine is.
    """
    random.seed(5)
    reading, told = os.pipe()
    alive = [start(path, number, told) for number in range(writers)]
    recorded = b""
    try:
        for number in range(writers, writers + kills):
            assert select.select([reading], [], [], 600)[0], "no writer records anything"
            recorded += os.read(reading, 1 << 20)
            time.sleep(random.random() * longest)
            victim = alive.pop(random.randrange(len(alive)))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            alive.append(start(path, number, told))
    finally:
        for child in alive:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(told)
        while part := os.read(reading, 1 << 20):
            recorded += part
        os.close(reading)
    contents = Database(path).read()
    found = [r.trials for r in contents.records]
    assert set(map(int, recorded.split())) <= set(found), "what was acknowledged is there"
    assert len(found) == len(set(found)) and len(found) >= kills
    assert len(contents.rejected) < kills + writers, "one line a kill at most; the last one's is not yet a line"
    Database(path).append(record(trials=1 << 39))
    assert Database(path).records()[-1].trials == 1 << 39


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")
def test_killed_writers_lose_nothing(db: Database) -> None:
    db.path.parent.mkdir()
    kill_writers(db.path, kills=6, writers=2, longest=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")
def test_many_killed_writers_lose_nothing(db: Database) -> None:
    db.path.parent.mkdir()
    kill_writers(db.path, kills=60, writers=4, longest=0.3)


def test_files_that_others_could_have_written_are_refused(db: Database, tmp_path: Path) -> None:
    db.append(record())
    db.path.chmod(0o660)
    for use in (db.read, lambda: db.append(record()), db.prune):
        with pytest.raises(PermissionError, match="no other may write it"):
            use()
    assert len(Database(db.path, foreign=True).records()) == 1
    db.path.chmod(0o600)
    link = tmp_path / "link.jsonl"
    link.symlink_to(db.path)
    with pytest.raises(OSError, match=r"link\.jsonl"):
        Database(link).read()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a file"):
        Database(tmp_path / "pipe").read()
    with pytest.raises(OSError, match="Is a directory"):
        Database(tmp_path).append(record())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_file_is_refused(db: Database) -> None:
    db.append(record())
    os.chown(db.path, 12345, 12345)
    with pytest.raises(PermissionError, match="must belong to this user"):
        db.read()


def test_a_huge_file_is_not_read(db: Database) -> None:
    db.append(record())
    os.truncate(db.path, module.MOST_BYTES + 1)  # sparse: takes no room
    with pytest.raises(OSError, match="at most 256 MiB"):
        db.read()


def test_a_lock_that_is_held_is_waited_for_and_named(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    with db._locked(), pytest.raises(TimeoutError, match="locked by another process"):
        Database(db.path).append(record())
    db.append(record())


def test_the_path_is_the_users_or_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTNCC_DATABASE", str(tmp_path / "mine.jsonl"))
    assert default_path() == tmp_path / "mine.jsonl"
    monkeypatch.delenv("ATTNCC_DATABASE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path().name == "tuned.jsonl"
    monkeypatch.setenv("ATTNCC_DATABASE", "none")
    with pytest.raises(FileNotFoundError, match="switches tuned records off"):
        Database()


def test_the_best_record_is_the_fastest_that_wins(db: Database) -> None:
    small = decisions(edge_block=16)
    db.append(record(0.1), record(0.3, small), record(0.9, decisions(query_block=10**9)), record(None))
    db.append(failed(given=decisions(key_rows=another("key_rows"))))
    best = db.best(SPEC.json, detect(), record().bucket)
    assert best is not None and best.decisions == small
    db.append(record(-0.2, small))  # measured again, and no longer faster
    best = db.best(SPEC.json, detect(), record().bucket)
    assert best is not None and best.gain == pytest.approx(0.1)
    assert db.best(SPEC.json, replace(detect(), l2=1), record().bucket) is None
    assert db.best(SPEC.json, detect(), replace(record().bucket, q_len=1)) is None


def test_a_later_record_supersedes_an_earlier_one_of_its_candidate() -> None:
    old = record(0.2, date="2026-01-01T00:00:00+00:00")
    new = record(0.1, date="2026-01-02T00:00:00+00:00")
    assert latest([old, new]) == latest([new, old]) == [new]
    assert latest([old, record(None)]) == [old], "a time without the default's beside it takes nothing back"
    assert winners([old, failed("wrong result")]) == []
    other = replace(new, versions=replace(new.versions, tvm="9"))
    assert latest([old, other]) == [old, other], "another version's says nothing of this one's"


def test_merging_adds_what_is_new(db: Database, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.jsonl")
    shared, mine, theirs = (record(trials=n) for n in range(3))
    db.append(shared, mine)
    other.append(shared, theirs)
    assert db.merge(other.records()) == 1
    assert db.merge(other.records()) == 0
    assert db.records() == (shared, mine, theirs)


def test_pruning_keeps_what_can_be_used(db: Database) -> None:
    assert db.prune() == (0, 0)
    old, new = record(0.2, date="2026-01-01T00:00:00+00:00"), record(0.1)
    beaten, lost = record(-0.1, decisions(edge_block=16)), failed(given=decisions(key_rows=another("key_rows")))
    outdated = replace(new, versions=replace(new.versions, tvm="9"))
    db.append(old, new, beaten, lost, outdated)
    with open(db.path, "ab") as file:
        file.write(b"nonsense\n")
    assert db.prune() == (3, 3)
    assert db.records() == (new, beaten, lost)
    assert db.read().rejected == ()
    assert [path.name for path in db.path.parent.iterdir() if ".jsonl." in path.name] in ([], ["tuned.jsonl.lock"])


def test_what_is_handed_on_is_the_winner_of_each_task_or_that_there_is_none() -> None:
    long = Problem(PROBLEM.batch, PROBLEM.heads, 900, 900, 1)
    won, beaten = record(0.3), record(0.1, decisions(edge_block=16))
    none: Record = record(-0.1, problem=long)
    assert essence([beaten, won, failed(given=decisions(key_rows=another("key_rows"))), none]) == [won, none]
