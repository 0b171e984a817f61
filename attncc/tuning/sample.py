"""The operands that candidates are measured on: as a call had them, or made up for a spec and its sizes.

What q, k and v hold does not change how long a kernel takes, where they lie does: a sample keeps their strides, and
numbers are drawn anew. Extras are kept as they are, since what a mask hides decides what a kernel skips.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attncc import expr as ex
from attncc import reference
from attncc.runtime.eager import torch_dtype
from attncc.runtime.operands import Operands
from attncc.runtime.plan import dense_strides
from attncc.schedules import Problem
from attncc.spec import AttentionSpec


@dataclass(frozen=True)
class Sample:
    """What is kept of a call, beside its spec and its sizes."""

    strides: tuple[tuple[int, ...], ...]
    """In elements, of q, k and v."""
    layout: str
    """The order in which the result is contiguous, "bhsd" or "bshd"."""
    extras: tuple[Tensor, ...] = ()
    scalars: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()


def sample_of(operands: Operands, layout: str) -> Sample:
    """A sample of a call; extras are copied, strides and all, as a model may go on to change them."""
    q, k, v, extras, scalars, integers = operands
    kept = tuple(copy.deepcopy(t.detach()) for t in extras)
    numbers = tuple(float(s) for s in scalars), tuple(int(n) for n in integers)
    return Sample(tuple(t.stride() for t in (q, k, v)), layout, kept, *numbers)


def generated(spec: AttentionSpec, problem: Problem) -> Sample:
    """A sample for a spec that is known by its text alone.

    Raises ValueError where its further tensors and numbers decide too much: what is hidden, or what is read.
    """
    if spec.integers:
        raise ValueError(f"{', '.join(spec.integers)} may be any size or position; tune it from its model")
    whole = [extra.name for extra in spec.extras if extra.dtype in (*ex.INTEGERS, "bool")]
    if whole:
        raise ValueError(f"{', '.join(whole)} may hide or choose any keys; tune it from the model that has it")
    layout = "bhsd" if problem.q_len * spec.group <= 16 else "bshd"  # caches are kept by head, projections by token
    strides = tuple(dense_strides(size, layout) for size in sizes(spec, problem))
    generator = torch.Generator().manual_seed(1)
    extras = []
    for extra, shape in zip(spec.extras, _shapes(spec, problem), strict=True):
        drawn = torch.randn(shape, generator=generator)
        drawn = drawn / spec.head_dim**0.5 if extra.name == spec.bilinear else drawn
        extras.append(drawn.to(torch_dtype(extra.dtype)))
    return Sample(strides, layout, tuple(extras), (spec.head_dim**-0.5,) * len(spec.scalars))


def operands_of(spec: AttentionSpec, problem: Problem, sample: Sample, seed: int = 0) -> Operands:
    """The operands of a call like the sample's: q, k and v normally distributed (int8 evenly), the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    dtypes = (spec.dtype, spec.key_dtype or spec.dtype, spec.value_dtype or spec.dtype)
    made = []
    for size, strides, dtype in zip(sizes(spec, problem), sample.strides, dtypes, strict=True):
        reach = 1 + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
        if dtype == "int8":
            flat = torch.randint(-128, 128, (reach,), generator=generator, dtype=torch.int8)
        else:
            flat = torch.randn(reach, generator=generator).to(torch_dtype(dtype))
        made.append(flat.as_strided(size, strides))
    q, k, v = made
    return q, k, v, list(sample.extras), sample.scalars, sample.integers


def placed(operands: Operands, device: torch.device) -> Operands:
    """The same operands in memory of a device, with the strides that they have."""
    q, k, v, extras, scalars, integers = operands
    return (
        _placed(q, device),
        _placed(k, device),
        _placed(v, device),
        [_placed(t, device) for t in extras],
        scalars,
        integers,
    )


def _placed(tensor: Tensor, device: torch.device) -> Tensor:
    if not tensor.numel():
        return tensor.to(device)
    reach = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((reach,), (1,)).to(device, copy=True)
    return flat.as_strided(tensor.shape, tensor.stride())


def sizes(spec: AttentionSpec, problem: Problem) -> tuple[tuple[int, int, int, int], ...]:
    """Shapes of q, k and v."""
    batch, heads, groups = problem.batch, problem.heads, problem.heads // spec.group
    return (
        (batch, heads, problem.q_len, spec.query_dim or spec.head_dim),
        (batch, groups, problem.kv_len, spec.head_dim),
        (batch, groups, problem.kv_len, spec.value_dim),
    )


def _shapes(spec: AttentionSpec, problem: Problem) -> list[tuple[int, ...]]:
    """The least shape of each extra that its reads stay inside of, none of which goes by what a tensor holds."""
    found = {extra.name: [1] * extra.rank for extra in spec.extras}
    if spec.bilinear is not None:
        query_dim = spec.query_dim or spec.head_dim
        found[spec.bilinear] = [problem.heads, query_dim, spec.head_dim][-len(found[spec.bilinear]) :]
    counts = {"B": problem.batch, "H": problem.heads, "Sq": problem.q_len, "Skv": problem.kv_len}
    places = {**reference.grid(counts), **counts, "d": torch.arange(spec.head_dim)}
    for load in _loads(spec):
        for dim, index in enumerate(load.index):
            reached = reference.evaluate(index, places)
            if int(reached.min()) < 0:
                raise ValueError(f"{load} reads before the first element for some indices; tune it from its model")
            found[load.tensor][dim] = max(found[load.tensor][dim], int(reached.max()) + 1)
    return [tuple(found[extra.name]) for extra in spec.extras]


def _loads(spec: AttentionSpec) -> Sequence[ex.Load]:
    trees = (spec.element, spec.score_mod, spec.mask, spec.sink, spec.value_scale)
    return [node for tree in trees if tree is not None for node in tree.walk() if isinstance(node, ex.Load)]
