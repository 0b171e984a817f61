"""The CUDA kernels that are no Hopper kernels, run on the CPU with every instruction emulated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cuda_emulation
import pytest
import torch
import zoo
from kernel_harness import Case, assert_near, make_case
from torch import Tensor

from attncc import expr as ex
from attncc import reference
from attncc.schedules.cuda.families import CudaFamily, Decode, PrefillMma
from attncc.spec import AttentionSpec
from attncc.target import Target

pytestmark = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
TARGET = Target("cuda", "sm_80", "nvptx64-nvidia-cuda", frozenset(), 4, 0, 0, 0)
FAMILIES: tuple[CudaFamily, ...] = (PrefillMma(), Decode())


def taken() -> Iterator[tuple[CudaFamily, str]]:
    """The attentions that each family takes; test_families.py says which it does not."""
    for name, attention in zoo.ATTENTIONS.items():
        for family in FAMILIES:
            if family.declines(AttentionSpec("bfloat16", 64, 64, 2, **attention.fields), TARGET) is None:
                yield family, name


def check(family: CudaFamily, case: Case, folder: Path) -> Tensor:
    out = cuda_emulation.run(family, case, folder)
    expected = reference.attention(case.spec, case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    assert_near(case.spec, out, expected, case.v)
    return out


@pytest.mark.parametrize("name", ["causal"])
def test_prefill(name: str, tmp_path: Path) -> None:
    check(PrefillMma(), zoo.case(name, "bfloat16", (1, 1, 131, 97), dims=(40, 24), group=2), tmp_path)


@pytest.mark.parametrize("name", ["alibi", "float mask, finfo.min"])
def test_decode(name: str, tmp_path: Path) -> None:
    check(Decode(), zoo.case(name, "float16", (1, 2, 2, 300), dims=(24, 40), group=3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), list(taken()), ids=lambda value: getattr(value, "name", value))
def test_every_attention(family: CudaFamily, name: str, tmp_path: Path) -> None:
    sizes = (2, 1, 150, 201) if family.regime == "prefill" else (2, 2, 2, 333)
    check(family, zoo.case(name, "bfloat16", sizes, dims=(64, 64), group=2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(16, 16), (96, 96), (128, 64), (64, 136), (192, 128), (256, 256)])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_width(family: CudaFamily, dims: tuple[int, int], tmp_path: Path) -> None:
    sizes = (1, 1, 70, 150) if family.regime == "prefill" else (1, 2, 1, 333)
    check(family, zoo.case("causal", "float16", sizes, dims=dims, group=2), tmp_path)


def test_a_sink_counts_once(tmp_path: Path) -> None:
    """Over warps and splits, each of which starts a softmax of its own."""
    spec = AttentionSpec("float16", 16, 16, 2, score_mod=zoo.SCALED, sink=ex.Const(1.5, "float32"))
    check(Decode(), make_case(spec, 1, 1, 1, 1000), tmp_path)


def test_infinite_values_stay_infinite(tmp_path: Path) -> None:
    """The combining kernel reads sixteen splits at a time; of those that do not exist it made 0 times infinity, NaN."""
    case = make_case(AttentionSpec("float16", 16, 16, 2, score_mod=zoo.SCALED), 1, 1, 1, 1000)
    case.v[..., -1, 3] = math.inf
    out = check(Decode(), case, tmp_path)
    assert out[..., 3].isposinf().all() and out.isinf().sum() == 2


def test_nothing_hidden_weighs_when_scores_are_large(tmp_path: Path) -> None:
    case = zoo.case("strict causal, finfo.min", "bfloat16", (1, 1, 40, 70), dims=(40, 24), group=2)
    case.q = (case.q.float() * 100).to(torch.bfloat16)
    check(PrefillMma(), case, tmp_path)
