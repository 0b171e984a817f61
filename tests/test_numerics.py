"""Every kernel against float64, over drawn specs, shapes, dtypes, strides, offsets and masks.

The oracle is written out in NumPy, in float64 or better. The bar is the one that the README states: an error of at
most twice that of PyTorch's own SDPA in the same dtype, plus two units in the last place of the largest |v|. Outputs
are poisoned: PyTorch fills what `torch.empty` returns with NaN under deterministic algorithms.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import attncc

LENGTHS = st.sampled_from([1, 2, 3, 5, 7, 13, 16, 31, 32, 33, 61, 64, 97, 127, 128, 129, 191, 257])
HEAD_DIMS = st.sampled_from([1, 2, 7, 8, 16, 24, 32, 40, 64, 72, 80, 96, 100, 128])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
MASKS = st.sampled_from(["none", "causal", "bool", "bool_row", "float", "inf", "one_row", "all", "finfo_min"])
LAYOUTS = st.sampled_from(["bhsd", "bshd", "offset", "heads_strided", "last_dim_strided"])


@dataclass(frozen=True)
class Case:
    """One drawn call."""

    dtype: torch.dtype
    batch: int
    kv_heads: int
    group: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    mask: str
    layout: str
    magnitude: float
    seed: int


CASES = st.builds(
    Case, DTYPES, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]), LENGTHS, LENGTHS,
    HEAD_DIMS, HEAD_DIMS, MASKS, LAYOUTS, st.sampled_from([1.0, 1.0, 30.0]), st.integers(0, 10),
)  # fmt: skip


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def tensor(case: Case, heads: int, length: int, dim: int, g: torch.Generator) -> Tensor:
    """A [B, heads, length, dim] view of the layout that the case asks for, in memory full of NaN elsewhere."""
    b, values = case.batch, torch.randn(case.batch, heads, length, dim, generator=g)
    nan = float("nan")
    match case.layout:
        case "bshd":
            view = torch.full((b, length, heads, dim), nan, dtype=case.dtype).transpose(1, 2)
        case "offset":
            view = torch.full((b * heads * length * dim + 1,), nan, dtype=case.dtype)[1:].view(b, heads, length, dim)
        case "heads_strided":
            view = torch.full((b, heads, 2, length, dim + 3), nan, dtype=case.dtype)[:, :, 1, :, 1 : dim + 1]
        case "last_dim_strided":
            view = torch.full((b, heads, length, dim, 2), nan, dtype=case.dtype)[..., 1]
        case _:
            view = torch.full((b, heads, length, dim), nan, dtype=case.dtype)
    return view.copy_(values)


def mask_of(case: Case, g: torch.Generator) -> Tensor | None:
    """The attn_mask of a case: boolean (True is seen) or additive in the dtype of the inputs."""
    shape = (case.q_len, case.kv_len)
    keep = torch.rand(*shape, generator=g) < 0.6
    keep[:, 0] = True
    match case.mask:
        case "bool":
            return keep.expand(case.batch, 1, *shape)
        case "bool_row":
            return keep[:1]
        case "float":
            return torch.randn(case.batch, case.kv_heads * case.group, *shape, generator=g).to(case.dtype)
        case "inf":
            return torch.zeros(shape, dtype=case.dtype).masked_fill(~keep, float("-inf"))
        case "one_row":
            keep[case.q_len // 2] = False
            return keep
        case "all":
            return torch.zeros(shape, dtype=torch.bool)
        case "finfo_min":
            keep[case.q_len // 2] = False
            return torch.zeros(shape, dtype=case.dtype).masked_fill(~keep, torch.finfo(case.dtype).min)
    return None


def bar(actual: Tensor, expected: Tensor, sdpa: Tensor, v: Tensor) -> tuple[float, float]:
    """The error of `actual` and the largest that is allowed."""
    ulp = torch.finfo(v.dtype).eps * v.abs().max().item()
    error = (actual.double() - expected).abs().max().item()
    return error, 2 * (sdpa.double() - expected).abs().max().item() + 2 * ulp


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, case: Case) -> Tensor:
    """The attention in NumPy's extended precision, which is finer than float64 where it can be, rounded to float64."""
    q, k, v = (t.double() for t in (q, k.repeat_interleave(case.group, 1), v.repeat_interleave(case.group, 1)))
    wide = [t.numpy().astype(np.longdouble) for t in (q, k, v)]
    x = np.einsum("bhid,bhjd->bhij", wide[0], wide[1]) / np.sqrt(np.longdouble(case.head_dim))
    if case.mask == "causal":
        mask = torch.ones(case.q_len, case.kv_len, dtype=torch.bool).tril()
    if mask is not None:
        bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask
        x = x + bias.double().numpy()
    top = x.max(-1, keepdims=True)
    p = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = p.sum(-1, keepdims=True)
    return torch.from_numpy((np.einsum("bhij,bhje->bhie", p, wide[2]) / np.where(total == 0, 1, total)).astype(float))


def errors(case: Case) -> tuple[float, float]:
    """The error of attncc on a case and the largest that is allowed."""
    g = torch.Generator().manual_seed(case.seed)
    heads = case.kv_heads * case.group
    q = tensor(case, heads, case.q_len, case.head_dim, g).mul_(case.magnitude)
    k = tensor(case, case.kv_heads, case.kv_len, case.head_dim, g)
    v = tensor(case, case.kv_heads, case.kv_len, case.value_dim, g)
    mask = mask_of(case, g)
    call = {"attn_mask": mask, "is_causal": case.mask == "causal", "enable_gqa": case.group > 1}
    expected = exact(q, k, v, mask, case)
    sdpa = F.scaled_dot_product_attention(q, k, v, **call)
    actual = attncc.attention(q, k, v, **call)
    assert actual.shape == expected.shape and actual.dtype == case.dtype
    torch.testing.assert_close(actual.isnan(), expected.isnan())
    return bar(actual.nan_to_num(), expected.nan_to_num(), sdpa.nan_to_num(), v)


def check(case: Case) -> None:
    """One call against the bar.

    In a call of few outputs the largest error is luck, SDPA's as well as ours: where a call is over its bar, what
    SDPA's error is for such inputs is taken from eight more draws of them.
    """
    error, allowed = errors(case)
    if error > allowed:
        allowed = max(allowed, *(errors(replace(case, seed=case.seed + n))[1] for n in range(100, 108)))
    assert error <= allowed, f"error {error:.3e} over {allowed:.3e} in {case}"


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CASES)
def test_drawn_calls_meet_the_accuracy_bar(case: Case) -> None:
    check(case)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CASES)
def test_many_more_drawn_calls_meet_the_accuracy_bar(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("q_len", "kv_len"), [pytest.param(1000, 1009, marks=pytest.mark.slow), (1, 4099), (1023, 1)])
def test_long_sequences(dtype: torch.dtype, q_len: int, kv_len: int) -> None:
    check(Case(dtype, 1, 2, 2, q_len, kv_len, 64, 64, "none", "bshd", 1.0, 0))
    check(Case(dtype, 1, 2, 1, q_len, kv_len, 80, 48, "causal", "bhsd", 1.0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("q_len", [1, 40])
def test_scores_of_800_overflow_nothing(dtype: torch.dtype, q_len: int) -> None:
    q = torch.zeros(1, 1, q_len, 16, dtype=dtype)
    q[..., 0] = 100.0
    k = torch.zeros(1, 1, 50, 16, dtype=dtype)
    k[:, :, ::3, 0], k[:, :, 1::3, 0] = 8.0, -8.0
    v = torch.randn(1, 1, 50, 16).to(dtype)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1.0)
    actual = attncc.attention(q, k, v, scale=1.0)
    error, allowed = bar(actual, expected, F.scaled_dot_product_attention(q, k, v, scale=1.0), v)
    assert error <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("q_len", [1, 37])
def test_nan_reaches_the_rows_it_belongs_to(dtype: torch.dtype, q_len: int) -> None:
    q, k, v = (torch.randn(1, 2, n, 16).to(dtype) for n in (q_len, 70, 70))
    q[0, 0, q_len // 2, 3] = float("nan")  # one query row of head 0
    k[0, 1, 69, 5] = float("nan")  # a key that every row of head 1 sees
    out = attncc.attention(q, k, v)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.isnan(), expected.isnan())
    v[0, 0, 69, 2] = float("nan")  # one column of every row of head 0
    assert attncc.attention(q, k, v)[0, 0, :, 2].isnan().all()


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)])
def test_sizes_of_zero_give_what_pytorch_gives(sizes: tuple[int, int, int, int]) -> None:
    b, h, sq, skv = sizes
    q, k, v = torch.randn(b, h, sq, 8), torch.randn(b, h, skv, 8), torch.randn(b, h, skv, 8)
    expected = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attncc.attention(q, k, v), expected, equal_nan=True)
