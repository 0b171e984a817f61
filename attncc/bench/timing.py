"""Interleaved timing: contenders take turns, so that a slow minute of the machine hits all of them alike.

Each turn is one `torch.utils.benchmark` measurement of about `seconds` (its warm-up calls refill the caches that the
contender before emptied); what counts is the median of the turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils import benchmark


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
    """Time every call of `calls` in `turns` rounds of about `seconds` each, under `torch.get_num_threads()` threads.

    Each is called twice before the clock starts, to decide how often it is called in a turn. `progress` hears the name
    of a contender after each of its turns.
    """
    timers = {
        name: benchmark.Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        for name, call in calls.items()
    }
    counts = {name: max(1, round(seconds / _once(call))) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, timer in timers.items():
            found[name].append(timer.timeit(counts[name]).median)
            if progress is not None:
                progress(name)
    return {name: Timing(statistics.median(times), min(times), max(times), turns) for name, times in found.items()}


def _once(call: Callable[[], object]) -> float:
    """Seconds of the second call: the first may compile."""
    call()
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-6)
