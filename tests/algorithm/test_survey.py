"""The survey alone: which key blocks a tile is told to visit, and how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import zoo
from kernel_harness import Case, llvm
from torch import Tensor
from zoo import KEY, ROW, SCALED, B, H, load

from attncc import expr as ex
from attncc._tvm import IRBuilder, IRModule, T, compile_module, tirx
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store
from attncc.algorithm.knowledge import knowledge
from attncc.algorithm.prefill_tile import Tile, Tiling
from attncc.algorithm.signature import NAME, declare, import_llvm
from attncc.algorithm.survey import CHUNK, llvm_text, open_survey, survey_chunk
from attncc.spec import AttentionSpec, Extra
from attncc.target import detect

EDGE, STEP, QUERIES = 32, 128, 64


def survey_kernel(spec: AttentionSpec) -> Any:
    """A kernel of the usual arguments that writes counts, full steps and edge steps of a tile into its first rows."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(NAME)
            signature = declare(spec)
            known = knowledge(spec)
            assert known is not None
            if llvm_text(known):
                import_llvm(llvm_text(known))
            unused = [tirx.decl_buffer((1,), "float32") for _ in range(12)]
            numbers = {"batch": T.int64(0), "kv_head": T.int64(0), "head": T.int64(0)}
            scalars = {**signature.scalars}
            with T.serial(signature.work.shape[0]) as loop, T.sblock("tile"):
                number = T.axis.spatial(signature.work.shape[0], loop)
                accesses(signature.inputs, [signature.out])
                first_row = let("first_row", tirx.Cast("int64", signature.work[number, 3]) * QUERIES)
                tiling = Tiling(QUERIES, STEP, spec.value_dim, "float32", EDGE)
                t = Tile(spec, tiling, signature, scalars, *numbers.values(), first_row, *unused)
                survey = open_survey(t, known)
                blocks = (signature.sizes["Skv"] + (EDGE - 1)) // EDGE
                survey_chunk(t, survey, T.int64(0), T.min(blocks, CHUNK), None)
                with repeat("copy", 1):
                    accesses(survey.buffers, [signature.out])
                    for row, buffer in enumerate((survey.counts, survey.full, survey.edges)):
                        with scope(f"row{row}"), stage(f"copy{row}", "S", n=int(buffer.shape[0])) as (n,):
                            at = [0, 0, first_row + row, n]
                            store(signature.out, at, tirx.Cast("float32", buffer[n]))
        function = builder.get()
    return compile_module(IRModule({NAME: function}), llvm(detect()))[NAME]


def surveyed(case: Case) -> list[tuple[list[int], list[int], bool]]:
    """For each tile of 64 rows: first blocks of full steps, edge steps, and whether anything lossy was left out."""
    tiles = case.q.shape[2] // QUERIES
    out = torch.full((1, 1, tiles * QUERIES, CHUNK), float("nan"))
    work = torch.tensor([(0, 0, 0, n) for n in range(tiles)], dtype=torch.int32)
    numbers = (*map(float, case.scalars), *map(int, case.integers))
    survey_kernel(case.spec)(work, case.q, case.k, case.v, *case.extras, out, *numbers, 0)
    found = []
    for rows in out[0, 0].split(QUERIES):
        full, edges = int(rows[0, 0]), int(rows[0, 1])
        found.append((rows[1, :full].int().tolist(), rows[2, :edges].int().tolist(), bool(rows[0, 3])))
    return found


def case(name: str, q_len: int, kv_len: int, *extras: Tensor) -> Case:
    made = zoo.case(name, "float32", (1, 1, q_len, kv_len), dims=(2, CHUNK))
    made.extras = extras
    return made


def test_padding() -> None:
    """400 of 2000 keys: three full steps, the block with the border as an edge, nothing else."""
    assert surveyed(case("padding", 64, 2000, (torch.arange(2000) < 400)[None])) == [([0, 4, 8], [12], False)]


def test_all_visible() -> None:
    """Everything in full steps, but what ends past the last key or is too short for a step."""
    assert surveyed(case("padding", 64, 300, torch.ones(1, 300, dtype=torch.bool))) == [([0, 4], [8, 9], False)]


def test_nothing_visible() -> None:
    assert surveyed(case("padding", 64, 2000, torch.zeros(1, 2000, dtype=torch.bool))) == [([], [], False)]


def test_documents() -> None:
    """Each tile visits the blocks of its own documents: of 100 keys each, here."""
    found = surveyed(case("documents", 384, 384, (torch.arange(384) // 100)[None].int()))
    assert [full for full, _, _ in found] == [[] for _ in found]
    assert [edges for _, edges, _ in found[:3]] == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6]]


def test_positions() -> None:
    """A cache of 2000 keys, filled up to the queries: what lies behind is not visited, what all see has no mask."""
    found = surveyed(case("static cache", 128, 2000, torch.arange(128) + 200))
    assert found == [([0], [4, 5, 6, 7, 8], False), ([0, 4], [8, 9, 10], False)]


def test_pairs() -> None:
    """A mask that is a tensor, read with its strides."""
    mask = torch.zeros(600, 64, dtype=torch.bool).T[None, None]
    mask[..., 128:288] = True
    mask[..., 17, 400] = True
    assert surveyed(case("boolean mask", 64, 600, mask)) == [([4], [8, 12], False)]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_biases(dtype: str, dense: bool) -> None:
    """A bias hides, and needs no mask code where it does not; finfo.min may count for rows that see nothing else."""
    torch_dtype: torch.dtype = getattr(torch, dtype)
    made = case("float mask, -inf", 64, 600)
    read = load("t0", B, H, ROW, KEY, dtype=dtype)
    bias_term = ex.op("cast", read, dtype="float32")
    made.spec = replace(made.spec, score_mod=ex.op("add", SCALED, bias_term), extras=(Extra("t0", dtype, 4),))
    for hidden in (-float("inf"), torch.finfo(torch_dtype).min):
        bias = torch.full((1, 1, 64, 600), hidden, dtype=torch_dtype)
        bias[..., 5, 128:256] = 0.5
        bias[..., 7, 300] = float("nan")
        made.extras = [bias if dense else bias.mT.contiguous().mT]
        counts = dtype == "float16" and hidden != -float("inf")  # -65504 is an ordinary number
        if counts:
            assert surveyed(made)[0][2] is False
        else:
            assert surveyed(made) == [([4], [9], hidden != -float("inf"))]
