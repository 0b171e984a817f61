"""The prefill families against the float64 oracle: by kind of attention, by shape, by dtype and by value."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
import zoo
from hypothesis import strategies as st
from kernel_harness import Case, check, make_case, run
from sampling import KINDS, drawn, one_in
from zoo import KEY, ROW, SCALED, H, load, whole

from attncc import expr as ex
from attncc.schedules import Family, Problem
from attncc.schedules.cpu.fallback import Fallback
from attncc.schedules.cpu.prefill_bf16 import PrefillBf16
from attncc.schedules.cpu.prefill_fp32 import NEVER, PrefillFp32
from attncc.schedules.cpu.work import alternate, tile_costs
from attncc.spec import AttentionSpec, Extra
from attncc.target import detect, parse

FP32, BF16 = PrefillFp32(), PrefillBf16()
DTYPES = ("float32", "bfloat16", "float16", "float64")
HAS_BF16 = "avx512bf16" in detect().features
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no AVX512-BF16")


def family_of(dtype: str) -> Family:
    return BF16 if dtype == "bfloat16" and HAS_BF16 else FP32


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    """Every kind of attention, with grouped heads, two tiles of queries and several key blocks."""
    check(FP32, zoo.case(name, "float32", (2, 2, 83, 300), group=2))


@needs_bf16
@pytest.mark.parametrize(
    "name",
    [
        "alibi", "boolean mask", "bias", "window by head", "bilinear by head", "causal, NaN rows",
        "sink of some rows", "sigmoid", "statistics", "weights, NaN rows", "sliding cache, finfo.min",
    ],
)  # fmt: skip
def test_kinds_in_bfloat16(name: str) -> None:
    check(BF16, zoo.case(name, "bfloat16", (2, 1, 83, 300), group=2, strided=True))


@pytest.mark.parametrize(("dims", "dtype"), one_in(5, itertools.product([(1, 1), (2, 7), (40, 72)], DTYPES)))
def test_head_sizes(dims: tuple[int, int], dtype: str) -> None:
    """Head sizes of whole and of part vectors, odd ones, and value heads of another size."""
    family = FP32 if dims[0] % 2 else family_of(dtype)
    check(family, zoo.case("causal", dtype, (1, 2, 70, 150), dims=dims, strided=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dims", [(7, 5), (64, 80), (100, 96), (192, 128), (256, 256), (576, 512), (97, 97)])
def test_large_head_sizes(dtype: str, dims: tuple[int, int]) -> None:
    family = FP32 if dims[0] % 2 else family_of(dtype)
    check(family, zoo.case("causal", dtype, (1, 2, 70, 150), dims=dims, strided=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", one_in(2, ["causal", "strict causal, finfo.min"]))
def test_lengths(name: str, dtype: str) -> None:
    """Lengths around the tiles' own, primes, and none: one kernel for all, no read past an end."""
    lengths = (1, 2, 31, 63, 64, 65, 127, 128, 129, 257)
    for q_len in (1, 64, 65, 131):
        for kv_len in (0, *lengths):
            check(family_of(dtype), zoo.case(name, dtype, (1, 1, q_len, kv_len)))
    check(family_of(dtype), zoo.case(name, dtype, (1, 2, 1009, 1013)))


@drawn(
    8,
    25,
    name=st.sampled_from(
        ["causal", "window", "relative bias", "boolean mask", "bias", "causal, finite fill", "documents"]
    ),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 200), st.integers(0, 300)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    strided=st.booleans(),
    threads=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_any_sizes(
    name: str, sizes: tuple[int, int, int, int], dtype: str, strided: bool, threads: int, seed: int
) -> None:
    if name == "documents":  # positions of queries must be positions of keys
        sizes = (*sizes[:2], min(sizes[2], sizes[3]) or 1, max(sizes[2:]))
    check(family_of(dtype), zoo.case(name, dtype, sizes, strided=strided, threads=threads, seed=seed))


@pytest.mark.parametrize("factor", [0.0, 1e-30, 300.0, -300.0])
@pytest.mark.parametrize("name", one_in(2, ["causal", "plus one", "strict causal, finfo.min", "sink by head"]))
def test_large_and_small_scores(name: str, factor: float) -> None:
    """Scores up to ±1000 and more, which exp alone would not survive."""
    case = zoo.case(name, "float32", (1, 2, 70, 300))
    case.q *= factor
    case.k = case.k.round()  # large scores that float32 holds exactly
    case.q = case.q.round(decimals=1) if abs(factor) < 1 else case.q.round()
    check(FP32, case)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    one_in(2, itertools.product(("float32", "bfloat16"), ((1, 2, 131, 257), (1, 1, 1, 1), (2, 1, 13, 7)))),
)
def test_weights_of_any_length(dtype: str, sizes: tuple[int, int, int, int]) -> None:
    """Weights are turned in squares of 16; what is left over at the ends is written too, and nothing past them."""
    check(family_of(dtype), zoo.case("weights, NaN rows", dtype, sizes))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_sinks_that_are_no_numbers(value: float) -> None:
    case = zoo.case("sink of some rows", "float32", (1, 2, 83, 300))
    case.extras[0][0, 1, 40] = value
    check(FP32, case)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_not_numbers(value: float, where: str, dtype: str) -> None:
    """NaN and infinities reach the rows they belong to, wherever in a block they are, and no others."""
    for position in (0, 69, 299):
        case = zoo.case("plain", dtype, (1, 2, 70, 300), group=2)
        tensor = getattr(case, where)
        tensor[0, 1, min(position, tensor.shape[2] - 1), 3] = value
        check(family_of(dtype), case)


def test_hidden_blocks_are_not_visited() -> None:
    """NaN in keys that the mask's bounds hide stays out of the result."""
    case = zoo.case("window", "float32", (1, 1, 64, 2000))
    clean = run(FP32, case)
    case.k[:, :, :1700] = float("nan")
    case.v[:, :, :1700] = float("nan")
    assert torch.equal(run(FP32, case), clean)


@drawn(
    8,
    40,
    name=st.sampled_from(
        ["boolean mask", "documents", "padding, causal, -1e9", "static cache", "float mask, finfo.min"]
    ),
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 200), st.integers(1, 900)),
    grain=st.sampled_from([1, 8, 32, 100, 300]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    seed=st.integers(0, 1000),
)
def test_block_structures(name: str, sizes: tuple[int, int, int, int], grain: int, dtype: str, seed: int) -> None:
    """Masks of hidden, full and mixed blocks of any size, by row, by key and by both, and rows that see nothing."""
    if name == "documents":  # positions of queries must be positions of keys
        sizes = (*sizes[:2], min(sizes[2:]), max(sizes[2:]))
    case = zoo.case(name, dtype, sizes, seed=seed)
    case.extras = [blocky(name, case, grain, torch.Generator().manual_seed(seed))]
    check(family_of(dtype), case)


def blocky(name: str, case: Case, grain: int, generator: torch.Generator) -> torch.Tensor:
    """What the attention `name` reads, in blocks of `grain` positions: visible, hidden and mixed ones."""
    (batch, heads, q_len, _), kv_len = case.q.shape, case.k.shape[2]

    def blocks(most: int, *shape: int) -> torch.Tensor:
        values = torch.randint(0, most, [-(-size // grain) for size in shape], generator=generator)
        for dim, size in enumerate(shape):
            values = values.repeat_interleave(grain, dim).narrow(dim, 0, size)
        return values

    def visible(*shape: int) -> torch.Tensor:
        kinds = blocks(3, *shape)
        return torch.where(kinds == 2, torch.rand(shape, generator=generator) < 0.5, kinds == 1)

    match name:
        case "documents":
            return blocks(4, kv_len).int().expand(batch, -1)
        case "padding, causal, -1e9":
            return visible(kv_len).expand(batch, -1)
        case "static cache":
            return blocks(kv_len + 1, q_len) - 1
        case "float mask, finfo.min":
            low = torch.finfo(torch.float32).min
            return torch.where(visible(q_len, kv_len), 0.5, low).expand(batch, heads, -1, -1)
    return visible(q_len, kv_len).expand(batch, heads, -1, -1)


ORDERS, LENGTHS = ((0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)), ((70, 300), (16, 32), (131, 17), (1, 1))


@pytest.mark.parametrize(("order", "lengths"), one_in(5, itertools.product(ORDERS, LENGTHS)))
def test_tensors_by_row_and_key(order: tuple[int, int, int], lengths: tuple[int, int]) -> None:
    """Biases and masks of every dtype, with keys next to each other in memory, or rows, or heads; some hide blocks."""
    kinds = ("float32", "float16", "bfloat16", "float64", "bool", "uint8", "int64")
    reads = [load(f"t{n}", H, ROW, KEY, dtype=kind) for n, kind in enumerate(kinds)]
    biases = [ex.op("cast", each, dtype="float32") for each in reads[:4]]
    positive = [ex.op("gt", each, whole(0)) for each in reads[5:]]
    fields = {
        "score_mod": functools.reduce(functools.partial(ex.op, "add"), biases, SCALED),
        "mask": functools.reduce(functools.partial(ex.op, "or", dtype="bool"), positive, reads[4]),
        "extras": tuple(Extra(f"t{n}", kind, 3) for n, kind in enumerate(kinds)),
    }
    shape, generator = (2, *lengths), torch.Generator().manual_seed(0)
    extras = []
    for kind in kinds:
        values = torch.randn(shape, generator=generator)
        if kind in ex.FLOATS:
            values[:, :, 40:90] = -torch.inf if kind == "float16" else torch.finfo(torch.bfloat16).min
        else:
            values = values.sign() * (torch.arange(lengths[1]) // 50 % 2)
        values = values.clamp_min(0) if kind == "uint8" else values
        where = [order.index(dim) for dim in range(3)]
        extras.append(values.to(getattr(torch, kind)).permute(order).contiguous().permute(where))
    spec = AttentionSpec("float32", 16, 16, **fields)
    check(FP32, make_case(spec, 1, 2, *lengths, extras=extras))


@pytest.mark.parametrize(("rows", "columns"), one_in(2, [(8, 32), (4, 64), (20, 24), (16, 16)]))
def test_tiles_of_any_size_are_turned(rows: int, columns: int) -> None:
    """Squares of 16 that a tensor has but the tile has not were turned all the same, over whatever lay behind it."""
    decisions = {"query_block": rows, "key_block": columns}
    check(Fallback(), zoo.case("float mask, finfo.min", "float32", (1, 2, 58, 269), decisions=decisions))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_biases_count_in_rows_that_see_nothing_else(dtype: str) -> None:
    """A row under finfo.min alone gives what the formula gives, though other rows of its tile leave the keys out."""
    case = zoo.case("float mask, finfo.min", dtype, (1, 1, 70, 600))
    case.extras = [case.extras[0].clone()]
    case.extras[0][..., 300:] = torch.finfo(torch.float32).min
    case.extras[0][..., 50:, :] = torch.finfo(torch.float32).min
    check(family_of(dtype), case)


def test_finite_fill_counts_hidden_keys_where_it_must() -> None:
    """Scores far below the fill: the masked keys win, so blocks that the bounds hide are visited after all."""
    case = zoo.case("causal, finite fill", "float32", (1, 1, 64, 600))
    case.q = case.q.abs() * -3e5
    case.k = case.k.abs()
    check(FP32, case)


@pytest.mark.parametrize(
    "decisions",
    [
        {"vectors": 4, "key_rows": 6, "columns": 4, "key_block": 96, "edge_block": 24},
        {"vectors": 1, "key_rows": 16, "query_block": 16},
        {"columns": 10},
        {"copy_keys": 1, "copy_values": 1, "deal_from": 1},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decisions(dtype: str, decisions: dict[str, int]) -> None:
    """Every point of the space is right, if not as fast."""
    if detect().vector_bits != 512:
        pytest.skip("these decisions are for 512-bit vectors")
    strided = "copy_keys" in decisions
    case = zoo.case("causal", dtype, (1, 2, 70, 300), dims=(40, 20), decisions=decisions, strided=strided)
    check(family_of(dtype), case)


def test_bad_decisions() -> None:
    spec = zoo.case("plain", "float32", (1, 1, 8, 8)).spec
    good = FP32.decisions(spec, detect())
    with pytest.raises(ValueError, match="do not fit"):
        FP32.module(spec, detect(), {**good, "key_block": good["key_rows"] + 1})
    half = zoo.case("plain", "float16", (1, 1, 8, 8)).spec
    with pytest.raises(ValueError, match="are copied"):
        FP32.module(half, detect(), {**FP32.decisions(half, detect()), "copy_values": 0})


@pytest.mark.parametrize("text", one_in(2, ["llvm -mcpu=x86-64", "llvm -mcpu=x86-64-v3"]))
def test_other_targets(text: str) -> None:
    """Kernels for lesser CPUs of this architecture, run here."""
    target = parse(text)
    for dtype in ("float32", "bfloat16", "float64"):
        check(FP32, zoo.case("soft cap", dtype, (1, 2, 50, 100), dims=(40, 24)), target)


def test_declined() -> None:
    """A refusal says why."""
    spec = zoo.case("plain", "bfloat16", (1, 1, 8, 8), dims=(7, 7)).spec
    odd = BF16.declines(spec, parse("llvm -mcpu=znver4"))
    assert odd is not None and "odd" in odd.reason
    old = BF16.declines(spec, parse("llvm -mcpu=x86-64-v3"))
    assert old is not None and "AVX512-BF16" in old.reason
    additive = BF16.declines(zoo.case("additive", "bfloat16", (1, 1, 8, 8)).spec, parse("llvm -mcpu=znver4"))
    assert additive is not None and "multiplies q by k" in additive.reason


@pytest.mark.parametrize("deal_from", [1, NEVER])
def test_work_is_complete_and_balanced(deal_from: int) -> None:
    """Every tile once; each thread's run of a causal head is about as heavy as the others'."""
    spec = zoo.case("causal", "float32", (1, 1, 8, 8), group=2).spec
    for problem in (Problem(1, 2, 4096, 4096, 2), Problem(2, 4, 1000, 1300, 3), Problem(1, 2, 1, 0, 4)):
        work = FP32.launch(spec, {"query_block": 64, "deal_from": deal_from}, problem).work
        blocks = -(-problem.q_len // 64)
        assert work.dtype == np.int32
        expected = [
            (b, h // 2, h, i) for b in range(problem.batch) for h in range(problem.heads) for i in range(blocks)
        ]
        assert sorted(map(tuple, work.tolist())) == expected
        costs = tile_costs(spec, 64, problem)[work[:, 3]]
        parts = [part.sum() for part in np.array_split(costs, problem.threads)]
        assert max(parts) - min(parts) <= 2 * costs.max()


def test_work_that_is_dealt_out() -> None:
    """Threads, whose runs TVM makes as long as the first, are at the same head, and take heavy tiles in turn."""
    spec = zoo.case("causal", "float32", (1, 1, 8, 8)).spec
    work = FP32.launch(spec, {"query_block": 64, "deal_from": 256}, Problem(1, 2, 256, 256, 3)).work
    runs = [[tuple(row) for row in work[first : first + 3, 2:].tolist()] for first in range(0, 8, 3)]
    assert runs == [[(0, 3), (1, 2), (1, 1)], [(0, 2), (1, 3), (1, 0)], [(0, 1), (0, 0)]]


def test_heads_beyond_l2_are_dealt_out() -> None:
    """As the model says: from 2048 keys of 64 columns in float32 on where L2 has 1 MiB; never under a window."""
    target = parse("znver4")
    plain, window = (
        zoo.case(name, "float32", (1, 1, 8, 8), dims=(64, 64)).spec for name in ("plain", "window by head")
    )
    assert FP32.decisions(plain, target)["deal_from"] == target.l2 // 512
    assert FP32.decisions(window, target)["deal_from"] == NEVER
    for kv_len, first in ((target.l2 // 512 - 1, [0, 1]), (target.l2 // 512, [0, 3])):
        work = FP32.launch(plain, FP32.decisions(plain, target), Problem(1, 2, 256, kv_len, 2)).work
        assert work[:2, 3].tolist() == first


def test_work_under_masks_that_are_data() -> None:
    """Each thread gets heads of all batches where padding differs, and late rows with early ones where rows differ."""
    padded = zoo.case("padding", "float32", (1, 1, 8, 8)).spec
    work = FP32.launch(padded, {"query_block": 64, "deal_from": NEVER}, Problem(2, 2, 128, 128, 2)).work
    assert [{int(b) for b in part[:, 0]} for part in np.array_split(work, 2)] == [{0, 1}, {0, 1}]
    tensor = zoo.case("boolean mask", "float32", (1, 1, 8, 8)).spec
    work = FP32.launch(tensor, {"query_block": 64, "deal_from": NEVER}, Problem(1, 1, 256, 256, 2)).work
    assert work[:, 3].tolist() == [3, 0, 2, 1]


def test_alternate() -> None:
    assert alternate(np.array([1, 2, 3, 4, 5])).tolist() == [4, 0, 3, 1, 2]
    assert alternate(np.array([3, 3, 3])).tolist() == [0, 1, 2]


def test_offsets_beyond_two_to_the_31() -> None:
    """Heads 2^31 elements apart, in 8 GiB of memory of which two pages are ever touched."""
    case = zoo.case("plain", "float32", (1, 2, 40, 50))
    far = torch.empty(2**31 + 50 * 16, dtype=torch.float32).as_strided((1, 2, 50, 16), (0, 2**31, 16, 1))
    far.copy_(case.k)
    case.k = far
    check(FP32, case)


def test_mask_beyond_positions_costs_the_same_everywhere() -> None:
    spec = zoo.case("key lengths", "float32", (1, 1, 8, 8)).spec
    assert set(tile_costs(spec, 64, Problem(1, 1, 256, 100, 2)).tolist()) == {100}
    assert isinstance(spec.mask, ex.Expr)
