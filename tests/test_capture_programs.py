"""Generated attention programs are fused and right; generated near-attention programs are never fused wrongly."""

from __future__ import annotations

import warnings

import pytest
import torch
from attention_programs import HARMLESS, PLAIN, Program, programs
from capture import capture_directly
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from attncc.backend import attncc as backend
from attncc.rewrite import UnsoundFusion


def drawn(examples: int) -> settings:
    """The same programs at every run."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def check(program: Program, dynamic: bool, verify: bool) -> None:
    """Right in any case, by the passes alone as well as with the replay behind them; fused where it has to be."""
    if program.wrong == "scores masked by scores" and program.softmax == "without maximum":
        return  # a row of nothing but hidden scores is 0 / 0 there, which the passes alone do not know
    args = program.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if not program.wrong else "ignore", UnsoundFusion)
        seen = capture_directly(program, args, dynamic=dynamic, verify=verify)
    if program.wrong == "dropout":
        assert not seen.fused
        return
    if seen.fused:
        equal_to_float64(program, args, seen.result)
    else:  # float64 may differ by more: sums of fills as large as -1e9 are rounded
        torch.testing.assert_close(seen.result, program(*program.inputs()), atol=0, rtol=0, equal_nan=True)
    if program.wrong:
        assert not seen.fused or program.wrong in HARMLESS
    elif program.result == "out" or (program.result in ("weights", "mean weights") and program.softmax in PLAIN):
        assert len(seen.fused) == 1, seen.reasons


def equal_to_float64(program: Program, args: tuple[torch.Tensor, ...], result: object) -> None:
    expected = program(*(a.double() if a.is_floating_point() else a for a in args))
    actual, expected = (x if isinstance(x, tuple) else (x,) for x in (result, expected))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e.double(), atol=5e-4, rtol=5e-4, equal_nan=True)


@given(programs(), st.booleans(), st.booleans())
@drawn(80)
def test_attention(program: Program, dynamic: bool, verify: bool) -> None:
    check(program, dynamic, verify)


@given(programs(wrong=True), st.booleans(), st.booleans())
@drawn(80)
def test_near_attention(program: Program, dynamic: bool, verify: bool) -> None:
    check(program, dynamic, verify)


@given(programs())
@drawn(4)
def test_through_kernels(program: Program) -> None:
    through_kernels(program)


def through_kernels(program: Program) -> None:
    """What `torch.compile` gives with real kernels."""
    torch._dynamo.reset()
    args = program.inputs()
    with torch.no_grad():
        result = torch.compile(program.__call__, backend=backend)(*args)
    equal_to_float64(program, args, result)


@pytest.mark.slow
@given(programs(), st.booleans(), st.booleans())
@drawn(250)
def test_attention_at_length(program: Program, dynamic: bool, verify: bool) -> None:
    check(program, dynamic, verify)


@pytest.mark.slow
@given(programs(wrong=True), st.booleans(), st.booleans())
@drawn(250)
def test_near_attention_at_length(program: Program, dynamic: bool, verify: bool) -> None:
    check(program, dynamic, verify)


@pytest.mark.slow
@given(programs())
@drawn(40)
def test_through_kernels_at_length(program: Program) -> None:
    through_kernels(program)
