"""Runs one schedule family's kernel without the runtime: build, poison the output with NaN, call in ABI order, compare.

Inputs of a case are made here too, so that prefill, decode and the fallback are held to the same cases. The oracle is
`attncc.reference`, in float64, on the very numbers the kernel sees.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import isa_emulation
import torch
from isa_emulation import runs_here
from torch import Tensor

from attncc import reference
from attncc.expr import FLOAT8
from attncc.runtime import build, eager, native
from attncc.schedules.family import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target, detect

ULP = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


@dataclass
class Case:
    """The arguments of one call."""

    spec: AttentionSpec
    q: Tensor
    k: Tensor
    v: Tensor
    extras: Sequence[Tensor] = ()
    scalars: Sequence[float] = ()
    integers: Sequence[int] = ()
    threads: int = 2
    decisions: Mapping[str, int] = field(default_factory=dict)
    """Decisions that differ from the family's defaults."""


def make_case(
    spec: AttentionSpec,
    batch: int,
    kv_heads: int,
    q_len: int,
    kv_len: int,
    *,
    extras: Sequence[Tensor] = (),
    scalars: Sequence[float] = (),
    integers: Sequence[int] = (),
    seed: int = 0,
    strided: bool = False,
    **more: Any,
) -> Case:
    """Normal random q, k, v, but int8 evenly.

    `strided` makes them [B, H, S, D] views of [B, S, H, D] memory, one element in.
    """
    generator = torch.Generator().manual_seed(seed)

    def numbers(kept: str | None, *shape: int) -> Tensor:
        if kept == "int8":
            return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        return torch.randn(shape, generator=generator).to(eager.torch_dtype(kept or spec.dtype))

    def rows(heads: int, length: int, width: int, kept: str | None = None) -> Tensor:
        if not strided:
            return numbers(kept, batch, heads, length, width)
        flat = numbers(kept, 1 + batch * length * heads * width)
        return flat[1:].view(batch, length, heads, width).transpose(1, 2)

    q = rows(kv_heads * spec.group, q_len, spec.query_dim or spec.head_dim)
    k = rows(kv_heads, kv_len, spec.head_dim, spec.key_dtype)
    v = rows(kv_heads, kv_len, spec.value_dim, spec.value_dtype)
    return Case(spec, q, k, v, extras, scalars, integers, **more)


def run(family: Family, case: Case, target: Target | None = None) -> Tensor:
    """The kernel's first output. Raises AssertionError when the family declines the spec."""
    return run_all(family, case, target)["out"]


def run_all(family: Family, case: Case, target: Target | None = None) -> dict[str, Tensor]:
    """The kernel's outputs by name. Raises AssertionError when the family declines the spec."""
    target = target or detect()
    declined = family.declines(case.spec, target)
    assert declined is None, declined
    decisions = {**family.decisions(case.spec, target), **case.decisions}
    if "least_split" not in case.decisions and "least_split" in decisions:
        decisions["least_split"] = 64  # cases are small, and splits are to be met with
    kernel = built(family, case.spec, target, tuple(sorted(decisions.items())))
    batch, heads, q_len, _ = case.q.shape
    launch = family.launch(case.spec, decisions, Problem(batch, heads, q_len, case.k.shape[2], case.threads))
    compute = torch.float64 if case.spec.dtype == "float64" else torch.float32
    workspaces = [torch.full(shape, float("nan"), dtype=compute) for shape in launch.workspaces]
    out = torch.full((batch, heads, q_len, case.spec.value_dim), float("nan"), dtype=case.q.dtype)
    if case.q.stride(1) < case.q.stride(2):  # as the runtime does: heads inside rows, like the query
        out = torch.full_like(out.transpose(1, 2).contiguous(), float("nan")).transpose(1, 2)
    rows = (batch, heads, q_len)
    more = {
        name: torch.full((*rows, case.k.shape[2]), float("nan"), dtype=case.q.dtype)
        if name == "weights"
        else torch.full(rows, float("nan"), dtype=compute)
        for name in case.spec.outputs[1:]
    }
    numbers = (*map(float, case.scalars), *map(int, case.integers))
    outputs = (out, *more.values())
    k, v = (t.view(torch.uint8) if str(t.dtype)[6:] in FLOAT8 else t for t in (case.k, case.v))
    inputs = (torch.from_numpy(launch.work), case.q, k, v, *case.extras)
    kernel(*inputs, *outputs, *workspaces, *numbers, 0 if runs_here(target) else isa_emulation.serial_launcher())
    return {"out": out, **more}


@functools.cache
def built(family: Family, spec: AttentionSpec, target: Target, decisions: tuple[tuple[str, int], ...]) -> Any:
    """The compiled kernel, once per family, spec, target and decisions; emulated where this machine cannot run it."""
    if runs_here(target):
        return compile_module(family, spec, target, dict(decisions))["attention"]
    from attncc import _tvm

    # LLVM takes SVE's vectors, whose length is the machine's, for loops of its own: those of TIR are as long without
    fixed = replace(target, features=target.features - {"sve", "sve2"}, sve_bits=0)
    return isa_emulation.load(_tvm.llvm_text(family.module(spec, target, dict(decisions)), fixed))


def compile_module(family: Family, spec: AttentionSpec, target: Target, decisions: Mapping[str, int]) -> Any:
    """The module that `tvm.compile` makes; its generated code can be inspected."""
    from attncc import _tvm

    return _tvm.compile_module(family.module(spec, target, decisions), llvm(target))


def assembly_of(family: Family, spec: AttentionSpec, target: Target, decisions: Mapping[str, int]) -> str:
    """The assembly of the LLVM IR that the runtime loads, and an export compiles."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ll")
        path.write_bytes(build.compile_llvm(spec, target, family, decisions))
        return str(native.function("ffi.Module.load_from_file.ll")(str(path), "ll").inspect_source("asm"))


def llvm(target: Target) -> Any:
    """TVM's target for ours."""
    from attncc._tvm import llvm_target

    return llvm_target(target)


def check(family: Family, case: Case, target: Target | None = None) -> Tensor:
    """Run and compare with the float64 oracle; gives the output. Raises AssertionError on a difference."""
    found = run_all(family, case, target)
    expected = reference.outputs(case.spec, case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    assert_near(
        case.spec, found["out"], expected["out"], mixed(case) * max(1.0, weight_of(case.spec, expected["weights"]))
    )
    for name, values in found.items():
        if name == "weights":
            assert_close(name, values, expected[name], tolerance_of(case.spec))
        elif name != "out":
            scores = expected["max"][expected["max"].isfinite()].abs()
            largest = float(scores.max()) if scores.numel() else 1.0
            factor = max(1.0, float(expected["sum"].nan_to_num().max())) if name == "sum" else 1.0
            assert_close(name, values, expected[name], 16 * ULP[str(values.dtype)[6:]] * max(1.0, largest) * factor)
    return found["out"]


def mixed(case: Case) -> Tensor:
    """v as the attention mixes it; where its rows have scales, an upper bound of it."""
    if case.spec.value_scale is None:
        return case.v.double()
    sizes = {"B": case.q.shape[0], "H": case.q.shape[1], "Sq": case.q.shape[2], "Skv": case.k.shape[2]}
    names = (*(e.name for e in case.spec.extras), *case.spec.scalars, *case.spec.integers)
    where = dict(zip(names, (*case.extras, *case.scalars, *case.integers), strict=True))
    scale = reference.evaluate(case.spec.value_scale, {**where, **sizes, **reference.grid(sizes)})
    return case.v.double() * scale.abs().max()


def weight_of(spec: AttentionSpec, weights: Tensor) -> float:
    """The largest sum of weights that a row may have: that of a softmax is 1."""
    if spec.normalizer == "softmax" or not weights.numel():
        return 1.0
    return float(weights.abs().sum(-1).nan_to_num().max())


def assert_near(spec: AttentionSpec, out: Tensor, expected: Tensor, v: Tensor) -> None:
    """The same NaNs, and a difference below some units in the last place of the largest value that a row may mix."""
    finite = v.double()[v.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 1.0
    assert_close("out", out, expected, tolerance_of(spec) * largest)


def tolerance_of(spec: AttentionSpec) -> float:
    """The error that an output may have for each unit of the values that are mixed."""
    return (16 if spec.dtype in ("float32", "float64") else 3) * ULP[spec.dtype]


def assert_close(name: str, out: Tensor, expected: Tensor, tolerance: float) -> None:
    """The same NaNs and infinities, and no difference above `tolerance`."""
    assert torch.equal(out.isnan(), expected.isnan()), f"{name}: NaN in other places than in the reference"
    same = (out.double() == expected) | out.isnan()  # infinities, too, must be where they are due
    error = (out.double() - expected).masked_fill(same, 0.0).abs().max().item() if out.numel() else 0.0
    assert error <= tolerance, f"{name}: error {error:.3g} is above {tolerance:.3g}"
