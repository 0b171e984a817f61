"""A `Measurer` over a fleet: kernels are built here, for the devices' target, and measured on all of them in parallel.

TVM's RPC tracker and servers carry it. A device gets LLVM IR, which it compiles for itself as a user's kernel cache
does, so that no linker is needed on either side. What it answers is JSON, and checked.

Trust: a device runs what the tuner sends. TVM's protocol has no authentication and its two sides are alike, so use it
among machines that you would give a shell on each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from attncc.target import detect
from attncc.tuning import wire, worker
from attncc.tuning.crew import Crew
from attncc.tuning.description import Description
from attncc.tuning.jobs import Job, Work
from attncc.tuning.measure import Candidate, Comparison, Outcome
from attncc.tuning.processes import Builders
from attncc.tuning.survey import first
from attncc.tuning.task import Task
from attncc.tuning.tracker import Address, check_key

PATIENCE = 60.0
"""Seconds after which a candidate that is being built or run counts as hanging."""
COMPARED = PREPARED = 4.0
"""Times that, for a comparison, which takes many turns, and for making operands and their reference."""


def measurer(tracker: str, key: str, say: Callable[[str], None] | None = None) -> RpcMeasurer:
    """The measurer of the devices under `key` at the tracker "host:port". `say` hears what goes wrong with a device.

    Raises ValueError for what is no address or key, and what `RpcMeasurer` raises.
    """
    return RpcMeasurer(Address.parse(tracker), check_key(key), say=say or _to_stderr)


class RpcMeasurer:
    """A `Measurer` on the devices that are registered under `key`. `target` and `threads` are those of the first.

    Raises ConnectionError without a tracker, NoDevices without a device that answers.
    """

    def __init__(
        self,
        tracker: Address,
        key: str,
        *,
        patience: float = PATIENCE,
        builders: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """`patience` is how long a candidate may take, in seconds; `builders` the number of processes that build."""
        self._patience = patience
        self.description: Description = first(tracker, key)
        self.target, self.threads = self.description.target, self.description.threads
        self._crew = Crew(tracker, key, self._refusal, say or _to_stderr)
        self._builders = Builders(builders or min(detect().cores, 16), patience)
        self._task: _Building | None = None

    def measure(self, task: Task, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome]]:
        """Each candidate's outcome as soon as there is one. Raises NoDevices where no device is left for the rest."""
        building = self._building(task)
        jobs = {self._job(building, [candidate], None, self._patience): candidate for candidate in candidates}
        for job in self._crew.run(building.work, [*jobs]):
            if job.result is not None:
                yield jobs[job], job.result.outcomes[0]

    def compare(self, task: Task, candidates: Sequence[Candidate], *, turns: int = 15) -> Comparison:
        """The candidates in interleaved turns on one device. Raises NoDevices."""
        building = self._building(task)
        job = self._job(building, candidates, turns, COMPARED * self._patience)
        for _ in self._crew.run(building.work, [job]):
            pass
        if job.result is None:
            raise RuntimeError("the comparison has no result")
        return job.result

    def text(self, candidate: Candidate) -> bytes | None:
        """The LLVM IR of a candidate of the task measured last, so that it need not be built again."""
        built = None if self._task is None else self._task.kernels.get(candidate)
        return built.result() if built is not None and built.done() and built.exception() is None else None

    def close(self) -> None:
        """End the processes that build; sessions with devices have ended before."""
        self._builders.close()

    def _refusal(self, description: Description) -> str | None:
        return description.refusal(self.target)

    def _building(self, task: Task) -> _Building:
        if self._task is None or self._task.task.key != task.key:
            self._task = _Building(task, self._builders, self._patience)
        return self._task

    def _job(self, building: _Building, candidates: Sequence[Candidate], turns: int | None, limit: float) -> Job:
        request = {"decisions": [dict(each.decisions) for each in candidates], "turns": turns, "limit": limit}
        return Job([building.kernel(candidate) for candidate in candidates], request, limit)


class _Building:
    """One task's kernels, built or on their way, and what devices are told of it."""

    def __init__(self, task: Task, builders: Builders, patience: float) -> None:
        self.task, self._builders = task, builders
        default = dict(task.default.decisions)
        # Only what kernels are compiled from: operands are made on the devices.
        self._job = worker.Job(task.spec, task.schedules, task.problem, task.target, default, Path(), 1)
        self.kernels: dict[Candidate, Future[bytes]] = {}
        limit = PREPARED * patience
        self.work = Work({"limit": limit}, wire.packed(task), self.kernel(task.default), limit, patience)

    def kernel(self, candidate: Candidate) -> Future[bytes]:
        """The LLVM IR of a candidate, some time."""
        if candidate not in self.kernels:
            self.kernels[candidate] = self._builders.submit(worker.compiled, self._job, dict(candidate.decisions))
        return self.kernels[candidate]


def _to_stderr(text: str) -> None:
    print(f"attncc: {text}", file=sys.stderr, flush=True)
