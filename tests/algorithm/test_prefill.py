"""The prefill algorithm before any schedule: its text, and what scheduling must leave alone."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import zoo
from kernel_harness import assert_near, llvm
from sampling import one_in

from attncc import reference
from attncc._tvm import IRModule, compile_module
from attncc.algorithm.prefill import build
from attncc.algorithm.prefill_tile import Tiling
from attncc.algorithm.signature import NAME
from attncc.algorithm.storage import pack, unpack
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import PrefillFp32
from attncc.schedules.cpu.prefill_pairs import PairSchedule
from attncc.schedules.cpu.prefill_schedule import Copies, PrefillSchedule, Registers
from attncc.target import detect, parse

Golden = Callable[[str, str], None]


def text(module: object) -> str:
    """TVMScript without the imports at its head."""
    script = str(module.script())  # type: ignore[attr-defined]
    return re.sub(r"\A(?:#.*\n|\n)*", "", script)


@pytest.mark.parametrize("name", ["window by head", "strict causal, finfo.min"])
def test_algorithm_text(golden: Golden, name: str) -> None:
    spec = zoo.case(name, "float32", (1, 1, 8, 8), dims=(8, 8)).spec
    file_name = re.sub(r"\W+", "_", name)
    golden(f"tir/prefill_{file_name}.py.txt", text(build(spec, Tiling(32, 16, 8, "float32"))))


@pytest.mark.parametrize(("dtype", "mcpu"), [("float32", "x86-64-v4"), ("bfloat16", "znver4")])
def test_scheduled_text(golden: Golden, dtype: str, mcpu: str) -> None:
    family = PrefillFp32() if dtype == "float32" else PrefillBf16()
    spec = zoo.case("causal", dtype, (1, 1, 8, 8), dims=(8, 8)).spec
    decisions = {"query_block": 32, "key_block": 16, "edge_block": 8, "vectors": 1, "key_rows": 4, "columns": 4}
    module = family.module(spec, parse(mcpu), family.decisions(spec, parse(mcpu)) | decisions)
    golden(f"tir/prefill_causal_{dtype}_scheduled.py.txt", text(module))


@pytest.mark.parametrize("name", zoo.ATTENTIONS)
def test_scheduling_leaves_the_source_alone(name: str) -> None:
    """TVM 0.27 schedules a nested block in place when it stands in a bare sequence; here each has a loop of its own."""
    spec = zoo.case(name, "float32", (1, 1, 8, 8)).spec
    function = build(spec, Tiling(32, 16, 16, "float32", ahead=8))
    before = function.script()
    PrefillSchedule(function, spec, Registers(16, 1, 4, 4), Copies(False, False)).module()
    assert function.script() == before


@pytest.mark.parametrize("name", ["plain", "bilinear", "causal, finite fill", "sigmoid", "weights, NaN rows"])
def test_scheduling_pairs_leaves_the_source_alone(name: str) -> None:
    spec = zoo.case(name, "bfloat16", (1, 1, 8, 8)).spec
    function = build(spec, Tiling(32, 16, 16, "bfloat16", ahead=8))
    before = function.script()
    PairSchedule(function, spec, Registers(16, 1, 4, 4), padded=False, copy_keys=False).module()
    assert function.script() == before


@pytest.mark.parametrize("ahead", [0, 8])
@pytest.mark.parametrize("name", one_in(2, ["strict causal, finfo.min", "plain", "bilinear", "alibi"]))
def test_unscheduled_runs(name: str, ahead: int) -> None:
    """The algorithm computes the attention by itself; schedules only make it fast."""
    case = zoo.case(name, "float32", (1, 2, 21, 37))
    function = build(case.spec, Tiling(8, 16, 20, "float32", ahead=ahead))  # scratch columns beyond the value head
    kernel = compile_module(IRModule({NAME: function}), llvm(detect()))[NAME]
    work = torch.tensor([(0, h, h, i) for h in range(2) for i in range(3)], dtype=torch.int32)
    out = torch.full((1, 2, 21, 16), float("nan"))
    kernel(work, case.q, case.k, case.v, *case.extras, out, *case.scalars, *case.integers, 0)
    assert_near(case.spec, out, reference.attention(case.spec, case.q, case.k, case.v, case.extras), case.v)


def test_bfloat16_tiles_round_as_torch_does() -> None:
    """Ties to even, NaN of any payload to NaN, infinities to themselves."""
    from attncc._tvm import IRBuilder, T

    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0x7FFFFFFF, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1])
    values = torch.from_numpy(bits.astype(np.uint32).view(np.float32).copy())
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main"})
        handles = [T.arg(f"h{n}", T.handle()) for n in range(2)]
        source, target = (T.match_buffer(handle, (len(bits),), "float32", layout=None) for handle in handles)
        with T.serial(len(bits)) as i:
            T.buffer_store(target, unpack("bfloat16", "float32", pack("bfloat16", source[i])), [i])
    out = torch.empty_like(values)
    compile_module(IRModule({"main": builder.get()}), llvm(detect()))["main"](values, out)
    torch.testing.assert_close(out, values.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
