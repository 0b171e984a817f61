"""The fallback family: right for every attention, on targets without anything."""

from __future__ import annotations

import itertools

import pytest
import zoo
from kernel_harness import check, compile_module
from sampling import KINDS, one_in

from attncc.schedules.cpu.fallback import Fallback
from attncc.target import parse

FAMILY = Fallback()
DTYPES = ("float32", "bfloat16", "float16", "float64")
PLAIN = parse("llvm -mcpu=x86-64")


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    """Every kind of attention, compiled for the oldest CPU of this architecture."""
    check(FAMILY, zoo.case(name, "float32", (2, 2, 19, 75), group=2), PLAIN)


@pytest.mark.parametrize(("dims", "dtype"), one_in(5, itertools.product([(64, 64), (13, 7), (1, 1)], DTYPES)))
def test_dtypes(dims: tuple[int, int], dtype: str) -> None:
    for sizes in ((1, 2, 9, 33), (2, 1, 1, 1), (1, 1, 3, 0)):
        check(FAMILY, zoo.case("causal", dtype, sizes, dims=dims, group=3, strided=True), PLAIN)


@pytest.mark.parametrize("text", ["aarch64-unknown-linux-gnu cortex-a76", "aarch64-unknown-linux-gnu generic"])
@pytest.mark.parametrize("dtype", one_in(3, ["float32", "bfloat16", "float16"]))
def test_cross_compiles(text: str, dtype: str) -> None:
    """Code is generated for another architecture; it cannot be run here."""
    triple, mcpu = text.split()
    target = parse(f"llvm -mtriple={triple} -mcpu={mcpu}")
    spec = zoo.case("soft cap", dtype, (1, 1, 1, 8)).spec
    module = compile_module(FAMILY, spec, target, FAMILY.decisions(spec, target))
    assert "attention" in module.mod.inspect_source("asm")


def test_bad_decisions() -> None:
    spec = zoo.case("plain", "float32", (1, 1, 1, 8)).spec
    with pytest.raises(ValueError, match="query_block=0"):
        FAMILY.module(spec, PLAIN, {"query_block": 0, "key_block": 8})
