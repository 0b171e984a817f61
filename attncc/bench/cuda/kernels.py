"""Which kernels the cases need, so that they can be packed for a GPU that is somewhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attncc.bench.cuda.cases import GpuCase
from attncc.bench.cuda.contenders import by_mma, ours
from attncc.runtime.cuda import dispatch
from attncc.runtime.cuda.pack import Wanted
from attncc.runtime.cuda.plan import PaddedPlan
from attncc.runtime.dispatch import parse_spec
from attncc.schedules.cuda.families import CudaFamily, PrefillMma
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target


def wanted(cases: Sequence[GpuCase], target: Target) -> list[Wanted]:
    """The kernels that `cases` run on `target`, each once."""
    found: dict[tuple[str, str], Wanted] = {}
    for case in cases:
        for spec, family in _needed(case, target):
            found[spec.json, family.name] = (spec, target, family, family.decisions(spec, target))
    return list(found.values())


def _needed(case: GpuCase, target: Target) -> Iterator[tuple[AttentionSpec, CudaFamily]]:
    spec = specialised(case)
    problem = Problem(case.batch, case.heads, case.q_len, case.kv_len, target.cores)
    yield spec, dispatch.select(spec, problem, target)[0]
    if by_mma(case):
        yield spec, PrefillMma()


def specialised(case: GpuCase) -> AttentionSpec:
    """What `attncc.attention` asks of a GPU for a case: recorded from a call on small CPU tensors."""
    small = replace(case, batch=1, q_len=min(case.q_len, 2), kv_len=16)
    with _Recorder() as recorder, torch.no_grad():
        ours(small, small.attention("cpu"))(*small.inputs("cpu"))
    ((text, scalars),) = recorder.found
    spec = dispatch.special(parse_spec(text), scalars)
    if dispatch.by_product(spec):
        spec = replace(spec, bilinear=None, query_dim=None)
    return PaddedPlan(spec, "bhsd").spec if dispatch.widens(spec) else spec


class _Recorder(TorchDispatchMode):
    """Takes calls of the operator down instead of running them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Sequence[float]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.attncc.attention.default:
            q, _, v, _, scalars, _, text, _ = args
            self.found.append((text, scalars))
            return q.new_empty(*q.shape[:3], v.shape[3])
        return function(*args, **(kwargs or {}))
