"""A suite's run as Markdown: a line a bar, then a line a case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attncc.bench import bars
from attncc.bench.run import BASE, OURS, Result, duration

if TYPE_CHECKING:
    from attncc.bench.suite import Measured

SDPA = (BASE, "sdpa-tensor")
"""What attncc is held against: the first of these that was timed."""


def page(rows: Sequence[Measured], machine: dict[str, Any]) -> str:
    """The machine, the bars of all rows, and the times of all cases."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [f"{machine['cpu']}, {machine['threads']} threads; {versions}", bar_table(rows), case_table(rows)]
    return "\n\n".join(parts) + "\n"


def bar_table(rows: Sequence[Measured]) -> str:
    """Each figure that is asked for: in how many cases it is met, and its range."""
    lines = [
        (row.row.name, figure.what, f"{'≥' if figure.least else '≤'} {figure.bar:.3g}", figure.share, figure.spread)
        for row in rows
        for figure in bars.figures(row.findings)
    ]
    return _table(("regime", "figure", "bar", "met", "range"), lines)


def case_table(rows: Sequence[Measured]) -> str:
    """Each case: SDPA, the fastest other peer, attncc."""
    lines = [_line(result) for row in rows for result in row.results]
    return _table(("case", "SDPA", "fastest other", "attncc", "against SDPA", "of measured"), lines)


def _line(result: Result) -> tuple[str, ...]:
    ours = result.seconds(OURS)
    sdpa = next((seconds for name in SDPA if (seconds := result.seconds(name)) is not None), None)
    peers = [e for e in result.entries if e.timing is not None and not e.ours and e.name not in SDPA]
    other = min(peers, key=lambda entry: entry.timing.median if entry.timing else 0.0, default=None)
    fastest = f"{duration(other.timing.median)} {other.name}" if other is not None and other.timing is not None else ""
    times = ("" if sdpa is None else duration(sdpa), fastest, "failed" if ours is None else duration(ours))
    ratio = f"{sdpa / ours:.2f}x" if sdpa is not None and ours is not None else ""
    if ours is None:
        return (result.case.label, *times, ratio, "")
    limit, share = result.share(ours)
    return (result.case.label, *times, ratio, f"{share:.0%} {limit}")


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))
