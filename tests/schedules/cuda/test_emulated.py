"""The CUDA kernels, run on the CPU with every instruction emulated and every access of shared memory checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cuda_emulation
import pytest
import torch
import zoo
from kernel_harness import Case, assert_close, assert_near, make_case, mixed, tolerance_of, weight_of
from torch import Tensor

from attncc import expr as ex
from attncc import reference
from attncc.schedules.cuda.families import CudaFamily, Decode, PrefillMma, PrefillWgmma, Simt, SimtFew
from attncc.spec import AttentionSpec
from attncc.target import Target

pytestmark = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
FEW = ("causal, NaN rows", "documents", "float mask, finfo.min", "soft cap", "sink by head", "sigmoid")
FAMILIES: tuple[CudaFamily, ...] = (PrefillMma(), PrefillWgmma(), Decode(), Simt())


def target(family: CudaFamily) -> Target:
    """The oldest GPU of a family."""
    name = "sm_90a" if isinstance(family, PrefillWgmma) else "sm_80"
    return Target("cuda", name, "nvptx64-nvidia-cuda", frozenset(), 4, 0, 0, 0)


def taken() -> Iterator[tuple[CudaFamily, str]]:
    """The attentions that each family takes; test_families.py says which it does not. What scores and masks become is
    the same code in both prefill families: of wgmma, a few show that it is called rightly.
    """
    for name, attention in zoo.ATTENTIONS.items():
        for family in FAMILIES:
            if isinstance(family, PrefillWgmma) and name not in FEW:
                continue
            if family.declines(AttentionSpec("bfloat16", 64, 64, 2, **attention.fields), target(family)) is None:
                yield family, name


def check(family: CudaFamily, case: Case, folder: Path) -> Tensor:
    out, *more = cuda_emulation.run(family, case, folder, arch=target(family).mcpu)
    expected = reference.outputs(case.spec, case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    assert_near(case.spec, out, expected["out"], mixed(case) * max(1.0, weight_of(case.spec, expected["weights"])))
    for name, found in zip(case.spec.outputs[1:], more, strict=True):
        scale = expected[name].nan_to_num(neginf=0.0).abs().max()
        assert_close(name, found, expected[name], tolerance_of(case.spec) * max(1.0, float(scale)))
    return out


@pytest.mark.parametrize(
    ("family", "name"), [(PrefillMma(), "causal"), (PrefillWgmma(), "window")], ids=["mma", "wgmma"]
)
def test_prefill(family: CudaFamily, name: str, tmp_path: Path) -> None:
    check(family, zoo.case(name, "bfloat16", (1, 1, 131, 97), dims=(40, 24), group=2), tmp_path)


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("alibi", (24, 40)),
        pytest.param("float mask, finfo.min", (24, 40), marks=pytest.mark.slow),
        pytest.param("int8 cache, scales by token", (144, 48), marks=pytest.mark.slow),
    ],
)
def test_decode(name: str, dims: tuple[int, int], tmp_path: Path) -> None:
    check(Decode(), zoo.case(name, "float16", (1, 2, 2, 300), dims=dims, group=3), tmp_path)


@pytest.mark.parametrize(
    ("family", "name", "dtype", "dims"),
    [
        (Simt(), "weights, NaN rows", "float32", (20, 40)),
        pytest.param(Simt(), "float8 cache, scales by head", "float32", (20, 40), marks=pytest.mark.slow),
        (SimtFew(), "bilinear by head", "float64", (6, 5)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_without_tensor_cores(family: CudaFamily, name: str, dtype: str, dims: tuple[int, int], tmp_path: Path) -> None:
    """Any dtype, width, stride and output."""
    check(family, zoo.case(name, dtype, (1, 1, 11, 37), dims=dims, group=2, strided=True), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), list(taken()), ids=lambda value: getattr(value, "name", value))
def test_every_attention(family: CudaFamily, name: str, tmp_path: Path) -> None:
    sizes = {"prefill": (2, 1, 150, 201), "decode": (2, 2, 2, 333), "any": (1, 1, 37, 71)}[family.regime]
    dtype, dims = ("float32", (16, 16)) if isinstance(family, Simt) else ("bfloat16", (64, 64))
    check(family, zoo.case(name, dtype, sizes, dims=dims, group=2), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(16, 16), (96, 96), (128, 64), (64, 136), (192, 128), (256, 256)])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_width(family: CudaFamily, dims: tuple[int, int], tmp_path: Path) -> None:
    sizes = {"prefill": (1, 1, 70, 150), "decode": (1, 2, 1, 333), "any": (1, 1, 20, 40)}[family.regime]
    case = zoo.case("causal", "float16", sizes, dims=dims, group=2)
    declined = family.declines(case.spec, target(family))
    if declined is not None:
        assert "shared memory" in declined.reason and dims == (256, 256)
        pytest.skip(declined.reason)
    check(family, case, tmp_path)


def test_a_sink_counts_once(tmp_path: Path) -> None:
    """Over warps and splits, each of which starts a softmax of its own."""
    spec = AttentionSpec("float16", 16, 16, 2, score_mod=zoo.SCALED, sink=ex.Const(1.5, "float32"))
    check(Decode(), make_case(spec, 1, 1, 1, 1000), tmp_path)


@pytest.mark.slow
def test_wide_query_rows_are_shared(tmp_path: Path) -> None:
    """Decode keeps those of 256 columns in shared memory, codes being read two steps of the product at a time."""
    case = zoo.case("int8 cache, scales by token", "bfloat16", (1, 1, 2, 150), dims=(256, 256), group=2)
    check(Decode(), case, tmp_path)


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


@pytest.mark.slow
def test_thread_blocks_that_go_on(tmp_path: Path) -> None:
    """From tile to tile, round and round the rings; over strided rows, and rows that see no key."""
    case = zoo.case("causal", "bfloat16", (1, 1, 700, 300), dims=(64, 64), group=2)
    q, k, v = (
        torch.empty(1, t.shape[2], t.shape[1] + 1, 64, dtype=t.dtype).transpose(1, 2) for t in (case.q, case.k, case.v)
    )
    case.q, case.k, case.v = (to[:, 1:].copy_(t) for to, t in ((q, case.q), (k, case.k), (v, case.v)))
    check(PrefillWgmma(), case, tmp_path)
