"""Interleaved timing: contenders take turns, so that a slow minute of the machine hits all of them alike.

What counts is the median of the turns. (`torch.utils.benchmark.Timer` warms up before each measurement, which would
triple the time of calls that are long already, and has no way to take turns.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over the turns of one contender."""

    median: float
    fastest: float
    slowest: float
    turns: int


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    turns: int = 9,
    seconds: float = 0.1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Time every call of `calls` in `turns` rounds of about `seconds` each.

    Each is called twice before the clock starts, to decide how often it is called in a turn; a turn of several calls
    starts with one that is not counted, which refills the caches that the contender before emptied. `progress` hears
    the name of a contender after each of its turns.
    """
    counts = {name: max(1, round(seconds / _second_call(call))) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            if counts[name] > 1:
                call()
            found[name].append(_clock(call, counts[name]))
            if progress is not None:
                progress(name)
    return {name: Timing(statistics.median(times), min(times), max(times), turns) for name, times in found.items()}


def _clock(call: Callable[[], object], count: int) -> float:
    """Seconds a call, over `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _second_call(call: Callable[[], object]) -> float:
    """Seconds of the second call, never 0: the first may compile."""
    call()
    return max(_clock(call, 1), 1e-6)
