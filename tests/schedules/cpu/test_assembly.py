"""What LLVM makes of the kernels: the instruction that a family is about, sums in registers, no calls of libm.

For this machine's instruction sets and for those of others: kernels are compiled for each target, not run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import zoo
from assembly import inner_loops, library_calls, product_blocks, product_loops
from kernel_harness import assembly_of, compile_module

from attncc import expr as ex
from attncc.schedules import Family
from attncc.schedules.cpu.decode import Decode
from attncc.schedules.cpu.prefill_amx import PrefillAmx, PrefillAmxFp16
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import PrefillFp32
from attncc.schedules.cpu.prefill_mmla import PrefillMmla
from attncc.schedules.cpu.short import Short
from attncc.spec import AttentionSpec
from attncc.target import parse

AMX, AMX_FP16, FP32, BF16, DECODE = PrefillAmx(), PrefillAmxFp16(), PrefillFp32(), PrefillBf16(), Decode()
MMLA = PrefillMmla()


@dataclass(frozen=True)
class Machine:
    """A target, and how a family's products look there."""

    family: Family
    dtype: str
    text: str
    multiply: str
    least: int = 8
    """Products in a loop of them: those of a register tile, at least."""

    def __str__(self) -> str:
        return f"{self.family.name}-{self.dtype}-{self.text}"


FMLA = r"fmla\s+v\d+\.4s, v"
FMLA_SVE = r"fmla\s+z\d+\.s, p\d+/m, z"
AVX2 = Machine(FP32, "float32", "haswell", r"vfmadd\d+ps\s.*%ymm")
AVX512 = Machine(FP32, "float32", "znver4", r"vfmadd\d+ps\s.*%zmm")
NEON = Machine(FP32, "float32", "cortex-a76", FMLA)
SVE = Machine(FP32, "float32", "neoverse-v1", FMLA_SVE)
PREFILL = (
    AVX2,
    AVX512,
    NEON,
    Machine(FP32, "bfloat16", "haswell", r"vfmadd\d+ps\s.*%ymm"),
    Machine(FP32, "float16", "sapphirerapids", r"vfmadd\d+ps\s.*%zmm"),
    Machine(BF16, "bfloat16", "znver4", r"vdpbf16ps\s.*%zmm"),
    Machine(BF16, "bfloat16", "neoverse-v1", r"bfdot\s+v\d+\.4s"),
    Machine(FP32, "float16", "apple-m1", FMLA),
    SVE,
    Machine(FP32, "float16", "a64fx", FMLA_SVE),
)
DECODES = (
    Machine(DECODE, "float32", "haswell", r"vfmadd\d+ps\s.*%ymm", 2),
    Machine(DECODE, "bfloat16", "znver4", r"v(?:dpbf16|fmadd\d+)ps\s.*%zmm", 2),
    Machine(DECODE, "float32", "neoverse-v1", FMLA_SVE, 2),
    Machine(DECODE, "float16", "neoverse-n2", FMLA, 2),
)
TILES = (
    Machine(AMX, "bfloat16", "sapphirerapids", "tdpbf16ps"),
    Machine(AMX_FP16, "float16", "graniterapids", "tdpfp16ps"),
)
MATRICES = Machine(MMLA, "bfloat16", "neoverse-n2", r"bfmmla\s+v\d+\.4s")
MORE = (NEON, SVE, PREFILL[6], MATRICES)
SAMPLE = (AVX2, PREFILL[5], *(pytest.param(each, marks=pytest.mark.slow) for each in MORE))
"""What the default run compiles; the slow one compiles all, for each of `MATRIX`."""
MATRIX = [(kind, (64, 64)) for kind in ("causal", "boolean mask", "sigmoid")]
MATRIX += [("causal", dims) for dims in ((80, 80), (128, 128))]


def spec_of(kind: str, dtype: str, dims: tuple[int, int], group: int = 1) -> AttentionSpec:
    return zoo.case(kind, dtype, (1, 1, 1, 8), dims=dims, group=group).spec


@functools.lru_cache(8)
def compiled(family: Family, spec: AttentionSpec, text: str, changed: tuple[tuple[str, int], ...] = ()) -> str:
    """The assembly of a kernel, with some of its decisions changed."""
    target = parse(text)
    declined = family.declines(spec, target)
    assert declined is None, declined
    return assembly_of(family, spec, target, {**family.decisions(spec, target), **dict(changed)})


def check_products(machine: Machine, spec: AttentionSpec, changed: Mapping[str, int] | None = None) -> None:
    """Both products, in full steps and at edges, are loops of the instruction, with sums and operands in registers."""
    arch = parse(machine.text).arch
    code = compiled(machine.family, spec, machine.text, tuple((changed or {}).items()))
    loops = product_loops(code, arch, machine.multiply, machine.least)
    assert len(loops) >= 4, f"{len(loops)} loops of products in {machine}"
    spills = {loop.label: loop.spills for loop in loops if loop.spills}
    assert not spills, f"{machine}, {spec}: {spills}"
    assert not [loop for loop in loops if loop.stores or loop.calls], f"{machine}: sums are stored in a loop"


def check_calls(machine: Machine, spec: AttentionSpec) -> None:
    called = library_calls(compiled(machine.family, spec, machine.text), parse(machine.text).arch)
    assert not called, f"{machine}, {spec}: calls {called}"


@pytest.mark.parametrize("machine", SAMPLE, ids=str)
def test_prefill(machine: Machine) -> None:
    spec = spec_of("soft cap", machine.dtype, (64, 64))
    check_products(machine, spec)
    check_calls(machine, spec)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dims"), MATRIX)
@pytest.mark.parametrize("machine", PREFILL, ids=str)
def test_prefill_matrix(machine: Machine, kind: str, dims: tuple[int, int]) -> None:
    spec = spec_of(kind, machine.dtype, dims)
    check_products(machine, spec)
    check_calls(machine, spec)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(192, 128), (256, 256)])
@pytest.mark.parametrize("machine", [AVX512, NEON], ids=str)
def test_prefill_of_large_heads(machine: Machine, dims: tuple[int, int]) -> None:
    """Sums over parts of a head and their total, both in registers. (With 16 of them, as in AVX2, two are spilled.)"""
    check_products(machine, spec_of("causal", machine.dtype, dims))


def test_register_tiles_take_no_memory() -> None:
    """TVM's allocator once gave them theirs: each product ended in stores of all its sums, which nothing read."""
    for family in (FP32, DECODE):
        spec = spec_of("plain", "float32", (16, 16))
        target = parse("znver4")
        code = compile_module(family, spec, target, family.decisions(spec, target)).mod.inspect_source("ll")
        assert not re.findall(r"%\w+_local = \w* ?call ptr", code)
        assert re.findall(r"%scores = \w* ?call ptr", code)  # larger tiles are the allocator's


def check_decode(machine: Machine, spec: AttentionSpec) -> None:
    """Loops that multiply keep their sums in registers, if not all of a long query; nothing of libm is called.

    LLVM unrolls the short ones (the few pairs of a chunk of values) whole: a sum that is stored there is stored once,
    not in each step, so that few of them do no harm.
    """
    code, arch = compiled(machine.family, spec, machine.text), parse(machine.text).arch
    blocks = product_blocks(code, arch, machine.multiply, 8)
    assert len(blocks) >= 2, f"{len(blocks)} blocks of products in {machine}"
    often = {b.label: b.spilled_sums for b in blocks if len(b.spilled_sums) * 4 > b.count(machine.multiply)}
    assert not often, f"{machine}, {spec}: {often}"
    loops = product_loops(code, arch, machine.multiply, machine.least)
    spills = {loop.label: loop.spilled_sums for loop in loops if loop.spilled_sums}
    assert not spills, f"{machine}, {spec}: {spills}"
    check_calls(machine, spec)


def check_tiles(spec: AttentionSpec, machine: Machine) -> None:
    """Both products of AMX, in full steps and at edges: sums are zeroed and stored, and never loaded in between."""
    code = compiled(machine.family, spec, machine.text)
    names = (machine.multiply, "tileloadd", "tilestored", "tilezero")
    counts = {name: len(re.findall(rf"\s{name}\s", code)) for name in names}
    assert counts["tilezero"] == counts["tilestored"] >= 16, counts
    assert counts[machine.multiply] == counts["tileloadd"] >= 16, counts  # each operand is multiplied twice
    assert len(re.findall(r"\sldtilecfg\s", code)) == len(re.findall(r"\stilerelease\s", code)) == 1
    check_calls(machine, spec)


@pytest.mark.parametrize("machine", TILES, ids=str)
def test_amx(machine: Machine) -> None:
    check_tiles(spec_of("soft cap", machine.dtype, (64, 64)), machine)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dims"), [(kind, dims) for kind, dims in MATRIX if dims[0] % 32 == 0])
def test_amx_matrix(kind: str, dims: tuple[int, int]) -> None:
    check_tiles(spec_of(kind, "bfloat16", dims), TILES[0])


@pytest.mark.parametrize("machine", DECODES[:2], ids=str)
def test_decode(machine: Machine) -> None:
    check_decode(machine, spec_of("soft cap", machine.dtype, (128, 128)))


@pytest.mark.slow
@pytest.mark.parametrize(("group", "dims"), [(1, (64, 64)), (4, (128, 128)), (4, (80, 80))])
@pytest.mark.parametrize("machine", DECODES, ids=str)
def test_decode_matrix(machine: Machine, group: int, dims: tuple[int, int]) -> None:
    check_decode(machine, spec_of("soft cap", machine.dtype, dims, group))


@pytest.mark.parametrize(("text", "rounds"), [("znver3", r"vroundps\s.*%ymm"), ("cortex-a76", r"frinti\s+v\d+\.4s")])
def test_exponentials_are_vectors(text: str, rounds: str) -> None:
    """As scheduled: a vector of keys of each row in a step. Left to LLVM, a step took eight, in lanes of other keys."""
    short, target, spec = Short(), parse(text), spec_of("plain", "float32", (64, 64))
    loops = [loop for loop in inner_loops(compiled(short, spec, text), target.arch) if loop.rounds]
    assert [loop.count(rounds) for loop in loops] == [short.decisions(spec, target)["rows"]]


@pytest.mark.parametrize(
    ("machine", "vectors"), [(AVX2, 3), *(pytest.param(each, 5, marks=pytest.mark.slow) for each in (AVX512, SVE))]
)
def test_a_tile_larger_than_the_registers_is_found(machine: Machine, vectors: int) -> None:
    """The check can fail: 24 sums of AVX2 do not fit 16 registers, nor 40 of AVX-512 or SVE 32."""
    changed = {"vectors": vectors, "key_rows": 8, "columns": 8, "query_block": vectors * 32}
    with pytest.raises(AssertionError, match=r"%rsp|mul vl"):
        check_products(machine, spec_of("plain", "float32", (64, 64)), changed)


def test_a_call_of_libm_is_found() -> None:
    """The check can fail: a power that is no constant is left to libm."""
    power = ex.op("pow", ex.Score(), ex.Score())
    spec = AttentionSpec("float32", 16, 16, score_mod=power)
    for machine in (AVX2, NEON):
        with pytest.raises(AssertionError, match="powf"):
            check_calls(machine, spec)
