"""Kernels for machines that are not this one: built here, up to an object file of that machine."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from sampling import one_in

from attncc import schedules
from attncc.runtime import build
from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import parse

MACHINES = {"sapphirerapids": ("x86_64", 62), "neoverse-v1": ("aarch64", 183)}
"""Architecture, and ELF's number of it."""


@pytest.mark.parametrize("name", one_in(2, MACHINES))
def test_cross_compilation(name: str, tmp_path: Path) -> None:
    """What a fleet's tuner sends to such a device: LLVM IR that names it, and that LLVM makes an object of for it."""
    from attncc import _tvm

    target = parse(name)
    spec = AttentionSpec(dtype="float32", head_dim=32, value_dim=32)
    problem = Problem(1, 2, 128, 128, 2)
    family = next(f for f in schedules.families(target) if f.suits(spec, problem) and not f.declines(spec, target))
    text = build.compile_llvm(spec, target, family, family.decisions(spec, target)).decode()
    arch, number = MACHINES[name]
    assert f'target triple = "{arch}-' in text
    assert f'"target-cpu"="{name}"' in text
    module = family.module(spec, target, family.decisions(spec, target))
    compiled = _tvm.compile_module(module, _tvm.llvm_target(target)).mod
    path = tmp_path / "kernel.o"
    compiled.write_to_file(str(path), "o")
    header = path.read_bytes()[:20]
    kind, machine = struct.unpack("<HH", header[16:20])
    assert (header[:4], kind, machine) == (b"\x7fELF", 1, number)


def test_the_length_of_sve_is_told_to_one_kernel_alone() -> None:
    """LLVM's optimiser is told by an option of the whole process, its code generator by the functions themselves."""
    spec = AttentionSpec(dtype="float32", head_dim=16, value_dim=16)

    def text(name: str) -> str:
        family = schedules.families(parse(name))[-2]
        found = build.compile_llvm(spec, parse(name), family, family.decisions(spec, parse(name))).decode()
        return re.sub(r"0x[0-9a-f]+", "", found)  # addresses, by which TVM calls its buffers

    before, long, after = (text(name) for name in ("neoverse-n2", "neoverse-v1", "neoverse-n2"))
    assert before == after and "vscale_range" not in after
    assert all("vscale_range(2,2)" in line for line in long.splitlines() if '"target-cpu"=' in line)
