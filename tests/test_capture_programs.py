"""Generated attention programs are fused and right; generated near-attention programs are never fused wrongly."""

from __future__ import annotations

import copy

import pytest
import torch
from attention_programs import HARMLESS, PLAIN, Program, numbered, programs
from capture import Capture, rewritten, traced
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attncc.backend import attncc as backend


def drawn(examples: int) -> settings:
    """The same programs at every run."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def check(program: Program, dynamic: bool) -> None:
    """By the passes alone, which have to be right without it, and with the replay behind them."""
    check_ways(program, dynamic, (False, True))


def check_ways(program: Program, dynamic: bool, ways: tuple[bool, ...]) -> None:
    """With the replay or without it."""
    args = program.inputs()
    graph = traced(program, args, dynamic)
    for verify in ways:
        judge(program, args, rewritten(copy.deepcopy(graph), args, verify=verify))


def judge(program: Program, args: tuple[Tensor, ...], seen: Capture) -> None:
    """Right in any case; fused where it has to be."""
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


@pytest.mark.parametrize("wrong", [False, True], ids=["attention", "near attention"])
def test_drawn_programs(wrong: bool) -> None:
    drawn(15)(given(programs(wrong), st.sampled_from((False, False, False, True)))(check))()


@given(programs())
@drawn(2)
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
@pytest.mark.parametrize("first", range(0, 1200, 100))
@pytest.mark.parametrize("wrong", [False, True], ids=["attention", "near attention"])
def test_many_programs(first: int, wrong: bool) -> None:
    """The programs of these numbers, every fourth with symbolic sizes and every third replayed too."""
    for number in range(first, first + 100):
        program = numbered(number, wrong)
        try:
            check_ways(program, number % 4 == 3, (False, True) if number % 3 == 0 else (False,))
        except Exception as error:
            error.add_note(f"{number}: {program}")
            raise


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 40, 10))
def test_many_programs_through_kernels(first: int) -> None:
    for number in range(first, first + 10):
        through_kernels(numbered(number))
