"""A table of forms of attention and of what is nearly one, each captured in two layouts and held against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from capture import capture_directly
from torch import Tensor

B, H, S, T, D, E, R = 2, 4, 7, 11, 8, 6, 4
SCALE = D**-0.5
Function = Callable[..., Any]


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def qkv() -> tuple[Tensor, ...]:
    return rand(B, H, S, D), rand(B, H, T, D) + 0.1, rand(B, H, T, E)


@dataclass
class Forms:
    """`fused` and `refused` register functions; the tests of a file are `check` and `check_refused` over them."""

    right: dict[str, tuple[Function, tuple[Any, ...], int]] = field(default_factory=dict)
    wrong: dict[str, tuple[Function, tuple[Any, ...], str]] = field(default_factory=dict)
    layouts = ("bhsd", "bshd")

    def fused(self, *args: Any, count: int = 1) -> Callable[[Function], Function]:
        """A form that is `count` attentions."""

        def register(function: Function) -> Function:
            self.right[function.__name__] = (function, args, count)
            return function

        return register

    def refused(self, reason: str, *args: Any) -> Callable[[Function], Function]:
        """What is left alone, for a reason with these words; "" for what is not even nearly an attention."""

        def register(function: Function) -> Function:
            self.wrong[function.__name__] = (function, args, reason)
            return function

        return register

    def check(self, name: str, layout: str) -> None:
        """Fused, with nothing of the softmax left, and equal to the function itself in float64."""
        function, args, count = self.right[name]
        if layout == "bshd":  # heads after the sequence, and symbolic sizes
            function, args = _swapped(function), tuple(_swap(a) for a in args)
        seen = capture_directly(function, args, dynamic=layout == "bshd")
        assert (seen.reasons, len(seen.fused)) == ([], count)
        left = ("softmax", "exp.", "exp2", "logsumexp", "sigmoid", "relu", "tanh")
        assert not [n for g in seen.graphs for n in g.graph.nodes if any(part in str(n.target) for part in left)]
        _assert_close(seen.result, function(*_wide(args)), args)

    def check_refused(self, name: str) -> None:
        """Not fused, for the reason given, and unchanged."""
        function, args, reason = self.wrong[name]
        seen = capture_directly(function, args)
        assert not seen.fused
        assert not seen.attentions()
        assert len(seen.reasons) == bool(reason)
        assert not reason or reason in seen.reasons[0]
        _assert_close(seen.result, function(*_wide(args)), args)


def _swap(value: Any) -> Any:
    return value.transpose(1, 2).contiguous() if isinstance(value, Tensor) and value.ndim == 4 else value


def _swapped(function: Function) -> Function:
    """The function of arguments whose second and third dimensions are swapped."""

    def call(*args: Any) -> Any:
        return function(*(a.transpose(1, 2) if isinstance(a, Tensor) and a.ndim == 4 else a for a in args))

    return call


def _wide(args: tuple[Any, ...]) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]


def _assert_close(actual: Any, expected: Any, args: tuple[Any, ...]) -> None:
    several = isinstance(expected, tuple)
    half = any(isinstance(a, Tensor) and a.dtype == torch.bfloat16 for a in args)
    tolerance = 2e-2 if half else 1e-5
    for a, e in zip(actual if several else [actual], expected if several else [expected], strict=True):
        assert a.shape == e.shape
        torch.testing.assert_close(a.double(), e.double(), atol=tolerance, rtol=tolerance, equal_nan=True)
