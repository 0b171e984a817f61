"""Times of calls on a GPU: a CUDA graph of them is replayed between two events, so that no host is in the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

SECONDS = 0.02
"""Of one turn."""
ROTATED_BYTES = 160 << 20
"""Keys and values of decode that are read before any is read again: thrice the largest L2."""
_CAPTURED = 8
"""Calls in a graph, at least."""


class Replays:
    """A graph of some calls. Raises whatever they do, or what torch does where they cannot be captured."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        repeated = list(calls) * max(1, _CAPTURED // len(calls))
        self._graph, self._calls = torch.cuda.CUDAGraph(), len(repeated)
        with torch.cuda.graph(self._graph):
            for call in repeated:
                call()
        self._graph.replay()
        self._replays = max(1, int(SECONDS / self._clock(1)))

    def turn(self) -> float:
        """Seconds a call."""
        self._graph.replay()
        return self._clock(self._replays) / self._replays / self._calls

    def _clock(self, replays: int) -> float:
        """Seconds of so many replays."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            self._graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
