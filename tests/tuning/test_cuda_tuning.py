"""Tuning kernels for a GPU without one: calls, checks and records are the real thing, kernels run emulated, and the
clock is the host's, which says nothing of a GPU.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cuda_emulation
import pytest
import torch
import zoo

from attncc import expr as ex
from attncc.bench.cuda import timing
from attncc.cli import app
from attncc.schedules import Problem
from attncc.schedules.cuda.families import PrefillMma
from attncc.spec import AttentionSpec, Extra
from attncc.target import Target, detect
from attncc.tuning import cuda_worker, inventory, worker
from attncc.tuning.cuda_calls import on_gpu
from attncc.tuning.cuda_local import CudaMeasurer
from attncc.tuning.database import Database
from attncc.tuning.measure import Candidate, Comparison, Outcome
from attncc.tuning.processes import Failure
from attncc.tuning.record import Record
from attncc.tuning.sample import Sample, generated
from attncc.tuning.search import search, start
from attncc.tuning.task import Task
from attncc.tuning.versions import Versions
from attncc.tuning.worker import Built, Job
from attncc.tuning.workload import Call, tasks_of

emulated = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
HOPPER = Target("cuda", "sm_90a", "nvptx64-nvidia-cuda", frozenset(), 132, 0, 0, 0)
SCALE = ex.op("mul", ex.Score(), ex.Scalar("s0", "float32"))


class Clock:
    """Stands for `timing.Replays`."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.calls = calls

    def turn(self) -> float:
        began = time.perf_counter()
        self.calls[0]()
        return time.perf_counter() - began


class InProcess:
    """A measurer that calls the worker's functions itself."""

    threads = 1

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.target = folder, target
        self.code: dict[Candidate, bytes] = {}

    def job(self, task: Task) -> Job:
        path = self.folder / "sample.pt"
        torch.save(task.operands, path)
        return Job(task.spec, task.schedules, task.problem, task.target, dict(task.default.decisions), path, 1)

    def built(self, job: Job, candidate: Candidate) -> Built:
        if candidate not in self.code:
            self.code[candidate] = cuda_worker.compiled(job, dict(candidate.decisions))
        return dict(candidate.decisions), self.code[candidate]

    def measure(self, task: Task, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome]]:
        job = self.job(task)
        for candidate in candidates:
            turns = cuda_worker.measure(job, self.built(job, task.default), self.built(job, candidate))
            yield candidate, Outcome.of(turns)

    def compare(self, task: Task, candidates: Sequence[Candidate], *, turns: int = 15) -> Comparison:
        job = self.job(task)
        built = [self.built(job, candidate) for candidate in candidates]
        found = cuda_worker.compare(job, self.built(job, task.default), built, 5)
        return Comparison(tuple(Outcome.of(found[str(n)]) for n in range(len(built))), Outcome.of(found["sdpa"]))

    def close(self) -> None:
        pass


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setattr(timing, "Replays", Clock)
    monkeypatch.setattr(cuda_worker, "_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(timing, "ROTATED_BYTES", 1 << 17)
    worker._held.clear()
    with cuda_emulation.gpu(tmp_path) as target:
        yield target
    worker._held.clear()


def few_rows(target: Target) -> Task:
    spec = AttentionSpec("float32", 20, 24, 2, score_mod=zoo.SCALED)
    return Task(spec, "cuda.simt.few", Problem(1, 2, 3, 70, target.cores), target)


@emulated
def test_a_search_on_an_emulated_gpu(gpu: Target, tmp_path: Path) -> None:
    """Every candidate is held against float64; what was measured is on record for the GPU, finalists beside the
    default."""
    task, measurer, database = few_rows(gpu), InProcess(tmp_path, gpu), Database(tmp_path / "db")
    state = search(start(task, measurer), 64, float("inf"), measurer, database)
    assert state.measured == task.points == 4 and not state.failures and state.sdpa is not None
    records = database.records()
    assert {record.target for record in records} == {gpu} and {r.decisions["keys"] for r in records} == {
        16,
        32,
        64,
        128,
    }
    assert state.finals and all(record.default_seconds for record in state.finals)
    again = search(start(task, measurer), 64, float("inf"), measurer, database)
    assert again.measured == 0 and len(again.trials) == 4


@emulated
def test_a_wrong_kernel_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that adds the last key's value twice, where the default is right."""
    monkeypatch.setattr(timing, "Replays", Clock)
    monkeypatch.setattr(cuda_worker, "_device", lambda: torch.device("cpu"))
    edits: list[Callable[[str], str]] = [lambda source: source]
    with cuda_emulation.gpu(tmp_path, edit=lambda source: edits[0](source)) as target:
        measurer, task = InProcess(tmp_path, target), few_rows(target)
        job = measurer.job(task)
        default = measurer.built(job, task.default)
        edits[0] = lambda source: re.sub(r"(sums_ptr\[\(?\d\)?\] = \()", r"\g<1>1.0f + ", source)
        wrong = measurer.built(job, Candidate({"rows": 8, "keys": 16}))
        with pytest.raises(ValueError, match="wrong result: out is off by"):
            cuda_worker.measure(job, default, wrong)
        worker._held.clear()


class Broken:
    """A runner whose process has lost the GPU after the first failure."""

    def __init__(self) -> None:
        self.lost, self.closed = False, False

    def call(self, function: Callable[..., Any], *args: Any, patience: float) -> Any:
        if function is cuda_worker.alive:
            return Failure("CUDA error: an illegal memory access was encountered") if self.lost else True
        self.lost = "illegal" in args
        return Failure(args[0])

    def close(self) -> None:
        self.closed = True


def test_a_process_that_lost_the_gpu_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA reports an illegal access again and again: the next candidate would be blamed for it."""
    monkeypatch.setattr("attncc.tuning.cuda_local.Runner", Broken)
    measurer = CudaMeasurer.__new__(CudaMeasurer)
    measurer._runner = first = Broken()  # type: ignore[assignment]
    assert measurer._run(cuda_worker.measure, "wrong result", patience=1.0) == "wrong result"
    assert not first.closed
    assert measurer._run(cuda_worker.measure, "illegal", patience=1.0) == "illegal"
    assert first.closed and measurer._runner is not first


def sample(spec: AttentionSpec, problem: Problem, **changed: Any) -> Sample:
    made = generated(spec, problem)
    return Sample(**{**vars(made), **changed})


def test_calls_become_what_the_runtime_asks_for() -> None:
    """The specs that records are looked up by: a usual scale is a number, rows of 20 columns are widened, a bilinear
    score is a product before; and operands lie as kernels get them."""
    problem = Problem(1, 4, 256, 256, 2)
    spec = AttentionSpec("bfloat16", 64, 64, score_mod=SCALE, scalars=("s0",))
    usual = on_gpu(spec, problem, sample(spec, problem, scalars=(0.125,)), HOPPER)
    assert usual is not None and ex.pretty(usual[0].score_mod) == "(score * 0.125)"
    assert usual[1].name == "cuda.prefill.wgmma" and usual[2].threads == 132
    other = on_gpu(spec, problem, sample(spec, problem, scalars=(0.5,)), HOPPER)
    assert other is not None and other[0] == spec
    narrow = AttentionSpec("bfloat16", 20, 12, score_mod=zoo.SCALED)
    widened = on_gpu(narrow, problem, sample(narrow, problem), HOPPER)
    assert widened is not None and (widened[0].head_dim, widened[0].value_dim) == (24, 16)
    assert widened[1].name == "cuda.prefill.wgmma" and widened[3].strides[0] == (4 * 256 * 24, 256 * 24, 24, 1)
    matrix = AttentionSpec("bfloat16", 64, 64, bilinear="t0", extras=(Extra("t0", "bfloat16", 2),))
    product = on_gpu(matrix, problem, sample(matrix, problem), HOPPER)
    assert product is not None and product[0].bilinear is None and product[1].name == "cuda.prefill.wgmma"


def test_rows_that_kernels_cannot_read_are_dense_in_the_sample() -> None:
    problem, spec = Problem(1, 2, 100, 100, 2), AttentionSpec("bfloat16", 64, 64, score_mod=zoo.SCALED)
    odd = ((2 * 100 * 65, 100 * 65, 65, 1),) * 3
    found = on_gpu(spec, problem, sample(spec, problem, strides=odd), HOPPER)
    assert found is not None and found[3].strides[0] == (2 * 100 * 64, 100 * 64, 64, 1)
    plain = AttentionSpec("float32", 64, 64, score_mod=zoo.SCALED)
    kept = on_gpu(plain, problem, sample(plain, problem, strides=odd), HOPPER)
    assert kept is not None and kept[3].strides == odd and kept[1].name == "cuda.simt"


def test_what_no_family_takes_is_no_task() -> None:
    problem = Problem(1, 2, 100, 100, 2)
    wide = AttentionSpec("float32", 9000, 9000, score_mod=zoo.SCALED)
    plain = AttentionSpec("bfloat16", 64, 64, score_mod=zoo.SCALED)
    calls = [Call(spec, problem, sample(spec, problem), 3) for spec in (wide, plain)]
    (task,) = tasks_of(calls, HOPPER, "x")
    assert (task.spec, task.family, task.calls, task.points > 30) == (plain, "cuda.prefill.wgmma", 3, True)


def test_records_are_listed_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there is none, as made for one."""
    spec, family = AttentionSpec("bfloat16", 64, 64), PrefillMma()
    default = family.decisions(spec, HOPPER)
    record = Record(
        spec=spec.json, family=family.name, decisions=default | {"keys": 32}, problem=Problem(1, 2, 100, 100, 132),
        target=HOPPER, seconds=1e-3, spread=0.01, default_seconds=2e-3, default_family=family.name,
        default_decisions=default, versions=Versions.current(HOPPER),
    )  # fmt: skip
    uses = []
    for gpu in (None, HOPPER):
        monkeypatch.setattr(inventory, "_gpu", lambda gpu=gpu: gpu)
        uses += [entry.use for entry in inventory.entries([record], detect())]
    assert uses[0].startswith("made for cuda nvptx64, and this is cpu") and uses[1] == "used"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_nothing_begins() -> None:
    for source in (["--suite", "common"], ["--check"]):
        with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU, and torch .* leave --device out"):
            app(["tune", *source, "--device", "cuda"], standalone_mode=False)
    with pytest.raises(ValueError, match="there is cpu and cuda"):
        app(["tune", "--suite", "common", "--device", "rocm"], standalone_mode=False)
