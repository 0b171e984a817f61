"""What of many alike tests the default run takes: a sample, the others are slow tests.

Only where other tests cover what the sample leaves out, or all differ in a size or dtype alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import zoo
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

QUICK = ("causal, NaN rows", "bias", "sink of some rows", "sigmoid", "statistics", "weights, NaN rows", "additive",
         "bilinear by head", "strict causal, finfo.min", "documents", "int8 cache, scales by token")  # fmt: skip
"""Kinds of attention that between them use every part of a kernel."""
KINDS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in zoo.ATTENTIONS]
"""All of `zoo`."""


def one_in(count: int, values: Iterable[Any]) -> list[Any]:
    """Parameters, of which the first of each `count` is in the default run; a tuple is several."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow if n % count else ())
        for n, value in enumerate(values)
    ]


def drawn(few: int, many: int, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A test of arguments that Hypothesis draws: `few` sets of them in the default run, `many` in a slow test."""

    def decorate(test: Callable[..., None]) -> Any:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def run(examples: int) -> None:
            settings(max_examples=examples, deadline=None)(given(**strategies)(test))()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate
