"""The decode family against the float64 oracle, by kind of attention, by shape and by value."""

from __future__ import annotations

import pytest
import torch
import zoo
from kernel_harness import Case, check, run
from sampling import KINDS, one_in

from attncc.schedules.cpu.decode import Decode, best_splits
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec, Extra
from attncc.target import detect, parse

FAMILY = Decode()
SHORT_BLOCKS = {"keys": 64}
"""Several blocks of keys also where the oracle can follow."""


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    """Every kind of attention, with grouped heads, several rows and more than one key block."""
    check(FAMILY, zoo.case(name, "float32", (2, 2, 3, 150), group=2, decisions=SHORT_BLOCKS))


@pytest.mark.parametrize("name", one_in(2, ["bias", "plain", "bilinear", "additive", "strict causal, finfo.min"]))
def test_kinds_in_bfloat16(name: str) -> None:
    check(FAMILY, zoo.case(name, "bfloat16", (2, 1, 1, 77), strided=True))


@pytest.mark.parametrize(
    ("dtype", "dims", "group"),
    [
        *one_in(2, [("float32", *each) for each in (((128, 128), 4), ((64, 64), 1), ((5, 7), 3), ((1, 1), 1))]),
        *one_in(2, [("bfloat16", *each) for each in (((72, 33), 6), ((64, 64), 1), ((7, 5), 1), ((128, 128), 8))]),
        *one_in(2, [(dtype, (40, 33), 2) for dtype in ("float16", "float64")]),
    ],
)
def test_head_sizes(dtype: str, dims: tuple[int, int], group: int) -> None:
    """Head sizes that are whole vectors, that leave a narrower one, and that are less than one."""
    for sizes in ((1, 2, 1, 77), (2, 3, 2, 300)):
        check(FAMILY, zoo.case("causal", dtype, sizes, dims=dims, group=group, strided=True))


@pytest.mark.parametrize("kv_len", [0, 1, 2, 15, 16, 17, 63, 64, 127, 128, 129, 257, 1009])
def test_lengths(kv_len: int) -> None:
    for threads in (1, 2, 5):
        check(FAMILY, zoo.case("plain", "float32", (1, 1, 1, kv_len), dims=(40, 24), threads=threads))
    short = zoo.case("plain", "bfloat16", (1, 1, 1, kv_len), dims=(40, 24), decisions=SHORT_BLOCKS)
    check(FAMILY, short)


@pytest.mark.parametrize("q_len", [1, 2, 7, 13, 40])
def test_rows(q_len: int) -> None:
    """Any number of rows is right, if not fast."""
    for group in (1, 5, 8):
        check(FAMILY, zoo.case("causal", "float32", (1, 2, q_len, 150), group=group))


def test_many_heads_a_key_head() -> None:
    """Multi-query attention: one key head, and a last chunk of rows that is not full."""
    check(FAMILY, zoo.case("causal", "bfloat16", (2, 1, 1, 200), dims=(64, 64), group=71))


def scaled(case: Case, factor: float) -> Case:
    case.q *= factor
    return case


@pytest.mark.parametrize("factor", [0.0, 1e-30, 300.0, -300.0, 1e30])
def test_large_and_small_scores(factor: float) -> None:
    case = scaled(zoo.case("causal", "float32", (1, 2, 2, 300)), factor)
    if abs(factor) > 1e3:  # scores that no two roundings agree on: the largest wins
        case.k.abs_()
        case.q.abs_()
        case.k[:, :, 37] *= 4
        case = scaled(case, 1.0 if factor > 0 else -1.0)
    check(FAMILY, case)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_not_numbers(value: float, where: str) -> None:
    """NaN and infinities reach the rows they belong to, wherever in a block or split they are."""
    for position in (0, 5, 149, 299):
        case = zoo.case("plain", "float32", (1, 2, 3, 300), group=2)
        tensor = getattr(case, where)
        tensor[0, 1, min(position, tensor.shape[2] - 1), 3] = value
        check(FAMILY, case)


def test_hidden_keys_are_not_read() -> None:
    """NaN in keys that the mask's bounds hide stays out of the result: those blocks are not visited."""
    case = zoo.case("window", "float32", (1, 1, 1, 2000), dims=(32, 32))
    clean = run(FAMILY, case)
    case.k[:, :, :1900] = float("nan")
    case.v[:, :, :1900] = float("nan")
    assert torch.equal(run(FAMILY, case), clean)


DATA = ["padding", "static cache", "sliding cache, finfo.min", "float mask, -inf", "float mask, finfo.min"]


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("threads", one_in(2, [5, 1]))
def test_keys_that_data_hide_are_not_read(name: str, threads: int) -> None:
    """Nor under a finite fill, where every row sees a larger x: what would be read and weigh nothing is NaN here."""
    case = zoo.case(name, "float32", (2, 2, 3, 700), group=2, decisions=SHORT_BLOCKS, threads=threads)
    if name.startswith("float"):
        case.extras = (case.extras[0][:, :, 1:2].expand(-1, -1, 3, -1),)  # no row that sees nothing
    clean = check(FAMILY, case)
    rows, keys = torch.arange(3)[:, None], torch.arange(700)
    seen = {
        "padding": lambda: case.extras[0].any(0),
        "static cache": lambda: (keys <= case.extras[0][:, None]).any(0),
        "sliding cache, finfo.min": lambda: ((keys <= case.extras[0][rows]) & (keys > case.extras[0][rows] - 20)).any(
            0
        ),
    }.get(name, lambda: case.extras[0][0, 0, 1] == 0)()
    if name == "padding":  # each batch its own
        case.k[0, :, : 700 - 175] = case.v[1, :, 233:] = float("nan")
    else:
        case.k[:, :, ~seen] = case.v[:, :, ~seen] = float("nan")
    assert torch.equal(run(FAMILY, case), clean)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "factor"),
    [("causal, finite fill", -1e5), ("sliding cache, finfo.min", 1.0), ("padding, causal, -1e9", 1e8)],
)
def test_a_finite_fill_counts_where_a_row_sees_nothing_larger(name: str, factor: float, threads: int) -> None:
    """Scores below the fill, and rows without a visible key: those heads, and only those, are computed again."""
    case = zoo.case(name, "float32", (2, 2, 3, 400), group=2, decisions=SHORT_BLOCKS, threads=threads)
    check(FAMILY, case)
    if name.startswith("sliding"):
        case.extras[0][1] = -1  # sees nothing
    else:
        case.q.abs_()
        case.k.abs_()
        case.q[1] *= factor if factor < 0 else -factor
        case.q[1, :, :, 1:] = case.k[1, :, :, 1:] = 0  # one term: no rounding that two orders of addition disagree on
        case.k[1, :, 7, 0] *= 4
    check(FAMILY, case)


def test_a_cache_as_long_as_memory_has_it_costs_what_is_filled() -> None:
    """Positions read from a tensor of one element, of no dimension, and by batch: bounds, not a search."""
    from attncc import expr as ex
    from attncc.algorithm.visibility import row_bounds, visible

    for index in ((), (ex.Const(0, "int64"),), (ex.Index("b"),), (ex.Index("i"),), (ex.Index("b"), ex.Index("i"))):
        read = ex.Load("t0", index, "int64")
        spec = AttentionSpec(
            "float32", 8, 8, mask=ex.op("le", zoo.KEY, read), extras=(Extra("t0", "int64", len(index)),)
        )
        assert visible(spec) is None
        assert (row_bounds(spec) is not None) == (ex.Index("i") in index)


@pytest.mark.parametrize("name", ["relu, causal", "weights, NaN rows", "weights, finite fill"])
def test_weights_of_divided_keys(name: str) -> None:
    """Every weight is given, also of keys that no split visits; undivided tiles keep their statistics too."""
    for threads in (1, 2, 5):
        check(FAMILY, zoo.case(name, "float32", (1, 1, 3, 700), group=2, decisions=SHORT_BLOCKS, threads=threads))


def test_splits_agree() -> None:
    """The number of splits changes the order of additions and nothing else."""
    case = zoo.case("causal", "float32", (1, 1, 1, 1000), dims=(64, 64))
    outs = []
    for threads in (1, 3, 8):
        case.threads = threads
        outs.append(check(FAMILY, case))
    assert max((out - outs[0]).abs().max().item() for out in outs) < 1e-5


@pytest.mark.parametrize(
    "decisions",
    one_in(
        2,
        [
            {"row_chunk": 3},
            {"key_rows": 4},
            {"key_chunk": 1, "key_rows": 1},
            {"column_sets": 1},
            {"value_rows": 64, "least_split": 1024},
            {"strands": 8, "key_chunk": 8, "keys": 64},
            {"ahead": 0},
            {"ahead": 500, "row_chunk": 1, "value_rows": 2},
        ],
    ),
)
def test_decisions(decisions: dict[str, int]) -> None:
    check(FAMILY, zoo.case("causal", "float32", (1, 2, 2, 150), dims=(40, 56), group=4, decisions=decisions))


@pytest.mark.parametrize(
    ("dtype", "group", "asks"),
    [
        ("float32", 1, (True, False)),
        ("float32", 4, (True, True)),
        ("bfloat16", 2, (False, True)),
        ("bfloat16", 4, (True, True)),
        ("float16", 1, (False, True)),
    ],
)
def test_memory_is_asked_for_ahead(dtype: str, group: int, asks: tuple[bool, bool]) -> None:
    """With 32 registers where rows share keys, or are long; with 16 where they share keys, or are converted."""
    spec = zoo.case("plain", dtype, (1, group, 1, 8), dims=(64, 64), group=group).spec
    for name, expected in zip(("znver4", "znver3"), asks, strict=True):
        target = parse(name)
        text = FAMILY.module(spec, target, FAMILY.decisions(spec, target)).script()
        assert ("attncc_prefetch" in text) == expected, name


@pytest.mark.parametrize(("name", "copies"), [("znver3", 2), ("znver4", 0)])
def test_scales_by_key_are_copied_with_16_registers(name: str, copies: int) -> None:
    spec, target = zoo.case("int8 cache, scales by token", "float32", (1, 1, 1, 8)).spec, parse(name)
    text = FAMILY.module(spec, target, FAMILY.decisions(spec, target)).script()
    assert text.count('sblock("copy_by_key') == copies


def test_bad_decisions() -> None:
    spec = zoo.case("plain", "float32", (1, 1, 1, 8)).spec
    good = FAMILY.decisions(spec, detect())
    with pytest.raises(ValueError, match="multiple of"):
        FAMILY.module(spec, detect(), {**good, "keys": 100})


@pytest.mark.parametrize("text", one_in(2, ["llvm -mcpu=x86-64", "llvm -mcpu=x86-64-v3"]))
def test_other_targets(text: str) -> None:
    """Kernels for lesser CPUs of this architecture, run here."""
    target = parse(text)
    for dtype in ("float32", "bfloat16", "float64"):
        check(FAMILY, zoo.case("soft cap", dtype, (1, 2, 2, 100), dims=(40, 24), group=2), target)


def test_module_is_deterministic() -> None:
    spec = zoo.case("alibi", "float32", (1, 1, 1, 8)).spec
    texts = {FAMILY.module(spec, detect(), FAMILY.decisions(spec, detect())).script() for _ in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("dtype", "head_dim", "group", "rows"),
    [("float32", 64, 4, 15), ("float32", 128, 4, 24), ("float32", 128, 8, 16), ("bfloat16", 64, 2, 9),
     ("bfloat16", 64, 4, 12), ("bfloat16", 64, 8, 9)],
)  # fmt: skip
def test_rows_that_it_suits(dtype: str, head_dim: int, group: int, rows: int) -> None:
    """Up to so many: with one more, prefill is faster."""
    spec = zoo.case("plain", dtype, (1, group, 1, 8), dims=(head_dim, head_dim), group=group).spec
    suited = [n for n in range(1, 40) if FAMILY.suits(spec, Problem(1, 4 * group, n, 4096, 2))]
    assert suited == list(range(1, rows + 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_rows(dtype: str) -> None:
    check(FAMILY, zoo.case("causal", dtype, (1, 3, 24, 150), dims=(72, 40), group=3))


def test_splits() -> None:
    """As few as keep all threads busy, and none for short caches."""
    assert best_splits(32, 4096, 2) == 1
    assert best_splits(1, 4096, 2) == 2
    assert best_splits(3, 4096, 2) == 2
    assert best_splits(1, 300, 2) == 1
    assert best_splits(1, 70, 2, least=32) == 2
    assert best_splits(1, 4096, 16) == 16
    assert best_splits(8, 0, 16) == 1
    assert best_splits(1, 4096, 16, least=1024) == 4


def test_launch() -> None:
    """Tiles by batch, key head and split; fractions meet without gap."""
    spec = zoo.case("plain", "float32", (1, 1, 1, 8), group=2).spec
    launch = FAMILY.launch(spec, FAMILY.decisions(spec, detect()), Problem(1, 6, 1, 4096, 2))
    assert launch.work.tolist() == [[0, g, part << 19, (part + 1) << 19] for g in range(3) for part in range(2)]
    assert launch.workspaces == ((3, 2, 2, 16), (3, 2, 2), (3, 2, 2), (3, 2, 2))


def test_launch_deals_out_heads_whose_lengths_only_data_tell() -> None:
    """Batches sorted by length would otherwise leave all the work to the last thread."""
    spec = zoo.case("padding", "float32", (1, 1, 1, 8)).spec
    launch = FAMILY.launch(spec, FAMILY.decisions(spec, detect()), Problem(6, 1, 1, 4096, 2))
    assert [row[0] for row in launch.work.tolist()] == [0, 2, 4, 1, 3, 5]


def test_offsets_beyond_two_to_the_31() -> None:
    """Heads 2^31 elements apart, in 4 GiB of memory of which two pages are ever touched."""
    case = zoo.case("plain", "bfloat16", (1, 2, 1, 50))
    far = torch.empty(2**31 + 50 * 16, dtype=torch.bfloat16).as_strided((1, 2, 50, 16), (0, 2**31, 16, 1))
    far.copy_(case.k)
    case.k = far
    check(FAMILY, case)
