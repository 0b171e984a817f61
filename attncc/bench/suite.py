"""`attncc bench --suite cpu`: every row of the table from one run, written as it goes and taken up where it stopped.

Peak and bandwidth are measured again each minute or so, when rows are compared with them: a shared machine has slow
hours.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Group, RenderableType
from rich.text import Text

from attncc._rich import table, to_text
from attncc.bench import bars, run
from attncc.bench.bars import Finding
from attncc.bench.contenders import CONTENDERS
from attncc.bench.peak import STEPS, Peak, measure
from attncc.bench.rows import CPU, Row, Trial
from attncc.bench.run import OURS, Result
from attncc.target import detect

PACKAGES = ("attncc", "torch", "apache-tvm", "openvino", "onnxruntime")
FORMAT = 1
"""Version of the JSON; a file of another one is not taken up again."""


@dataclass(frozen=True)
class Effort:
    """How long is measured: turns of about `seconds` each, and no more than `patience` seconds for a contender."""

    turns: int = 5
    seconds: float = 0.05
    patience: float = 2.5


SHORTEST = 0.02
"""Seconds of a call from which those of a larger case are foretold."""
PEAK_AGE = 60.0
"""Seconds after which peak and bandwidth are measured again."""
QUICK = Effort(turns=3, seconds=0.02, patience=0.5)


def effort(quick: bool, turns: int | None = None) -> Effort:
    """What is spent on a case: `turns` of them where they are asked for."""
    usual = QUICK if quick else Effort()
    return usual if turns is None else replace(usual, turns=turns)


@dataclass(frozen=True)
class Measured:
    """A row with what was measured of it."""

    row: Row
    results: tuple[Result, ...] = ()
    findings: tuple[Finding, ...] = ()
    complete: bool = True
    """Whether all that the row asks for was measured."""
    failure: str = ""
    """Why a row that measures by itself could not."""

    @property
    def passed(self) -> bool:
        """Whether attncc is within its error bound everywhere."""
        return not self.failure and all(result.passed for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.row.name,
            "bar": self.row.title,
            "passed": self.passed,
            "complete": self.complete,
            "failure": self.failure,
            "results": [result.to_json() for result in self.results],
            "findings": [finding.to_json() for finding in self.findings],
        }

    @classmethod
    def from_json(cls, row: Row, data: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        results = tuple(Result.from_json(result) for result in data["results"])
        findings = [{name: value for name, value in found.items() if name != "met"} for found in data["findings"]]
        return cls(row, results, tuple(Finding(**found) for found in findings), data["complete"], data["failure"])

    def __str__(self) -> str:
        return to_text(self)

    def __rich__(self) -> RenderableType:
        return Group(Text(f"{self.row.name}: {self.row.title}", style="bold"), self._times(), self._bars())

    def _times(self) -> RenderableType:
        """A line a case, a column a contender."""
        present = {entry.name for result in self.results for entry in result.entries}
        names = [name for name in CONTENDERS if name in present and name != OURS]
        variants = sorted(present - CONTENDERS.keys())
        if not self.results:
            return Text(self.failure, style="bold red")
        shown = table("", "case", *names, *variants, OURS, "of measured", "error", "allowed")
        for column in shown.columns[1:]:
            column.justify = "right"
        for result in self.results:
            shown.add_row(result.case.label, *(_cell(result, name) for name in (*names, *variants)), *_ours(result))
        reasons = {(e.name, e.failure): None for r in self.results for e in r.entries if e.failure}
        return Group(shown, *(Text(f"{name}: {reason}", style="dim") for name, reason in reasons))

    def _bars(self) -> RenderableType:
        """A line a figure that is asked for."""
        shown = table("", "figure", "bar", "met", "range", "farthest from it")
        for figure in bars.figures(self.findings):
            style = "green" if figure.met == len(figure.values) else "red"
            bar = f"{'>=' if figure.least else '<='} {figure.bar:.3g}"
            shown.add_row(figure.what, bar, Text(figure.share, style=style), figure.spread, figure.worst)
        return shown


def _cell(result: Result, name: str) -> str:
    entry = result.entry(name)
    seconds = result.seconds(name)
    if entry is None:
        return ""
    return "-" if seconds is None else run.duration(seconds)


def _ours(result: Result) -> list[str]:
    entry, seconds = result.entry(OURS), result.seconds(OURS)
    error = "failed" if entry is None or entry.failure else f"{entry.error:.1e}"
    if seconds is None:
        return ["-", "-", error, f"{result.bound:.1e}"]
    limit, share = result.share(seconds)
    return [run.duration(seconds), f"{share:.0%} {limit}", error, f"{result.bound:.1e}"]


def machine() -> dict[str, Any]:
    """The machine and the software that the figures are of."""
    target = detect()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cpu": _cpu_name(),
        "target": str(target),
        "l3": target.l3,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def chosen(only: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names, or all. Raises ValueError for a name that is none."""
    unknown = set(only) - {row.name for row in CPU}
    if unknown:
        raise ValueError(f"no row {', '.join(sorted(unknown))}: use some of {', '.join(row.name for row in CPU)}")
    return tuple(row for row in CPU if not only or row.name in only)


def steps(rows: Sequence[Row], names: Sequence[str] | None, record: Record, spent: Effort) -> int:
    """How often `measure_row` calls `say` over all rows, at most."""
    count = 0
    for row in rows:
        before = record.rows.get(row.name)
        if before is None or not before.complete:
            done = {result.case for result in before.results} if before is not None else set()
            trials = [trial for trial in row.trials(record.quick) if trial.case not in done]
            count += 1 + sum(
                STEPS + run.steps(_names(trial, names), spent.turns, tuple(trial.variants)) for trial in trials
            )
    return count


def measure_row(
    row: Row, names: Sequence[str] | None, record: Record, spent: Effort, say: Callable[[str], None]
) -> Measured:
    """Run what `record` does not have of a row; `names` are the contenders that may take part, where not all."""
    before = record.rows.get(row.name)
    if before is not None and before.complete:
        return before

    def peak(again: bool = False) -> Peak:
        return record.peak(lambda what: say(f"{row.name}: {what}"), again)

    if row.measure is not None:
        say(f"{row.name}: {row.title}")
        try:
            return record.add(Measured(row, findings=row.measure(record.quick)))
        except RuntimeError as error:
            return record.add(Measured(row, failure=str(error)))
    results = [] if before is None else list(before.results)
    trials = list(row.trials(record.quick))
    for trial in trials:
        if any(result.case == trial.case for result in results):
            continue
        result = run.run(
            trial.case,
            peak(),
            names=_names(trial, names),
            variants=trial.variants,
            turns=spent.turns,
            seconds=spent.seconds,
            patience=spent.patience,
            expected=lambda name, trial=trial: _expected(results, trial, name),
            say=lambda what: say(f"{row.name}: {what}"),
        )
        results.append(replace(result, peak=peak(again=True)) if result.beyond_peak else result)
        findings = bars.judge(row.bars, results)
        record.add(Measured(row, tuple(results), findings, complete=len(results) == len(trials)))
    return record.rows[row.name]


def _names(trial: Trial, names: Sequence[str] | None) -> tuple[str, ...]:
    return trial.names if names is None else tuple(name for name in trial.names if name in names or name == OURS)


def _expected(results: Sequence[Result], trial: Trial, name: str) -> float:
    """Seconds of a call of the contender `name`, from the case before that it was timed on; 0 if none was.

    Of calls so short that most is overhead, nothing is concluded.
    """
    case = trial.case
    for result in reversed(results):
        before, seconds = result.case, result.seconds(name)
        if seconds is not None and seconds > SHORTEST and (before.dtype, before.score) == (case.dtype, case.score):
            return seconds * _pairs(case) / _pairs(before)
    return 0.0


def _pairs(case: Any) -> int:
    """Scores, hidden ones included: slow contenders compute them all."""
    return int(case.batch * case.heads * case.q_len * case.kv_len * case.head_dim)


class Record:
    """The run so far, in a file where one is given."""

    def __init__(self, path: Path | None, quick: bool) -> None:
        """Rows that the file has from the same machine, software and effort are kept. Raises ValueError for a file that
        is no such record."""
        self.path, self.quick, self.machine = path, quick, machine()
        self.rows: dict[str, Measured] = {}
        self._peak: tuple[float, Peak] | None = None
        if path is not None and path.exists():
            self._take_up(path)

    def _take_up(self, path: Path) -> None:
        try:
            data = json.loads(path.read_text())
            kept = data["rows"] if (data["format"], data["quick"]) == (FORMAT, self.quick) else []
            kept = kept if data["machine"] == self.machine else []
            by_name = {row.name: row for row in CPU}
            self.rows = {r["name"]: Measured.from_json(by_name[r["name"]], r) for r in kept if r["name"] in by_name}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a record of attncc bench --suite: give another file, or remove it"
            ) from error

    def peak(self, say: Callable[[str], None], again: bool = False) -> Peak:
        """What the machine can do, measured `PEAK_AGE` seconds ago at most, or just now where `again` asks for that."""
        if again or self._peak is None or time.monotonic() - self._peak[0] > PEAK_AGE:
            self._peak = time.monotonic(), measure(progress=say)
        return self._peak[1]

    def add(self, found: Measured) -> Measured:
        """Keep a row, or what there is of it, and write the file."""
        self.rows[found.row.name] = found
        if self.path is not None:
            partial = self.path.with_name(self.path.name + ".part")
            partial.write_text(self.to_json() + "\n")
            partial.replace(self.path)
        return found

    def to_json(self) -> str:
        """All rows in the order of the table."""
        rows = [self.rows[row.name].to_json() for row in CPU if row.name in self.rows]
        data = {"format": FORMAT, "suite": "cpu", "quick": self.quick, "machine": self.machine, "rows": rows}
        return json.dumps(data, indent=1)
