"""Compiles a TIR expression into a vectorised loop over arrays, to hold lowered arithmetic against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from kernel_harness import llvm
from torch import Tensor

from attncc._tvm import IRBuilder, IRModule, Schedule, T, tvm
from attncc.target import Target, detect

LANES = 16


def compile_elementwise(
    function: Callable[..., Any], inputs: list[str], output: str, target: Target | None = None
) -> tuple[Callable[..., Tensor], str]:
    """`function` over one-dimensional tensors of the given dtypes, and the assembly of its vectorised loop.

    It is called with one scalar TIR expression an input and gives one of dtype `output`. The tensors are padded to
    whole vectors by repeating their last element.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("elementwise")
        T.func_attr({"global_symbol": "elementwise", "tirx.noalias": True})
        rows = T.int64()
        *sources, result = (
            T.match_buffer(T.arg(f"p{n}", T.handle()), (rows, LANES), dtype, align=1, layout=None)
            for n, dtype in enumerate([*inputs, output])
        )
        with T.grid(rows, LANES) as (row, lane), T.sblock("compute"):
            at = T.axis.remap("SS", [row, lane])
            T.buffer_store(result, function(*(source[tuple(at)] for source in sources)), list(at))
    sch = Schedule(IRModule({"elementwise": builder.get()}))
    sch.work_on("elementwise")
    sch.vectorize(sch.get_loops("compute")[-1])
    built = tvm.compile(sch.mod, target=llvm(target or detect()))

    def call(*arrays: Tensor) -> Tensor:
        size = arrays[0].numel()
        padding = -size % LANES
        padded = [torch.cat([a, a[-1:].expand(padding)]).view(-1, LANES).contiguous() for a in arrays]
        out = torch.empty_like(padded[0], dtype=getattr(torch, output))
        built["elementwise"](*padded, out)
        return out.view(-1)[:size]

    return call, str(built.mod.inspect_source("asm"))
