"""The CUDA runtime without a GPU: kernels are emulated (`cuda_emulation`), everything around them is the real thing."""

from __future__ import annotations

import json
import subprocess
import sys
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
from attncc.runtime import cache, stats
from attncc.runtime.cuda import build, code, devices, dispatch, nvrtc, pack
from attncc.runtime.cuda.code import Code, Kernel
from attncc.schedules.cuda.families import PrefillMma
from attncc.spec import AttentionSpec
from attncc.target import Target

emulated = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
AMPERE, HOPPER = (Target("cuda", name, devices.TRIPLE, frozenset(), 4, 0, 0, 0) for name in ("sm_80", "sm_90a"))
SPEC = AttentionSpec("float16", 16, 16, score_mod=zoo.SCALED)
CODE = Code((Kernel("attention", 128, 1024, (("pointer", "q"), ("int64", "Sq"), ("float32", "s0_f32"))),), b"\x7fELF\n")


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Path]:
    """An emulated GPU; gives the folder of its code."""
    dispatch.forget_plans()
    stats.stats(reset=True)
    with cuda_emulation.gpu(tmp_path):
        yield tmp_path
    dispatch.forget_plans()
    stats.stats(reset=True)


def check(case: Case, spec: AttentionSpec | None = None) -> None:
    operands = (case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    (out,) = dispatch.outputs(*operands, (spec or case.spec).json, "bhsd")
    expected = reference.attention(case.spec, case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    assert_near(case.spec, out, expected, case.v)


@emulated
def test_one_kernel_serves_all_lengths_and_strides(gpu: Path) -> None:
    check(make_case(SPEC, 1, 2, 70, 90))
    check(make_case(SPEC, 2, 1, 33, 65))
    case = make_case(SPEC, 1, 2, 70, 90)
    case.q, case.k, case.v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (case.q, case.k, case.v))
    check(case)
    case.k, case.v = (t[:, :1].expand(-1, 2, -1, -1) for t in (case.k, case.v))
    check(case)
    counted = stats.stats()
    assert (counted.calls, counted.compiles, counted.copies, counted.fallbacks) == (4, 1, 0, 0)
    build.forget()
    dispatch.forget_plans()
    check(make_case(SPEC, 1, 2, 70, 90))
    assert stats.stats().disk_hits == 1
    (entry,) = cache.entries()
    assert entry.valid and (gpu / "cache" / cache.FORMAT / entry.name / "kernel.cubin").exists()


@emulated
def test_rows_that_cannot_be_read_are_copied(gpu: Path) -> None:
    """16 bytes at a time: rows elsewhere, and columns that do not lie side by side."""

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    case = make_case(SPEC, 1, 1, 70, 90)
    case.k = shifted(case.k)
    check(case)
    copies = stats.stats().copies
    assert copies
    case = make_case(SPEC, 1, 1, 70, 90)
    case.v = case.v.transpose(2, 3).contiguous().transpose(2, 3)
    check(case)
    assert stats.stats().copies == copies + 1


@emulated
def test_rows_are_widened_for_tensor_cores(gpu: Path) -> None:
    """Columns of zeros add nothing to a score, and those of the result are dropped."""
    check(make_case(AttentionSpec("float16", 20, 12, score_mod=zoo.SCALED), 1, 1, 70, 90))
    counted = stats.stats()
    assert counted.copies == 3
    assert [k.name.split()[0] for k in counted.kernels if k.calls] == ["cuda.prefill.mma"]


def test_the_usual_scale_becomes_part_of_the_kernel() -> None:
    """It is what nearly every call has, and costs nothing as a number; any other stays an argument."""
    scale = ex.op("mul", ex.Score(), ex.Scalar("s0", "float64"))
    spec = AttentionSpec("float16", 64, 16, score_mod=scale, scalars=("s0",))
    assert ex.pretty(dispatch.special(spec, (0.125,)).score_mod) == "(score * 0.125)"
    assert dispatch.special(spec, (0.25,)) == spec
    assert dispatch.special(spec, (0.125,)).scalars == ("s0",)


@pytest.mark.parametrize("numbers", [((), ()), ((1.0, 2.0), ()), ((1.0,), (3,))])
def test_arguments_that_do_not_fit_are_an_error(numbers: tuple[tuple[float, ...], tuple[int, ...]]) -> None:
    scale = ex.op("mul", ex.Score(), ex.Scalar("s0", "float64"))
    spec = AttentionSpec("float16", 16, 16, score_mod=scale, scalars=("s0",))
    case = make_case(spec, 1, 1, 3, 4)
    with pytest.raises(ValueError, match="for a spec with"):
        dispatch.outputs(case.q, case.k, case.v, (), *numbers, spec.json, "bhsd")


@emulated
def test_a_bilinear_score_is_a_product_before(gpu: Path) -> None:
    """q W in the dtype of the model, which kernels for plain products then read."""
    extras = zoo.case("bilinear", "float16", (1, 1, 5, 70), dims=(16, 16))
    spec = AttentionSpec.from_json(extras.spec.json.replace('"float32",2', '"float16",2'))
    extras.extras = [t.half() for t in extras.extras]
    extras.spec = spec
    plain = make_case(AttentionSpec("float16", 16, 16, score_mod=spec.score_mod), 1, 1, 5, 70)
    plain.q, plain.k, plain.v = extras.q @ extras.extras[0], extras.k, extras.v
    operands = (extras.q, extras.k, extras.v, extras.extras, extras.scalars, extras.integers)
    (out,) = dispatch.outputs(*operands, spec.json, "bhsd")
    assert_near(spec, out, reference.attention(plain.spec, plain.q, plain.k, plain.v), plain.v)
    assert stats.stats().fallbacks == 0


@emulated
def test_a_kernel_that_does_not_compile_costs_a_warning(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: bytes, arch: str) -> bytes:
        raise RuntimeError("nvrtc: no")

    monkeypatch.setattr(nvrtc, "compile_source", refuse)
    case = make_case(SPEC, 1, 1, 70, 90)
    with pytest.warns(RuntimeWarning, match=r"no kernel cuda\.\S+ for .* sm_80: RuntimeError: nvrtc: no"):
        check(case)
    check(case)
    assert stats.stats().fallbacks == 2


def test_code_is_kept_as_it_is() -> None:
    assert Code.from_bytes(CODE.to_bytes()) == CODE
    for damaged in (b"", b"[{}]\n", b"[1]\n"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Code.from_bytes(damaged)


def test_kernels_are_told_by_the_source() -> None:
    found = code.generate(SPEC, AMPERE, PrefillMma(), PrefillMma().decisions(SPEC, AMPERE))
    (kernel,) = found.kernels
    assert (kernel.symbol, kernel.threads, kernel.shared) == ("attention_kernel", 128, (128 + 64 + 64) * 64 * 2)
    assert {("pointer", "q"), ("int64", "Skv"), ("int64", "k_stride2")} <= set(kernel.parameters)
    assert b"tvm/ffi" not in found.text and b"cuda_fp16.h" in found.text


def test_a_pack_takes_the_place_of_tvm(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = PrefillMma()
    decisions = family.decisions(SPEC, AMPERE)
    list(pack.write(tmp_path / "pack", [(SPEC, AMPERE, family, decisions)]))
    monkeypatch.setattr(code, "generate", None)
    monkeypatch.setattr(nvrtc, "compile_source", lambda source, arch: source[:4] + arch.encode())
    monkeypatch.setattr(build, "packed", None)
    pack.use(tmp_path / "pack")
    key = {**build.cache_key(SPEC, AMPERE, family, decisions), "versions": {}}
    assert build.stored(key, SPEC, AMPERE, family, decisions).text.endswith(b"sm_80")
    damaged = next(path for path in (tmp_path / "pack").iterdir() if path.name != pack.MANIFEST)
    damaged.write_bytes(b"[]\n")
    assert pack.Pack(tmp_path / "pack").load(key) is None
    digests = json.loads((tmp_path / "pack" / pack.MANIFEST).read_text())
    assert list(digests["kernels"]) == [damaged.name]


@pytest.mark.slow
def test_nothing_of_it_is_imported_without_a_gpu() -> None:
    program = (
        "import sys, torch, attncc; q = torch.randn(1, 1, 3, 8); attncc.attention(q, q, q);"
        "torch.compile(lambda q: torch.softmax(q @ q.mT, -1) @ q, backend='attncc')(q);"
        "print([name for name in sys.modules if name.startswith('attncc') and '.cuda' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
