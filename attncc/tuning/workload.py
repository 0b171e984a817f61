"""Where tasks come from: a model's own calls, shapes in a file, or the shapes that people run.

In every case attention is called and the calls are recorded, so that what is tuned is what will run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attncc import schedules
from attncc.bench.cases import Case
from attncc.runtime import dispatch
from attncc.runtime.operands import Operands
from attncc.runtime.plan import KernelPlan, Plan
from attncc.schedules import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.sample import Sample, sample_of
from attncc.tuning.task import Task, distinct

COMMON = (
    Case(),
    Case(dtype="bfloat16"),
    Case(q_len=1024, kv_len=1024, causal=True),
    Case(1, 32, 8, 1024, 1024, 128, "bfloat16", causal=True),
    Case(1, 12, 12, 4096, 4096, 64, "bfloat16", causal=True, window=256),
    Case(4, 12, 12, 512, 512, 64, padded=0.5),
    Case(1, 32, 32, 1, 4096, 128),
    Case(1, 32, 32, 1, 4096, 128, "bfloat16"),
    Case(1, 32, 8, 1, 8192, 128, "bfloat16"),
    Case(8, 12, 12, 64, 64, 64),
    Case(8, 12, 12, 128, 128, 64, "bfloat16"),
    Case(1, 12, 12, 16, 2048, 64),
)
"""`--suite common`: prompts, masked or not, of encoders and of decoders with grouped heads; single tokens against a
cache; short sentences; a few rows against many keys. In float32 and bfloat16."""
SUITES = {"common": COMMON}


@dataclass
class Call:
    """Calls of one attention at the same sizes, strides and threads."""

    spec: AttentionSpec
    problem: Problem
    sample: Sample
    count: int = 0


@contextmanager
def recorded(threads: int | None = None) -> Iterator[list[Call]]:
    """The list that every attention which kernels compute is put into while the context lasts.

    Calls are cut for `threads` threads, those of PyTorch by default.
    """
    before = torch.get_num_threads()
    calls: list[Call] = []

    def note(plan: Plan, spec: AttentionSpec, operands: Operands, layout: str) -> Plan:
        if not isinstance(plan, KernelPlan):
            return plan
        calls.append(Call(spec, plan.problem, sample_of(operands, layout)))
        return _Counted(plan, calls[-1])

    try:
        torch.set_num_threads(threads or before)
        with dispatch.observed(note):
            yield calls
    finally:
        torch.set_num_threads(before)


def of_model(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], target: Target, threads: int | None = None
) -> list[Task]:
    """The tasks of one call of a model, compiled as `attncc.compile` does. Raises whatever the model raises.

    They are for `target` and the `threads` that PyTorch has there: by default, as many as here.
    """
    import attncc

    if any(isinstance(value, Tensor) and value.is_cuda for value in (*args, *kwargs.values())):
        raise ValueError(
            "calls are recorded on the CPU, and these inputs are on a GPU: leave model and inputs on the CPU, and "
            "--device cuda tunes for the GPU what they mean"
        )
    compiled = attncc.compile(model)
    with recorded(threads) as calls, torch.no_grad():
        compiled(*args, **kwargs)
    return tasks_of(calls, target)


def of_cases(cases: Sequence[Case], target: Target, threads: int | None = None) -> list[Task]:
    """A task for each case, under its label; one for those that share a bucket. `threads` as of `of_model`."""
    from attncc.bench.contenders import fused

    found = []
    for case in cases:
        with recorded(threads) as calls, torch.inference_mode():
            fused(case)(*case.inputs())
        found += tasks_of(calls, target, case.label)
    return distinct(found)


def read_cases(path: Path) -> tuple[Case, ...]:
    """The cases of a workload file: a JSON list of objects whose fields are those of `attncc.bench.cases.Case`.

    Raises ValueError, naming the entry, for what is no such file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, list) or not data:
        raise ValueError(f"{path} is not a list of cases, such as {EXAMPLE}")
    return tuple(_case(entry, f"{path}, case {number}") for number, entry in enumerate(data, 1))


EXAMPLE = '[{"heads": 32, "kv_heads": 8, "q_len": 1, "kv_len": 4096, "head_dim": 128, "dtype": "bfloat16"}]'


def _case(entry: Any, where: str) -> Case:
    names = [field.name for field in fields(Case)]
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {entry!r} is not an object with fields {', '.join(names)}")
    unknown = sorted(entry.keys() - set(names))
    if unknown:
        raise ValueError(f"{where}: there is no {', '.join(unknown)}; fields are {', '.join(names)}")
    try:
        return Case(**entry)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def tasks_of(calls: Sequence[Call], target: Target, label: str = "") -> list[Task]:
    """The tasks of recorded calls: those that a kernel family with something to decide runs."""
    found = []
    for call in calls:
        answered = _answered(call, target)
        if answered is not None:
            spec, family, problem, sample = answered
            found.append(Task(spec, family.name, problem, target, max(call.count, 1), label, sample))
    return distinct(task for task in found if task.points > 1)


def _answered(call: Call, target: Target) -> tuple[AttentionSpec, Family, Problem, Sample] | None:
    """Spec and family of the kernel that answers a call there, its sizes and operands; None where PyTorch does."""
    if target.kind == "cuda":
        from attncc.tuning.cuda_calls import on_gpu

        return on_gpu(call.spec, call.problem, call.sample, target)
    return call.spec, schedules.select(call.spec, call.problem, target), call.problem, call.sample


class _Counted(Plan):
    """A plan that counts its calls."""

    def __init__(self, plan: Plan, call: Call) -> None:
        self.plan, self.call, self.bytes = plan, call, plan.bytes

    def run(self, operands: Operands) -> Sequence[Tensor]:
        self.call.count += 1
        return self.plan.run(operands)
