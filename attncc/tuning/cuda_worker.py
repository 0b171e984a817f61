"""What `attncc.tuning.worker` does for this machine's CPU, for its GPU: build kernels, check them, time them.

Kernels, launch plans and clock are those of the runtime and of `attncc bench --device cuda`; what results should be is
worked out in float64 on the host. A kernel that reads outside of its memory leaves the GPU unusable to its process:
whoever sent it asks for `alive` then. Not yet run on a GPU; the tests run all but the clock on an emulated one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from attncc.bench.cuda import timing
from attncc.runtime.cuda import build, code
from attncc.runtime.cuda.code import Code
from attncc.runtime.cuda.plan import CudaPlan
from attncc.tuning.oracle import Oracle
from attncc.tuning.sample import Sample, operands_of, placed
from attncc.tuning.sdpa import sdpa
from attncc.tuning.worker import HOPELESS, LEAST_TURNS, TURNS, Built, Job, held, nan_filled

if TYPE_CHECKING:
    from attncc.schedules.cuda.families import CudaFamily

_MOST_SETS = 64
"""Of keys and values that decode takes turns in reading."""


def compiled(job: Job, decisions: dict[str, int]) -> bytes:
    """The machine code of a candidate, and how it is called. Needs no GPU."""
    made = code.generate(job.spec, job.target, cast("CudaFamily", job.family), decisions)
    return made.machine(job.target.mcpu).to_bytes()


def measure(job: Job, default: Built, candidate: Built) -> list[float]:
    """As `attncc.tuning.worker.measure`. Raises ValueError for wrong results, RuntimeError for what CUDA says."""
    bench = _bench(job, default)
    replays = bench.replays(bench.checked(candidate))
    found: list[float] = []
    while len(found) < TURNS and min(found, default=0.0) <= HOPELESS * bench.best:
        slowed = bench.default.turn() / bench.default_seconds
        found.append(replays.turn() / slowed)
    bench.best = min(bench.best, *found)
    return found


def compare(job: Job, default: Built, candidates: Sequence[Built], turns: int) -> dict[str, list[float]]:
    """As `attncc.tuning.worker.compare`."""
    bench = _bench(job, default)
    replays = {str(number): bench.replays(bench.checked(each)) for number, each in enumerate(candidates)}
    if (peer := sdpa(job.spec, bench.host, bench.sets[0])) is not None:
        try:
            replays["sdpa"] = timing.Replays([peer])
        except RuntimeError:  # no memory for its mask, or it cannot be captured: it decides nothing
            alive()
    found: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(max(turns, LEAST_TURNS)):
        for name, each in replays.items():
            found[name].append(each.turn())
    return found


def alive() -> bool:
    """True; raises where an earlier kernel has broken what this process has of the GPU."""
    torch.cuda.synchronize()
    return True


class _Bench:
    """A job's operands and what its outputs should be, made once."""

    def __init__(self, job: Job, default: Built) -> None:
        sample: Sample = torch.load(job.sample, weights_only=False)  # written by the process that asks
        self.job, self.layout = job, sample.layout
        self.host = operands_of(job.spec, job.problem, sample)
        self.sets = [placed(self.host, _device()) for _ in range(self._rotated())]
        self.best = math.inf
        """Seconds of the fastest turn of any candidate."""
        self.oracle = Oracle(job.spec, self.host)
        plan = self.plan(default)
        self.oracle.check(trusted := self.outputs(plan))
        self.oracle.trusted = trusted
        self.default = self.replays(plan)
        self.default_seconds = statistics.median(self.default.turn() for _ in range(TURNS))

    def _rotated(self) -> int:
        """How many sets of keys and values keep decode from finding them in the L2 of its last call."""
        if self.job.family.regime != "decode":
            return 1
        size = sum(t.numel() * t.element_size() for t in self.host[1:3])
        return min(_MOST_SETS, -(-timing.ROTATED_BYTES // int(size)))

    def plan(self, built: Built) -> CudaPlan:
        """A launch plan for a kernel that no cache knows, the very one that a call of a user would have."""
        decisions, data = built
        job, operands = self.job, self.sets[0]
        family, number = cast("CudaFamily", job.family), operands[0].get_device()
        kernel = build.load(Code.from_bytes(data), job.spec, job.target, family, decisions, number)
        return CudaPlan(kernel, job.problem, self.layout, operands)

    def outputs(self, plan: CudaPlan) -> list[Tensor]:
        """Of a call whose outputs and workspaces held NaN before, on the host."""
        with nan_filled():
            return [out.cpu() for out in plan.run(self.sets[0])]

    def checked(self, built: Built) -> CudaPlan:
        """The plan of a candidate that computes the attention. Raises ValueError for one that does not."""
        plan = self.plan(built)
        self.oracle.check(self.outputs(plan))
        return plan

    def replays(self, plan: CudaPlan) -> timing.Replays:
        """What is timed: calls on each set in turn."""
        calls: list[Callable[[], Any]] = [partial(plan.run, operands) for operands in self.sets]
        return timing.Replays(calls)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _bench(job: Job, default: Built) -> _Bench:
    return held(_Bench, job, default)
