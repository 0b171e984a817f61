"""From one call to its kernel: sizes choose a regime, and everything derivable from them is kept as a launch plan.

A repeated call costs one dictionary lookup, the output's allocation and the native call.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attncc.options import disabled
from attncc.runtime import ahead, build, check, eager, launcher, stats
from attncc.runtime.bounded import Bounded
from attncc.runtime.operands import Call, Operands
from attncc.runtime.plan import EagerPlan, EmptyPlan, KernelPlan, Plan
from attncc.spec import AttentionSpec
from attncc.target import Target, detect

if TYPE_CHECKING:
    from attncc.schedules.family import Problem
    from attncc.tuning.choose import Choice

Observer = Callable[[Plan, AttentionSpec, Operands, str], Plan]
_PLANS = 512
_PLAN_BYTES = 16 << 20
"""Bounds on the launch plans that are kept, in number and in bytes of work tables."""
_FLOPS, _BYTES, _SHARE = 50e9, 20e9, 4e-6
"""Of one thread, roughly: operations and bytes of keys and values a second; seconds of work that pay for waking it."""


def attention(*call: *Call) -> Tensor:
    """The attention output of `outputs`, alone."""
    return outputs(*call)[0]


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
    """Run the attention of `spec` (an AttentionSpec's JSON) on CPU tensors; no gradient is recorded.

    q [B, H, Sq, D], k [B, G, Skv, D], v [B, G, Skv, E]; returns the spec's outputs, the first of them [B, H, Sq, E] and
    contiguous in the order of `layout`. Raises ValueError or TypeError for operands that do not fit the spec.
    """
    key = _key(q, k, v, extras, spec, layout)
    operands = (q, k, v, extras, scalars, integers)
    plan = _plans.get(key)
    if plan is None:
        plan = _new_plan(key, operands, spec, layout)
    return plan.run(operands)


def _key(q: Tensor, k: Tensor, v: Tensor, extras: Sequence[Tensor], *texts: str) -> tuple[Any, ...]:
    """All that a plan follows from; the sizes of further tensors are there to be checked once."""
    sizes = (q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride())
    key = (*texts, *sizes, q.dtype, _get_num_threads())
    return (*key, *[t.shape for t in extras]) if extras else key


def call_key(q: Tensor, k: Tensor, v: Tensor, *facts: Hashable) -> tuple[Any, ...]:
    """What a call of `attncc.attention` is remembered by: its tensors, and `facts` that say the rest of its spec."""
    sizes = (q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride())
    return (*facts, *sizes, q.dtype, k.dtype, v.dtype, _get_num_threads())


def remembered(call: tuple[Any, ...]) -> Plan | None:
    """The plan of a call that was made before, where it is still kept."""
    return _plans.get(call)


def remember(call: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor, spec: str, layout: str) -> None:
    """Let `remembered` give the plan by which these tensors have been answered, if there is one."""
    plan = _plans.get(_key(q, k, v, (), spec, layout))
    if plan is not None:
        _plans.put(call, plan)


def host_target() -> Target:
    """The target that kernels are built for: the detected host, or what `set_target` chose."""
    return _target or detect()


def set_target(target: Target | None) -> None:
    """Build the kernels of later calls for `target`, which this host must be able to run; None for the host itself."""
    global _target
    _target = target
    forget_plans()


def use_database(path: str | os.PathLike[str]) -> None:
    """Look for tuned decisions in this file first, from now on and for all of this process."""
    from attncc.tuning import sources

    if sources.use(path):
        forget_plans()


def forget_plans() -> None:
    """Drop all launch plans, and try again what could not be built; kernels stay in memory."""
    _plans.drop()
    _failed.clear()


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Have `observer` called with every plan that is made inside, and the call it is made for; what it returns is used
    instead. Plans that were made before are made again."""
    global _observer
    forget_plans()
    _observer = observer
    try:
        yield
    finally:
        _observer = None
        forget_plans()


@lru_cache(maxsize=512)
def parse_spec(text: str) -> AttentionSpec:
    """The spec of a JSON text, remembered. Raises ValueError for text that is no spec."""
    return AttentionSpec.from_json(text)


def _new_plan(key: tuple[Any, ...], operands: Operands, text: str, layout: str) -> Plan:
    spec = parse_spec(text)
    check.operands(spec, operands, layout)
    q, k = operands[:2]
    size = (q.shape[0], q.shape[1], q.shape[2], spec.value_dim)
    if 0 in size or k.shape[2] == 0:
        plan: Plan = EmptyPlan(spec, size, layout)
    else:
        plan = _kernel_plan(spec, operands[:3], layout)
    if _observer is not None:
        plan = _observer(plan, spec, operands, layout)
    _plans.put(key, plan)
    return plan


def _drop_plans(kernel: build.Kernel) -> None:
    _plans.drop(lambda plan: isinstance(plan, KernelPlan) and plan.kernel is kernel)


def _kernel_plan(spec: AttentionSpec, tensors: tuple[Tensor, Tensor, Tensor], layout: str) -> Plan:
    q, k, _ = tensors
    batch, heads, q_len, _ = q.shape
    problem = problem_of(spec, batch, heads, q_len, k.shape[2])
    kernel = None if disabled() else ahead.find(spec, problem) or _kernel(spec, problem, host_target())
    return EagerPlan(spec, layout) if kernel is None else KernelPlan(kernel, problem, layout, tensors)


def _kernel(spec: AttentionSpec, problem: Problem, target: Target) -> build.Kernel | None:
    """A kernel by the first family that fits and can be built; None where there is none, which gives a warning."""
    reasons, kernel = [], None
    for candidate in _candidates(spec, problem, target):
        family = candidate.family
        source = stats.DEFAULT if candidate.record is None else candidate.record.summary
        try:
            kernel = build.kernel(spec, target, family, candidate.decisions, source)
            break
        except Exception as error:  # whatever went wrong in a compiler, another family or PyTorch can still answer
            _failed.add(_identity(spec, target, candidate))
            tuned = "" if candidate.record is None else f" ({source})"
            reasons.append(f"{family.name}{tuned}: {type(error).__name__}: {_last_line(error)}")
    if reasons or (kernel is None and _none(spec, target) not in _failed):
        _failed.add(_none(spec, target))
        instead = "it runs as PyTorch" if kernel is None else f"{kernel.family.name} runs it instead"
        message = f"attncc: no kernel for {spec} on {target}, {instead}. {'; '.join(reasons) or 'No family takes it.'}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return kernel


def _candidates(spec: AttentionSpec, problem: Problem, target: Target) -> Iterator[Choice]:
    """What may run a call, best first: of each family what tuning found, then its analytic decisions."""
    from attncc import schedules
    from attncc.tuning.choose import analytic, choice

    for family in schedules.families(target):
        if not family.suits(spec, problem) or family.declines(spec, target) is not None:
            continue
        chosen = choice(spec, family, target, problem)
        candidates = (chosen,) if chosen.record is None else (chosen, analytic(spec, family, target))
        yield from (c for c in candidates if _identity(spec, target, c) not in _failed)


def _identity(spec: AttentionSpec, target: Target, candidate: Choice) -> tuple[Hashable, ...]:
    tuned = () if candidate.record is None else tuple(sorted(candidate.decisions.items()))
    return candidate.family.name, spec.name, target.key, tuned


def _none(spec: AttentionSpec, target: Target) -> tuple[Hashable, ...]:
    return "", spec.name, target.key, ()


def _last_line(error: Exception) -> str:
    """What an error says in the end: before that, TVM's print the whole program."""
    return (str(error).strip().splitlines() or [""])[-1]


def problem_of(
    spec: AttentionSpec, batch: int, heads: int, q_len: int, kv_len: int, threads: int | None = None
) -> Problem:
    """The problem that a call of these sizes is: with `threads` (by default torch's number), or fewer where the work is
    over before another thread has started."""
    from attncc.schedules import Problem

    widths = spec.head_dim + spec.value_dim
    operations = 2 * batch * heads * q_len * kv_len * widths
    read = batch * heads // spec.group * kv_len * widths * eager.torch_dtype(spec.key_dtype or spec.dtype).itemsize
    worthwhile = 1 + int((operations / _FLOPS + read / _BYTES) / _SHARE)
    most = torch.get_num_threads() if threads is None else threads
    return Problem(batch, heads, q_len, kv_len, launcher.usable_threads(min(most, worthwhile)))


_get_num_threads = torch.get_num_threads
_plans: Bounded[Plan] = Bounded(_PLANS, _PLAN_BYTES)
build.on_eviction.append(_drop_plans)
_failed: set[tuple[Hashable, ...]] = set()
"""(family, spec, target, tuned decisions) of what could not be built, and is not tried again; "" stands for all."""
_target: Target | None = None
_observer: Observer | None = None

if hasattr(os, "register_at_fork"):
    # The child runs loops serially: other launchers, other work tables.
    os.register_at_fork(after_in_child=_plans.after_fork)
