"""The least time that the machine allows a task: what its products take at the measured peak, or its bytes to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attncc import reference
from attncc.runtime.eager import torch_dtype
from attncc.tuning.sample import sizes
from attncc.tuning.task import Task

if TYPE_CHECKING:
    from attncc.bench.peak import Peak

_ROWS = 64
"""Query rows whose visible keys are counted, for a mean."""


def floor(task: Task, peak: Peak) -> tuple[float, str]:
    """Seconds, and what takes them: "peak" or "bandwidth"."""
    products = flops(task) / (peak.gflops(task.spec.dtype) * 1e9)
    reading = moved(task) / (peak.read_gbs * 1e9)
    return (products, "peak") if products >= reading else (reading, "bandwidth")


def flops(task: Task) -> float:
    """Operations of the two products over the visible pairs, a multiply-add counted as two."""
    p, spec = task.problem, task.spec
    return 2.0 * p.batch * p.heads * p.q_len * p.kv_len * _visible(task) * (spec.head_dim + spec.value_dim)


def moved(task: Task) -> float:
    """Bytes of q, k, v and the output, each once. Keys that no query sees count too."""
    spec, (q, k, v) = task.spec, sizes(task.spec, task.problem)
    kept = [torch_dtype(dtype or spec.dtype).itemsize for dtype in (spec.dtype, spec.key_dtype, spec.value_dtype)]
    out = (*q[:3], spec.value_dim)
    shapes = zip((q, k, v, out), (*kept, kept[0]), strict=True)
    return float(sum(torch.Size(shape).numel() * size for shape, size in shapes))


def _visible(task: Task) -> float:
    """The share of pairs that the mask leaves, over some rows of the sample's call."""
    spec, p = task.spec, task.problem
    if spec.mask is None:
        return 1.0
    counts = {"B": p.batch, "H": p.heads, "Sq": p.q_len, "Skv": p.kv_len}
    names = (*(e.name for e in spec.extras), *spec.scalars, *spec.integers)
    given = task.operands
    where = dict(zip(names, (*given.extras, *given.scalars, *given.integers), strict=True))
    rows = torch.linspace(0, p.q_len - 1, min(_ROWS, p.q_len)).round().long()
    places = reference.grid(counts) | {"i": rows.view(1, 1, -1, 1)}
    return float(reference.evaluate(spec.mask, {**where, **counts, **places}).double().mean())
