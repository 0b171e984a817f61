"""Calls that were recorded on CPU tensors, as the runtime would answer them on a GPU.

What an attention means does not depend on where its tensors are; what kernels are asked for does, a little: a usual
scale becomes a number, a bilinear score a product of its own, odd widths are padded, unreadable rows are copied.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from attncc.runtime.cuda import dispatch
from attncc.runtime.cuda.plan import PaddedPlan, readable
from attncc.runtime.eager import torch_dtype
from attncc.runtime.plan import dense_strides
from attncc.schedules import Problem
from attncc.schedules.cuda.families import CudaFamily, Simt
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.sample import Sample, sizes


def on_gpu(
    spec: AttentionSpec, problem: Problem, sample: Sample, target: Target
) -> tuple[AttentionSpec, CudaFamily, Problem, Sample] | None:
    """What such a call asks of which family, for which sizes and operands; None where no family takes it."""
    problem = replace(problem, threads=target.cores)
    if dispatch.by_product(spec):
        spec = replace(spec, bilinear=None, query_dim=None)
    spec = dispatch.special(spec, sample.scalars)
    families = dispatch.select(spec, problem, target)
    if families and isinstance(families[0], Simt) and dispatch.widens(spec):
        wide = PaddedPlan(spec, sample.layout).spec
        if not isinstance((others := dispatch.select(wide, problem, target))[0], Simt):
            spec, families = wide, others
    if not families:
        return None
    return spec, families[0], problem, replace(sample, strides=_read(spec, problem, sample, families[0]))


def _read(spec: AttentionSpec, problem: Problem, sample: Sample, family: CudaFamily) -> tuple[tuple[int, ...], ...]:
    """The strides of q, k and v as the kernel gets them: their own where it can read them, else a dense copy's."""
    found = []
    dtypes = (spec.dtype, spec.key_dtype or spec.dtype, spec.value_dtype or spec.dtype)
    for size, strides, dtype in zip(sizes(spec, problem), sample.strides, dtypes, strict=True):
        tensor = torch.empty_strided(size, strides, dtype=torch_dtype(dtype), device="meta")
        found.append(strides if readable(tensor, family.row_alignment) else dense_strides(size, "bhsd"))
    return tuple(found)
