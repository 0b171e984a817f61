"""Calls that each family of CUDA kernels takes, for the tests on a GPU; run as a script, it packs their kernels.

    python tests/cuda_cases.py FOLDER [FAMILY…]

A machine without TVM then runs the tests with ATTNCC_TEST_CUDA_PACK=FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import zoo
from kernel_harness import Case
from torch import Tensor

import attncc
from attncc.runtime.cuda.devices import TRIPLE
from attncc.schedules.cuda.families import CUDA, CudaFamily, PrefillWgmma, Simt
from attncc.spec import AttentionSpec
from attncc.target import Target

HOPPER = Target("cuda", "sm_90a", TRIPLE, frozenset(), 132, 0, 0, 0)
WIDTHS = ((16, 16), (96, 96), (128, 128), (128, 64), (64, 136), (192, 128), (256, 256))
SIZES = {"prefill": (2, 1, 150, 201), "decode": (2, 2, 2, 333), "any": (2, 2, 37, 71)}
"""Batch, key heads, q_len and kv_len, by regime."""


@dataclass(frozen=True)
class Wanted:
    """A call that `family` is to run."""

    family: CudaFamily
    name: str
    dtype: str = "bfloat16"
    dims: tuple[int, int] = (64, 64)
    strided: bool = False

    def case(self) -> Case:
        return zoo.case(self.name, self.dtype, SIZES[self.family.regime], dims=self.dims, group=2, strided=self.strided)

    def __str__(self) -> str:
        return f"{self.family.name} {self.name} {self.dtype} {self.dims}" + " strided" * self.strided


def wanted() -> Iterator[Wanted]:
    """Every attention that a family takes, in the widths that it takes."""
    for family in CUDA:
        simt = isinstance(family, Simt)
        for name in zoo.ATTENTIONS:
            yield Wanted(family, name, "float32" if simt else "bfloat16", (16, 16) if simt else (64, 64))
        for dims in WIDTHS:
            yield Wanted(family, "causal", "float16", dims)
        yield Wanted(family, "causal", strided=True)
    for dtype, dims in (
        ("float64", (40, 24)),
        ("bfloat16", (20, 12)),
        ("float32", (128, 128)),
        ("float32", (520, 300)),
    ):
        yield Wanted(Simt(), "weights, NaN rows", dtype, dims, strided=True)


def taken() -> list[Wanted]:
    """Those of `wanted` that the family does not decline."""
    return [each for each in wanted() if each.family.declines(each.case().spec, HOPPER) is None]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A model whose attention is captured."""
    scores = q @ k.transpose(-1, -2) / 8.0
    return torch.softmax(scores, -1) @ v


def captured() -> AttentionSpec:
    """What `attend` computes in float16."""
    tensors = (torch.randn(1, 2, 16, 64, dtype=torch.float16) for _ in range(3))
    (site,) = attncc.explain(attend, *tensors).sites
    assert site.spec is not None
    return site.spec


if __name__ == "__main__":
    from attncc.runtime.cuda import pack

    only = sys.argv[2:]
    calls = [(each.case().spec, each.family) for each in taken() if not only or each.family.name in only]
    calls.append((captured(), PrefillWgmma()))
    kernels = {}
    for spec, family in calls:
        kernels[spec.json, family.name] = (spec, HOPPER, family, family.decisions(spec, HOPPER))
    sizes = [size for _, size in pack.write(Path(sys.argv[1]), kernels.values())]
    print(f"{len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB")
