"""From one call on CUDA tensors to its kernels: what follows from spec, sizes and strides is kept as a launch plan."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from attncc.options import disabled
from attncc.runtime import check
from attncc.runtime.bounded import Bounded
from attncc.runtime.cuda import build, devices
from attncc.runtime.cuda.plan import CopyPlan, CudaPlan, ProductPlan, dense, readable
from attncc.runtime.dispatch import parse_spec
from attncc.runtime.operands import Operands
from attncc.runtime.plan import EagerPlan, EmptyPlan, Plan
from attncc.schedules.cuda.families import CUDA, CudaFamily
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

_PLANS = 1024
"""Bound on the launch plans that are kept."""


def outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Sequence[Tensor]:
    """Run the attention of `spec` (an AttentionSpec's JSON) on CUDA tensors; no gradient is recorded.

    Shapes, results and errors are those of `attncc.runtime.dispatch.outputs`.
    """
    # Kernels get bare addresses: whatever tells that a tensor is not what the plan was made for is in the key.
    key: tuple[Any, ...] = (spec, layout, *[(t.shape, t.stride(), t.dtype, t.get_device()) for t in (q, k, v, *extras)])
    operands = (q, k, v, extras, scalars, integers)
    plan = _plans.get(key)
    if plan is None:
        plan = _new_plan(operands, spec, layout)
        _plans.put(key, plan)
    if len(scalars) + len(integers) and (len(scalars), len(integers)) != _numbers(spec):
        check.operands(parse_spec(spec), operands, layout)
    if isinstance(plan, CudaPlan) and not plan.aligned(operands):
        return outputs(dense(q), dense(k), dense(v), extras, scalars, integers, spec, layout)
    return plan.run(operands)


def forget_plans() -> None:
    """Drop all launch plans, and try again what could not be built; kernels stay loaded."""
    _plans.drop()
    _failed.clear()


def select(spec: AttentionSpec, problem: Problem, target: Target) -> tuple[CudaFamily, ...]:
    """The families that compute such a call, the best first."""
    return tuple(f for f in CUDA if f.suits(spec, problem) and f.declines(spec, target) is None)


def _numbers(text: str) -> tuple[int, int]:
    spec = parse_spec(text)
    return len(spec.scalars), len(spec.integers)


def _new_plan(operands: Operands, text: str, layout: str) -> Plan:
    spec = parse_spec(text)
    check.operands(spec, operands, layout)
    q, k, v, *_ = operands
    size = (q.shape[0], q.shape[1], q.shape[2], spec.value_dim)
    if 0 in size or k.shape[2] == 0:
        return EmptyPlan(spec, size, layout)
    device = q.get_device()
    target = devices.target(device)
    if target is None or disabled():
        return EagerPlan(spec, layout)
    if _by_product(spec):
        return ProductPlan(spec, layout)
    problem = Problem(*size[:3], k.shape[2], target.cores)
    for family in select(spec, problem, target):
        copied = tuple(not readable(t, family.row_alignment) for t in (q, k, v))
        if any(copied):
            return CopyPlan(copied, layout, text)
        plan = _built(spec, problem, target, family, layout, operands)
        if plan is not None:
            return plan
    return EagerPlan(spec, layout)


def _by_product(spec: AttentionSpec) -> bool:
    """Whether a bilinear score may be computed as a product of its own before: where a model's is rounded as well."""
    return any(extra.name == spec.bilinear and extra.dtype == spec.dtype for extra in spec.extras)


def _built(
    spec: AttentionSpec, problem: Problem, target: Target, family: CudaFamily, layout: str, operands: Operands
) -> Plan | None:
    """A plan by `family`; None, after one warning, where it cannot be built."""
    device = operands[0].get_device()
    identity = (family.name, spec.name, target.key)
    if identity in _failed:
        return None
    try:
        return CudaPlan(build.kernel(spec, target, family, device), problem, layout, operands)
    except Exception as error:  # whatever went wrong in a compiler, another family or PyTorch can still answer
        _failed.add(identity)
        last = (str(error).strip().splitlines() or [""])[-1]
        message = f"attncc: no kernel {family.name} for {spec} on {target.mcpu}: {type(error).__name__}: {last}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None


_plans: Bounded[Plan] = Bounded(_PLANS, 1 << 62)
_failed: set[tuple[str, str, str]] = set()
"""(family, spec, target) of what could not be built, and is not tried again."""
