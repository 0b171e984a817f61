"""The family for few keys against the float64 oracle: by kind of attention, by shape, by dtype and by value."""

from __future__ import annotations

import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import Case, check, compile_module
from sampling import KINDS

from attncc.schedules import Problem
from attncc.schedules.cpu.short import MOST_KEYS, Short, runs
from attncc.target import parse

FAMILY = Short()


@pytest.mark.parametrize("name", [each for each in KINDS if "cache, scales" not in str(each.values[0])])
def test_kinds(name: str) -> None:
    """Every kind of attention, with grouped heads and several chunks of rows."""
    check(FAMILY, zoo.case(name, "float32", (2, 2, 29, 75), group=2))


@pytest.mark.parametrize(
    "name",
    ["boolean mask", "bilinear by head", "causal, NaN rows", "sigmoid", "weights, NaN rows"],
)
def test_kinds_in_bfloat16(name: str) -> None:
    check(FAMILY, zoo.case(name, "bfloat16", (2, 1, 29, 75), dims=(32, 32), group=2, strided=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize(
    "dims", [(2, 16), (40, 72), *(pytest.param(dims, marks=pytest.mark.slow) for dims in ((1, 1), (64, 48), (33, 128)))]
)
def test_head_sizes(dtype: str, dims: tuple[int, int]) -> None:
    """Head sizes of whole and of part vectors, odd ones, and value heads of another size."""
    check(FAMILY, zoo.case("causal", dtype, (1, 2, 21, 50), dims=dims, strided=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["causal", "strict causal, finfo.min"])
def test_lengths(name: str, dtype: str) -> None:
    """Lengths around vectors and chunks, primes, and none; one kernel for all."""
    for q_len in (1, 7, 8, 9, 131, 1009):
        for kv_len in (0, 1, 2, 15, 16, 17, 31, 97, MOST_KEYS):
            check(FAMILY, zoo.case(name, dtype, (1, 1, q_len, kv_len)))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["causal", "window", "boolean mask", "bias", "causal, finite fill", "padding"]),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 140), st.integers(1, MOST_KEYS)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    strided=st.booleans(),
    threads=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_any_sizes(
    name: str, sizes: tuple[int, int, int, int], dtype: str, strided: bool, threads: int, seed: int
) -> None:
    check(FAMILY, zoo.case(name, dtype, sizes, strided=strided, threads=threads, seed=seed))


@pytest.mark.parametrize("factor", [0.0, 1e-30, 300.0, -300.0])
@pytest.mark.parametrize("name", ["causal", "strict causal, finfo.min", "plus one", "sink by head"])
def test_large_and_small_scores(name: str, factor: float) -> None:
    """Scores up to ±1000 and more, which exp alone would not survive."""
    case = zoo.case(name, "float32", (1, 2, 29, 75))
    case.q *= factor
    case.k = case.k.round()  # large scores that float32 holds exactly
    case.q = case.q.round(decimals=1) if abs(factor) < 1 else case.q.round()
    check(FAMILY, case)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_not_numbers(dtype: str, where: str, value: float) -> None:
    """NaN and infinities reach the rows they belong to, and no others: also next to keys that do not exist."""
    for position in (0, 5, 74):
        case = zoo.case("plain", dtype, (1, 2, 29, 75), group=2)
        tensor = getattr(case, where)
        tensor[0, 1, min(position, tensor.shape[2] - 1), 3] = value
        check(FAMILY, case)


def test_nothing_is_read_or_written_past_the_tensors() -> None:
    """The last key, value and row end where memory that is not theirs begins: NaN there reaches nothing."""
    for dtype in ("float32", "bfloat16"):
        case = zoo.case("plain", dtype, (1, 2, 29, 75))
        whole = [t.new_full((1, 3, t.shape[2] + 1, t.shape[3]), float("nan")) for t in (case.q, case.k, case.v)]
        for inner, outer in zip((case.q, case.k, case.v), whole, strict=True):
            outer[:, :2, :-1] = inner
        views = [t[:, :2, :-1] for t in whole]
        check(FAMILY, Case(case.spec, *views))


def test_work_is_shared_by_all_threads() -> None:
    """Heads are cut into runs of rows only where threads would wait, and every chunk is taken once."""
    for threads in (1, 2, 3, 8):
        for heads in (1, 2, 3, 7, 24):
            for q_len in (8, 29, 128, 1000):
                problem = Problem(1, heads, q_len, 77, threads)
                chunks = -(-q_len // 8)
                parts = runs(chunks, problem)
                assert [n for first, count in parts for n in range(first, first + count)] == list(range(chunks))
                if heads % threads == 0 and chunks <= 16:
                    assert len(parts) == 1
                work = FAMILY.launch(zoo.case("plain", "float32", (1, 1, 8, 8)).spec, {"rows": 8, "keys": 128}, problem)
                shared = work.work[: int(work.work[0, 2])]
                assert shared[-1, 1] == len(work.work) and (shared[1:, 0] == shared[:-1, 1]).all()


def test_more_keys_than_there_is_room_for_are_an_error() -> None:
    with pytest.raises(ValueError, match="129 keys"):
        check(FAMILY, zoo.case("plain", "float32", (1, 1, 8, MOST_KEYS + 1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["znver4", "haswell", "llvm -mtriple=aarch64-unknown-linux-gnu -mcpu=cortex-a76"])
def test_products_stay_in_registers(target: str, dtype: str) -> None:
    """Compiled for machines of each vector width: fused multiplications of whole vectors, and no call of a library."""
    spec = zoo.case("plain", dtype, (1, 1, 8, 8), dims=(64, 64)).spec
    machine = parse(target)
    text = compile_module(FAMILY, spec, machine, FAMILY.decisions(spec, machine)).mod.inspect_source("s")
    wanted = {"znver4": "zmm" if dtype == "float32" else "vdpbf16ps", "haswell": "vfmadd"}.get(target, "fmla")
    assert wanted in text and "expf" not in text
