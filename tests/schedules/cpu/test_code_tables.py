"""Tables of float8 against PyTorch's conversion, and the instructions that decode reads caches of codes with."""

from __future__ import annotations

import re

import pytest
import torch
import zoo
from kernel_harness import check, compile_module
from sampling import one_in

from attncc.schedules.cpu.code_tables import bits
from attncc.schedules.cpu.decode import Decode
from attncc.spec import AttentionSpec
from attncc.target import parse

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_code_is_the_bfloat16_of_its_value(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    found = torch.tensor([bits(str(dtype)[6:], code) for code in range(256)], dtype=torch.uint16).view(torch.bfloat16)
    assert torch.equal(found.isnan(), codes.float().isnan())
    assert torch.equal(found.float().nan_to_num(0.0, 1e9, -1e9), codes.float().nan_to_num(0.0, 1e9, -1e9))
    assert torch.equal(found.float().signbit(), codes.float().signbit())


def test_no_table_of_int8() -> None:
    with pytest.raises(ValueError, match="'int8' is not one of float8_e4m3fn, float8_e5m2"):
        bits("int8", 0)


@pytest.mark.parametrize("name", one_in(2, ["float8 cache, scales by head", "int8 cache, scales by token"]))
def test_caches_in_bfloat16(name: str) -> None:
    """Whole sets of columns go through tables, what is left of a row (72 = 64 + 8) does not."""
    for dims in ((64, 64), (72, 40)):
        check(Decode(), zoo.case(name, "bfloat16", (2, 1, 2, 77), dims=dims, group=2, strided=True))


@pytest.mark.parametrize(
    ("dtype", "codes", "instructions"),
    [
        ("bfloat16", "float8_e4m3fn", ("vperm[it]2b", "vdpbf16ps", "vcvtph2ps")),
        ("bfloat16", "int8", ("vpmovsxbd", "vcvtdq2ps")),
        ("float32", "float8_e5m2", ("vcvtph2ps",)),
    ],
)
def test_codes_become_floats_in_vectors(dtype: str, codes: str, instructions: tuple[str, ...]) -> None:
    """Neither a call nor a conversion of one number at a time; compiled for a CPU that has them all."""
    spec = AttentionSpec(dtype, 64, 64, key_dtype=codes, value_dtype=codes)
    target = parse("znver4")
    family = Decode()
    text = compile_module(family, spec, target, family.decisions(spec, target)).mod.inspect_source("s")
    for instruction in instructions:
        assert re.search(rf"\b{instruction}\b[^\n]*zmm", text), instruction
    assert not re.search(r"\bv?cvtsi2ss|\bcall\w*\s+\S*extendhfsf2", text)
