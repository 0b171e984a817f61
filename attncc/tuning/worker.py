"""What worker processes of `attncc.tuning.local` do: build kernels, and run them where they may crash or hang alone.

Functions here are called by name in a worker; each stands alone, as a worker may have been started anew before it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from attncc.bench.timing import clock, turns_of
from attncc.runtime import build, native, scratch, stats
from attncc.runtime.operands import Operands
from attncc.runtime.plan import KernelPlan
from attncc.schedules import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.oracle import Oracle
from attncc.tuning.sample import Sample, operands_of
from attncc.tuning.sdpa import sdpa

B = TypeVar("B")
"""What a job is measured with."""
TURNS, SECONDS = 5, 0.02
"""Of a trial: enough to rank candidates. Who wins is decided by `compare`."""
HOPELESS = 1.5
"""Times the best so far, from which a candidate has one turn: that says enough."""
BESIDE = 2.0
"""Seconds that SDPA is given in a comparison: it may be far slower, and decides nothing."""
COMPARED_TURN = 0.05
"""Seconds of a turn of a comparison."""
COMPARED, LEAST_TURNS = 30.0, 5
"""Seconds that a comparison may take about, and the turns that it takes all the same."""


@dataclass(frozen=True)
class Job:
    """All that a worker must know of a task. What is measured is in a file, as it may be large."""

    spec: AttentionSpec
    family: Family
    problem: Problem
    target: Target
    default: Mapping[str, int]
    sample: Path
    """A `Sample`, by `torch.save`."""
    threads: int
    """Those of PyTorch in the process that tunes."""


Built = tuple[dict[str, int], bytes]
"""Decisions, and the LLVM IR of their kernel."""


def compiled(job: Job, decisions: dict[str, int]) -> bytes:
    """The LLVM IR of a candidate."""
    return build.compile_llvm(job.spec, job.target, job.family, decisions)


def measure(job: Job, default: Built, candidate: Built) -> list[float]:
    """Check a candidate, then time it: seconds a call of each turn. Raises ValueError for wrong results.

    The default takes a turn before each of the candidate's, and seconds are those of a moment in which the default is
    as fast as it was at first: a neighbour who takes a core for a second slows both, and does not decide who is faster.
    """
    bench = _bench(job, default)
    plan = bench.plan(candidate)
    oracle = bench.oracle
    oracle.check(_poisoned(plan, bench.operands))
    call = bench.call(plan)
    count = bench.count(call)
    found: list[float] = []
    while len(found) < TURNS and min(found, default=0.0) <= HOPELESS * bench.best:
        slowed = clock(bench.default, bench.default_count) / bench.default_seconds
        found.append(clock(call, count) / slowed)
    bench.best = min(bench.best, *found)
    return found


def compare(job: Job, default: Built, candidates: Sequence[Built], turns: int) -> dict[str, list[float]]:
    """Times of candidates in interleaved turns, by their numbers; and before them of "sdpa", where there is one."""
    bench = _bench(job, default)
    calls: dict[str, Callable[[], object]] = {}
    for number, candidate in enumerate(candidates):
        plan = bench.plan(candidate)
        bench.oracle.check(_poisoned(plan, bench.operands))
        calls[str(number)] = bench.call(plan)
    peer = sdpa(job.spec, bench.operands)
    beside = {} if peer is None else turns_of({"sdpa": peer}, turns=TURNS, seconds=SECONDS, patience=BESIDE)
    round_takes = sum(max(clock(call, 1), COMPARED_TURN) for call in calls.values())
    affordable = max(LEAST_TURNS, min(turns, int(COMPARED / round_takes)))
    return turns_of(calls, turns=affordable, seconds=COMPARED_TURN) | beside


class _Bench:
    """A job's operands and what its outputs should be, made once."""

    def __init__(self, job: Job, default: Built) -> None:
        torch.set_num_threads(job.threads)
        sample: Sample = torch.load(job.sample, weights_only=False)  # written by the process that asks
        self.job, self.layout = job, sample.layout
        self.operands: Operands = operands_of(job.spec, job.problem, sample)
        self.best = math.inf
        """Seconds of the fastest turn of any candidate."""
        self.oracle = Oracle(job.spec, self.operands)
        plan = self.plan(default)
        self.oracle.check(trusted := _poisoned(plan, self.operands))
        self.oracle.trusted = trusted
        self.default = self.call(plan)
        self.default_count = self.count(self.default)
        self.default_seconds = statistics.median(clock(self.default, self.default_count) for _ in range(TURNS))

    def plan(self, built: Built) -> KernelPlan:
        """A launch plan for a kernel that no cache knows, the very one that a call of a user would have."""
        decisions, text = built
        job = self.job
        module, call = native.load_llvm(text, build.ENTRY)
        counters = stats.kernel(build.kernel_name(job.spec, job.family))
        kernel = build.Kernel(job.spec, job.target, job.family, decisions, call, build.header(text), counters, module)
        return KernelPlan(kernel, job.problem, self.layout, self.operands[:3])

    def count(self, call: Callable[[], object]) -> int:
        """How often a call is made in a turn."""
        return max(1, round(SECONDS / min(clock(call, 1), clock(call, 1))))

    def call(self, plan: KernelPlan) -> Callable[[], Sequence[Tensor]]:
        """The call that is timed."""
        operands = self.operands
        return lambda: plan.run(operands)


def _bench(job: Job, default: Built) -> _Bench:
    return held(_Bench, job, default)


def held(make: Callable[[Job, Built], B], job: Job, default: Built) -> B:
    """What a job is measured with, made once. A process keeps that of one task: operands may be large."""
    key = repr(job)
    if key not in _held:
        _held.clear()
        _held[key] = make(job, default)
    bench: B = _held[key]
    return bench


_held: dict[str, Any] = {}


def _poisoned(plan: KernelPlan, operands: Operands) -> Sequence[Tensor]:
    """The outputs of a call whose output and workspaces held NaN before."""
    scratch.forget()
    with nan_filled():
        return plan.run(operands)


@contextmanager
def nan_filled() -> Iterator[None]:
    """New tensors hold NaN until they are written, which torch does on its way to being deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
