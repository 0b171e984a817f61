"""Attention with a gradient cut inside of it: fused only where that changes no gradient, as for the row's maximum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capture import capture
from forms import qkv
from torch import Tensor


def detached_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q.detach() @ k.mT).softmax(-1) @ v


def detached_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1).detach() @ v


def detached_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ k.mT / 4).exp()
    return (e @ v) / e.sum(-1, keepdim=True).detach()


def detached_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = q @ k.mT
    e = (x - x.detach().amax(-1, keepdim=True)).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


@pytest.mark.parametrize("function", [detached_queries, detached_weights, detached_sum, detached_maximum])
def test_gradients_are_those_of_the_original(function: Callable[..., Tensor]) -> None:
    ours, theirs = ([x.clone().requires_grad_() for x in qkv()] for _ in range(2))
    seen = capture(function, ours, grad=True)
    assert bool(seen.fused) == (function is detached_maximum)
    if not seen.fused:
        assert "a gradient is cut" in seen.reasons[0]
    seen.result.sin().sum().backward()
    function(*theirs).sin().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


def test_without_gradients_nothing_is_cut() -> None:
    assert len(capture(detached_weights, qkv()).fused) == 1
