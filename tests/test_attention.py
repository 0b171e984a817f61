"""`attncc.attention` against PyTorch's SDPA and FlexAttention: every argument, rank, broadcast, mask and function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sampling import one_in
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from attncc import modfn
from attncc.attention import attention
from attncc.runtime.stats import stats


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def assert_as_good(got: Tensor, rival: Tensor, exact: Tensor) -> None:
    """The accuracy bar: at most twice the rival's error, plus two roundings of the largest element."""
    assert got.shape == exact.shape and got.dtype == rival.dtype
    # The float64 "exact" values carry roundings of their own, which count when the result is float64 too.
    roundings = 16 if got.dtype == torch.float64 else 2
    rounding = roundings * torch.finfo(got.dtype).eps * exact.abs().max().item()
    bar = 2 * (rival.double() - exact).abs().max().item() + rounding
    assert (got.double() - exact).abs().max().item() <= bar


def against_sdpa(q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    wide = {n: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in arguments.items()}
    exact = sdpa(q.double(), k.double(), v.double(), **wide)
    got = attention(q, k, v, **arguments)
    assert_as_good(got, sdpa(q, k, v, **arguments), exact)
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("causal", one_in(2, [True, False]))
def test_sdpa_dtypes(dtype: torch.dtype, causal: bool) -> None:
    q, k, v = rand(2, 3, 37, 40, dtype=dtype), rand(2, 3, 53, 40, dtype=dtype), rand(2, 3, 53, 24, dtype=dtype)
    assert against_sdpa(q, k, v, is_causal=causal).dtype == dtype


@pytest.mark.parametrize(
    ("q", "k", "v"),
    one_in(
        2,
        [
            ((5, 8), (7, 8), (7, 8)),
            ((3, 5, 8), (3, 7, 8), (3, 7, 4)),
            ((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 4)),
            ((2, 2, 3, 5, 8), (1, 2, 3, 7, 8), (2, 1, 3, 7, 4)),
            ((2, 3, 5, 8), (3, 7, 8), (7, 4)),
            ((2, 3, 5, 8), (1, 3, 7, 8), (2, 3, 7, 4)),
            ((2, 3, 5, 8), (2, 1, 7, 8), (2, 1, 7, 4)),
            ((2, 3, 5, 8), (2, 3, 7, 8), (2, 1, 7, 4)),
            ((2, 1, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)),
            ((1, 3, 5, 8), (4, 3, 7, 8), (4, 3, 7, 4)),
            ((2, 3, 5, 1), (2, 3, 7, 1), (2, 3, 7, 1)),
        ],
    ),
)
def test_ranks_and_broadcasting(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    against_sdpa(rand(*q), rand(*k), rand(*v))
    against_sdpa(rand(*q), rand(*k), rand(*v), is_causal=True, scale=0.3)


@pytest.mark.parametrize(("heads", "keys", "values"), [(4, 2, 2), (6, 1, 1), (4, 4, 4), (4, 2, 1), (4, 1, 4)])
def test_grouped_heads(heads: int, keys: int, values: int) -> None:
    against_sdpa(rand(2, heads, 5, 8), rand(2, keys, 9, 8), rand(2, values, 9, 8), enable_gqa=True)
    against_sdpa(rand(heads, 5, 8), rand(keys, 9, 8), rand(values, 9, 8), enable_gqa=True)


MASKS = [(5, 7), (1, 7), (5, 1), (3, 5, 7), (3, 1, 7), (2, 3, 5, 7), (2, 1, 1, 7), (1, 1, 5, 7), (2, 1, 5, 7)]


@pytest.mark.parametrize(
    ("shape", "dtype"), [*one_in(3, [(shape, torch.float32) for shape in MASKS]), ((3, 5, 7), torch.bfloat16)]
)
def test_masks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = rand(2, 3, 5, 8, dtype=dtype), rand(2, 3, 7, 8, dtype=dtype), rand(2, 3, 7, 8, dtype=dtype)
    keep = torch.rand(shape) > 0.4
    against_sdpa(q, k, v, attn_mask=keep)
    against_sdpa(q, k, v, attn_mask=torch.where(keep, rand(*shape), -math.inf).to(dtype))
    if dtype == torch.bfloat16:
        against_sdpa(q, k, v, attn_mask=rand(*shape))  # float32 beside bfloat16 is allowed


@pytest.mark.parametrize("shape", [(5, 7), (3, 1, 7), (2, 1, 5, 7), (2, 1, 3, 5, 7), (1, 2, 1, 5, 1)])
def test_masks_of_rank_five(shape: tuple[int, ...]) -> None:
    against_sdpa(rand(2, 2, 3, 5, 8), rand(2, 2, 3, 7, 8), rand(2, 2, 3, 7, 8), attn_mask=torch.rand(shape) > 0.4)


def test_a_row_without_keys_is_zero_as_in_sdpa() -> None:
    q, k, v = rand(1, 2, 4, 8), rand(1, 2, 6, 8), rand(1, 2, 6, 8)
    keep = torch.ones(4, 6, dtype=torch.bool)
    keep[2] = False
    for mask in (keep, torch.zeros(4, 6).masked_fill(~keep, -math.inf)):
        out = against_sdpa(q, k, v, attn_mask=mask)
        assert (out[:, :, 2] == 0).all() and not (out == 0).all()


def test_nan_reaches_its_rows_only() -> None:
    q, k, v = rand(1, 2, 4, 8), rand(1, 2, 6, 8), rand(1, 2, 6, 8)
    q[0, 1, 2, 3] = math.nan
    rows = attention(q, k, v).isnan()
    assert rows[0, 1, 2].all() and rows.sum() == 8


@pytest.mark.parametrize(
    "shapes",
    [
        ((0, 2, 3, 4), (0, 2, 5, 4), (0, 2, 5, 4)),
        ((2, 0, 3, 4), (2, 0, 5, 4), (2, 0, 5, 4)),
        ((2, 2, 0, 4), (2, 2, 5, 4), (2, 2, 5, 4)),
        ((2, 2, 3, 4), (2, 2, 0, 4), (2, 2, 0, 4)),
        ((2, 2, 3, 0), (2, 2, 5, 0), (2, 2, 5, 4)),
        ((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 0)),
        ((0, 4), (3, 4), (3, 4)),
    ],
)
def test_sizes_of_zero(shapes: tuple[tuple[int, ...], ...]) -> None:
    q, k, v = (rand(*shape) for shape in shapes)
    expected = sdpa(q, k, v)
    torch.testing.assert_close(attention(q, k, v), expected)
    torch.testing.assert_close(attention(q, k, v, is_causal=True), sdpa(q, k, v, is_causal=True))


def test_output_is_laid_out_like_query() -> None:
    q, k, v = (rand(2, 5, 3, 8).transpose(1, 2) for _ in range(3))
    out = attention(q, k, v)
    assert out.stride() == q.stride() == sdpa(q, k, v).stride()
    assert attention(*(t.contiguous() for t in (q, k, v))).is_contiguous()


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("query_dim", [8, 12])
def test_bilinear(per_head: bool, query_dim: int) -> None:
    q, k, v = rand(2, 4, 5, query_dim), rand(2, 2, 7, 8), rand(2, 2, 7, 6)
    w = rand(4, query_dim, 8) if per_head else rand(query_dim, 8)
    out = attention(q, k, v, enable_gqa=True, bilinear=w)
    rival = sdpa(q @ w, k, v, enable_gqa=True)
    assert_as_good(out, rival, sdpa(q.double() @ w.double(), k.double(), v.double(), enable_gqa=True))


def soft_cap(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return 5.0 * torch.tanh(score / 5.0)


def alibi(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score + torch.exp2(-(h + 1) * 0.5) * (j - i)


def window(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i - j < 3) & (j <= i)


TABLE = torch.linspace(-1, 1, 31)
SLOPES = torch.tensor([0.1, 0.2, 0.4, 0.8])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 2, 2, 2]])

SCORE_MODS: dict[str, Callable[..., Any]] = {
    "soft cap": soft_cap,
    "alibi": alibi,
    "captured vector": lambda s, b, h, i, j: s + SLOPES[h] * (j - i).abs(),
    "relative bias": lambda s, b, h, i, j: s + TABLE[i - j + 15],
    "negative index wraps": lambda s, b, h, i, j: s + TABLE[-1 - j],
    "2-d table": lambda s, b, h, i, j: s * DOCUMENTS[b, i] + DOCUMENTS[b][j],
    "where and clamp": lambda s, b, h, i, j: torch.where(i % 2 == 0, s.clamp(-1, 1), s - j // 2),
    "inf": lambda s, b, h, i, j: torch.where(j <= i, s, -float("inf")),
    "logic": lambda s, b, h, i, j: torch.where((i > 1).logical_and(~(j == 2)) | (h == 0), s, s * 0.5 - 1),
}
MASK_MODS: dict[str, Callable[..., Any]] = {
    "causal": lambda b, h, i, j: i >= j,
    "window": window,
    "documents": lambda b, h, i, j: DOCUMENTS[b, i] == DOCUMENTS[b, j],
    "prefix": lambda b, h, i, j: (j < 4) | (j <= i),
    "heads": lambda b, h, i, j: (h % 2 == 0) | (j <= i),
    "nothing": lambda b, h, i, j: j < 0,
}


@pytest.mark.parametrize("name", one_in(2, SCORE_MODS))
def test_score_mod_like_flex_attention(name: str) -> None:
    mod = SCORE_MODS[name]
    q, k, v = rand(2, 4, 9, 16), rand(2, 2, 9, 16), rand(2, 2, 9, 16)
    exact = flex_attention(q.double(), k.double(), v.double(), score_mod=mod, enable_gqa=True)
    rival = flex_attention(q, k, v, score_mod=mod, enable_gqa=True)
    assert_as_good(attention(q, k, v, score_mod=mod, enable_gqa=True), rival, exact)


@pytest.mark.parametrize("name", one_in(2, MASK_MODS))
def test_mask_mod_like_flex_attention(name: str) -> None:
    mod = MASK_MODS[name]
    q, k, v = rand(2, 4, 9, 16), rand(2, 4, 9, 16), rand(2, 4, 9, 16)
    block = create_block_mask(mod, 2, 4, 9, 9, device="cpu")
    exact = flex_attention(q.double(), k.double(), v.double(), block_mask=block)
    rival = flex_attention(q, k, v, block_mask=block)
    assert_as_good(attention(q, k, v, mask_mod=mod), rival, exact)


def test_everything_at_once() -> None:
    """score_mod on the scaled score, then the additive mask; the two other masks must both agree."""
    q, k, v = rand(2, 4, 9, 16), rand(2, 2, 9, 12), rand(2, 2, 9, 16)
    w, bias = rand(16, 12), rand(2, 1, 9, 9)
    out = attention(q, k, v, bias, scale=0.2, enable_gqa=True, score_mod=soft_cap, mask_mod=window, bilinear=w)
    i, j = torch.arange(9)[:, None], torch.arange(9)
    score = (q.double() @ w.double() @ k.double().repeat_interleave(2, 1).transpose(-1, -2)) * 0.2
    score = 5 * torch.tanh(score / 5) + bias
    exact = score.masked_fill(~((i - j < 3) & (j <= i)), -math.inf).softmax(-1) @ v.double().repeat_interleave(2, 1)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


def test_captured_values_are_never_stale() -> None:
    """Changes in place, of closures and of globals all count at the next call."""
    q, k, v = rand(1, 1, 4, 8), rand(1, 1, 4, 8), rand(1, 1, 4, 8)
    bias, factor = torch.zeros(4), 1.0

    def mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score * factor + bias[j]

    class Holder:
        factor = 1.0

        def __call__(self, score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score * self.factor

    torch.testing.assert_close(attention(q, k, v, score_mod=mod), sdpa(q, k, v))
    bias += torch.arange(4)
    torch.testing.assert_close(attention(q, k, v, score_mod=mod), sdpa(q, k, v, attn_mask=bias.expand(4, 4)))
    factor = 0.5
    expected = sdpa(q, k, v, attn_mask=bias.expand(4, 4), scale=0.5 / math.sqrt(8))
    torch.testing.assert_close(attention(q, k, v, score_mod=mod), expected)
    bias = torch.zeros(4)
    torch.testing.assert_close(attention(q, k, v, score_mod=mod), sdpa(q, k, v, scale=0.5 / math.sqrt(8)))
    holder = Holder()
    torch.testing.assert_close(attention(q, k, v, score_mod=holder), sdpa(q, k, v))
    holder.factor = 0.0
    torch.testing.assert_close(attention(q, k, v, score_mod=holder), sdpa(q, k, v, scale=0.0))


def test_gradients_reach_every_operand() -> None:
    table = rand(4, dtype=torch.float64).requires_grad_()
    operands = [rand(1, 2, 2, 2), rand(1, 1, 3, 3), rand(1, 1, 3, 2), rand(2, 3), rand(2, 3)]
    leaves = [t.double().requires_grad_() for t in operands]

    def call(q: Tensor, k: Tensor, v: Tensor, w: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        def mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.tanh(s) * table[i - j + 2]

        return attention(q, k, v, bias, enable_gqa=True, bilinear=w, score_mod=mod)

    assert torch.autograd.gradcheck(call, (*leaves, table))
    assert torch.autograd.gradgradcheck(call, (*leaves, table), fast_mode=True)


def test_one_tensor_in_three_roles_gets_one_gradient() -> None:
    x = rand(1, 1, 5, 8).requires_grad_()
    (got,) = torch.autograd.grad(attention(x, x, x).square().sum(), x)
    (expected,) = torch.autograd.grad(sdpa(x, x, x).square().sum(), x)
    torch.testing.assert_close(got, expected)


def test_masked_rows_have_finite_gradients() -> None:
    q, k, v = (rand(1, 1, 4, 8).requires_grad_() for _ in range(3))
    attention(q, k, v, torch.tensor([True, False, True, True])[:, None].expand(4, 4)).sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in (q, k, v))


def test_modes() -> None:
    q, k, v = rand(1, 2, 4, 8).requires_grad_(), rand(1, 2, 6, 8), rand(1, 2, 6, 8)
    expected = sdpa(q, k, v)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = attention(q, k, v)
            assert not out.requires_grad
            torch.testing.assert_close(out, expected.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v).dtype == sdpa(q, k, v).dtype == torch.bfloat16
    meta = attention(*(t.detach().to("meta") for t in (q, k, v)))
    assert meta.device.type == "meta" and meta.shape == expected.shape


def test_functional_transforms() -> None:
    q, k, v = rand(3, 2, 2, 4, 8), rand(2, 2, 6, 8), rand(3, 2, 2, 6, 8)
    mapped = torch.func.vmap(attention, in_dims=(0, None, 0))(q, k, v)
    expected = torch.stack([sdpa(q[n], k, v[n]) for n in range(3)])
    torch.testing.assert_close(mapped, expected)

    def loss(function: Callable[..., Tensor], q: Tensor) -> Tensor:
        return function(q, k, v[0]).square().sum()

    torch.testing.assert_close(
        torch.func.grad(lambda q: loss(attention, q))(q[0]), torch.func.grad(lambda q: loss(sdpa, q))(q[0])
    )


BAD: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "rank 1": (ValueError, "query.*at least 2", lambda: attention(rand(4), rand(4), rand(4))),
    "head sizes": (
        ValueError,
        r"4.*3.*query \[2, 3, 5, 4\]",
        lambda: attention(rand(2, 3, 5, 4), *[rand(2, 3, 7, 3)] * 2),
    ),
    "key and value lengths": (
        ValueError,
        "7 keys and 6 values",
        lambda: attention(rand(2, 5, 4), rand(2, 7, 4), rand(2, 6, 4)),
    ),
    "heads": (ValueError, "enable_gqa", lambda: attention(rand(2, 4, 5, 4), *[rand(2, 2, 7, 4)] * 2)),
    "head count": (
        ValueError,
        "3 key heads do not divide 4",
        lambda: attention(rand(2, 4, 5, 4), *[rand(2, 3, 7, 4)] * 2, enable_gqa=True),
    ),
    "batches": (ValueError, "do not broadcast", lambda: attention(rand(2, 4, 5, 4), *[rand(3, 4, 7, 4)] * 2)),
    "dtypes": (TypeError, "float32.*float64", lambda: attention(rand(5, 4), *[rand(7, 4, dtype=torch.float64)] * 2)),
    "integers": (TypeError, "int64", lambda: attention(*[torch.ones(5, 4, dtype=torch.int64)] * 3)),
    "devices": (ValueError, "meta", lambda: attention(rand(5, 4), *[rand(7, 4).to("meta")] * 2)),
    "mask shape": (
        ValueError,
        r"attn_mask \[5, 6\]",
        lambda: attention(rand(5, 4), rand(7, 4), rand(7, 4), torch.ones(5, 6, dtype=torch.bool)),
    ),
    "mask rank": (
        ValueError,
        "more dimensions",
        lambda: attention(rand(5, 4), rand(7, 4), rand(7, 4), torch.ones(1, 5, 7, dtype=torch.bool)),
    ),
    "mask dtype": (
        TypeError,
        "attn_mask is torch.int32",
        lambda: attention(rand(5, 4), rand(7, 4), rand(7, 4), torch.ones(5, 7, dtype=torch.int32)),
    ),
    "mask and causal": (
        ValueError,
        "is_causal",
        lambda: attention(rand(5, 4), rand(7, 4), rand(7, 4), torch.ones(5, 7, dtype=torch.bool), is_causal=True),
    ),
    "bilinear": (ValueError, "bilinear", lambda: attention(*[rand(5, 4)] * 3, bilinear=rand(5, 4))),
    "not a tensor": (TypeError, "key is a list", lambda: attention(rand(5, 4), [1.0], rand(5, 4))),  # type: ignore[arg-type]
    "unsupported operator": (
        NotImplementedError,
        "aten.cumsum",
        lambda: attention(*[rand(5, 4)] * 3, score_mod=lambda s, b, h, i, j: s + torch.cumsum(s, 0)),
    ),
    "branch on a value": (
        ValueError,
        "torch.where",
        lambda: attention(*[rand(5, 4)] * 3, score_mod=lambda s, b, h, i, j: s if i > j else -s),
    ),
    "mask_mod not boolean": (
        TypeError,
        "not bool",
        lambda: attention(*[rand(5, 4)] * 3, mask_mod=lambda b, h, i, j: i - j),
    ),
    "table too short": (
        ValueError,
        "reads up to element 4",
        lambda: attention(*[rand(5, 4)] * 3, score_mod=lambda s, b, h, i, j: s + SLOPES[j]),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_before_anything_runs(name: str) -> None:
    kind, says, call = BAD[name]
    with pytest.raises(kind, match=says):
        call()


def test_functions_are_traced_again_only_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function made anew at each call, over new tensors and numbers, costs no new kernel and, if alike, no trace."""
    traces = []
    trace = modfn.trace
    monkeypatch.setattr(modfn, "trace", lambda *args: traces.append(1) or trace(*args))
    q, k, v = rand(1, 2, 6, 8), rand(1, 2, 6, 8), rand(1, 2, 6, 8)

    def call(table: Tensor, cap: float, width: int) -> None:
        def mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return cap * torch.tanh(s / cap) + table[h, j]

        def near(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i - j).abs() < width

        i, j = torch.arange(6)[:, None], torch.arange(6)
        score = (q @ k.transpose(-1, -2)) / math.sqrt(8)
        score = (cap * torch.tanh(score / cap) + table[:, None]).masked_fill((i - j).abs() >= width, -math.inf)
        torch.testing.assert_close(attention(q, k, v, score_mod=mod, mask_mod=near), score.softmax(-1) @ v)

    stats(reset=True)
    for cap, width, traced in ((3.0, 3, 2), (3.0, 3, 2), (4.0, 3, 3), (4.0, 4, 4), (3.0, 3, 4)):
        call(rand(2, 6), cap, width)
        call(rand(2, 6), cap, width)
        assert len(traces) <= 2 * traced
    assert len(stats().kernels) == 1


def test_a_call_that_is_remembered_is_not_taken_for_another() -> None:
    """The second call with the same tensors finds its plan at once; one that differs in anything must not find that."""
    q, k, v = rand(2, 4, 12, 16), rand(2, 4, 12, 16), rand(2, 4, 12, 16)
    for _ in range(2):
        against_sdpa(q, k, v)
        against_sdpa(q, k, v, is_causal=True)
        against_sdpa(q, k, v, scale=0.3)
        against_sdpa(q, k[:, :2], v[:, :2], enable_gqa=True)
        against_sdpa(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)))
        against_sdpa(*(t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v)))
        against_sdpa(*(t.bfloat16() for t in (q, k, v)))
        against_sdpa(q[:1], k, v)
        out, lse = attention(q, k, v, return_lse=True)
        torch.testing.assert_close(out, attention(q, k, v))
        torch.testing.assert_close(lse, (q @ k.mT / 4).logsumexp(-1))
        mask = torch.ones(12, 12).tril().bool()
        torch.testing.assert_close(attention(q, k, v, mask), attention(q, k, v, is_causal=True))
    with pytest.raises(TypeError):
        attention(q, k.bfloat16(), v)
    learnt = q.clone().requires_grad_()
    attention(learnt, k, v).sum().backward()
    assert learnt.grad is not None and not attention(q, k, v).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v).dtype == torch.bfloat16
