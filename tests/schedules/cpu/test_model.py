"""The analytic model of a CPU, the decisions that come from it, and the spaces that tuning searches around them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import zoo
from kernel_harness import check

from attncc.schedules import CPU, Family
from attncc.schedules.cpu import model
from attncc.schedules.cpu.decode import Decode
from attncc.schedules.cpu.prefill_amx import PrefillAmx
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import PrefillFp32
from attncc.schedules.cpu.short import MOST_KEYS, Short
from attncc.target import detect, parse

TARGETS = ("x86-64", "haswell", "znver4", "sapphirerapids", "neoverse-v1", "apple-m2")
FP32, BF16, DECODE = PrefillFp32(), PrefillBf16(), Decode()


def test_columns() -> None:
    """Register tiles divide the value head where a large enough divisor exists."""
    sizes = (1, 5, 7, 64, 72, 80, 100, 97)
    assert [model.columns(size, 8) for size in sizes] == [1, 5, 7, 8, 8, 8, 5, 8]


def test_key_blocks_fit_the_cache() -> None:
    """A step's keys are halved until what it touches fits L2, and are never fewer than an edge's."""
    target = replace(parse("znver4"), l2=1 << 20)
    specs = [zoo.case("plain", "float32", (1, 1, 8, 8), dims=(d, d)).spec for d in (64, 256, 576)]
    sizes = [FP32.decisions(spec, target)["key_block"] for spec in specs]
    small = [FP32.decisions(spec, replace(target, l2=256 << 10))["key_block"] for spec in specs]
    assert sizes == [128, 128, 64] and small == [128, 32, 32]


def test_windows_have_wider_edges() -> None:
    """Where both ends of what a tile sees move with it: of one end, or none, most steps are full ones."""
    found = {}
    for name in ("plain", "causal", "window", "padding"):
        for family, dtype in ((FP32, "float32"), (BF16, "bfloat16")):
            spec = zoo.case(name, dtype, (1, 1, 8, 8), dims=(64, 64)).spec
            decisions = family.decisions(spec, replace(parse("znver4"), l2=1 << 20))
            found[name, dtype] = decisions["key_block"], decisions["edge_block"]
    assert found == {
        **{(name, "float32"): (128, 32) for name in ("plain", "causal", "padding")},
        **{(name, "bfloat16"): (256, 32) for name in ("plain", "causal", "padding")},
        ("window", "float32"): (128, 64),
        ("window", "bfloat16"): (128, 64),
    }


@pytest.mark.parametrize(
    ("family", "dtype", "text", "expected"),
    [
        (FP32, "float32", "znver4", (64, 128, 2, 8, 8)),
        (BF16, "bfloat16", "znver4", (64, 256, 2, 8, 8)),
        (FP32, "float32", "haswell", (48, 128, 3, 4, 4)),
        (FP32, "float32", "neoverse-v1", (64, 128, 2, 8, 8)),
    ],
)
def test_sizes_of_known_machines(family: Family, dtype: str, text: str, expected: tuple[int, ...]) -> None:
    """What the model gives for heads of 64 and 1 MiB of L2: on Zen 4 these were the fastest measured."""
    target = replace(parse(text), l2=1 << 20)
    found = family.decisions(zoo.case("plain", dtype, (1, 1, 8, 8), dims=(64, 64)).spec, target)
    assert tuple(found[name] for name in ("query_block", "key_block", "vectors", "key_rows", "columns")) == expected


@pytest.mark.parametrize("text", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_defaults_are_in_the_space(text: str, dtype: str) -> None:
    for l2 in (128 << 10, 2 << 20):
        target = replace(parse(text), l2=l2)
        for dims in ((64, 64), (40, 72), (7, 5), (576, 512)):
            spec = zoo.case("plain", dtype, (1, 1, 8, 8), dims=dims).spec
            for family in (family for family in CPU if family.declines(spec, target) is None):
                space, default = family.space(spec, target), family.decisions(spec, target)
                assert space.keys() == default.keys()
                assert all(default[name] in choices for name, choices in space.items()), family.name
                assert all(list(choices) == sorted(set(choices)) for choices in space.values())


def check_points(family: Family, dtype: str, count: int, text: str = "cpu") -> None:
    """Random points of the space build, and compute the attention."""
    target, pick = parse(text), random.Random(0)
    keys = MOST_KEYS - 1 if isinstance(family, Short) else 300
    case = zoo.case("causal", dtype, (1, 2, 70 if family.regime == "prefill" else 3, keys), dims=(64, 24), group=2)
    if family.declines(case.spec, target) is not None:
        pytest.skip(f"{family.name} is not for this machine")
    space = family.space(case.spec, target)
    for _ in range(count):
        case.decisions = {name: pick.choice(choices) for name, choices in space.items()}
        check(family, case, target)


@pytest.mark.parametrize(("family", "dtype"), [(FP32, "float32"), (BF16, "bfloat16"), (DECODE, "float32")])
def test_points_of_the_space(family: Family, dtype: str) -> None:
    check_points(family, dtype, 2)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["cpu", "x86-64-v3", "x86-64"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("family", CPU, ids=lambda family: family.name)
def test_many_points_of_the_space(family: Family, dtype: str, text: str) -> None:
    if detect().arch != "x86_64" and text != "cpu":
        pytest.skip("for x86")
    check_points(family, dtype, 6, text)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["sapphirerapids", "apple-m2"])
def test_points_of_emulated_machines(text: str) -> None:
    check_points(PrefillAmx() if text == "sapphirerapids" else BF16, "bfloat16", 4, text)
