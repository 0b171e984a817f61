"""How `attncc tune` shows where it stands: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from attncc._rich import table

if TYPE_CHECKING:
    from attncc.tuning import session
    from attncc.tuning.recheck import Verdict

EVERY = 10.0
"""Seconds between plain lines about the same task."""


@contextmanager
def progress() -> Iterator[Callable[[session.Progress], None]]:
    """What is told of each trial."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
    # Seldom, as each refresh takes time from what is measured.
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        shown = bar.add_task("finding the attention", total=None)

        def tell(progress: session.Progress) -> None:
            done = len(progress.state.trials) if progress.state is not None else None
            bar.update(shown, total=progress.trials or None, completed=done, description=line(progress))

        yield tell


def line(progress: session.Progress) -> str:
    """Where a run stands, in one line."""
    state = progress.state
    if state is None:
        return progress.text
    from attncc.tuning.result import duration

    best, default, sdpa = state.best, state.default.seconds, state.sdpa
    words = [f"{progress.number}/{progress.tasks} {state.task}", f"trial {len(state.trials)}/{progress.trials}"]
    if best is not None and best.outcome.seconds and default:
        words.append(f"best {duration(best.outcome.seconds)}, {_faster(default / best.outcome.seconds)} the default")
        if sdpa is not None and sdpa.seconds:
            words.append(f"{sdpa.seconds / best.outcome.seconds:.2f}x SDPA")
    if state.failures:
        words.append(f"{len(state.failures)} failed")
    if progress.left is not None:
        words.append(f"{_clock(progress.left)} left")
    return ", ".join(words)


def _lines() -> Callable[[session.Progress], None]:
    last: tuple[int, float] = (-1, 0.0)

    def say(progress: session.Progress) -> None:
        nonlocal last
        now = time.monotonic()
        done = progress.state is not None and len(progress.state.trials) == progress.trials
        if progress.state is None or done or progress.number != last[0] or now - last[1] > EVERY:
            last = progress.number, now
            print(f"attncc: {line(progress)}", file=sys.stderr, flush=True)

    return say


def _faster(ratio: float) -> str:
    return f"{ratio - 1:.0%} faster than" if ratio >= 1 else f"{1 / ratio - 1:.0%} slower than"


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def verdicts(found: Sequence[Verdict]) -> RenderableType:
    """What `attncc tune --check` shows."""
    rows = table("Records, measured again", "sizes", "family", "decisions", "verdict", "")
    for verdict in found:
        record = verdict.record
        decisions = " ".join(f"{name}={value}" for name, value in record.decisions.items())
        rows.add_row(str(record.bucket), record.family, decisions, verdict.state, verdict.reason)
    return rows


def verdicts_json(found: Sequence[Verdict]) -> str:
    """The same as JSON."""
    data = [
        {
            "bucket": str(verdict.record.bucket),
            "family": verdict.record.family,
            "decisions": dict(verdict.record.decisions),
            "state": verdict.state,
            "reason": verdict.reason,
            "record": json.loads(verdict.record.to_json()),
            "measured": None if verdict.measured is None else json.loads(verdict.measured.to_json()),
        }
        for verdict in found
    ]
    return json.dumps(data, indent=2)
