"""`attncc bench --device cuda` as far as it needs no GPU: what cases mean, the reference, the kernels needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attncc import expr as ex
from attncc.bench.cuda import cases, contenders, kernels, run
from attncc.bench.cuda.cases import GpuCase
from attncc.runtime.cuda import devices
from attncc.target import Target

HOPPER = Target("cuda", "sm_90a", devices.TRIPLE, frozenset(), 132, 0, 0, 0)
SMALL = GpuCase("scores and masks", 2, 4, 2, 40, 40, 16, dtype="float32")


@pytest.mark.parametrize("kind", ["ALiBi", "8 documents", "bilinear"])
def test_cases_mean_what_is_run(kind: str) -> None:
    case = replace(SMALL, kind=kind)
    attention, inputs = case.attention("cpu"), case.inputs("cpu")
    out = contenders.ours(case, attention)(*inputs)
    assert (out - contenders.exactly(case, attention, *inputs, torch.float64)).abs().max() < 1e-5


@pytest.mark.parametrize("cache", ["int8", "float8_e4m3fn"])
def test_caches_are_read_as_they_are(cache: str) -> None:
    """Codes and scales give what the rows give that they stand for; and a decode kernel for tensor cores takes them."""
    case = replace(SMALL, q_len=1, cache=cache)
    attention, inputs = case.attention("cpu"), case.inputs("cpu")
    exact, _ = run.reference(case, attention, *inputs)
    assert (contenders.ours(case, attention)(*inputs) - exact).abs().max() < 1e-5
    assert case.bytes == sum(t.nbytes for t in inputs[1:])
    ((spec, _, family, _),) = kernels.wanted([replace(case, dtype="bfloat16", kv_len=500)], HOPPER)
    assert (family.name, spec.key_dtype, spec.value_dtype) == ("cuda.decode", cache, cache)


@pytest.mark.parametrize("kind", ["causal", "ALiBi"])
def test_the_reference_in_parts_is_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(SMALL, kind=kind)
    attention, inputs = case.attention("cpu"), case.inputs("cpu")
    monkeypatch.setattr(run, "_CHECK_BYTES", 8 * 2 * 40 * 7)
    parts, flops = run.reference(case, attention, *inputs)
    assert (parts - contenders.exactly(case, attention, *inputs, torch.float64)).abs().max() < 1e-12
    assert flops == 4 * 2 * 4 * 16 * (40 * 41 / 2)


def test_the_usual_scale_is_part_of_the_kernel() -> None:
    wanted = kernels.wanted([replace(SMALL, dtype="bfloat16", head_dim=64, q_len=500, kv_len=500)], HOPPER)
    ((spec, _, family, _),) = wanted
    assert family.name == "cuda.prefill.wgmma" and ex.pretty(spec.score_mod) == "(score * 0.125)"


def test_every_case_has_its_kernels() -> None:
    names = {family.name for _, _, family, _ in kernels.wanted(cases.cases(), HOPPER)}
    assert names == {"cuda.decode", "cuda.prefill.wgmma", "cuda.prefill.mma", "cuda.simt", "cuda.simt.few"}
    assert len(cases.cases(quick=True)) < len(cases.cases()) / 5
