"""Codes become the numbers that they stand for, every one of them; and scales of any size keep their digits."""

from __future__ import annotations

from pathlib import Path

import cuda_emulation
import pytest
import torch
from kernel_harness import Case, assert_near, make_case, mixed
from zoo import KEY, SCALED, B, H, load

from attncc import reference
from attncc.runtime.eager import torch_dtype
from attncc.schedules.cuda.families import Decode
from attncc.spec import AttentionSpec, Extra

pytestmark = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
EVERY = torch.arange(256, dtype=torch.uint8)


def run(case: Case, folder: Path) -> torch.Tensor:
    (out,) = cuda_emulation.run(Decode(), case, folder)
    return out


@pytest.mark.parametrize(
    ("kept", "dtype"),
    [
        ("int8", "float16"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("int8", "bfloat16"),
                ("float8_e4m3fn", "float16"),
                ("float8_e4m3fn", "bfloat16"),
                ("float8_e5m2", "bfloat16"),
            )
        ),
    ],
)
def test_every_code(kept: str, dtype: str, tmp_path: Path) -> None:
    """One key, whose value is the result; four batches, so that a code meets every place in a register."""
    case = make_case(AttentionSpec(dtype, 16, 256, value_dtype=kept), 4, 1, 1, 1)
    case.v = torch.stack([EVERY.roll(shift) for shift in range(4)]).view(4, 1, 1, 256).view(torch_dtype(kept))
    out, expected = run(case, tmp_path), case.v.float()
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0, equal_nan=True)


def test_scales_that_float16_does_not_reach(tmp_path: Path) -> None:
    """Weights times scales of 1e-6 to 1e-9 would be 0 in float16, and with them the results of large numbers."""
    scaled = {
        "value_dtype": "float8_e5m2",
        "value_scale": load("t0", B, H, KEY),
        "extras": (Extra("t0", "float32", 3),),
    }
    case = make_case(AttentionSpec("float16", 16, 16, 2, score_mod=SCALED, **scaled), 1, 1, 1, 300)  # type: ignore[arg-type]
    case.v = (torch.randn(case.v.shape) * 8192).to(torch.float8_e5m2)
    case.extras = (torch.logspace(-9, -5, 300).expand(1, 2, -1),)
    expected = reference.attention(case.spec, case.q, case.k, case.v, case.extras)
    assert_near(case.spec, run(case, tmp_path), expected, mixed(case))
