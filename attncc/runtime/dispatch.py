"""From one call to its kernel: sizes choose a regime, and everything derivable from them is kept as a launch plan.

A repeated call costs one dictionary lookup, the output's allocation and the native call.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attncc.options import disabled
from attncc.runtime import build, check, eager, launcher, stats
from attncc.runtime.plans import Plans
from attncc.runtime.scratch import Scratch
from attncc.spec import AttentionSpec
from attncc.target import Target, detect

_PLANS = 512
_PLAN_BYTES = 16 << 20
"""Bounds on the launch plans that are kept, in number and in bytes of work tables."""
_FLOPS, _BYTES, _SHARE = 50e9, 20e9, 4e-6
"""Of one thread, roughly: operations and bytes of keys and values a second; seconds of work that pay for waking it."""


class Plan:
    """How calls of one combination of spec, layout, sizes and threads are answered."""

    bytes = 0

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Sequence[Tensor],
        scalars: Sequence[float],
        integers: Sequence[int],
    ) -> Tensor:
        """The output of one call whose sizes are the plan's."""
        raise NotImplementedError


class KernelPlan(Plan):
    """Run a kernel."""

    def __init__(self, kernel: build.Kernel, problem: Any, layout: str) -> None:
        launch = kernel.family.launch(kernel.spec, kernel.decisions, problem)
        self.kernel = kernel
        self.layout = layout
        self.call = kernel.call
        self.tick = kernel.counters.calls.tick
        self.work = torch.from_numpy(launch.work.copy())
        self.bytes = launch.work.nbytes
        self.launcher = launcher.address(min(problem.threads, len(launch.work)), kernel.header)
        self.dtype = eager.torch_dtype(kernel.spec.dtype)
        compute = torch.float64 if kernel.spec.dtype == "float64" else torch.float32
        self.scratch = Scratch(launch.workspaces, compute) if launch.workspaces else None
        self.size = (problem.batch, problem.heads, problem.q_len, kernel.spec.value_dim)
        self.stride = dense_strides(self.size, layout)

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Sequence[Tensor],
        scalars: Sequence[float],
        integers: Sequence[int],
    ) -> Tensor:
        """Call the kernel on the tensors as they lie; only a last dimension that is not dense is copied."""
        if q.stride(3) != 1:
            q = _dense_rows(q)
        if k.stride(3) != 1:
            k = _dense_rows(k)
        if v.stride(3) != 1:
            v = _dense_rows(v)
        out = torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        scratch = self.scratch
        workspaces = scratch.take() if scratch is not None else []
        try:
            self.call(self.work, q, k, v, *extras, out, *workspaces, *scalars, *integers, self.launcher)
        except Exception as error:
            check.operands(self.kernel.spec, q, k, v, extras, scalars, integers, self.layout)
            raise self._explained(error, q, k, v) from error
        if scratch is not None:
            scratch.give(workspaces)
        next(self.tick)
        return out

    def _explained(self, error: Exception, *tensors: Tensor) -> RuntimeError:
        given = ", ".join(f"{t.dtype} {list(t.shape)} strides {list(t.stride())}" for t in tensors)
        return RuntimeError(
            f"attncc::attention: the kernel {self.kernel.name} for {self.kernel.target} refused "
            f"q, k, v = {given}: {error}"
        )


class EmptyPlan(Plan):
    """Answer sizes of zero: no output element, or no key, over which a sum is 0."""

    def __init__(self, size: tuple[int, int, int, int], layout: str) -> None:
        self.size, self.layout = size, layout

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Sequence[Tensor],
        scalars: Sequence[float],
        integers: Sequence[int],
    ) -> Tensor:
        """Zeros, as PyTorch gives."""
        return torch.empty_strided(self.size, dense_strides(self.size, self.layout), dtype=q.dtype).zero_()


class EagerPlan(Plan):
    """Run as PyTorch: no kernel could be built."""

    def __init__(self, spec: AttentionSpec, layout: str) -> None:
        self.spec, self.layout = spec, layout

    def run(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Sequence[Tensor],
        scalars: Sequence[float],
        integers: Sequence[int],
    ) -> Tensor:
        """The same attention by plain torch operators, counted as a fallback."""
        stats.fallbacks.add()
        return eager.attention(self.spec, q, k, v, extras, scalars, integers, self.layout)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Tensor:
    """Run the attention of `spec` (an AttentionSpec's JSON) on CPU tensors; no gradient is recorded.

    q [B, H, Sq, D], k [B, G, Skv, D], v [B, G, Skv, E]; returns [B, H, Sq, E], contiguous in the order of `layout`.
    Raises ValueError or TypeError for operands that do not fit the spec.
    """
    key: tuple[Any, ...] = (spec, layout, q.shape, k.shape, v.shape, q.dtype, _get_num_threads())
    if extras:
        key += tuple([t.shape for t in extras])
    plan = _plans.get(key)
    if plan is None:
        plan = _new_plan(key, q, k, v, extras, scalars, integers, spec, layout)
    return plan.run(q, k, v, extras, scalars, integers)


def host_target() -> Target:
    """The target that kernels are built for: the detected host, or what `set_target` chose."""
    return _target or detect()


def set_target(target: Target | None) -> None:
    """Build the kernels of later calls for `target`, which this host must be able to run; None for the host itself."""
    global _target
    _target = target
    forget_plans()


def forget_plans() -> None:
    """Drop all launch plans; kernels stay in memory."""
    _plans.drop()


def dense_strides(size: tuple[int, int, int, int], layout: str) -> tuple[int, int, int, int]:
    """Strides of [B, H, S, E] that is contiguous as [B, H, S, E] ("bhsd") or as [B, S, H, E] ("bshd")."""
    _, heads, rows, inner = (max(1, n) for n in size)
    if layout == "bhsd":
        return heads * rows * inner, rows * inner, inner, 1
    return rows * heads * inner, inner, heads * inner, 1


@lru_cache(maxsize=512)
def parse_spec(text: str) -> AttentionSpec:
    """The spec of a JSON text, remembered. Raises ValueError for text that is no spec."""
    return AttentionSpec.from_json(text)


def _new_plan(
    key: tuple[Any, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    text: str,
    layout: str,
) -> Plan:
    spec = parse_spec(text)
    check.operands(spec, q, k, v, extras, scalars, integers, layout)
    size = (q.shape[0], q.shape[1], q.shape[2], spec.value_dim)
    if 0 in size or k.shape[2] == 0:
        plan: Plan = EmptyPlan(size, layout)
    else:
        plan = _kernel_plan(spec, q, k, layout)
    _plans.put(key, plan)
    return plan


def _drop_plans(kernel: build.Kernel) -> None:
    _plans.drop(lambda plan: isinstance(plan, KernelPlan) and plan.kernel is kernel)


def _kernel_plan(spec: AttentionSpec, q: Tensor, k: Tensor, layout: str) -> Plan:
    from attncc import schedules

    batch, heads, q_len, _ = q.shape
    problem = schedules.Problem(batch, heads, q_len, k.shape[2], _threads(spec, q, k))
    target = host_target()
    if disabled():
        return EagerPlan(spec, layout)
    try:
        family = schedules.select(spec, problem, target)
        kernel = build.kernel(spec, target, family)
    except Exception as error:  # whatever went wrong in a compiler, PyTorch can still answer
        _warn_fallback(spec, target, error)
        return EagerPlan(spec, layout)
    return KernelPlan(kernel, problem, layout)


def _threads(spec: AttentionSpec, q: Tensor, k: Tensor) -> int:
    """Threads for a call: torch's number, or fewer where the work is over before another thread has started."""
    widths = spec.head_dim + spec.value_dim
    operations = 2 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * widths
    read = k.shape[0] * k.shape[1] * k.shape[2] * widths * k.element_size()
    worthwhile = 1 + int((operations / _FLOPS + read / _BYTES) / _SHARE)
    return launcher.usable_threads(min(torch.get_num_threads(), worthwhile))


def _warn_fallback(spec: AttentionSpec, target: Target, error: Exception) -> None:
    identity = (spec.name, target.key)
    with _lock:
        known = identity in _warned
        _warned.add(identity)
    if not known:
        warnings.warn(
            f"attncc: no kernel for {spec} on {target}, so it runs as PyTorch: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


def _dense_rows(tensor: Tensor) -> Tensor:
    """`tensor` with a last stride of 1: a view where the last dimension has one element, else a counted copy."""
    if tensor.shape[3] == 1:
        return tensor.as_strided(tensor.shape, (*tensor.stride()[:3], 1))
    stats.copies.add()
    size = tensor.shape
    for dim in range(3):
        if tensor.stride(dim) == 0:  # broadcast: one copy serves all
            tensor = tensor.narrow(dim, 0, 1)
    return tensor.contiguous().expand(size)


_get_num_threads = torch.get_num_threads
_plans: Plans[Plan] = Plans(_PLANS, _PLAN_BYTES)
build.on_eviction.append(_drop_plans)
_warned: set[tuple[str, str]] = set()
_target: Target | None = None
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that the child does not have may hold it
    _plans.after_fork()  # the child runs loops serially: other launchers, other work tables


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
