"""What is concluded about blocks of a mask must hold for every pair in them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from zoo import CAUSAL, KEY, ROW, SCALED, B, H, load, whole

from attncc import expr as ex
from attncc.algorithm.knowledge import FALSE_SEEN, TRUE_SEEN, Fact, Knowledge, knowledge
from attncc.algorithm.visibility import biases
from attncc.reference import evaluate
from attncc.spec import AttentionSpec, Extra

SIZES = {"B": 1, "H": 1, "Sq": 48, "Skv": 96}
DOCUMENT = (load("t0", KEY, dtype="int32"), load("t0", ROW, dtype="int32"))
PLACE = load("t0", ROW, dtype="int64")
REAL = load("t0", KEY, dtype="bool")
PAIR = load("t0", ROW, KEY, dtype="bool")
TILE = load("t0", ex.op("floordiv", ROW, whole(8)), ex.op("floordiv", KEY, whole(16)), dtype="bool")

generator = torch.Generator().manual_seed(0)
documents = torch.randint(0, 4, (96,), generator=generator).sort().values
places = torch.randint(0, 96, (48,), generator=generator).sort().values
real = torch.arange(96) < 50
pairs = torch.rand(48, 96, generator=generator) < torch.rand(12, 12, generator=generator).round().repeat_interleave(
    4, 0
).repeat_interleave(8, 1)
tiles = torch.rand(6, 6, generator=generator) < 0.5

MASKS: dict[str, tuple[ex.Expr, Tensor]] = {
    "documents": (ex.op("eq", *DOCUMENT), documents.int()),
    "other documents": (ex.op("ne", *DOCUMENT), documents.int()),
    "documents, causal": (ex.op("and", ex.op("eq", *DOCUMENT), CAUSAL), documents.int()),
    "positions": (ex.op("le", KEY, PLACE), places),
    "positions, turned round": (ex.op("gt", ex.op("sub", PLACE, KEY), whole(7)), places),
    "a window of positions": (
        ex.op("and", ex.op("ge", PLACE, KEY), ex.op("lt", PLACE, ex.op("add", KEY, whole(9)))),
        places,
    ),
    "padding": (REAL, real),
    "no padding": (ex.op("not", REAL), real),
    "padding or diagonal": (ex.op("or", REAL, ex.op("eq", ROW, KEY)), real),
    "padding by choice": (ex.op("where", ex.op("lt", ROW, whole(9)), REAL, CAUSAL, dtype="bool"), real),
    "pairs": (PAIR, pairs),
    "not pairs, causal": (ex.op("and", ex.op("not", PAIR), CAUSAL), pairs),
    "tiles": (TILE, tiles),
}


def spec_of(mask: ex.Expr | None, tensor: Tensor, **fields: Any) -> AttentionSpec:
    extra = Extra("t0", str(tensor.dtype).removeprefix("torch."), tensor.ndim)
    return AttentionSpec(
        "float32", 8, 8, score_mod=fields.pop("score_mod", SCALED), mask=mask, extras=(extra,), **fields
    )


def concluded(known: Knowledge, tensor: Tensor, rows: range, keys: range) -> dict[str, bool]:
    """The conclusions about a block, from facts found by brute force."""
    where = {
        "t0": tensor,
        "i": torch.tensor(rows)[:, None],
        "j": torch.tensor(keys),
        "first_key": torch.tensor(keys[0]),
    }
    where |= {"last_key": torch.tensor(keys[-1]), **SIZES, "b": torch.tensor(0), "h": torch.tensor(0)}
    for fact in known.facts:
        where[fact.name] = observed(fact, evaluate(fact.value, where))
    return {name: bool(evaluate(getattr(known, name), where)) for name in ("visible", "masked", "lossy")}


def observed(fact: Fact, values: Tensor) -> Tensor:
    if fact.kind == "seen":
        return torch.tensor(TRUE_SEEN * bool(values.any()) + FALSE_SEEN * (not bool(values.all())))
    return values.min() if fact.kind == "least" else values.max()


def blocks() -> list[tuple[range, range]]:
    return [(range(i, i + 8), range(j, j + 16)) for i, j in itertools.product(range(0, 48, 8), range(0, 96, 16))]


@pytest.mark.parametrize("name", MASKS)
def test_conclusions_hold(name: str) -> None:
    """Never "not visible" where a pair sees each other, never "not masked" where one does not."""
    mask, tensor = MASKS[name]
    known = knowledge(spec_of(mask, tensor))
    assert known is not None
    seen = evaluate(mask, {"t0": tensor, "i": torch.arange(48)[:, None], "j": torch.arange(96), **SIZES}).expand(48, 96)
    spared = 0
    for rows, keys in blocks():
        found, block = concluded(known, tensor, rows, keys), seen[rows[0] : rows[-1] + 1, keys[0] : keys[-1] + 1]
        assert found["visible"] or not block.any()
        assert found["masked"] or block.all()
        assert not found["lossy"] or found["visible"], "no weight is lost under -inf"
        spared += not (found["visible"] and found["masked"])
    assert spared >= 6, "hardly anything was found out"


def test_a_mask_tensor_is_known_exactly() -> None:
    known = knowledge(spec_of(PAIR, pairs))
    assert known is not None
    for rows, keys in blocks():
        found, block = concluded(known, pairs, rows, keys), pairs[rows[0] : rows[-1] + 1, keys[0] : keys[-1] + 1]
        assert (found["visible"], found["masked"]) == (bool(block.any()), not block.all())


@pytest.mark.parametrize("name", ["plain", "causal", "window", "window by head", "key lengths", "blocks", "alibi"])
def test_nothing_to_find_out(name: str) -> None:
    """What the form of a mask bounds by itself, and tables of distances, cost no look at the data."""
    assert knowledge(zoo.case(name, "float32", (1, 1, 8, 8)).spec) is None


@pytest.mark.parametrize("name", ["relative bias", "functions", "sink of some rows", "sigmoid"])
def test_no_bias_that_hides(name: str) -> None:
    spec = zoo.case(name, "float32", (1, 1, 8, 8)).spec
    assert not biases(spec) and knowledge(spec) is None


def test_rows_and_keys_cost_no_pairs() -> None:
    """Facts of documents and padding are collected row by row and key by key."""
    for name in ("documents, causal", "positions, turned round", "padding by choice"):
        known = knowledge(spec_of(*MASKS[name]))
        assert known is not None and not [fact for fact in known.facts if fact.over == "pairs"]


@pytest.mark.parametrize("hidden", [-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min])
def test_biases_that_hide(hidden: float) -> None:
    """A block under -inf is left out for good, under finfo.min only for rows that see something else."""
    bias = torch.where(real, 0.0, hidden)
    known = knowledge(spec_of(None, bias, score_mod=ex.op("add", SCALED, load("t0", KEY))))
    assert known is not None
    found = [concluded(known, bias, range(8), range(j, j + 16)) for j in range(0, 96, 16)]
    assert [each["visible"] for each in found] == [True] * 4 + [False] * 2
    assert [each["lossy"] for each in found[4:]] == [math.isfinite(hidden)] * 2
    assert not any(each["masked"] for each in found)


def test_a_bias_that_is_no_number_hides_nothing() -> None:
    bias = torch.full((96,), math.nan)
    known = knowledge(spec_of(None, bias, score_mod=ex.op("add", SCALED, load("t0", KEY))))
    assert known is not None
    assert concluded(known, bias, range(8), range(16))["visible"]


def test_finite_fill_loses() -> None:
    known = knowledge(spec_of(REAL, real, fill=-1e4))
    assert known is not None
    assert concluded(known, real, range(8), range(80, 96)) == {"visible": False, "masked": True, "lossy": True}


def test_heads_and_batches_are_no_positions() -> None:
    """A tensor read by batch and head alone says the same of all keys."""
    mask = ex.op("and", CAUSAL, load("t0", B, H, dtype="bool"))
    assert knowledge(spec_of(mask, torch.ones(1, 1, dtype=torch.bool))) is None
