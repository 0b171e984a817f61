"""The benchmark itself: its reference, its gate, its clock and its roofline."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from sampling import one_in
from torch.nn import functional as F

from attncc.bench import contenders, hidden, peak, run
from attncc.bench.cases import Case, defaults, reference
from attncc.bench.timing import interleaved

SMALL = Case(batch=2, heads=4, kv_heads=2, q_len=37, kv_len=53, head_dim=8)
MACHINE = peak.Peak(threads=1, fp32_gflops=100.0, bf16_gflops=None, read_gbs=10.0)


@pytest.mark.parametrize(
    "case",
    one_in(
        2,
        [
            SMALL,
            replace(SMALL, causal=True),
            replace(SMALL, window=5),
            replace(SMALL, causal=True, window=5),
            replace(SMALL, filled=40),
            replace(SMALL, q_len=1, filled=13),
            replace(SMALL, q_len=1, kv_len=13, capacity=40),
            replace(SMALL, padded=0.25),
            replace(SMALL, q_len=1, padded=0.25),
            replace(SMALL, kv_len=37, documents=4),
            replace(SMALL, kv_len=37, documents=4, causal=True),
            replace(SMALL, causal=True, prefix=11),
            replace(SMALL, q_len=9, tree=True),
            replace(SMALL, q_len=1, value_dim=12),
            replace(SMALL, bilinear=True),
            replace(SMALL, score="alibi", causal=True),
            replace(SMALL, score="relative"),
            replace(SMALL, score="t5"),
            replace(SMALL, threads=1),
            replace(SMALL, q_len=1, cache="int8"),
        ],
    ),
    ids=lambda case: case.label,
)
def test_every_contender_computes_the_case(case: Case) -> None:
    """Independent ways to say the same mask, grouping and scale agree with the float64 reference."""
    q, k, v = case.inputs()
    (expected,) = reference(case, q, k, v)
    for name in ("eager", "sdpa", "attncc"):
        out = contenders.CONTENDERS[name](case)(q, k, v)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_reference_is_chunked_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows computed part by part are those computed at once."""
    case = replace(SMALL, causal=True)
    q, k, v = case.inputs()
    whole = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True)
    monkeypatch.setattr(Case, "chunks", lambda self, rows: rows.split(10))
    torch.testing.assert_close(reference(case, q, k, v), (whole,))


def test_scores_that_peers_do_not_have() -> None:
    """A soft cap, the row statistics and the weights: against eager PyTorch, each output by itself."""
    for fields in ({"score": "softcap"}, {"outputs": "lse"}, {"outputs": "weights", "causal": True}):
        case = replace(SMALL, **fields)
        inputs = case.inputs()
        expected = reference(case, *inputs)
        with pytest.raises(contenders.Absent):
            contenders.sdpa(case)
        for name in ("eager", "attncc"):
            out = contenders.CONTENDERS[name](case)(*inputs)
            torch.testing.assert_close(
                [t.double() for t in (out if case.outputs else (out,))], list(expected), rtol=1e-5, atol=1e-5
            )


def test_long_sequences_are_checked_in_part() -> None:
    """Rows at random, the same ones every time; a row that is not finite shows wherever it is."""
    case = Case(1, 1, 1, 3000, 16, 8)
    inputs = case.inputs()
    (exact,) = reference(case, *inputs)
    assert exact.shape == (1, 1, 1024, 8)
    out = contenders.eager(case)(*inputs)
    assert run._error(case, out, (exact,)) < 1e-6
    out[0, 0, next(row for row in range(3000) if row not in case.checked_rows), 0] = float("nan")
    assert not run._error(case, out, (exact,)) < 1e9


def test_work_and_traffic() -> None:
    """Only visible pairs count as work; k and v are read once."""
    assert SMALL.flops == 4 * 2 * 4 * 37 * 53 * 8
    assert replace(SMALL, kv_len=37, causal=True).flops == 4 * 2 * 4 * 8 * (37 * 38 // 2)
    assert SMALL.bytes_read == 2 * 2 * 2 * 53 * 8 * 4
    cache = replace(SMALL, q_len=1, filled=13)
    assert (cache.flops, cache.bytes_read) == (4 * 2 * 4 * 13 * 8, 2 * 2 * 2 * 13 * 8 * 4)
    padded = replace(SMALL, q_len=1, kv_len=40, padded=0.25)  # 5 and 15 keys
    assert (padded.flops, padded.bytes_read) == (4 * 4 * 20 * 8, 2 * 2 * 20 * 8 * 4)
    packed = replace(SMALL, kv_len=37, documents=3)
    assert packed.flops < replace(packed, documents=1).flops == 4 * 2 * 4 * 37 * 37 * 8
    assert [case.decode for case in defaults()] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "sizes",
    [
        {"heads": 3},
        {"q_len": 0},
        {"dtype": "int8"},
        {"window": 0},
        {"q_len": 99, "window": 9},
        {"filled": 54},
        {"filled": 36},
        {"capacity": 52},
        {"padded": 0.0},
        {"documents": 2},
        {"prefix": 3},
        {"q_len": 54, "tree": True},
        {"score": "none"},
        {"cache": "int4"},
        {"outputs": "mask"},
    ],
)
def test_a_case_that_is_no_attention(sizes: dict[str, int]) -> None:
    """Refused with the values that do not fit."""
    with pytest.raises(ValueError, match=r"=|dtype"):
        replace(SMALL, **sizes)


def test_time_is_held_against_the_work_that_is_left() -> None:
    """Every pair has a smaller side that is also timed alone; ratios are of attncc's medians."""
    for quick in (False, True):
        cases = hidden.cases(quick)
        assert len({case.label for case in cases}) == len(cases)
        assert {case for pair in hidden.pairs(quick) for case in pair} == set(cases)
    pairs = hidden.pairs(quick=True)
    cache, plain = next(pair for pair in pairs if pair[0].filled == 100)
    timing = run.Timing(0.3, 0.3, 0.3, 1)
    results = [
        run.Result(case, (run.Entry("attncc", timing=replace(timing, median=seconds)),), 1.0, MACHINE)
        for case, seconds in ((plain, 0.2), (cache, 0.3))
    ]
    found = hidden.proportions(results, quick=True)
    assert found.rows == ((cache, plain, 1.0, 0.3 / 0.2),)
    assert "1.00x" in str(found) and "1.50x" in str(found)


def test_nothing_is_timed_on_a_red_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong result of attncc ends the case before the clock starts, and so does NaN."""
    for wrong in (1.001, float("nan")):
        patched = dict(contenders.CONTENDERS)
        patched["attncc"] = lambda case, wrong=wrong: lambda q, k, v: contenders.sdpa(case)(q, k, v) * wrong
        monkeypatch.setattr(run, "CONTENDERS", patched)
        result = run.run(SMALL, MACHINE, names=("sdpa", "attncc"), turns=1, seconds=0.0)
        assert not result.passed
        assert all(entry.timing is None for entry in result.entries)
        assert "nothing is timed" in str(result)


def test_a_contender_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its message; the others go on."""

    def broken(case: Case) -> contenders.Attention:
        raise RuntimeError("no toolchain\nat all")

    monkeypatch.setattr(run, "CONTENDERS", {**contenders.CONTENDERS, "flex": broken})
    result = run.run(SMALL, MACHINE, names=("sdpa", "flex", "attncc"), turns=1, seconds=0.0)
    assert result.passed
    assert [bool(entry.failure) for entry in result.entries] == [False, True, False]
    assert "RuntimeError: no toolchain" in str(result)


def test_turns_are_interleaved() -> None:
    """a b a b, not a a b b; the slower one is slower."""
    order: list[str] = []
    timings = interleaved(
        {"a": lambda: time.sleep(0.002), "b": lambda: None}, turns=3, seconds=0.004, progress=order.append
    )
    assert order == ["a", "b"] * 3
    assert timings["a"].median > timings["b"].median
    assert timings["a"].fastest <= timings["a"].median <= timings["a"].slowest


@pytest.mark.alone
def test_the_roofline_is_plausible() -> None:
    """No kernel of torch is faster than the measured peak: the loop really keeps every multiply-add unit busy.

    The margin is for other work on the machine; a loop that left a unit idle would be off by two.
    """
    measured = max((peak.measure() for _ in range(2)), key=lambda found: found.fp32_gflops)
    a = torch.randn(1024, 1024)
    (timing,) = interleaved({"matmul": lambda: a @ a}, turns=5, seconds=0.05).values()
    assert 2 * 1024**3 / timing.fastest / 1e9 < 1.5 * measured.fp32_gflops
    assert measured.bf16_gflops is None or measured.bf16_gflops > measured.fp32_gflops
    assert 0.5 < measured.read_gbs < 5000
    assert measured.gflops("float64") == measured.fp32_gflops / 2
