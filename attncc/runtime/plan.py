"""Launch plans: everything about a call that follows from its spec, layout, sizes and number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attncc.runtime import build, check, eager, launcher, stats
from attncc.runtime.scratch import Scratch
from attncc.spec import AttentionSpec

if TYPE_CHECKING:
    from attncc.schedules.family import Problem


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

    def __init__(self, kernel: build.Kernel, problem: Problem, layout: str) -> None:
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
            q = dense_rows(q)
        if k.stride(3) != 1:
            k = dense_rows(k)
        if v.stride(3) != 1:
            v = dense_rows(v)
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


def dense_strides(size: tuple[int, int, int, int], layout: str) -> tuple[int, int, int, int]:
    """Strides of [B, H, S, E] that is contiguous as [B, H, S, E] ("bhsd") or as [B, S, H, E] ("bshd")."""
    _, heads, rows, inner = (max(1, n) for n in size)
    if layout == "bhsd":
        return heads * rows * inner, rows * inner, inner, 1
    return rows * heads * inner, inner, heads * inner, 1


def dense_rows(tensor: Tensor) -> Tensor:
    """`tensor` with a last stride of 1: a view where the last dimension has one element, else a counted copy."""
    if tensor.shape[3] == 1:
        return tensor.as_strided(tensor.shape, (*tensor.stride()[:3], 1))
    stats.copies.add()
    size = tensor.shape
    for dim in range(3):
        if tensor.stride(dim) == 0:  # broadcast: one copy serves all
            tensor = tensor.narrow(dim, 0, 1)
    return tensor.contiguous().expand(size)
