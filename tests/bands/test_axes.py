"""Axes are carried through a step, or the walk is told what they have to be."""

from __future__ import annotations

import pytest

from attncc.bands.axes import Axes, Axis, MustBeConcrete, MustSplit
from attncc.passes.refused import Refused

B, H = Axis(2, "b"), Axis(3, "h")


def test_a_reshape_carries_axes_that_it_keeps_whole() -> None:
    axes = Axes()
    assert axes.regrouped(((B,), (H,), (Axis(12),)), (6, 3, 4)) == ((B, H), (Axis(3),), (Axis(4),))
    assert axes.regrouped(((B, H), (Axis(3),), (Axis(4),)), (2, 3, 1, 12)) == ((B,), (H,), (), (Axis(12),))


def test_a_reshape_splits_a_carried_axis_and_cuts_across_no_other() -> None:
    axes = Axes()
    with pytest.raises(MustSplit) as split:
        axes.regrouped(((Axis(12, "e"),),), (3, 4))
    assert (split.value.name, split.value.inner) == ("e", 4)
    assert axes.again(split.value).fresh("e", 12) == (Axis(3, "e.outer"), Axis(4, "e.inner"))
    with pytest.raises(MustBeConcrete) as cut:
        axes.regrouped(((Axis(4, "b"),), (Axis(6),)), (3, 8))
    assert axes.again(cut.value).fresh("b", 4) == (Axis(4),)


def test_axes_that_meet_are_one() -> None:
    axes = Axes()
    assert axes.join((B, H), (Axis(2, "c"), Axis(3, "g"))) == (B, H)
    assert axes.root("c") == axes.root("b") != axes.root("h") == axes.root("g")
    assert axes.join((), (B,)) == (B,)
    with pytest.raises(MustSplit):
        axes.join((B, H), (Axis(6, "bh"),))
    with pytest.raises(MustBeConcrete):
        axes.join((B,), (Axis(2),))
    with pytest.raises(MustBeConcrete):  # x + x.T: at one position, two of one axis
        axes.check_distinct(((B,), (Axis(2, "c"),)))


def test_an_axis_that_became_concrete_takes_those_along_that_it_met() -> None:
    axes = Axes()
    axes.join((B,), (Axis(2, "c"),))
    assert axes.again(MustBeConcrete(["b"])).fresh("c", 2) == (Axis(2),)


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(Refused):
        Axes().regrouped(((Axis(4),),), (2,) * 3)
