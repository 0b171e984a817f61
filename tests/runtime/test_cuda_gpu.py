"""CUDA tensors on a GPU: every family's kernels against float64, and what torch does around them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import cuda_cases
import pytest
import torch
from kernel_harness import Case, assert_near, weight_of
from torch import Tensor

import attncc
from attncc import reference
from attncc.runtime import stats
from attncc.schedules.cuda.families import CUDA

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.filterwarnings("error:attncc"),
]


@pytest.fixture(autouse=True)
def _packed() -> Iterator[None]:
    """A machine without TVM takes its kernels from a pack (`cuda_cases.py`)."""
    from attncc.runtime.cuda import dispatch, pack

    folder = os.environ.get("ATTNCC_TEST_CUDA_PACK")
    pack.use(Path(folder) if folder else None)
    dispatch.forget_plans()
    stats.stats(reset=True)
    torch.use_deterministic_algorithms(True)  # what is not written is NaN
    yield
    torch.use_deterministic_algorithms(False)


def moved(tensor: Tensor) -> Tensor:
    """On the GPU with its strides, its offset and its expanded dimensions."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    offset = tensor.storage_offset()
    held = torch.as_strided(tensor, (span + offset,), (1,), 0).cuda()
    return torch.as_strided(held, tensor.shape, tensor.stride(), offset)


def call(case: Case) -> list[Tensor]:
    q, k, v, *extras = map(moved, (case.q, case.k, case.v, *case.extras))
    numbers = list(map(float, case.scalars)), list(map(int, case.integers))
    found = torch.ops.attncc.attention_outputs(q, k, v, extras, *numbers, case.spec.json, "bhsd")
    torch.cuda.synchronize()
    return [tensor.cpu() for tensor in found]


def check(case: Case) -> None:
    expected = reference.outputs(case.spec, case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    found = dict(zip(case.spec.outputs, call(case), strict=True))
    scale = 1.0 if "weights" not in expected else max(1.0, weight_of(case.spec, expected["weights"]))
    assert_near(case.spec, found["out"], expected["out"], case.v * scale)
    for name in case.spec.outputs[1:]:
        finite = expected[name].isfinite()
        assert torch.equal(found[name].isfinite(), finite), name
        error = (found[name].double() - expected[name])[finite].abs()
        bound = 0.01 if case.spec.dtype in ("bfloat16", "float16") else 1e-4
        assert (error <= bound * (1.0 + expected[name][finite].abs())).all(), name


@pytest.mark.parametrize("wanted", cuda_cases.taken(), ids=str)
def test_every_family(wanted: cuda_cases.Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    from attncc.runtime.cuda import dispatch

    monkeypatch.setattr(dispatch, "_families", (wanted.family,))
    check(wanted.case())
    counted = stats.stats()
    assert counted.fallbacks == 0
    assert [k.calls for k in counted.kernels if k.name.startswith(wanted.family.name)] == [1]


def causal(regime: str) -> Case:
    family = next(f for f in CUDA if f.regime == regime)
    return cuda_cases.Wanted(family, "causal").case()


@pytest.mark.parametrize("regime", ["prefill", "decode"])
def test_results_are_ordered_with_other_work(regime: str) -> None:
    """On a stream of the user's, after work that takes long."""
    case = causal(regime)
    expected = reference.attention(case.spec, case.q, case.k, case.v)
    q, k, v = (t.cuda() for t in (case.q, case.k, case.v))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        out = torch.ops.attncc.attention(q * 1, k * 1, v * 1, [], [], [], case.spec.json, "bhsd") * 1
    stream.synchronize()
    assert_near(case.spec, out.cpu(), expected, case.v)


@pytest.mark.parametrize("regime", ["prefill", "decode"])
def test_graphs_capture(regime: str) -> None:
    case = causal(regime)
    q, k, v = (t.cuda() for t in (case.q, case.k, case.v))
    torch.ops.attncc.attention(q, k, v, [], [], [], case.spec.json, "bhsd")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.attncc.attention(q, k, v, [], [], [], case.spec.json, "bhsd")
    for seed in (1, 2):
        torch.manual_seed(seed)
        case.q, case.k, case.v = (torch.randn(t.shape).to(t.dtype) for t in (case.q, case.k, case.v))
        for device, host in ((q, case.q), (k, case.k), (v, case.v)):
            device.copy_(host)
        graph.replay()
        torch.cuda.synchronize()
        assert_near(case.spec, out.cpu(), reference.attention(case.spec, case.q, case.k, case.v), case.v)


def test_threads_call_at_once() -> None:
    case = causal("decode")
    expected = reference.attention(case.spec, case.q, case.k, case.v)
    q, k, v = (t.cuda() for t in (case.q, case.k, case.v))
    torch.cuda.synchronize()
    found: list[Tensor] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                out = torch.ops.attncc.attention(q, k, v, [], [], [], case.spec.json, "bhsd")
            found.append(out.cpu())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for out in found:
        assert_near(case.spec, out, expected, case.v)


@pytest.mark.parametrize("how", ["heads inside rows", "expanded keys", "one head of many", "rows of another width"])
def test_views(how: str) -> None:
    """Read as they lie where the kernels can."""
    case = causal("prefill")
    q, k, v = case.q, case.k, case.v
    if how == "heads inside rows":
        q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    elif how == "expanded keys":
        k, v = (t[:1].expand(2, -1, -1, -1) for t in (k, v))
    elif how == "one head of many":
        k, v = (torch.cat([t, t + 1, t], 1)[:, 1:2] for t in (k, v))
    else:
        k, v = (torch.cat([t, t[..., :40]], -1)[..., : t.shape[3]] for t in (k, v))
    case.q, case.k, case.v = q, k, v
    check(case)
    assert stats.stats().copies == 0


def test_scores_of_800() -> None:
    for regime in ("prefill", "decode"):
        case = causal(regime)
        case.q, case.k = case.q * 30, case.k * 30
        check(case)


def test_gradients_are_recomputed() -> None:
    case = causal("prefill")
    q, k, v = (t.cuda().requires_grad_() for t in (case.q, case.k, case.v))
    out = torch.ops.attncc.attention(q, k, v, [], [], [], case.spec.json, "bhsd")
    out.float().square().sum().backward()
    exact = [t.double().requires_grad_() for t in (case.q, case.k, case.v)]
    reference.attention(case.spec, *exact).square().sum().backward()
    for tensor, wide in zip((q, k, v), exact, strict=True):
        assert tensor.grad is not None and wide.grad is not None
        error = (tensor.grad.cpu().double() - wide.grad).abs().max()
        assert error < 0.05 * wide.grad.abs().max()


def test_models_compile() -> None:
    """Captured, and run by kernels, with shapes that change."""
    compiled = attncc.compile(cuda_cases.attend, dynamic=True)
    for length in (128, 150, 201):
        q, k, v = (torch.randn(2, 3, length, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        out = compiled(q, k, v)
        error = (out.double() - cuda_cases.attend(q.double(), k.double(), v.double())).abs().max()
        assert error < 2e-3
    assert stats.stats().calls == 3 and stats.stats().compiles <= 1
