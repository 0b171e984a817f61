"""Every spelling of `tests/spellings`, in several layouts: fused once for all sizes, or refused; right in any case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from capture import Capture, assert_same, capture, capture_directly
from spellings import SPELLINGS, Spelling


def cases(which: Callable[[Spelling, int], Iterator[str]], quick: int = 1) -> list[Any]:
    """Spellings with the layouts that `which` gives for the n-th of them; one of `quick` is not slow."""
    made = []
    for number, spelling in enumerate(SPELLINGS.values()):
        for layout in which(spelling, number):
            marks = pytest.mark.slow if number % quick else ()
            made.append(pytest.param(spelling, layout, id=f"{spelling.name}-{layout}", marks=marks))
    return made


def second(spelling: Spelling, number: int) -> Iterator[str]:
    """One of the layouts beside the first, in turn."""
    rest = spelling.layouts[1:]
    yield rest[number % len(rest)]


def either(spelling: Spelling, number: int) -> Iterator[str]:
    """The first layout or, of every other spelling, another one than `second` gives, where there are three."""
    yield from second(spelling, number + 1) if number % 2 else iter(spelling.layouts[:1])


def judge(spelling: Spelling, seen: Capture) -> None:
    """As many sites as expected, none beside; or the reason. Results are compared before, whatever is fused."""
    if spelling.reason or not spelling.sites:
        assert not seen.fused
        assert any(spelling.reason in r for r in seen.reasons) or not spelling.reason, seen.reasons
        return
    assert len(seen.fused) == spelling.sites, seen.reasons
    assert len(seen.reasons) == bool(spelling.beside) and all(spelling.beside in r for r in seen.reasons), seen.reasons


def fresh(spelling: Spelling, layout: str) -> tuple[list[Any], list[Any]]:
    """Arguments of both sizes, anew: some spellings write to what they are given."""
    return spelling.inputs(layout, spelling.sizes), spelling.inputs(layout, spelling.other)


def check(spelling: Spelling, layout: str, seen: Capture) -> None:
    """Equal to eager in both sizes, and what is expected of the sites."""
    program = spelling.program(layout)
    args, others = fresh(spelling, layout)
    assert_same(seen.result, program(*args), tolerance=spelling.alike)
    if spelling.once:
        assert_same(seen.again, program(*others), tolerance=spelling.alike)
    judge(spelling, seen)


@pytest.mark.parametrize(("spelling", "layout"), cases(lambda s, _: iter(s.layouts[:1]), quick=4))
def test_symbolic_batch_and_lengths(spelling: Spelling, layout: str) -> None:
    args, others = fresh(spelling, layout)
    z = spelling.sizes
    sizes = {z.b, z.s, z.t, z.s + z.t} - {1}
    seen = capture_directly(spelling.program(layout), args, again=others if spelling.once else None, dynamic=sizes)
    check(spelling, layout, seen)


@pytest.mark.parametrize(("spelling", "layout"), cases(second, quick=8))
def test_another_layout(spelling: Spelling, layout: str) -> None:
    args, _ = fresh(spelling, layout)
    seen = capture_directly(spelling.program(layout), args)
    (same, _) = fresh(spelling, layout)
    assert_same(seen.result, spelling.program(layout)(*same), tolerance=spelling.alike)
    judge(spelling, seen)


@pytest.mark.slow
@pytest.mark.parametrize(("spelling", "layout"), cases(either))
def test_compiled_once_for_all_sizes(spelling: Spelling, layout: str) -> None:
    """Through Dynamo, with every size a symbol."""
    args, others = fresh(spelling, layout)
    seen = capture(spelling.program(layout), args, again=others if spelling.once else None, dynamic=True)
    check(spelling, layout, seen)
    assert len(seen.graphs) == 1, "compiled anew for another batch and length"
