"""No growth: thousands of calls, hundreds of compilations."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from attncc.attention import attention
from attncc.runtime import build, cache, dispatch, stats

LIMIT = 20 << 20


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def test_ten_thousand_calls_do_not_grow() -> None:
    def calls(count: int) -> None:
        for number in range(count):
            q = torch.randn(1, 2, 1 + number % 3, 16)
            k = torch.randn(1, 2, 1 + number % 61 + 500 * (number % 50 == 0), 16)  # some on several threads
            attention(q, k, k, is_causal=bool(number % 2))

    calls(2000)
    before = resident()
    calls(10_000)
    assert resident() - before < LIMIT


@pytest.mark.slow
def test_two_hundred_compilations_do_not_grow(fresh: Path) -> None:
    q, k, v = (torch.randn(1, 2, 8, 16) for _ in range(3))  # the family that is compiled fastest

    def compile_again() -> None:
        build.forget()
        dispatch.forget_plans()
        cache.clear()
        attention(q, k, v)

    for _ in range(10):
        compile_again()
    before = resident()
    for _ in range(200):
        compile_again()
    assert stats.stats().compiles == 210
    assert resident() - before < LIMIT


@pytest.mark.slow
@pytest.mark.alone
def test_alternating_with_torch_costs_no_more_than_the_sum() -> None:
    """TVM's own thread pool would fight torch's for the cores; on one pool the two take turns."""
    q, k, v = (torch.randn(1, 12, 256, 64) for _ in range(3))
    x, w = torch.randn(512, 768), torch.randn(768, 768)

    def best(*functions: object) -> float:
        times = []
        for _ in range(60):
            start = time.perf_counter()
            for function in functions:
                function()  # type: ignore[operator]
            times.append(time.perf_counter() - start)
        return min(times)

    def attend() -> None:
        attention(q, k, v)

    def linear() -> None:
        torch.mm(x, w)

    torch.testing.assert_close(attention(q, k, v), sdpa(q, k, v), rtol=1e-4, atol=1e-4)
    ratios = [best(attend, linear) / (best(attend) + best(linear)) for _ in range(5)]
    assert min(ratios) < 1.1
