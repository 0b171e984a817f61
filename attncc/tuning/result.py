"""What `attncc.tune` returns: each task with its default, its best and SDPA, and the whole as JSON, text or HTML."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from attncc._rich import table, to_text
from attncc.target import Target
from attncc.tuning.search import Search
from attncc.tuning.session import Session


@dataclass(frozen=True)
class Tuned:
    """The result of a run of the tuner. `str` and Rich show it as a table; `html` writes the report."""

    session: Session
    target: Target
    database: Path
    """Where the records are."""

    @property
    def searches(self) -> tuple[Search, ...]:
        """One for each task, in the order in which they were searched."""
        return tuple(self.session.searches)

    @property
    def measured(self) -> int:
        """Candidates that this run measured."""
        return self.session.measured

    @property
    def nothing(self) -> str:
        """Why nothing was measured; empty where something was."""
        if self.measured or any(state.comparisons for state in self.searches):
            return ""
        if any(not state.trials for state in self.searches):
            return "no time was left for it after the defaults; give it more --seconds"
        if self.searches:
            return "every task has its trials on record already; ask for more --trials"
        if self.session.skipped:
            return "; ".join(f"{task}: {reason}" for task, reason in self.session.skipped)
        return "there is no attention here that a kernel with decisions runs; attncc explain says what was recognised"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "target": asdict(self.target) | {"features": sorted(self.target.features)},
            "database": str(self.database),
            "seconds": self.session.seconds,
            "measured": self.measured,
            "nothing": self.nothing,
            "peak": None if self.session.peak is None else self.session.peak.to_json(),
            "tasks": [described(state) for state in self.searches],
            "interrupted": self.session.interrupted,
            "skipped": [{"task": task, "reason": reason} for task, reason in self.session.skipped],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def html(self, path: str | Path) -> Path:
        """Write the report: one file, which needs nothing beside it. Raises ImportError without matplotlib."""
        from attncc.tuning.report import page

        Path(path).write_text(page(self), encoding="utf-8")
        return Path(path)

    def __str__(self) -> str:
        return to_text(self)

    def __rich__(self) -> RenderableType:
        rows = table(
            f"Tuned for {self.target}", "task", "default", "best", "gain", "against SDPA", "of the machine",
            "decisions", "trials", "took",
        )  # fmt: skip
        for state in self.searches:
            rows.add_row(*_row(state))
        notes = [Text(f"{task} was not tuned: {reason}") for task, reason in self.session.skipped]
        if self.nothing and not self.session.skipped:
            notes.append(Text(f"Nothing was measured: {self.nothing}."))
        if self.session.interrupted:
            notes.append(Text("Stopped early; the next run goes on from here."))
        notes.append(Text(f"Records: {self.database}", style="dim"))
        return Group(rows, *notes) if self.searches else Group(*notes)


def described(state: Search) -> dict[str, Any]:
    """A search as plain data."""
    task, winner, best = state.task, state.winner, state.best
    return {
        "task": str(task),
        "spec": task.spec.name,
        "meaning": str(task.spec),
        "family": task.family,
        "bucket": str(task.bucket),
        "problem": asdict(task.problem),
        "calls": task.calls,
        "points": task.points,
        "default": {"seconds": state.default.seconds, "decisions": dict(task.default.decisions)},
        "best_trial": None if best is None else {
            "seconds": best.outcome.seconds, "decisions": dict(best.candidate.decisions),
        },
        "winner": None if winner is None else {
            "seconds": winner.seconds, "gain": winner.gain, "spread": winner.spread,
            "decisions": dict(winner.decisions),
        },
        "finalists": [
            {"seconds": r.seconds, "gain": r.gain, "spread": r.spread, "decisions": dict(r.decisions)}
            for r in state.finals
        ],
        "neighbours": [
            {"bucket": str(r.bucket), "seconds": r.seconds, "gain": r.gain, "spread": r.spread}
            for r in state.neighbours
        ],
        "sdpa_seconds": None if state.sdpa is None else state.sdpa.seconds,
        "floor": None if state.floor is None else {"seconds": state.floor[0], "limit": state.floor[1]},
        "trials": len(state.trials),
        "measured": state.measured,
        "seconds": state.seconds,
        "history": [
            {"seconds": t.outcome.seconds, "failure": t.outcome.failure, "decisions": dict(t.candidate.decisions)}
            for t in state.trials
        ],
    }  # fmt: skip


def seconds_of(state: Search) -> float:
    """What a call takes from now on: the winner's time, or the default's where nothing beat it."""
    winner = state.winner
    return (winner.seconds if winner is not None else state.default.seconds) or 0.0


def changed(state: Search) -> dict[str, tuple[int, int]]:
    """The decisions of the winner that differ from the default's: (default, winner)."""
    if state.winner is None:
        return {}
    default = state.task.default.decisions
    return {n: (default[n], value) for n, value in state.winner.decisions.items() if value != default[n]}


def duration(seconds: float | None) -> str:
    """A time as people read it: 3.21 ms, 45.6 µs."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _row(state: Search) -> tuple[str, ...]:
    took, sdpa = seconds_of(state), state.sdpa
    gain = "nothing beat it" if state.winner is None else f"{state.winner.gain or 0.0:+.1%}"
    share = "" if state.floor is None else f"{state.floor[0] / took:.0%} of {state.floor[1]}"
    beside = "" if sdpa is None or sdpa.seconds is None else f"{sdpa.seconds / took:.2f}x"
    decisions = " ".join(f"{name}={new}" for name, (_, new) in changed(state).items())
    failures = f", {len(state.failures)} failed" if state.failures else ""
    return (
        str(state.task), duration(state.default.seconds), duration(took), gain, beside, share, decisions,
        f"{len(state.trials)} of {state.task.points}{failures}", f"{state.seconds:.0f} s",
    )  # fmt: skip
