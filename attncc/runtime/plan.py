"""Launch plans: everything about a call that follows from its spec, layout, sizes, strides and number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attncc.expr import FLOAT8
from attncc.runtime import build, check, eager, stats
from attncc.runtime.operands import Operands
from attncc.runtime.scratch import Scratch
from attncc.spec import AttentionSpec

if TYPE_CHECKING:
    from attncc.schedules.family import Problem


class Plan:
    """How calls of one combination of spec, layout, sizes, strides and threads are answered."""

    bytes = 0

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """The outputs of one call whose sizes are the plan's, in the order of the spec."""
        raise NotImplementedError


class KernelPlan(Plan):
    """Run a kernel."""

    def __init__(
        self, kernel: build.Kernel, problem: Problem, layout: str, tensors: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """`tensors` are q, k and v of a call, for their sizes and strides."""
        spec, q = kernel.spec, tensors[0]
        launch = kernel.family.launch(spec, kernel.decisions, problem)
        self.kernel = kernel
        self.problem = problem
        self.layout = layout
        self.call = kernel.call
        self.tick = kernel.counters.calls.tick
        self.work = torch.from_numpy(launch.work.copy())
        self.bytes = launch.work.nbytes
        self.launcher = kernel.launcher(min(problem.threads, len(launch.work)))
        self.dtype = eager.torch_dtype(spec.dtype)
        self.scratch = Scratch(launch.workspaces, eager.compute_dtype(spec)) if launch.workspaces else None
        self.kept = tuple(eager.torch_dtype(d or spec.dtype) for d in (spec.key_dtype, spec.value_dtype))
        self.as_bits = bool({spec.key_dtype, spec.value_dtype} & {*FLOAT8})
        self.size = (problem.batch, problem.heads, problem.q_len, spec.value_dim)
        self.stride = dense_strides(self.size, layout)
        self.more = more_outputs(spec, (*self.size[:3], problem.kv_len))
        self.dense = all(t.stride(3) == 1 for t in tensors)
        self.like_q = tuple(q.shape) == self.size and q.stride() == self.stride

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """Call the kernel on the tensors as they lie; only a last dimension that is not dense is copied."""
        q, k, v, extras, scalars, integers = operands
        if not self.dense:
            q, k, v = (t if t.stride(3) == 1 else dense_rows(t) for t in (q, k, v))
        if self.as_bits:
            k, v = self._bits(operands, k, v)
        # empty_like takes two thirds of the time
        out = torch.empty_like(q) if self.like_q else torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        outputs = [out]
        if self.more:
            outputs += [torch.empty(size, dtype=dtype) for size, dtype in self.more]
        scratch = self.scratch
        workspaces = scratch.take() if scratch is not None else []
        try:
            self.call(self.work, q, k, v, *extras, *outputs, *workspaces, *scalars, *integers, self.launcher)
        except Exception as error:
            check.operands(self.kernel.spec, operands, self.layout)
            raise self._explained(error, q, k, v) from error
        if scratch is not None:
            scratch.give(workspaces)
        next(self.tick)
        return outputs

    def _bits(self, operands: Operands, k: Tensor, v: Tensor) -> list[Tensor]:
        """k and v as a kernel reads them: float8 as its bits. It takes any, so the dtypes are checked here."""
        if (k.dtype, v.dtype) != self.kept:
            check.operands(self.kernel.spec, operands, self.layout)
        return [t.view(torch.uint8) if t.dtype.itemsize == 1 and t.is_floating_point() else t for t in (k, v)]

    def _explained(self, error: Exception, *tensors: Tensor) -> RuntimeError:
        given = ", ".join(f"{t.dtype} {list(t.shape)} strides {list(t.stride())}" for t in tensors)
        return RuntimeError(
            f"attncc::attention: the kernel {self.kernel.name} for {self.kernel.target} refused "
            f"q, k, v = {given}: {error}"
        )


class EmptyPlan(Plan):
    """Answer sizes of zero: no output element, or no key, over which a sum is 0."""

    def __init__(self, spec: AttentionSpec, size: tuple[int, int, int, int], layout: str) -> None:
        self.spec, self.size, self.layout = spec, size, layout

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """Zeros, as PyTorch gives; a sink shows in the row statistics."""
        if len(self.spec.outputs) > 1:
            return eager.outputs(self.spec, operands, self.layout)
        strides = dense_strides(self.size, self.layout)
        return [torch.empty_strided(self.size, strides, dtype=operands[0].dtype).zero_()]


class EagerPlan(Plan):
    """Run as PyTorch: no kernel could be built."""

    def __init__(self, spec: AttentionSpec, layout: str) -> None:
        self.spec, self.layout = spec, layout

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """The same attention by plain torch operators, counted as a fallback."""
        stats.fallbacks.add()
        return eager.outputs(self.spec, operands, self.layout)


def more_outputs(spec: AttentionSpec, size: Sequence[int]) -> list[tuple[Sequence[int], torch.dtype]]:
    """Shape and dtype of each output after the first, all contiguous, for `size` (B, H, Sq, Skv)."""
    found: list[tuple[Sequence[int], torch.dtype]] = []
    for name in spec.outputs[1:]:
        whole = name == "weights"
        found.append((size, eager.torch_dtype(spec.dtype)) if whole else (size[:3], eager.compute_dtype(spec)))
    return found


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
