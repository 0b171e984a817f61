"""`attncc.attention` over quantised caches, against float64 attention over what the codes and scales stand for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from sampling import one_in
from torch import Tensor

from attncc import attention, stats

CODES = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
KINDS: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {
    "one number": lambda b, g, s: (),
    "by head": lambda b, g, s: (g,),
    "by batch and head": lambda b, g, s: (b, g),
    "by token": lambda b, g, s: (b, g, s),
}


def quantised(values: Tensor, dtype: torch.dtype, scale: Tensor) -> Tensor:
    """The codes nearest to values [B, G, S, D] over a scale that broadcasts to [B, G, S]."""
    scaled = values / scale_of(scale)
    if dtype == torch.int8:
        return scaled.round().clamp(-127, 127).to(dtype)
    return scaled.clamp(-448, 448).to(dtype)


def scale_of(scale: Tensor | None) -> Tensor | float:
    """A scale as a factor of [B, G, S, D], by the ranks of `attncc.attention`."""
    if scale is None:
        return 1.0
    shape = {0: (1, 1, 1, 1), 1: (1, -1, 1, 1), 2: (*scale.shape, 1, 1), 3: (*scale.shape, 1)}
    return scale.double().reshape(shape[scale.ndim])


def check(
    q: Tensor, k: Tensor, v: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, *, causal: bool = False
) -> Tensor:
    """Error against float64 over the dequantised cache: that of a cache of plain numbers, in the dtype of q."""
    group = q.shape[1] // k.shape[1]
    keys, values = (
        (t.double() * scale_of(scale)).repeat_interleave(group, 1) for t, scale in ((k, k_scale), (v, v_scale))
    )
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), keys, values, is_causal=causal)
    before = stats()
    out = attention(q, k, v, is_causal=causal, enable_gqa=True, k_scale=k_scale, v_scale=v_scale)
    after = stats()
    assert out.dtype == q.dtype
    assert after.fallbacks == before.fallbacks and after.copies == before.copies
    ulp = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-52}[q.dtype]
    rounding = 16 if q.dtype in (torch.float32, torch.float64) else 3
    error = (out.double() - expected).abs().max().item()
    assert error <= rounding * ulp * values.abs().max().item(), error
    return out


def cache(dtype: torch.dtype, kind: str, sizes: tuple[int, int, int], width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes [B, G, S, width], as a view of [B, S, G, width] memory, and their scales."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, length = sizes
    values = torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)
    largest = 3.0 / (127 if dtype == torch.int8 else 400)
    scale = (0.5 + torch.rand(KINDS[kind](*sizes), generator=generator)) * largest
    return quantised(values, dtype, scale).transpose(1, 2).contiguous().transpose(1, 2), scale


@pytest.mark.parametrize(
    ("dtype", "kind"),
    one_in(3, [*((code, "by token") for code in CODES), *((torch.int8, kind) for kind in list(KINDS)[:3])]),
)
def test_decode_and_prefill(dtype: torch.dtype, kind: str) -> None:
    """Each code, and each kind of scale, for one row, few and many; heads in groups, sizes odd."""
    k, k_scale = cache(dtype, kind, (2, 2, 133), 40, 1)
    v, v_scale = cache(dtype, kind, (2, 2, 133), 24, 2)
    for rows in (1, 3, 37):
        check(torch.randn(2, 6, rows, 40), k, v, k_scale, v_scale)
    check(torch.randn(2, 6, 2, 40).bfloat16(), k, v, k_scale, v_scale)


def test_keys_and_values_differ() -> None:
    """Either may be quantised alone, and each in its own way."""
    q = torch.randn(1, 2, 1, 40)
    plain_k, plain_v = torch.randn(1, 2, 133, 40), torch.randn(1, 2, 133, 24)
    k, k_scale = cache(torch.int8, "by token", (1, 2, 133), 40, 1)
    v, v_scale = cache(torch.float8_e4m3fn, "by head", (1, 2, 133), 24, 2)
    check(q, k, v, k_scale, v_scale)
    check(q, k, plain_v, k_scale, None)
    check(q, plain_k, v, None, v_scale)
    check(q, plain_k, plain_v, torch.rand(2), torch.rand(1, 2, 133))
    check(q, k, v, None, v_scale)


@pytest.mark.parametrize("dtype", one_in(2, [torch.float16, torch.float64]))
def test_dtypes_of_queries(dtype: torch.dtype) -> None:
    for code, rows in itertools.product(CODES, (1, 9)):
        k, k_scale = cache(code, "by token", (1, 2, 133), 40, 1)
        v, v_scale = cache(code, "by head", (1, 2, 133), 24, 2)
        check(torch.randn(1, 4, rows, 40, dtype=dtype), k, v, k_scale.to(dtype), v_scale.to(dtype))


@pytest.mark.parametrize("dtype", CODES[1:])
def test_every_code(dtype: torch.dtype) -> None:
    """All 256 codes as keys, one a row: their scores are their values, subnormals, infinities and NaN included."""
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    k = torch.zeros(1, 1, 256, 40).to(dtype)
    k[0, 0, :, 17] = codes
    for rows in (1, 8):
        q = torch.ones(1, 1, rows, 40)
        _, weights = attention(q, k, torch.zeros(1, 1, 256, 24), scale=1.0, normalizer="none", return_weights=True)
        expected = codes.float().expand(1, 1, rows, 256)
        assert torch.equal(weights.nan_to_num(7e7), expected.nan_to_num(7e7))
    v = torch.zeros(1, 1, 16, 256).to(dtype)
    v[0, 0, 3] = codes
    for rows in (1, 8):
        out = attention(torch.zeros(1, 1, rows, 40), torch.zeros(1, 1, 16, 40), v, scale=1.0)
        assert torch.equal((out * 16).nan_to_num(7e7)[0, 0, 0], codes.float().nan_to_num(7e7))


def test_int8_codes_are_signed() -> None:
    k = torch.arange(-128, 128, dtype=torch.int8).view(1, 1, 256, 1).expand(-1, -1, -1, 40)
    q = torch.zeros(1, 1, 1, 40)
    q[..., 5] = 1.0
    _, weights = attention(q, k, torch.zeros(1, 1, 256, 24), scale=1.0, normalizer="none", return_weights=True)
    assert torch.equal(weights.flatten(), torch.arange(-128.0, 128.0))


def test_score_functions_see_the_scaled_score() -> None:
    """The cache's scale is part of the score that `score_mod` gets, masks come after it."""
    k, k_scale = cache(torch.int8, "by token", (1, 2, 133), 40, 1)
    v, v_scale = cache(torch.int8, "by token", (1, 2, 133), 24, 2)
    q = torch.randn(1, 2, 1, 40)
    mask = torch.rand(1, 133) < 0.5
    keys, values = k.double() * scale_of(k_scale), v.double() * scale_of(v_scale)
    for capped in (False, True):
        cap: Callable[..., Tensor] = lambda score, b, h, i, j: 2.0 * torch.tanh(score / 2.0)  # noqa: E731
        out = attention(q, k, v, mask, score_mod=cap if capped else None, k_scale=k_scale, v_scale=v_scale)
        scores = q.double() @ keys.transpose(-1, -2) / math.sqrt(40)
        scores = cap(scores, 0, 0, 0, 0) if capped else scores
        expected = scores.masked_fill(~mask, -math.inf).softmax(-1) @ values
        assert (out - expected).abs().max() < 1e-5


def test_ranks_and_batches() -> None:
    """Without heads or batch, and with a batch of two dimensions that the cache broadcasts."""
    k, v = (torch.randint(-127, 128, (3, 2, 9, 40), dtype=torch.int8) for _ in range(2))
    q, by_token, by_head = torch.randn(2, 3, 4, 1, 40), torch.rand(3, 2, 9) / 50, torch.rand(2) / 50
    wide = attention(q, k, v, enable_gqa=True, k_scale=by_token.expand(2, 3, 2, 9), v_scale=by_head)
    for n in range(2):
        narrow = attention(q[n], k, v, enable_gqa=True, k_scale=by_token, v_scale=by_head)
        assert torch.equal(wide[n], narrow)
        lone = attention(q[n, 1], k[1], v[1], enable_gqa=True, k_scale=by_token[1], v_scale=by_head)
        assert torch.equal(narrow[1], lone)
    flat = attention(q[0, 0, 0], k[0, 0], v[0, 0], k_scale=by_token[:1, 0], v_scale=by_head[:1])
    assert torch.allclose(flat, attention(q[0], k, v, enable_gqa=True, k_scale=by_token, v_scale=by_head)[0, 0])


def test_scales_have_gradients_and_codes_none() -> None:
    q = torch.randn(1, 2, 3, 40, requires_grad=True)
    k, v = (torch.randint(-127, 128, (1, 2, 9, 40), dtype=torch.int8) for _ in range(2))
    scale = torch.full((1, 2, 9), 0.01, requires_grad=True)
    attention(q, k, v, k_scale=scale, v_scale=scale).sum().backward()
    other, twin = q.detach().clone().requires_grad_(), scale.detach().clone().requires_grad_()
    keys, values = k * twin[..., None], v * twin[..., None]
    torch.nn.functional.scaled_dot_product_attention(other, keys, values).sum().backward()
    assert torch.allclose(q.grad, other.grad, atol=1e-5) and torch.allclose(scale.grad, twin.grad, atol=1e-3)


def test_under_compile_and_autocast() -> None:
    k, v = (torch.randint(-127, 128, (1, 2, 9, 40), dtype=torch.int8) for _ in range(2))
    k = k.float().div(64).to(torch.float8_e4m3fn)
    q, scale = torch.randn(1, 2, 1, 40), torch.rand(1, 2, 9)

    def run(q: Tensor) -> Tensor:
        return attention(q, k, v, k_scale=scale, v_scale=scale)

    assert torch.allclose(torch.compile(run, backend="aot_eager", fullgraph=True)(q), run(q))
    with torch.autocast("cpu", torch.bfloat16):
        assert run(q).dtype == torch.bfloat16


def test_what_does_not_fit_is_said() -> None:
    q, k = torch.randn(1, 4, 1, 40), torch.zeros(1, 2, 9, 40, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"k_scale \[9\] is none of \[\], \[2\], \[1, 2\], \[1, 2, 9\]"):
        attention(q, k, k, enable_gqa=True, k_scale=torch.rand(9))
    with pytest.raises(TypeError, match=r"v_scale is .*int64"):
        attention(q, k, k, enable_gqa=True, v_scale=torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"key torch.uint8.*must agree, or key and value be torch.int8"):
        attention(q, k.view(torch.uint8), k, enable_gqa=True)
    with pytest.raises(TypeError, match=r"query is .*int8"):
        attention(k, k, k)
    other = k.view(torch.float8_e5m2)
    attention(q, other, other, enable_gqa=True)
    text = attention.__doc__ or ""
    assert "k_scale" in text and "v_scale" in text
