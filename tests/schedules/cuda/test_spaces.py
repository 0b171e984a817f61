"""The spaces of the CUDA families: what fits is built as counted and computes rightly, and what does not is refused."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import cuda_emulation
import pytest
import zoo
from cuda_assembly import assemble, to_ptx
from kernel_harness import assert_near
from sampling import one_in

from attncc import reference
from attncc.runtime.cuda import build, code
from attncc.runtime.cuda.plan import CudaPlan
from attncc.schedules.cuda.families import CUDA, CudaFamily, Decode, PrefillMma, PrefillWgmma, Simt
from attncc.schedules.cuda.gpu import shared_limit
from attncc.schedules.family import Decisions, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.record import outside

emulated = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
nvcc = pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which("ptxas")), reason="needs nvcc and ptxas")

MMA = {"rows": 32, "keys": 96, "warps": 2, "keep_q": 1, "blocks": 3}
WGMMA = {"rows": 192, "keys": 96, "stages": 4, "query_stages": 1}
DECODE = {"warps": 8, "keys": 16, "stages": 3, "blocks": 2}
SIMT = {"rows": 16, "keys": 128}
CORNERS: list[tuple[CudaFamily, Decisions]] = [
    (PrefillMma(), MMA), (PrefillWgmma(), WGMMA), (Decode(), DECODE), (Simt(), SIMT)
]  # fmt: skip
"""Far from the defaults in every decision."""
MORE: list[tuple[CudaFamily, Decisions]] = [
    (PrefillMma(), {"rows": 256, "keys": 128, "warps": 8, "keep_q": 0, "blocks": 1}),
    (PrefillWgmma(), {"rows": 128, "keys": 192, "stages": 4, "query_stages": 2}),
]


def gpu(arch: str) -> Target:
    return Target("cuda", arch, "nvptx64-nvidia-cuda", frozenset(), 4, 0, 0, 0)


def arch_of(family: CudaFamily) -> str:
    return "sm_90a" if isinstance(family, PrefillWgmma) else "sm_80"


def spec_of(family: CudaFamily) -> AttentionSpec:
    dtype = "float32" if isinstance(family, Simt) else "bfloat16"
    return AttentionSpec(dtype, 64, 64, 2, **zoo.ATTENTIONS["causal"].fields)


@pytest.mark.parametrize("family", CUDA, ids=lambda family: family.name)
def test_defaults_are_in_the_space_and_are_not_all_of_it(family: CudaFamily) -> None:
    for arch, dim, dtype in itertools.product(
        ("sm_75", "sm_80", "sm_86", "sm_90a", "sm_120"), (64, 128, 256), ("bfloat16", "float32", "float64")
    ):
        spec, target = AttentionSpec(dtype, dim, dim), gpu(arch)
        if family.declines(spec, target) is None:
            space = family.space(spec, target)
            assert outside(family.decisions(spec, target), family, spec, target) is None
            assert all(list(values) == sorted(set(values)) for values in space.values())
            points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
            count = sum(family.unfit(spec, target, point) is None for point in points)
            assert count > (dim == 64)


@pytest.mark.parametrize(
    ("family", "arch", "decisions", "said"),
    [
        (PrefillMma(), "sm_80", MMA | {"rows": 48}, "rows=48 is not one of 32, 64, 128, 256"),
        (PrefillMma(), "sm_80", MMA | {"rows": 256}, "one or two strips of 16 rows, not 8"),
        (PrefillMma(), "sm_80", MMA | {"rows": 256, "warps": 8}, "registers of a thread, which has 80"),
        (PrefillWgmma(), "sm_90a", WGMMA | {"stages": 1}, "stages=1 is not one of"),
        (PrefillWgmma(), "sm_90a", WGMMA | {"keys": 192, "stages": 4, "query_stages": 2}, "bytes of shared memory"),
        (Decode(), "sm_86", DECODE | {"keys": 64}, "bytes of shared memory, of 101376"),
        (Decode(), "sm_80", {**DECODE, "grid": 1}, "decides blocks, keys, stages, warps; this has"),
        (Simt(), "sm_75", {"rows": True, "keys": 16}, "rows=True is not one of"),
    ],
)
def test_forged_decisions_are_refused(family: CudaFamily, arch: str, decisions: Decisions, said: str) -> None:
    """By the check that records pass before their decisions reach a kernel; and those that the space alone would let
    through, by whoever makes the kernel."""
    spec, target = spec_of(family), gpu(arch)
    found = outside(decisions, family, spec, target)
    assert found is not None and said in found
    if family.unfit(spec, target, decisions):
        with pytest.raises(ValueError, match=family.name):
            family.module(spec, target, decisions)


@pytest.mark.parametrize(("family", "decisions"), CORNERS, ids=lambda value: getattr(value, "name", ""))
def test_shared_memory_is_as_counted(family: CudaFamily, decisions: Decisions) -> None:
    spec, target = spec_of(family), gpu(arch_of(family))
    first, *_ = code.generate(spec, target, family, decisions).kernels
    counted = family.room(spec, decisions).shared
    assert counted - 1024 < first.shared <= counted <= shared_limit(target)


def compute(family: CudaFamily, decisions: Decisions, folder: Path) -> None:
    """Hold the emulated kernel of these decisions against float64."""
    sizes = {"prefill": (1, 1, 210, 290), "decode": (1, 2, 2, 700), "any": (1, 1, 40, 150)}[family.regime]
    case = zoo.case("causal", spec_of(family).dtype, sizes, dims=(64, 64), group=2)
    operands = (case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    batch, heads, q_len, _ = case.q.shape
    problem = Problem(batch, heads, q_len, case.k.shape[2], 4)
    with cuda_emulation.gpu(folder, arch=arch_of(family)) as target:
        kernel = build.kernel(case.spec, target, family, decisions, cuda_emulation.DEVICE)
        out, *_ = CudaPlan(kernel, problem, "bhsd", operands).run(operands)
    assert_near(case.spec, out, reference.attention(case.spec, *operands), case.v)


@emulated
@pytest.mark.parametrize(("family", "decisions"), one_in(2, CORNERS), ids=lambda value: getattr(value, "name", ""))
def test_corners_compute_rightly(family: CudaFamily, decisions: Decisions, tmp_path: Path) -> None:
    compute(family, decisions, tmp_path)


@pytest.mark.slow
@emulated
@pytest.mark.parametrize(("family", "decisions"), MORE, ids=lambda value: getattr(value, "name", ""))
def test_more_corners_compute_rightly(family: CudaFamily, decisions: Decisions, tmp_path: Path) -> None:
    compute(family, decisions, tmp_path)


@nvcc
@pytest.mark.parametrize(
    ("family", "decisions"),
    [pytest.param(*each, marks=[pytest.mark.slow] * (each in CORNERS[2:] + MORE)) for each in CORNERS + MORE],
    ids=lambda value: getattr(value, "name", ""),
)
def test_corners_are_machine_code_that_hardly_spills(family: CudaFamily, decisions: Decisions, tmp_path: Path) -> None:
    spec, arch = spec_of(family), arch_of(family)
    ptx = to_ptx(code.generate(spec, gpu(arch), family, decisions).text, arch, tmp_path)
    spilled, _ = assemble(ptx, arch, tmp_path)
    assert max(spilled) <= 32
