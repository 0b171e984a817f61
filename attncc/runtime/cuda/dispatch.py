"""From one call on CUDA tensors to its kernels: what follows from spec, sizes and strides is kept as a launch plan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from attncc import expr as ex
from attncc.options import disabled
from attncc.runtime import check, stats
from attncc.runtime.bounded import Bounded
from attncc.runtime.cuda import build, devices
from attncc.runtime.cuda.plan import ROW_ELEMENTS, CopyPlan, CudaPlan, PaddedPlan, ProductPlan, dense, readable
from attncc.runtime.dispatch import parse_spec
from attncc.runtime.operands import Operands
from attncc.runtime.plan import EagerPlan, EmptyPlan, Plan
from attncc.schedules.cuda.families import CUDA, CudaFamily, Simt
from attncc.schedules.family import Problem
from attncc.spec import DOT, AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc.tuning.choose import Choice

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
    usual = len(scalars) and scalars[0] == usual_scale(k.shape[-1])
    key: tuple[Any, ...] = (spec, layout, usual, len(scalars), len(integers))
    key += tuple([(t.shape, t.stride(), t.dtype, t.get_device()) for t in (q, k, v, *extras)])
    operands = (q, k, v, extras, scalars, integers)
    plan = _plans.get(key)
    if plan is None:
        plan = _new_plan(operands, spec, layout)
        _plans.put(key, plan)
    if isinstance(plan, CudaPlan) and not plan.aligned(operands):
        return outputs(dense(q), dense(k), dense(v), extras, scalars, integers, spec, layout)
    return plan.run(operands)


def forget_plans() -> None:
    """Drop all launch plans, and try again what could not be built; kernels stay loaded."""
    _plans.drop()
    _failed.clear()


def use(families: tuple[CudaFamily, ...]) -> None:
    """Let only those families take calls from now on: to measure one, or to test it."""
    global _families
    if families is not _families:
        _families = families
        forget_plans()


def special(spec: AttentionSpec, scalars: Sequence[float]) -> AttentionSpec:
    """`spec` with the usual scale of scores as a number, where it is what the first scalar is.

    As a number it is part of the exponent of the softmax; a factor that is known at run time only costs every score a
    multiplication.
    """
    if not scalars or scalars[0] != usual_scale(spec.head_dim):
        return spec
    number = ex.Const(scalars[0], "float32")

    def at_once(tree: ex.Expr) -> ex.Expr:
        if isinstance(tree, ex.Scalar) and tree.name == spec.scalars[0]:
            return number
        return ex.with_args(tree, tuple(map(at_once, tree.args))) if tree.args else tree

    return replace(spec, score_mod=at_once(spec.score_mod))


@cache
def usual_scale(head_dim: int) -> float:
    """What scores of such rows are multiplied by unless a model says otherwise."""
    return 1.0 / math.sqrt(head_dim) if head_dim else 1.0


def select(spec: AttentionSpec, problem: Problem, target: Target) -> tuple[CudaFamily, ...]:
    """The families that compute such a call, the best first."""
    return tuple(f for f in _families if f.suits(spec, problem) and f.declines(spec, target) is None)


def _new_plan(operands: Operands, text: str, layout: str) -> Plan:
    spec = parse_spec(text)
    check.operands(spec, operands, layout)
    q, k, v, _, scalars, _ = operands
    size = (q.shape[0], q.shape[1], q.shape[2], spec.value_dim)
    if 0 in size or k.shape[2] == 0:
        return EmptyPlan(spec, size, layout)
    device = q.get_device()
    target = devices.target(device)
    if target is None or disabled():
        return EagerPlan(spec, layout)
    if by_product(spec):
        return ProductPlan(spec, layout)
    spec = special(spec, scalars)
    problem = Problem(*size[:3], k.shape[2], target.cores)
    found = select(spec, problem, target)
    if found and isinstance(found[0], Simt) and widens(spec):
        plan = PaddedPlan(spec, layout)
        if not isinstance(select(plan.spec, problem, target)[0], Simt):
            return plan
    for family, chosen in _candidates(spec, problem, target, found):
        copied = tuple(not readable(t, family.row_alignment) for t in (q, k, v))
        if any(copied):
            return CopyPlan(copied, layout, text)
        built = _built(spec, problem, target, family, chosen, layout, operands)
        if built is not None:
            return built
    return EagerPlan(spec, layout)


def widens(spec: AttentionSpec) -> bool:
    """Whether columns of zeros change nothing, and may be what keeps tensor cores from taking it.

    Codes are kept in caches, which are not copied at every call.
    """
    narrow = spec.head_dim % ROW_ELEMENTS or spec.value_dim % ROW_ELEMENTS
    return bool(narrow) and spec.dtype in ("bfloat16", "float16") and spec.element == DOT and not spec.quantized


def by_product(spec: AttentionSpec) -> bool:
    """Whether a bilinear score may be computed as a product of its own before: where a model's is rounded as well."""
    return any(extra.name == spec.bilinear and extra.dtype == spec.dtype for extra in spec.extras)


def _candidates(
    spec: AttentionSpec, problem: Problem, target: Target, families: tuple[CudaFamily, ...]
) -> Iterator[tuple[CudaFamily, Choice]]:
    """What may run a call, best first: of each family what tuning found, then its analytic decisions."""
    from attncc.tuning.choose import analytic, choice

    for family in families:
        chosen = choice(spec, family, target, problem)
        if chosen.record is not None:
            yield from ((each, chosen) for each in families if each is chosen.family)
        yield family, analytic(spec, family, target)


def _built(
    spec: AttentionSpec,
    problem: Problem,
    target: Target,
    family: CudaFamily,
    chosen: Choice,
    layout: str,
    operands: Operands,
) -> Plan | None:
    """A plan by what was chosen of `family`; None, after one warning, where it cannot be built."""
    device = operands[0].get_device()
    source = stats.DEFAULT if chosen.record is None else chosen.record.summary
    identity = (family.name, spec.name, target.key, *sorted(chosen.decisions.items()))
    if identity in _failed:
        return None
    try:
        kernel = build.kernel(spec, target, family, chosen.decisions, device, source)
        return CudaPlan(kernel, problem, layout, operands)
    except Exception as error:  # whatever went wrong in a compiler, another family or PyTorch can still answer
        _failed.add(identity)
        last = (str(error).strip().splitlines() or [""])[-1]
        tuned = "" if chosen.record is None else f" ({source})"
        message = f"attncc: no kernel {family.name}{tuned} for {spec} on {target.mcpu}: {type(error).__name__}: {last}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None


_plans: Bounded[Plan] = Bounded(_PLANS, 1 << 62)
_families = CUDA
_failed: set[tuple[Hashable, ...]] = set()
"""(family, spec, target, decisions) of what could not be built, and is not tried again."""
