"""That key tiles which only the data hide are not visited, and that no other is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cuda_emulation
import pytest
import torch
import zoo
from cuda_emulation import EmulationError
from kernel_harness import Case, assert_near, make_case
from torch import Tensor
from zoo import CAUSAL, KEY, ROW, SCALED, H, load

from attncc import expr as ex
from attncc import reference
from attncc.schedules.cuda.families import PrefillMma, PrefillWgmma
from attncc.schedules.cuda.surveyed import surveyed
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec, Extra
from attncc.target import Target

emulated = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
SAME = ex.op("eq", load("t0", ROW, dtype="int64"), load("t0", KEY, dtype="int64"))
DOCUMENTS = {
    "score_mod": SCALED,
    "mask": ex.op("and", CAUSAL, SAME),
    "extras": (Extra("t0", "int64", 1),),
}
BY_HEAD = {
    "score_mod": SCALED,
    "mask": ex.op("eq", load("t0", H, ROW, dtype="int32"), load("t0", H, KEY, dtype="int32")),
    "extras": (Extra("t0", "int32", 2),),
}
LENGTH = 700


def documents(numbers: Tensor, **fields: Any) -> Case:
    spec = AttentionSpec("float16", 16, 16, **{**DOCUMENTS, **fields})
    return make_case(spec, 1, len(numbers) if numbers.ndim > 1 else 1, LENGTH, LENGTH, extras=(numbers,))


def run(case: Case, folder: Path, patch: pytest.MonkeyPatch) -> tuple[Tensor, list[Tensor]]:
    """The result, checked, by `mma.sync`; and the lists that it went by, one for each query tile of each head."""
    made: list[Tensor] = []
    empty = torch.empty

    def kept(*size: Any, **options: Any) -> Tensor:
        made.append(empty(*size, **options))
        return made[-1]

    patch.setattr(torch, "empty", kept)
    family = PrefillMma()
    (out,) = cuda_emulation.run(family, case, folder)
    patch.undo()
    expected = reference.attention(case.spec, case.q, case.k, case.v, case.extras)
    assert_near(case.spec, out, expected, case.v)
    found = surveyed(case.spec)
    assert found is not None
    shape = found.workspace(Problem(1, case.q.shape[1], LENGTH, LENGTH, 4), 128, 64)
    lists = made[0].view(torch.int32)[: torch.Size(shape).numel()].view(-1, shape[3])
    return out, [each[1 : 1 + int(each[0])] for each in lists]


def seen(numbers: Tensor) -> list[list[tuple[bool, bool]]]:
    """Of each query tile and key tile, whether some pair sees each other, and whether all do, for `DOCUMENTS`."""
    mask = (numbers[:, None] == numbers[None]).tril()
    tiles = [[part for part in rows.split(64, 1)] for rows in mask.split(128)]
    return [[(bool(part.any()), bool(part.all()) and part.shape[1] == 64) for part in row] for row in tiles]


@emulated
def test_lists_hold_what_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents in a row: exactly the tiles that are seen, the last first. In any order: those at least."""
    packed = torch.tensor([150, 7, 200, 1, 342]).cumsum(0)
    numbers = torch.searchsorted(packed, torch.arange(LENGTH), right=True) * 2**40 - 2**62
    case = documents(numbers)
    _, lists = run(case, tmp_path, monkeypatch)
    for visits, tiles in zip(lists, seen(numbers), strict=True):
        assert visits.tolist() == [2 * n + (not full) for n, (some, full) in reversed([*enumerate(tiles)]) if some]
    assert sum(map(len, lists)) == 24  # of the 41 that a causal mask alone leaves
    mixed = torch.randint(0, 2, (LENGTH,), generator=torch.Generator().manual_seed(1))
    mixed[:300], mixed[300:420] = mixed[:300] * 5, 3
    case = documents(mixed)
    _, lists = run(case, tmp_path, monkeypatch)
    for visits, tiles in zip(lists, seen(mixed), strict=True):
        found = dict.fromkeys(n for n, (some, _) in enumerate(tiles) if some)
        assert {*found} <= {int(each) // 2 for each in visits}
        assert all(tiles[int(each) // 2][1] for each in visits if each % 2 == 0)


@emulated
def test_values_of_hidden_tiles_are_not_read(tmp_path: Path) -> None:
    """By wgmma: NaN times a weight of 0 would be NaN."""
    numbers = torch.arange(LENGTH) // 350
    case = documents(numbers)
    case.v[:, :, :256] = float("nan")
    out = cuda_emulation.run(PrefillWgmma(), case, tmp_path, arch="sm_90a")[0]
    clean = slice(384, LENGTH)  # query tiles of the second document alone
    expected = reference.attention(case.spec, case.q, case.k, case.v.nan_to_num(), case.extras)
    assert_near(case.spec, out[:, :, clean], expected[:, :, clean], case.v)


@emulated
@pytest.mark.slow
def test_heads_with_documents_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.stack([torch.arange(LENGTH) // 350, torch.arange(LENGTH) // 128]).int()
    _, lists = run(documents(numbers, **BY_HEAD), tmp_path, monkeypatch)
    assert [len(each) for each in lists] == [6, 6, 11, 6, 6, 6, 2, 2, 2, 2, 2, 1]


@emulated
@pytest.mark.slow
@pytest.mark.parametrize("nth", [0, 1])
def test_the_survey_waits(nth: int, tmp_path: Path) -> None:
    def without(source: str) -> str:
        kernel = source.rindex("survey_kernel(")
        places = [at for at in range(kernel, len(source)) if source.startswith("tvm_builtin_cuda_cta_sync();", at)]
        return source[: places[nth]] + source[source.index("\n", places[nth]) :]

    spec = AttentionSpec("float16", 16, 16, **{**DOCUMENTS, "mask": SAME})  # type: ignore[arg-type]
    case = make_case(spec, 1, 1, 130, 3000, extras=(torch.arange(3000),))
    with pytest.raises(EmulationError, match="no barrier"):
        cuda_emulation.run(PrefillMma(), case, tmp_path, edit=without)


def test_what_is_surveyed() -> None:
    """What data hide by row or by key, where a hidden key weighs nothing whatever else a row sees."""
    names = {n for n, a in zoo.ATTENTIONS.items() if surveyed(AttentionSpec("float16", 16, 16, 2, **a.fields))}
    assert names == {"documents", "padding", "static cache"}
    finite = AttentionSpec("float16", 16, 16, **{**DOCUMENTS, "fill": -1e9})
    assert surveyed(finite) is None
    family, target = PrefillWgmma(), Target("cuda", "sm_90a", "nvptx64-nvidia-cuda", frozenset(), 132, 0, 0, 0)
    given = AttentionSpec("bfloat16", 128, 128, **DOCUMENTS)
    decisions, problem = family.decisions(given, target), Problem(2, 16, 4096, 4096, 132)
    assert family.grids(given, decisions, problem) == {"survey": (32, 1, 2), "attention": (32 * 16 * 2, 1, 1)}
    assert family.launch(given, decisions, problem).workspaces == ((2, 1, 32, 33),)
    assert not family.suits(given, Problem(64, 16, 2**19, 2**19, 132))
