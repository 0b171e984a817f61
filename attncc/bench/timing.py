"""Interleaved timing: contenders take turns, so that a slow minute of the machine hits all of them alike.

What counts is the median of the turns. (`torch.utils.benchmark.Timer` warms up before each measurement, which would
triple the time of calls that are long already, and has no way to take turns.)
"""

from __future__ import annotations

import math
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
    """How many there were: fewer of a slow contender."""


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    turns: int = 9,
    seconds: float = 0.1,
    patience: float = math.inf,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Medians and ranges of `turns_of`."""
    found = turns_of(calls, turns=turns, seconds=seconds, patience=patience, progress=progress)
    return {name: Timing(statistics.median(times), min(times), max(times), len(times)) for name, times in found.items()}


def turns_of(
    calls: Mapping[str, Callable[[], object]],
    *,
    turns: int,
    seconds: float,
    patience: float = math.inf,
    progress: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds a call of every one of `calls`, in `turns` rounds of about `seconds` each.

    Each is called twice before the clock starts, to decide how often it is called in a turn; a turn of several calls
    starts with one that is not counted, which refills the caches that the contender before emptied. A call that would
    take more than `patience` seconds in all its turns has fewer of them, one at least. `progress` hears the name of a
    contender in each of the `turns` rounds.
    """
    once = {name: _second_call(call, patience) for name, call in calls.items()}
    counts = {name: max(1, round(seconds / once[name])) for name in calls}
    rounds = {name: max(1, int(min(turns, patience / max(once[name], seconds)))) for name in calls}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns):
        for name, call in calls.items():
            if progress is not None:
                progress(name)
            if turn >= rounds[name]:
                continue
            if counts[name] > 1:
                call()
            found[name].append(clock(call, counts[name]))
    return found


def clock(call: Callable[[], object], count: int) -> float:
    """Seconds a call, over `count` calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _second_call(call: Callable[[], object], patience: float) -> float:
    """Seconds of the second call, never 0: the first may compile. Of the first, where that is long already."""
    first = clock(call, 1)
    return first if first > patience / 4 else max(clock(call, 1), 1e-6)
