"""Score expressions in one form: what becomes a mask, and what must not."""

from __future__ import annotations

import math

import pytest

from attncc import expr as ex
from attncc.expr import op
from attncc.passes.simplify import simplify, split_mask

SCORE = ex.Load("scores", (ex.Index("a"), ex.Index("b")), "float32")
SEEN = op("le", ex.Index("b"), ex.Index("a"))
GIVEN = ex.Load("mask", (ex.Index("b"),), "bool")
BIAS = ex.Load("bias", (ex.Index("b"),), "float32")


def num(value: float) -> ex.Const:
    return ex.Const(value, "float32")


def as_float(expr: ex.Expr) -> ex.Expr:
    return op("cast", expr, dtype="float32")


LOWEST = -3.4028234663852886e38
CASES = {
    "additive infinity": (
        op("add", SCORE, op("where", SEEN, num(0.0), num(-math.inf))), "scores[a, b]", "(b <= a)", -math.inf
    ),
    "additive, the other way round": (
        op("add", op("where", SEEN, num(-math.inf), num(0.0)), SCORE), "scores[a, b]", "(b > a)", -math.inf
    ),
    "additive lowest number by arithmetic": (
        op("add", op("mul", SCORE, num(2.0)), op("mul", op("sub", num(1.0), as_float(GIVEN)), num(LOWEST))),
        "(scores[a, b] * 2)", "mask[b]", LOWEST,
    ),
    "additive with another bias": (
        op("add", op("add", SCORE, BIAS), op("where", SEEN, num(0.0), num(LOWEST))),
        "(scores[a, b] + bias[b])", "(b <= a)", LOWEST,
    ),
    "an additive -1e9 absorbs no score": (
        op("add", SCORE, op("where", SEEN, num(0.0), num(-1e9))),
        "(scores[a, b] + where((b <= a), 0, -1e+09))", None, -math.inf,
    ),
    "a fill of -1e9 is a mask": (op("where", SEEN, SCORE, num(-1e9)), "scores[a, b]", "(b <= a)", -1e9),
    "a fill of -5 is none": (op("where", SEEN, SCORE, num(-5.0)), "where((b <= a), scores[a, b], -5)", None, -math.inf),
    "scaled after the mask": (
        op("div", op("where", SEEN, SCORE, num(-math.inf)), num(4.0)), "(scores[a, b] * 0.25)", "(b <= a)", -math.inf
    ),
    "two masks": (
        op("where", SEEN, op("where", op("not", op("not", GIVEN)), SCORE, num(-math.inf)), num(-math.inf)),
        "scores[a, b]", "((b <= a) & mask[b])", -math.inf,
    ),
    "two fills": (
        op("where", SEEN, op("where", GIVEN, SCORE, num(-1e9)), num(-math.inf)),
        "where(mask[b], scores[a, b], -1e+09)", "(b <= a)", -math.inf,
    ),
    "a mask of the scores": (
        op("where", op("lt", SCORE, num(0.0)), num(-math.inf), SCORE),
        "where((scores[a, b] < 0), -inf, scores[a, b])", None, -math.inf,
    ),
    "always true": (
        op("where", op("ge", ex.Index("a"), ex.Const(0, "int64")), SCORE, num(-math.inf)),
        "scores[a, b]", None, -math.inf,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_simplify(name: str) -> None:
    before, score_mod, mask, fill = CASES[name]
    found = split_mask(simplify(before, SCORE), lambda tree: any(n == SCORE for n in tree.walk()))
    assert (str(found[0]), None if found[1] is None else str(found[1]), found[2]) == (score_mod, mask, fill)


def test_comparisons_of_floats_are_not_inverted() -> None:
    """not (x < 0) is not x >= 0 where x is NaN."""
    condition = op("not", op("lt", BIAS, num(0.0)))
    assert simplify(op("where", condition, SCORE, num(0.0)), SCORE) == op("where", condition, SCORE, num(0.0))
