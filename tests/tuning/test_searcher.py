"""Who proposes candidates: small spaces whole, large ones by MetaSchedule."""

import itertools

import pytest

from attncc.tuning.measure import Candidate, Outcome
from attncc.tuning.searcher import Everything

SPACE = {"tile": (8, 16, 32), "unroll": (1, 2), "fixed": (7,)}
DEFAULT = Candidate({"tile": 16, "unroll": 1, "fixed": 7})


def test_a_small_space_is_proposed_whole_and_nearest_first() -> None:
    points = [Candidate(dict(zip(SPACE, values, strict=True))) for values in itertools.product(*SPACE.values())]
    searcher = Everything(points, DEFAULT)
    searcher.learn([DEFAULT], [Outcome(1.0)])
    proposed = [*searcher.propose(3), *searcher.propose(10)]
    assert len(set(proposed)) == 5 and DEFAULT not in proposed
    differing = [sum(c.decisions[n] != DEFAULT.decisions[n] for n in SPACE) for c in proposed]
    assert differing == sorted(differing)
    assert searcher.propose(1) == []


def test_metaschedule_finds_the_best_of_a_large_space_with_few_trials() -> None:
    """A landscape with one optimum over 8 · 8 · 8 · 4 points: 64 trials get within a few percent of it, where random
    drawing would be some 20% off."""
    pytest.importorskip("xgboost")
    from attncc.tuning.evolution import Evolution

    space = {name: tuple(1 << n for n in range(8)) for name in "abc"} | {"d": (1, 2, 3, 4), "e": (5,)}
    default = Candidate({"a": 1, "b": 1, "c": 1, "d": 1, "e": 5})

    def cost(candidate: Candidate) -> float:
        a, b, c, d, _ = (candidate.decisions[name].bit_length() for name in "abcde")
        return 1.0 + 0.1 * ((a - 5) ** 2 + (b - 3) ** 2 + (a + c - 9) ** 2) + 0.05 * (d - 2) ** 2

    searcher = Evolution(space, default, seed=1)
    searcher.learn([default], [Outcome(cost(default))])
    seen = [default]
    while len(seen) < 65:
        batch = searcher.propose(8)
        assert batch and not set(batch) & set(seen) and all(c.decisions["e"] == 5 for c in batch)
        searcher.learn(batch, [Outcome(None, failure="x") if cost(c) > 6 else Outcome(cost(c)) for c in batch])
        seen += batch
    assert min(map(cost, seen)) < 1.12


def test_metaschedule_comes_to_the_last_points_of_a_space() -> None:
    pytest.importorskip("xgboost")
    from attncc.tuning.evolution import Evolution

    searcher, seen = Evolution(SPACE | {"more": (1, 2, 3)}, Candidate(DEFAULT.decisions | {"more": 1}), seed=0), []
    while batch := searcher.propose(4):
        searcher.learn(batch, [Outcome(1.0)] * len(batch))
        seen += batch
    assert len(seen) == len(set(seen)) == 18
