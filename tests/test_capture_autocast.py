"""Modes of PyTorch around attention: autocast inside and outside of the function, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from capture import assert_same, capture
from torch import Tensor


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


ARGS = (rand(2, 4, 7, 8), rand(2, 4, 9, 8), rand(2, 4, 9, 8) + 0.1, rand(8, 8))


def eager(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    return ((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2).reshape(2, 7, -1) * 2


def projected(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    return ((F.linear(q, w) @ (k @ w).mT * 0.3).softmax(-1) @ v) + 1


def call(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q @ w, k, v)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("function", [eager, projected, call])
def test_autocast_inside(function, dynamic: bool) -> None:
    def inside(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = function(*args)
        return y

    seen = capture(inside, ARGS, dynamic=dynamic)
    assert [f.spec.dtype for f in seen.fused] == ["bfloat16"]
    assert_same(seen.result, inside(*ARGS))


@pytest.mark.parametrize("function", [eager, projected, call])
def test_autocast_outside(function) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        seen = capture(function, ARGS)
        assert [f.spec.dtype for f in seen.fused] == ["bfloat16"]
        assert_same(seen.result, function(*ARGS))


def test_autocast_switched_off_inside() -> None:
    def inside(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return eager(*args)

    with torch.autocast("cpu", torch.bfloat16):
        seen = capture(inside, ARGS)
        assert [f.spec.dtype for f in seen.fused] == ["float32"]
        assert_same(seen.result, inside(*ARGS))


def test_a_region_that_ends_between_score_and_output() -> None:
    def half(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = q @ k.mT
        return x.float().softmax(-1) @ v

    seen = capture(half, ARGS)
    assert not seen.fused
    assert "a mode of PyTorch" in seen.reasons[0]
    assert_same(seen.result, half(*ARGS))


def test_with_gradients_to_be_taken() -> None:
    args = [x.clone().requires_grad_() for x in ARGS]
    seen = capture(projected, args, grad=True)
    assert [f.requires_grad for f in seen.fused] == [True]
    assert_same(seen.result.detach(), projected(*ARGS))
