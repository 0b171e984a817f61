"""What hidden keys cost: cases whose masks hide keys, each beside one that says what its time should be.

A key that no query sees should take no time. Then the times of two cases are to each other as the work that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from attncc._rich import table, to_text
from attncc.bench.cases import Case
from attncc.bench.run import OURS, Result


def pairs(quick: bool = False) -> tuple[tuple[Case, Case], ...]:
    """What `attncc bench --masks` compares: a case, and the one that it is held against. `quick` shortens all.

    A window of 256 at growing lengths, against the shortest; a cache of which some is filled, against just that part of
    it; padded batches and packed documents, against all keys.
    """
    lengths = (512, 1024) if quick else (1024, 2048, 4096, 8192)
    cache, fills = (1024, (100, 1024)) if quick else (4096, (100, 1000, 4096))
    length, batch = (256, 2) if quick else (2048, 8)
    windows = [Case(q_len=n, kv_len=n, causal=True, window=256) for n in lengths]
    found = [(case, windows[0]) for case in windows[1:]]
    decode = Case(1, 32, 32, 1, cache, 128)
    found += [(replace(decode, filled=filled), replace(decode, kv_len=filled, capacity=cache)) for filled in fills]
    batches = Case(batch, q_len=length, kv_len=length), Case(batch, 32, 8, 1, cache, 128)
    found += [(replace(case, padded=0.25), case) for case in batches]
    rows = [Case(q_len=2 * length, kv_len=2 * length, causal=causal) for causal in (False, True)]
    found += [(replace(case, documents=8), case) for case in rows]
    return tuple(found)


def cases(quick: bool = False) -> tuple[Case, ...]:
    """All of them, each once, before those that are held against them."""
    return tuple(dict.fromkeys(case for pair in pairs(quick) for case in reversed(pair)))


@dataclass(frozen=True)
class Proportions:
    """Work and time of cases, each as a multiple of those of the case beside it."""

    rows: tuple[tuple[Case, Case, float, float], ...]
    """The case, the one beside it, and both multiples."""

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data for JSON."""
        names = ("case", "beside", "work", "time")
        return [dict(zip(names, (a.label, b.label, work, time), strict=True)) for a, b, work, time in self.rows]

    def __str__(self) -> str:
        return to_text(self)

    def __rich__(self) -> RenderableType:
        found: Table = table("What hidden keys cost attncc", "", "beside", "work", "time")
        for column in found.columns[2:]:
            column.justify = "right"
        for case, beside, work, time in self.rows:
            found.add_row(case.label, beside.label, f"{work:.2f}x", f"{time:.2f}x")
        return found


def proportions(results: Sequence[Result], quick: bool = False) -> Proportions:
    """How the times that attncc took compare to the work that is left, for the pairs of which both were timed."""
    timings = {result.case: entry.timing for result in results for entry in result.entries if entry.name == OURS}
    times = {case: timing.median for case, timing in timings.items() if timing is not None}
    found = []
    for case, beside in pairs(quick):
        if case in times and beside in times:
            work = case.bytes_read / beside.bytes_read if case.decode else case.flops / beside.flops
            found.append((case, beside, work, times[case] / times[beside]))
    return Proportions(tuple(found))
