"""Measuring on this machine: kernels are built by one process a core, and run by another, alone, in between.

Phases alternate, so that nothing is compiled while something is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from attncc.target import Target, detect
from attncc.tuning import worker
from attncc.tuning.measure import Candidate, Comparison, Outcome
from attncc.tuning.processes import Builders, Failure, Runner
from attncc.tuning.task import Task

T = TypeVar("T")
PATIENCE = 30.0
"""Seconds after which a candidate that is being built or run counts as hanging."""
MANY_CALLS = 50
"""Calls of a usual candidate that are waited for in any case, where one takes seconds."""
COMPARED = 8.0
"""Times that, for a comparison, which takes many turns."""


class LocalMeasurer:
    """A `Measurer` on this machine's CPU. Raises ImportError, naming the extra, where workers cannot be started."""

    steps: ModuleType = worker
    """The module of the functions that processes are sent: `compiled`, `measure`, `compare`."""

    def __init__(self, patience: float = PATIENCE, builders: int | None = None) -> None:
        """`patience` is how long a candidate may take, in seconds; `builders` the number of processes that build."""
        self._patience = patience
        self._runner = Runner()
        self._builders = Builders(builders or min(detect().cores, 16), patience)
        self._folder = tempfile.TemporaryDirectory(prefix="attncc-tune-")
        self._jobs: dict[tuple[object, ...], worker.Job] = {}
        self._built: dict[Candidate, bytes | Failure] = {}
        self._current: worker.Job | None = None
        self._usual: dict[Path, float] = {}
        """Seconds a call of a job's candidates, as far as some were compared."""

    @property
    def target(self) -> Target:
        """This machine."""
        return detect()

    @property
    def threads(self) -> int:
        """PyTorch's in this process, which the one that measures has too."""
        return int(torch.get_num_threads())

    def measure(self, task: Task, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome]]:
        """Build all, then check and time one after another."""
        job = self._job(task)
        self._build(job, [task.default, *candidates])
        for candidate in candidates:
            yield candidate, self._measured(job, task.default, candidate)

    def compare(self, task: Task, candidates: Sequence[Candidate], *, turns: int = 15) -> Comparison:
        """Interleaved turns of candidates that have passed before, and of SDPA."""
        job = self._job(task)
        self._build(job, [task.default, *candidates])
        built = [(dict(candidate.decisions), self._built[candidate]) for candidate in candidates]
        default = self._built[task.default]
        failures = [text for _, text in built if isinstance(text, Failure)]
        if isinstance(default, Failure) or failures:
            return Comparison(tuple(Outcome.failed([*failures, str(default)][0]) for _ in candidates))
        first = (dict(task.default.decisions), default)
        found = self._run(self.steps.compare, job, first, built, turns, patience=COMPARED * self._patience)
        if isinstance(found, Failure):
            return Comparison(tuple(Outcome.failed(found) for _ in candidates))
        outcomes = tuple(Outcome.of(found[str(number)]) for number in range(len(candidates)))
        self._usual[job.sample] = max(outcome.seconds or 0.0 for outcome in outcomes)
        return Comparison(outcomes, Outcome.of(found["sdpa"]) if "sdpa" in found else None)

    def text(self, candidate: Candidate) -> bytes | None:
        """The code of a candidate of the task measured last, so that it need not be built again."""
        found = self._built.get(candidate)
        return None if isinstance(found, Failure) else found

    def close(self) -> None:
        """End all processes, and remove what was written for them."""
        self._builders.close()
        self._runner.close()
        self._folder.cleanup()

    def _job(self, task: Task) -> worker.Job:
        """What workers are told of a task. Raises ValueError where its operands cannot be made up."""
        found = self._jobs.get(task.key)
        if found is None:
            path = Path(self._folder.name) / f"{len(self._jobs)}.pt"
            torch.save(task.operands, path)
            default = dict(task.default.decisions)
            found = worker.Job(
                task.spec, task.schedules, task.problem, task.target, default, path, torch.get_num_threads()
            )
            self._jobs[task.key] = found
        if found is not self._current:
            self._current = found
            self._built.clear()
        return found

    def _build(self, job: worker.Job, candidates: Sequence[Candidate]) -> None:
        missing = [candidate for candidate in dict.fromkeys(candidates) if candidate not in self._built]
        texts = self._builders.map(self.steps.compiled, [(job, dict(candidate.decisions)) for candidate in missing])
        self._built.update(zip(missing, texts, strict=True))

    def _run(self, function: Callable[..., T], *args: Any, patience: float) -> T | Failure:
        """What the process that runs kernels makes of a call."""
        return self._runner.call(function, *args, patience=patience)

    def _measured(self, job: worker.Job, default: Candidate, candidate: Candidate) -> Outcome:
        base, text = self._built[default], self._built[candidate]
        if isinstance(text, Failure):
            return Outcome.failed(f"could not be built: {text}")
        if isinstance(base, Failure):
            return Outcome.failed(f"the default could not be built: {base}")
        first, built = (dict(default.decisions), base), (dict(candidate.decisions), text)
        patience = max(self._patience, MANY_CALLS * self._usual.get(job.sample, 0.0))
        turns = self._run(self.steps.measure, job, first, built, patience=patience)
        return Outcome.failed(turns) if isinstance(turns, Failure) else Outcome.of(turns)
