"""Every program of `tests/adversities` gives what eager PyTorch gives, and leaves its inputs as eager does."""

from __future__ import annotations

import warnings

import pytest
import torch
from adversities import ADVERSITIES
from capture import assert_same, capture, capture_directly
from torch import Tensor

from attncc.rewrite import UnsoundFusion


def copies(args: tuple[Tensor, ...]) -> list[Tensor]:
    """Tensors of their own that lie alike; those with a stride of 0 as they are, nothing writes to them."""
    return [x if 0 in x.stride() else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) for x in args]


@pytest.mark.parametrize("name", ADVERSITIES)
def test_right(name: str) -> None:
    function, args = ADVERSITIES[name]
    ours, theirs = copies(args), copies(args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsoundFusion)
        seen = capture_directly(function, ours)
    assert_same(seen.result, function(*theirs), tolerance=2e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADVERSITIES)
def test_right_with_symbolic_sizes(name: str) -> None:
    function, args = ADVERSITIES[name]
    ours, theirs = copies(args), copies(args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsoundFusion)
        seen = capture(function, ours, dynamic=True)
    assert_same(seen.result, function(*theirs), tolerance=2e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
