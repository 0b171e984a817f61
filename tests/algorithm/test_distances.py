"""Which terms of a score are functions of the distance between key and query."""

from __future__ import annotations

import pytest
from zoo import ATTENTIONS, DISTANCE, KEY, ROW, SCALED, SKV, H, as_float, load, num, whole

from attncc import expr as ex
from attncc.algorithm.distances import distance_terms, from_diagonals


def plus(term: ex.Expr) -> ex.Expr:
    return ex.op("add", SCALED, term)


BUCKET = ex.op("where", ex.op("lt", DISTANCE, whole(8)), ex.op("abs", DISTANCE), ex.op("mod", DISTANCE, whole(32)))
TWICE = ex.op("sub", ex.op("mul", KEY, whole(2)), ex.op("add", ROW, ROW))


@pytest.mark.parametrize(
    "term",
    [
        ex.op("mul", load("t0", H), as_float(DISTANCE)),
        load("t0", H, ex.op("add", DISTANCE, SKV)),
        ex.op("log", as_float(ex.op("abs", TWICE))),
        ex.op("mul", load("t0", BUCKET, H), num(2.0)),
    ],
)
def test_found_whole(term: ex.Expr) -> None:
    assert distance_terms(plus(term)) == (term,)
    assert from_diagonals(plus(term)) == plus(ex.Elem("distance0"))


@pytest.mark.parametrize(
    "term",
    [
        load("t0", H, ROW, KEY),
        load("t0", H),
        as_float(ex.op("add", KEY, ROW)),
        as_float(ex.op("sub", KEY, ex.op("mul", ROW, whole(2)))),
        as_float(ex.op("sub", ex.op("floordiv", KEY, whole(8)), ex.op("floordiv", ROW, whole(8)))),
        as_float(ex.op("sub", ex.op("mul", KEY, SKV), ROW)),
        ex.op("mul", ex.Score(), num(2.0)),
    ],
)
def test_not_taken_for_one(term: ex.Expr) -> None:
    """Positions themselves, other combinations of them, coarser positions, and what reads the score."""
    assert distance_terms(plus(term)) == ()


def test_several() -> None:
    near, far = load("t0", DISTANCE), as_float(DISTANCE)
    tree = ex.op("where", ex.op("lt", ROW, whole(3)), plus(near), ex.op("mul", plus(far), near))
    assert distance_terms(tree) == (near, far)


def test_of_the_zoo() -> None:
    score_mods = {name: attention.fields.get("score_mod", SCALED) for name, attention in ATTENTIONS.items()}
    found = {name for name, score_mod in score_mods.items() if distance_terms(score_mod)}
    assert {"alibi", "relative bias"} <= found
    assert not found & {"plain", "causal", "bias", "boolean mask", "soft cap"}
