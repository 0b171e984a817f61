"""Generated attention programs are fused and right; generated near-attention programs are never fused wrongly."""

from __future__ import annotations

import pytest
import torch
from attention_programs import Program, programs
from capture import capture_directly
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

FEW = settings(
    max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
MANY = settings(
    max_examples=200, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def check(program: Program, dynamic: bool) -> None:
    args = program.inputs()
    seen = capture_directly(program, args, dynamic=dynamic)
    if program.wrong == "dropout":
        assert not seen.fused
        return
    expected = program(*(a.double() if a.is_floating_point() else a for a in args))
    actual, expected = (x if isinstance(x, tuple) else (x,) for x in (seen.result, expected))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e.double(), atol=2e-4, rtol=2e-4, equal_nan=True)
    if program.wrong == "weights masked":
        return  # right where the scores were masked alike
    if program.wrong in ("", "weights returned"):
        assert len(seen.fused) == 1, seen.reasons
    else:
        assert not seen.fused


@given(programs(), st.booleans())
@FEW
def test_attention(program: Program, dynamic: bool) -> None:
    check(program, dynamic)


@given(programs(wrong=True), st.booleans())
@FEW
def test_near_attention(program: Program, dynamic: bool) -> None:
    check(program, dynamic)


@pytest.mark.slow
@given(programs(), st.booleans())
@MANY
def test_attention_at_length(program: Program, dynamic: bool) -> None:
    check(program, dynamic)


@pytest.mark.slow
@given(programs(wrong=True), st.booleans())
@MANY
def test_near_attention_at_length(program: Program, dynamic: bool) -> None:
    check(program, dynamic)
