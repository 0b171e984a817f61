"""`attncc db`: what it prints for people and programs, and what it does to files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tuning_records import SPEC, another, decisions, failed, record

from attncc.cli import main
from attncc.tuning.database import Database

Run = Callable[..., str]


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The user's database: a winner, a beaten candidate, a failed one, and a line that is none."""
    monkeypatch.setenv("ATTNCC_DATABASE", str(tmp_path / "tuned.jsonl"))
    made = Database()
    made.append(record(0.3), record(-0.1, decisions(edge_block=16)))
    made.append(failed("it said [red]no[/red]", given=decisions(key_rows=another("key_rows"))))
    with open(made.path, "ab") as file:
        file.write(b"nonsense\n")
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `attncc db …`, which must succeed: stdout with single spaces. `status=1`: the last line of stderr."""

    def call(*args: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["attncc", "db", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == status, err
        return err.strip().splitlines()[-1] if status else " ".join(out.split())

    return call


def test_list_has_a_row_for_each_task(run: Run, db: Database) -> None:
    out = run("list")
    for part in ("1 task, 3 records", "h8 q512 k512 t1", "query_block=", "+30.0% ± 1.0%", "2, 1 failed", "used",
                 "line 4 is no record: not JSON"):  # fmt: skip
        assert part in out
    everything = run("list", "--all")
    assert "-10.0%" in everything and "it said [red]no[/red]" in everything
    other = Database(db.path.with_name("other.jsonl"))
    other.append(replace(record(), versions=replace(record().versions, tvm="0.1")))
    assert "made with apache-tvm 0.1, and" in run("list", "--json", "--database", other.path)
    assert "0 tasks" in run("list", "-d", db.path.with_name("none-such.jsonl"))


def test_list_prints_json(run: Run, db: Database) -> None:
    data = json.loads(run("list", "--json"))
    assert data["path"] == str(db.path)
    (entry,) = data["records"]
    assert (entry["use"], entry["wins"], entry["failed"]) == ("used", True, 1)
    assert [line["line"] for line in data["rejected"]] == [4]
    assert len(json.loads(run("list", "--json", "--all"))["records"]) == 3


def test_show_one_attention(run: Run, db: Database) -> None:
    out = run("show", SPEC.name[:8])
    assert SPEC.name in out and "softmax attention float32 D=16 E=8" in out and "+30.0%" in out
    assert len(json.loads(run("show", SPEC.name, "--json"))) == 3
    assert "no attention whose name begins with 'zz'" in run("show", "zz", status=2)


def test_merge_export_and_prune(run: Run, db: Database, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.jsonl"
    assert "1 record written" in run("export", theirs)
    assert [r.gain for r in Database(theirs).records()] == [pytest.approx(0.3)]
    assert "2 records written" in run("export", theirs, "--all")
    theirs.chmod(0o666)  # whoever wrote it: it is data
    Database(theirs, foreign=True).append(record(0.7, decisions(key_rows=another("key_rows"), edge_block=16)))
    assert "1 record added, 3 known already, 0 rejected" in run("merge", theirs)
    assert "there is no file" in run("merge", tmp_path / "nowhere.jsonl", status=2)
    db.append(record(0.2, date="2099-01-01T00:00:00+00:00"))
    before = db.content()
    assert "1 damaged, 1 superseded, 0 of other versions, of 5 records" in run("prune", "--dry-run")
    assert db.content() == before
    assert "removed 2 lines" in run("prune")
    assert len(db.records()) == 4 and not db.read().rejected


def test_path(run: Run, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("path") == str(db.path)
    monkeypatch.setenv("ATTNCC_DATABASE", "none")
    assert "switches tuned records off" in run("path", status=1)


def test_help_shows_examples(run: Run) -> None:
    assert "attncc db merge theirs.jsonl" in run("--help")
    for command in ("list", "show", "merge", "export", "prune", "path"):
        assert "--help" in run(command, "--help")
