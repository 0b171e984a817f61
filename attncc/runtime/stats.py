"""Counters of what the runtime does: cheap where calls are made, exact under threads.

`itertools.count` increments in one C call, which the interpreter lock makes atomic; a plain `+= 1` would lose counts.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field

DEFAULT = "analytic default"
"""Where decisions come from unless tuning has found better ones."""


class Counter:
    """A count that threads raise by one with `next(counter.tick)`, at the cost of a C call."""

    __slots__ = ("_start", "tick")

    def __init__(self) -> None:
        self._start = 0
        self.tick = itertools.count()

    def add(self) -> None:
        """Raise the count by one."""
        next(self.tick)

    @property
    def value(self) -> int:
        """Increments since the last reset."""
        return self._position() - self._start

    def reset(self) -> None:
        """Count from 0 again; increments made meanwhile by other threads are kept."""
        self._start = self._position()

    def _position(self) -> int:
        # The repr is "count(7)": the one way to read an itertools.count without raising it (pickling it is deprecated).
        return int(repr(self.tick)[6:-1])


@dataclass(frozen=True)
class KernelStats:
    """What happened to one kernel."""

    name: str
    """Family and the first characters of the spec's name: "cpu.prefill.fp32 1f0c…"."""
    calls: int
    compiles: int
    seconds: float
    """Time spent compiling it in this process."""
    disk_hits: int
    decisions: str
    """Where its schedule decisions came from: "analytic default", "tuned 2026-11-23 for h16 q1024 k1024 t2, …"."""


@dataclass(frozen=True)
class Stats:
    """Counts since the process started or the last reset."""

    calls: int
    """Kernel calls."""
    compiles: int
    """Kernels compiled in this process."""
    memory_hits: int
    """Times a new combination of sizes found its kernel in memory."""
    disk_hits: int
    """Kernels loaded from the cache on disk."""
    copies: int
    """Arguments copied because their last dimension was not dense."""
    fallbacks: int
    """Calls that ran as PyTorch: a device or an attention without kernels, or none could be built."""
    kernels: tuple[KernelStats, ...] = field(default=())

    def __str__(self) -> str:
        head = (
            f"{self.calls} kernel calls, {self.compiles} compiles, {self.memory_hits} hits in memory, "
            f"{self.disk_hits} on disk, {self.copies} copies, {self.fallbacks} fallbacks to PyTorch"
        )
        rows = [
            f"  {k.name}: {k.calls} calls, {k.compiles} compiles in {k.seconds:.2f} s, {k.disk_hits} from disk"
            + f" ({k.decisions})" * (k.decisions != DEFAULT)
            for k in self.kernels
        ]
        return "\n".join([head, *rows])


class KernelCounters:
    """The counters of one kernel; they outlive it, so that statistics do not depend on what is still in memory."""

    def __init__(self) -> None:
        self.calls = Counter()
        self.compiles = Counter()
        self.disk_hits = Counter()
        self.seconds = 0.0

    def snapshot(self, name: str, decisions: str) -> KernelStats:
        """The counts as plain data."""
        counts = self.calls.value, self.compiles.value, self.seconds, self.disk_hits.value
        return KernelStats(name, *counts, decisions)

    def reset(self) -> None:
        """Everything to 0."""
        for counter in (self.calls, self.compiles, self.disk_hits):
            counter.reset()
        self.seconds = 0.0


memory_hits = Counter()
copies = Counter()
fallbacks = Counter()
_kernels: dict[tuple[str, str], KernelCounters] = {}
_lock = threading.Lock()
_LIMIT = 10_000
"""Kernels counted one by one; a process that builds more has its later ones counted together, so as not to grow."""


def kernel(name: str, decisions: str = DEFAULT) -> KernelCounters:
    """The counters of the kernel called `name` whose decisions came from there, made on first use."""
    key = name, decisions
    with _lock:
        if key not in _kernels and len(_kernels) >= _LIMIT:
            key = "others", DEFAULT
        return _kernels.setdefault(key, KernelCounters())


def stats(reset: bool = False) -> Stats:
    """What the runtime did so far, in all and by kernel; `reset` starts the counts anew after reading them."""
    with _lock:
        kernels = tuple(counters.snapshot(*key) for key, counters in _kernels.items())
        used = tuple(k for k in kernels if k.calls or k.compiles or k.disk_hits)
        result = Stats(
            calls=sum(k.calls for k in kernels),
            compiles=sum(k.compiles for k in kernels),
            memory_hits=memory_hits.value,
            disk_hits=sum(k.disk_hits for k in kernels),
            copies=copies.value,
            fallbacks=fallbacks.value,
            kernels=used,
        )
        if reset:
            for counters in _kernels.values():
                counters.reset()
            for counter in (memory_hits, copies, fallbacks):
                counter.reset()
    return result
