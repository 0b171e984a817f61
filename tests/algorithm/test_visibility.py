"""What a kernel evaluates to find the keys that count, and when it may leave the others out."""

from __future__ import annotations

from typing import Any

import zoo

from attncc import expr as ex
from attncc.algorithm.visibility import HIDDEN_BIAS, MARGIN, SAFE_MAXIMUM, row_bounds, safe_maximum, visible
from attncc.spec import AttentionSpec, Extra

EXTRAS = (Extra("t0", "bool", 2), Extra("t1", "float32", 2))
REAL = zoo.load("t0", zoo.B, zoo.KEY, dtype="bool")
BIAS = zoo.load("t1", zoo.H, zoo.KEY)
HIDING = ex.op("not", ex.op("le", BIAS, zoo.num(HIDDEN_BIAS)), dtype="bool")


def spec(**fields: Any) -> AttentionSpec:
    return AttentionSpec("float32", 16, 16, extras=EXTRAS, **fields)


def test_only_what_reads_tensors_by_key_is_looked_for() -> None:
    """Of a conjunction, the parts whose bounds are known already are left out."""
    assert visible(spec(mask=ex.op("and", zoo.CAUSAL, REAL))) == REAL
    assert visible(spec(mask=zoo.CAUSAL)) is None
    either = ex.op("or", zoo.CAUSAL, REAL)
    assert visible(spec(mask=either)) == either
    coarse = zoo.load(
        "t0", ex.op("floordiv", zoo.ROW, zoo.whole(8)), ex.op("floordiv", zoo.KEY, zoo.whole(8)), dtype="bool"
    )
    assert visible(spec(mask=coarse)) == coarse


def test_biases_that_may_hide() -> None:
    """Terms of a sum that read by key; a table of distances, a factor or a bias of weights without softmax are none."""
    biased = ex.op("add", ex.op("add", zoo.SCALED, BIAS), zoo.as_float(zoo.KEY))
    assert visible(spec(score_mod=biased)) == HIDING
    assert visible(spec(score_mod=biased, mask=REAL)) == ex.op("and", REAL, HIDING)
    assert visible(spec(score_mod=ex.op("mul", zoo.SCALED, BIAS))) is None
    assert visible(spec(score_mod=biased, normalizer="none")) is None
    table = zoo.load("t1", zoo.H, ex.op("sub", zoo.KEY, zoo.ROW))
    assert visible(spec(score_mod=ex.op("add", zoo.SCALED, table))) is None


def test_when_hidden_keys_may_count_after_all() -> None:
    assert safe_maximum(spec(mask=zoo.CAUSAL)) is None
    assert safe_maximum(spec(mask=zoo.CAUSAL, fill=-1e4)) == -1e4 + MARGIN
    assert safe_maximum(spec(mask=REAL, fill=-1e4)) == -1e4 + MARGIN
    every_other = ex.op("eq", ex.op("mod", zoo.KEY, zoo.whole(2)), zoo.whole(0))
    assert safe_maximum(spec(mask=every_other, fill=-1e4)) is None  # visits all keys at once
    assert safe_maximum(spec(mask=zoo.CAUSAL, fill=0.0, normalizer="none")) is None
    assert safe_maximum(spec(score_mod=ex.op("add", zoo.SCALED, BIAS))) == SAFE_MAXIMUM


def test_bounds_by_row_only_where_a_tensor_is_read_by_row() -> None:
    for name, expected in (("static cache", True), ("causal", False), ("key lengths", False), ("padding", False)):
        case = zoo.case(name, "float32", (1, 1, 1, 8))
        assert (row_bounds(case.spec) is not None) == expected
