"""How a program is stated: a function and its inputs. Whatever becomes of it, its result has to be eager's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

B, H, S, T, D = 2, 4, 7, 11, 8
ADVERSITIES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {}
_generator = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator)


def chance(*shape: int, hidden: float) -> Tensor:
    """True with the chance 1 - hidden."""
    return torch.rand(*shape, generator=_generator) > hidden


def whole(low: int, high: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(low, high, shape, generator=_generator)


def qkv() -> tuple[Tensor, ...]:
    return rand(B, H, S, D), rand(B, H, T, D), rand(B, H, T, D)


def weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * 0.35).softmax(-1)


def adversity(*args: Tensor) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        assert function.__name__ not in ADVERSITIES
        ADVERSITIES[function.__name__] = (function, args)
        return function

    return register
