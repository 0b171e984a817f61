"""A suite's run as Markdown: a line a bar, then a line a case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attncc.bench.bars import Finding
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
    lines = []
    for row in rows:
        groups: dict[tuple[str, float, bool], list[Finding]] = {}
        for finding in row.findings:
            groups.setdefault((finding.what, finding.limit, finding.least), []).append(finding)
        for (what, limit, least), found in groups.items():
            values = [finding.value for finding in found]
            met = f"{sum(finding.met for finding in found)} of {len(found)}"
            bar = f"{'≥' if least else '≤'} {limit:.3g}"
            lines.append((row.row.name, what, bar, met, f"{min(values):.3g} to {max(values):.3g}"))
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
