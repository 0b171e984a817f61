"""Prefill in narrow tiles: the same kernels as prefill's, so a few cases of each kind; and when they are chosen."""

from __future__ import annotations

import pytest
import zoo
from kernel_harness import check
from sampling import one_in

from attncc.schedules import Problem, select
from attncc.schedules.cpu.narrow import NarrowBf16, NarrowFp32
from attncc.target import detect

HAS_BF16 = "avx512bf16" in detect().features


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", one_in(3, ["causal, finite fill", "bias", "weights, NaN rows"]))
def test_kinds(name: str, dtype: str) -> None:
    """Rows of one tile and of several, with masks, tensors by pair and all outputs."""
    family = NarrowBf16() if dtype == "bfloat16" and HAS_BF16 else NarrowFp32()
    for q_len in (9, 16, 45):
        check(family, zoo.case(name, dtype, (2, 2, q_len, 300), strided=True, group=2))


def test_they_are_for_few_rows_and_idle_threads() -> None:
    spec = zoo.case("plain", "float32", (1, 1, 8, 8)).spec
    chosen = {
        (heads, q_len, threads): select(spec, Problem(1, heads, q_len, 4096, threads), detect()).name
        for heads, q_len, threads in ((32, 15, 2), (32, 16, 2), (32, 64, 2), (1, 64, 2), (1, 64, 1), (1, 4096, 2))
    }
    narrow, own = "cpu.narrow.fp32", "cpu.prefill.fp32"
    assert list(chosen.values()) == ["cpu.decode", narrow, own, narrow, own, own]
