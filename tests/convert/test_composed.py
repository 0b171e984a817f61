"""Operators that make a part of a score or mask: each is said in the IR, so that the kernel needs no tensor for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture import assert_same, capture_directly
from torch import Tensor

S = 7
Q, K, V = (torch.randn(2, 3, S, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))


def diagonal(x: Tensor) -> Tensor:
    return x.masked_fill(torch.eye(S, dtype=torch.bool), -torch.inf)


def written_triangle(x: Tensor) -> Tensor:
    mask = torch.zeros(S, S)
    mask[torch.ones(S, S).triu(1).bool()] = -torch.inf
    return x + mask


def written_scores(x: Tensor) -> Tensor:
    x[(torch.arange(S)[:, None] < torch.arange(S)).expand(2, 3, S, S)] = -torch.inf
    return x


def add_product(x: Tensor) -> Tensor:
    return torch.addcmul(torch.zeros(S, S), x, torch.full((), 2.0), value=0.3)


def add_quotient(x: Tensor) -> Tensor:
    return torch.addcdiv(torch.zeros(S, S), x, torch.full((), 2.0), value=0.3)


def interpolated(x: Tensor) -> Tensor:
    return torch.lerp(x, torch.zeros(S, S), 0.3)


@pytest.mark.parametrize(
    "change", [diagonal, written_triangle, written_scores, add_product, add_quotient, interpolated]
)
def test_no_tensor_is_read(change: Callable[[Tensor], Any]) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return change(q @ k.mT).softmax(-1) @ v

    seen = capture_directly(attend, (Q, K, V))
    (found,) = seen.fused
    assert found.spec is not None and not found.spec.extras
    assert_same(seen.result, attend(Q, K, V))


def test_a_write_at_computed_positions_is_left_alone() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = q @ k.mT
        x[:, :, torch.arange(3), torch.arange(3)] = -1e9
        return x.softmax(-1) @ v

    seen = capture_directly(attend, (Q, K, V))
    assert not seen.fused and len(seen.reasons) == 1
    assert_same(seen.result, attend(Q, K, V))
