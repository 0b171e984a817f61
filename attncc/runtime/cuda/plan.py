"""Launch plans of CUDA kernels: all that follows from a spec, a layout, a device, sizes and strides."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attncc.runtime import eager, stats
from attncc.runtime.cuda import driver
from attncc.runtime.cuda.build import CudaKernel
from attncc.runtime.cuda.frame import Frame, Shape, TensorMap
from attncc.runtime.operands import Operands
from attncc.runtime.plan import Plan, dense_strides, more_outputs
from attncc.spec import AttentionSpec

if TYPE_CHECKING:
    from attncc.schedules.family import Problem

ROW_ELEMENTS = 8
"""Of 16 bits, that tensor-core kernels read at once: rows are multiples of it."""
_WORKSPACE_ALIGNMENT = 64
"""Elements between the starts of workspaces, which share one allocation."""


class CudaPlan(Plan):
    """Start kernels on torch's current stream."""

    def __init__(self, kernel: CudaKernel, problem: Problem, layout: str, operands: Operands) -> None:
        spec, family, decisions = kernel.spec, kernel.family, kernel.decisions
        self.kernel, self.device = kernel, kernel.device
        self.torch_device = operands[0].device
        self.tick = kernel.counters.calls.tick
        self.dtype, self.compute = eager.torch_dtype(spec.dtype), eager.compute_dtype(spec)
        self.size = (problem.batch, problem.heads, problem.q_len, spec.value_dim)
        self.stride = dense_strides(self.size, layout)
        self.more = more_outputs(spec, (*self.size[:3], problem.kv_len))
        self._place_workspaces(family.launch(spec, decisions, problem).workspaces)
        self.misaligned = family.pointer_alignment - 1
        grids = family.grids(spec, decisions, problem)
        started = [(*kernel.kernels[name], grid) for name, grid in grids.items()]
        self.launches = [(handle, grid, each.threads, each.shared) for handle, each, grid in started]
        names = ["q", "k", "v", *(e.name for e in spec.extras), "out", *(f"out_{n}" for n in spec.outputs[1:])]
        names += [f"w{n}" for n in range(len(self.workspaces))]
        moving = {name: at for at, name in enumerate([*names, *spec.scalars, *spec.integers])}
        boxes = family.boxes(decisions)
        tensors = self._tensors(operands)
        maps = {f"map_{name}": _tensor_map(spec.dtype, *tensors[name], box) for name, box in boxes.items()}
        self.shape = Shape([each for _, each, _ in started], moving, maps)
        self.fixed = self._sizes(problem, tensors)
        self.frames = [Frame(self.shape, self.fixed)]

    def _place_workspaces(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.workspaces: list[int] = []
        """Where each starts in their common allocation, in bytes."""
        total = 0
        for shape in shapes:
            self.workspaces.append(total * self.compute.itemsize)
            total += -(-torch.Size(shape).numel() // _WORKSPACE_ALIGNMENT) * _WORKSPACE_ALIGNMENT
        self.scratch = total
        self.splits = shapes[0][2] if shapes else 1

    def _tensors(self, operands: Operands) -> dict[str, tuple[Sequence[int], Sequence[int]]]:
        """Sizes and strides by name. The stride of a dimension of one element is never used, so it may be any."""
        q, k, v, extras, *_ = operands
        given = {"q": q, "k": k, "v": v} | {f"t{n}": t for n, t in enumerate(extras)}
        found = {name: (tensor.shape, _strides(tensor)) for name, tensor in given.items()}
        return {**found, "out": (self.size, self.stride)}

    def _sizes(self, problem: Problem, tensors: dict[str, tuple[Sequence[int], Sequence[int]]]) -> dict[str, int]:
        """Everything that a kernel may be told of sizes, by the names of its parameters."""
        kernel = self.kernel
        found = {"B": problem.batch, "H": problem.heads, "G": problem.heads // kernel.spec.group}
        found |= {"Sq": problem.q_len, "Skv": problem.kv_len, "splits": self.splits, "n_splits": self.splits}
        found["processors"] = kernel.family.blocks(kernel.spec, kernel.decisions, problem)
        for name, (sizes, strides) in tensors.items():
            found |= {f"{name}_size{n}": size for n, size in enumerate(sizes)}
            found |= {f"{name}_stride{n}": stride for n, stride in enumerate(strides)}
        return found

    def aligned(self, operands: Operands) -> bool:
        """Whether q, k and v start where the kernel can read them from."""
        q, k, v, *_ = operands
        return not (q.data_ptr() | k.data_ptr() | v.data_ptr()) & self.misaligned

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """Start the kernels on tensors as they lie."""
        if driver.current_device() != self.device:
            with torch.cuda.device(self.device):
                return self.run(operands)
        q, k, v, extras, scalars, integers = operands
        device = self.torch_device
        outputs = [torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=device)]
        if self.more:
            outputs += [torch.empty(size, dtype=dtype, device=device) for size, dtype in self.more]
        values: list[float] = [t.data_ptr() for t in (q, k, v, *extras, *outputs)]
        if self.scratch:
            # Freed on return and reused in stream order, which is what makes it safe beside other streams.
            scratch = torch.empty(self.scratch, dtype=self.compute, device=device)
            base = scratch.data_ptr()
            values += [base + at for at in self.workspaces]
        # Rounded as the kernel would: packing a number that float32 does not reach is an error, and not infinity.
        values += scalars if self.compute == torch.float64 else [ctypes.c_float(s).value for s in scalars]
        values += integers
        try:
            frame = self.frames.pop()
        except IndexError:  # another thread is between here and the end of this method
            frame = Frame(self.shape, self.fixed)
        frame.write(values)
        stream = driver.current_stream(self.device)
        for (handle, grid, threads, shared), table in zip(self.launches, frame.tables, strict=True):
            status = driver.launch(handle, grid, threads, shared, stream, table)
            if status == driver.INVALID_CONTEXT:  # the first call of a thread that has not used the GPU yet
                driver.make_current(self.device)
                status = driver.launch(handle, grid, threads, shared, stream, table)
            if status:
                driver.check(f"attncc::attention: start of {self.kernel.name} for {self.kernel.target.mcpu}", status)
        self.frames.append(frame)
        next(self.tick)
        return outputs


class CopyPlan(Plan):
    """Copy those of q, k and v whose rows the kernels cannot read, and call again."""

    def __init__(self, copied: Sequence[bool], layout: str, text: str) -> None:
        self.copied, self.layout, self.text = copied, layout, text

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """Run on copies, which are counted."""
        from attncc.runtime.cuda import dispatch

        *given, extras, scalars, integers = operands
        q, k, v = (dense(t) if copy else t for t, copy in zip(given, self.copied, strict=True))
        return dispatch.outputs(q, k, v, extras, scalars, integers, self.text, self.layout)


class ProductPlan(Plan):
    """Multiply q by the matrix of a bilinear score with PyTorch, as models do, and call again for a plain product."""

    def __init__(self, spec: AttentionSpec, layout: str) -> None:
        self.layout, self.text = layout, replace(spec, bilinear=None, query_dim=None).json
        self.matrix = [extra.name for extra in spec.extras].index(str(spec.bilinear))

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """Run on q W, in the dtype of q."""
        from attncc.runtime.cuda import dispatch

        q, k, v, extras, scalars, integers = operands
        product = q @ extras[self.matrix]
        return dispatch.outputs(product, k, v, extras, scalars, integers, self.text, self.layout)


class PaddedPlan(Plan):
    """Widen rows by zeros to what tensor cores read, and call again: zeros add nothing to a product."""

    def __init__(self, spec: AttentionSpec, layout: str) -> None:
        wide = {name: -(-getattr(spec, name) // ROW_ELEMENTS) * ROW_ELEMENTS for name in ("head_dim", "value_dim")}
        self.layout, self.value_dim, self.spec = layout, spec.value_dim, replace(spec, **wide)

    def run(self, operands: Operands) -> Sequence[Tensor]:
        """Run on wider copies, which are counted; the result loses the columns that were added."""
        from attncc.runtime.cuda import dispatch

        *given, extras, scalars, integers = operands
        widths = (self.spec.head_dim, self.spec.head_dim, self.spec.value_dim)
        q, k, v = (_widened(t, width) for t, width in zip(given, widths, strict=True))
        (out,) = dispatch.outputs(q, k, v, extras, scalars, integers, self.spec.json, self.layout)
        return [eager.lay_out(out[..., : self.value_dim], self.layout)]


def _widened(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[3]
    if not missing:
        return tensor
    stats.copies.add()
    return torch.nn.functional.pad(tensor, (0, missing))


def dense(tensor: Tensor) -> Tensor:
    """A contiguous copy, in memory of its own."""
    stats.copies.add()
    return tensor.clone(memory_format=torch.contiguous_format)


def readable(tensor: Tensor, alignment: int) -> bool:
    """Whether rows are dense and start at multiples of so many bytes, as far as strides tell; 0 takes all strides."""
    if not alignment:
        return True
    elements = alignment // tensor.element_size()
    *outer, inner = zip(tensor.shape, tensor.stride(), strict=True)
    return (inner[0] == 1 or inner[1] == 1) and all(size == 1 or stride % elements == 0 for size, stride in outer)


def _strides(tensor: Tensor) -> list[int]:
    """Strides; where there is one element, such as a dense tensor has: TMA looks at them all the same."""
    found = list(tensor.stride())
    inner = 1
    for dim in reversed(range(tensor.ndim)):
        if tensor.shape[dim] == 1:
            found[dim] = inner
        inner = max(inner, tensor.shape[dim] * found[dim])
    return found


def _tensor_map(dtype: str, sizes: Sequence[int], strides: Sequence[int], box: tuple[int, int]) -> TensorMap:
    """Of [B, H, S, D], for copies of `box` rows and columns."""
    outer = tuple(2 * stride for stride in reversed(strides[:3]))
    return TensorMap(dtype, tuple(reversed(sizes)), outer, (box[1], box[0], 1, 1))
