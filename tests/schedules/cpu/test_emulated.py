"""Kernels for machines that this one is not: their code, with the instructions that are missing here written out.

See `isa_emulation`. The numbers are held to the float64 oracle, as those of this machine's own kernels are.
"""

from __future__ import annotations

import pytest
import zoo
from isa_emulation import runs_here
from kernel_harness import check, run

from attncc.schedules import Family
from attncc.schedules.cpu.decode import Decode
from attncc.schedules.cpu.prefill_amx import PrefillAmx, PrefillAmxFp16
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import PrefillFp32
from attncc.schedules.cpu.prefill_mmla import PrefillMmla
from attncc.schedules.cpu.short import Short
from attncc.target import parse

AMX, AMX_FP16, MMLA, BF16, FP32, DECODE, SHORT = (
    PrefillAmx(), PrefillAmxFp16(), PrefillMmla(), PrefillBf16(), PrefillFp32(), Decode(), Short()
)  # fmt: skip
MACHINES = [
    pytest.param(AMX, "bfloat16", "sapphirerapids", id="amx"),
    pytest.param(AMX_FP16, "float16", "graniterapids", id="amx-fp16"),
    pytest.param(MMLA, "bfloat16", "neoverse-v1", id="bfmmla"),
    pytest.param(BF16, "bfloat16", "apple-m2", id="neon-bf16"),
    pytest.param(FP32, "float32", "cortex-a76", id="neon-fp32"),
    pytest.param(FP32, "float16", "apple-m1", id="neon-fp16"),
    pytest.param(DECODE, "float32", "apple-m1", id="decode-neon"),
]
SVE = [
    pytest.param(FP32, "float32", "neoverse-v1", id="sve-fp32"),
    pytest.param(FP32, "float16", "a64fx", id="sve-512-fp16", marks=pytest.mark.slow),
    pytest.param(DECODE, "float32", "neoverse-v1", id="decode-sve", marks=pytest.mark.slow),
    pytest.param(SHORT, "float32", "neoverse-v1", id="short-sve", marks=pytest.mark.slow),
]
"""Of other kinds of attention and sizes they compute what AVX2's kernels do: vectors are as long."""


def case_of(family: Family, name: str, dtype: str, dims: tuple[int, int] = (64, 64)) -> zoo.Case:
    sizes = {DECODE: (2, 1, 3, 300), SHORT: (1, 2, 83, 100)}.get(family, (1, 2, 83, 300))
    return zoo.case(name, dtype, sizes, group=2, dims=dims, strided=True)


@pytest.mark.parametrize(("family", "dtype", "text"), [*MACHINES[:5], *SVE])
def test_causal(family: Family, dtype: str, text: str) -> None:
    """Full steps, edges, a tile of queries that is not full, grouped heads, strided rows."""
    check(family, case_of(family, "causal", dtype), parse(text))


@pytest.mark.parametrize("name", ["int8 cache, scales by token", "float8 cache, scales by head"])
def test_codes_on_tile_registers(name: str) -> None:
    """Codes of a quantised cache are numbers of bfloat16: keys as they are, values times their scales, rounded."""
    check(AMX, case_of(AMX, name, "bfloat16", (32, 40)), parse("sapphirerapids"))


KINDS = ("bias", "boolean mask", "bilinear by head", "causal, NaN rows", "sigmoid", "sliding cache, finfo.min",
         "statistics", "weights, NaN rows", "window by head")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("family", "dtype", "text"), MACHINES)
def test_kinds(family: Family, dtype: str, text: str, name: str) -> None:
    case = case_of(family, name, dtype, (32, 32))
    if family.declines(case.spec, parse(text)) is not None:
        pytest.skip("declined")
    check(family, case, parse(text))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(64, 40), (96, 7), (192, 128)])
@pytest.mark.parametrize(("family", "dtype", "text"), MACHINES)
def test_head_sizes(family: Family, dtype: str, text: str, dims: tuple[int, int]) -> None:
    check(family, case_of(family, "soft cap", dtype, dims), parse(text))


@pytest.mark.slow
@pytest.mark.parametrize("kv_len", [0, 1, 31, 32, 33, 255, 256, 257, 300])
def test_lengths_on_tiles(kv_len: int) -> None:
    """Lengths around the tile registers' own: rows past the end are not read, and have no weight."""
    for q_len in (1, 31, 128, 131):
        check(AMX, zoo.case("causal", "bfloat16", (1, 1, q_len, kv_len), dims=(32, 32)), parse("sapphirerapids"))


def test_emulated_products_are_those_of_the_instruction() -> None:
    """Where this machine has AVX512-BF16, its results and those of emulated instructions differ by rounding alone."""
    target = parse("znver4")
    if not runs_here(target):
        pytest.skip("this machine has no AVX512-BF16")
    case = case_of(BF16, "causal", "bfloat16")
    for family, other in ((BF16, "apple-m2"), (AMX, "sapphirerapids")):
        assert (run(BF16, case, target).float() - run(family, case, parse(other)).float()).abs().max() <= 2.0**-7
