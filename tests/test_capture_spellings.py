"""Attention as people write it: every spelling is fused, with the right values, in static and in dynamic shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import Capture, assert_same, capture, capture_directly
from sampling import one_in
from torch import Tensor

B, H, S, T, D, E = 2, 4, 7, 11, 8, 6
SCALE = D**-0.5


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def qkv(
    b: int = B, h: int = H, s: int = S, t: int = T, d: int = D, e: int = E, g: int | None = None
) -> tuple[Tensor, ...]:
    return rand(b, h, s, d), rand(b, g or h, t, d) + 0.1, rand(b, g or h, t, e)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v


def repeat_kv(x: Tensor, n: int) -> Tensor:
    b, h, s, d = x.shape
    return x[:, :, None].expand(b, h, n, s, d).reshape(b, h * n, s, d)


def causal(s: int, t: int) -> Tensor:
    return torch.arange(t)[None] <= torch.arange(s)[:, None] + (t - s)


FUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}


def fused(*args: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        FUSED[function.__name__] = (function, args)
        return function

    return register


# Layouts and products


@fused(*qkv())
def dot(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


@fused(*qkv(b=1, h=1))
def two_dimensional(q, k, v):
    return plain(q[0, 0], k[0, 0], v[0, 0])


@fused(*(x.flatten(0, 1) for x in qkv()))
def bmm(q, k, v):
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(SCALE).softmax(2), v)


@fused(*qkv())
def heads_in_the_batch_and_back(q, k, v):
    b, h, s, d = q.shape
    x = torch.bmm(q.reshape(b * h, s, d), k.reshape(b * h, -1, d).mT).view(b, h, s, -1)
    p = (x * SCALE).softmax(-1).view(b * h, s, -1)
    return torch.bmm(p, v.reshape(b * h, -1, v.shape[-1])).view(b, h, s, -1).transpose(1, 2).reshape(b, s, -1)


@fused(*(x.transpose(1, 2).contiguous() for x in qkv()))
def einsum_bshd(q, k, v):
    p = (torch.einsum("bihd,bjhd->bhij", q, k) * SCALE).softmax(-1)
    return torch.einsum("bhij,bjhe->bihe", p, v)


@fused(*(x.permute(2, 0, 1, 3).contiguous() for x in qkv()))
def sequence_first_einsum_with_ellipsis(q, k, v):
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    p = (torch.einsum("...id,...jd->...ij", q, k) * SCALE).softmax(-1)
    return torch.einsum("...ij,...je->...ie", p, v)


@fused(*qkv())
def keys_first(q, k, v):
    x = (k @ q.mT * SCALE).softmax(-2)
    return (v.mT @ x).mT.contiguous()


@fused(*qkv())
def product_by_mul_and_sum(q, k, v):
    x = (q[:, :, :, None] * k[:, :, None]).sum(-1) * SCALE
    return (x.softmax(-1)[..., None] * v[:, :, None]).sum(3)


@fused(*(x.unflatten(0, (2, 1)).expand(2, 3, -1, -1, -1) for x in qkv()))
def five_dimensional(q, k, v):
    return plain(q, k, v)


@fused(rand(B, S, 3 * H * D))
def packed_qkv(x):
    q, k, v = x.view(x.shape[0], x.shape[1], 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return plain(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], H * D)


@fused(rand(B, S, 3 * H * D))
def packed_qkv_by_chunk(x):
    q, k, v = (t.view(x.shape[0], x.shape[1], H, D).transpose(1, 2) for t in x.chunk(3, -1))
    return plain(q, k, v)


@fused(rand(B, S, H * 3 * D))
def packed_by_head(x):
    q, k, v = x.view(x.shape[0], x.shape[1], H, 3 * D).transpose(1, 2).split(D, dim=-1)
    return plain(q, k, v)


@fused(rand(B, S, D * 2), rand(D * 2, D * 2), rand(D * 2, D * 2), rand(D * 2, D * 2))
def projections_are_not_bilinear(x, wq, wk, wv):
    q, k, v = ((x @ w).view(x.shape[0], x.shape[1], 2, D).transpose(1, 2) for w in (wq, wk, wv))
    return plain(q, k, v)


@fused(rand(B, S, D), rand(D, D), rand(D, D))
def one_head_with_projections(x, wq, wk):
    return ((x @ wq) @ (x @ wk).mT).softmax(-1) @ x


# Scores


@fused(*qkv())
def scale_split_over_both(q, k, v):
    return ((q * D**-0.25) @ (k * D**-0.25).mT).softmax(-1) @ v


@fused(*qkv(), torch.tensor(0.3))
def scale_is_a_tensor_of_no_dims(q, k, v, scale):
    return ((q * scale) @ k.mT).softmax(-1) @ v


@fused(*qkv(), rand(1, 1, 1, D))
def query_scaled_by_element(q, k, v, gain):
    return ((q * gain) @ k.mT).softmax(-1) @ v


@fused(*qkv(), rand(H, 1, 1).exp())
def temperature_by_head(q, k, v, temperature):
    return (q @ k.mT / temperature).softmax(-1) @ v


@fused(*qkv(), rand(B, H, S, T))
def baddbmm_with_bias(q, k, v, bias):
    b, h, s, _ = q.shape
    x = torch.baddbmm(bias.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0.5, alpha=SCALE)
    return x.view(b, h, s, -1).softmax(-1) @ v


@fused(*qkv(), rand(D, D))
def bilinear(q, k, v, w):
    return ((q @ w) @ k.mT).softmax(-1) @ v


@fused(*qkv(), rand(H, D, D))
def bilinear_by_head_on_the_keys(q, k, v, w):
    return (q @ (k @ w).mT * SCALE).softmax(-1) @ v


@fused(rand(B, H, S, 5), *qkv()[1:], rand(5, D))
def bilinear_by_einsum_of_another_size(q, k, v, w):
    return torch.einsum("bhic,cd,bhjd->bhij", q, w, k).softmax(-1) @ v


@fused(*qkv())
def soft_cap(q, k, v):
    return (30.0 * torch.tanh(q @ k.mT * SCALE / 30.0)).softmax(-1) @ v


@fused(*qkv(), rand(H))
def alibi_made_in_the_graph(q, k, v, slopes):
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
    return (q @ k.mT * SCALE + slopes[:, None, None] * (j - i)).softmax(-1) @ v


@fused(*qkv(), rand(H, S + T))
def relative_bias_gathered_by_distance(q, k, v, table):
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
    return (q @ k.mT * SCALE + table[:, i - j + k.shape[2]]).softmax(-1) @ v


# Masks


@fused(*qkv(), causal(S, T))
def boolean_mask_given(q, k, v, mask):
    return (q @ k.mT * SCALE).masked_fill(~mask, float("-inf")).softmax(-1) @ v


@fused(*qkv(), rand(B, 1, S, T) > 0)
def boolean_mask_minus_1e9(q, k, v, mask):
    return torch.where(mask, q @ k.mT * SCALE, -1e9).softmax(-1) @ v


@fused(*qkv(), rand(B, 1, S, T) > 0)
def the_fill_is_a_tensor_and_the_weights_are_filled_too(q, k, v, mask):
    """DeBERTa's XSoftmax, as SEW-D has it."""
    x = (q @ k.mT * SCALE).masked_fill(~mask, torch.tensor(torch.finfo(q.dtype).min))
    return torch.softmax(x, -1).masked_fill_(~mask, 0) @ v


@fused(*qkv(), torch.zeros(S, T).masked_fill(~causal(S, T), float("-inf")))
def additive_mask_given(q, k, v, mask):
    return (q @ k.mT * SCALE + mask).softmax(-1) @ v


@fused(*qkv(), torch.tensor([[1] * T, [1] * 4 + [0] * (T - 4)]))
def padding_mask_as_bert_did(q, k, v, mask):
    extended = (1.0 - mask[:, None, None, :].to(q.dtype)) * torch.finfo(q.dtype).min
    return (q @ k.mT * SCALE + extended).softmax(-1) @ v


@fused(*qkv(), torch.tensor([[True] * T, [True] * 4 + [False] * (T - 4)]))
def padding_and_causal(q, k, v, keep):
    s, t = q.shape[2], k.shape[2]
    triangle = torch.ones(s, t, dtype=torch.bool).tril(t - s)
    both = torch.logical_and(triangle[None, None], keep[:, None, None, :])
    return (q @ k.mT * SCALE).masked_fill(~both, torch.finfo(q.dtype).min).softmax(-1) @ v


@fused(*qkv())
def causal_by_triu_of_infinity(q, k, v):
    mask = torch.triu(torch.full((q.shape[2], k.shape[2]), float("-inf")), diagonal=1)
    return (q @ k.mT * SCALE + mask.where(mask != 0, 0.0)).softmax(-1) @ v


@fused(*qkv())
def causal_by_masked_fill_of_zeros(q, k, v):
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    mask = torch.zeros(q.shape[2], k.shape[2]).masked_fill(~seen, float("-inf"))
    return (q @ k.mT * SCALE + mask).softmax(-1) @ v


@fused(*qkv())
def sliding_window(q, k, v):
    i = torch.arange(q.shape[2])[:, None] + (k.shape[2] - q.shape[2])
    j = torch.arange(k.shape[2])[None]
    mask = (j <= i) & (i - j < 3)
    return (q @ k.mT * SCALE).masked_fill(mask.logical_not(), float("-inf")).softmax(-1) @ v


@fused(*qkv())
def changed_in_place_on_the_way(q, k, v):
    x = q @ k.mT
    x *= SCALE
    x.masked_fill_(~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(2), float("-inf"))
    return x.softmax(-1) @ v


@fused(*qkv(), rand(B, S) > 0, rand(B, T) > -1)
def query_and_key_padding(q, k, v, rows, columns):
    mask = rows[:, None, :, None] & columns[:, None, None, :]
    return (q @ k.mT * SCALE).masked_fill(~mask, -1e9).softmax(-1) @ v


@fused(*qkv(), torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]))
def document_mask(q, k, v, documents_q, documents_k):
    mask = documents_q[:, None] == documents_k[None]
    return torch.where(mask, q @ k.mT * SCALE, float("-inf")).softmax(-1) @ v


# Softmaxes


@fused(*(x.bfloat16() for x in qkv()))
def softmax_in_float32(q, k, v):
    return F.softmax(q @ k.mT * SCALE, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@fused(*(x.bfloat16() for x in qkv()))
def everything_in_float32(q, k, v):
    return ((q.float() @ k.float().mT * SCALE).softmax(-1).to(v.dtype)) @ v


@fused(*qkv())
def softmax_by_hand(q, k, v):
    x = q @ k.mT * SCALE
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


@fused(*qkv())
def softmax_by_max_and_logsumexp(q, k, v):
    x = q @ k.mT * SCALE
    return torch.exp(x - torch.logsumexp(x, -1, keepdim=True)) @ v


@fused(*qkv())
def dropout_that_drops_nothing(q, k, v):
    p = F.dropout((q @ k.mT * SCALE).softmax(-1), p=0.0, training=True)
    return F.dropout(p, p=0.5, training=False) @ v


@fused(*(x.double() for x in qkv()))
def float64(q, k, v):
    return plain(q, k, v)


# Heads


@fused(*qkv(g=2))
def grouped_by_expand(q, k, v):
    return plain(q, repeat_kv(k, 2), repeat_kv(v, 2)).transpose(1, 2).contiguous()


@fused(*qkv(g=2))
def grouped_by_repeat_interleave(q, k, v):
    return plain(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, dim=1))


@fused(*qkv(g=2))
def grouped_in_five_dimensions(q, k, v):
    b, h, s, d = q.shape
    x = q.view(b, k.shape[1], -1, s, d) @ k[:, :, None].mT
    return ((x * SCALE).softmax(-1) @ v[:, :, None]).reshape(b, h, s, -1)


@fused(*qkv(g=2))
def heads_in_the_other_order(q, k, v):
    return plain(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1))


@fused(*qkv(g=1))
def one_key_head(q, k, v):
    return plain(q, k, v)


@fused(*qkv(s=1, t=64))
def one_query(q, k, v):
    return plain(q, k, v)


@fused(rand(S, D), *qkv()[1:])
def queries_without_batch(q, k, v):
    return plain(q, k, v)


# Whole calls


@fused(*qkv())
def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


@fused(*qkv(s=T))
def sdpa_causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


@fused(*qkv(), rand(B, 1, S, T))
def sdpa_additive_mask(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@fused(*qkv(), (rand(B, 1, S, T) > 0) & (torch.arange(S) != 3)[:, None])
def sdpa_boolean_mask_with_an_empty_row(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@fused(*qkv(g=2))
def sdpa_grouped(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


@fused(*(x[0] for x in qkv()))
def sdpa_three_dimensional(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


DYNAMIC = [
    "packed_qkv", "grouped_by_expand", "sliding_window",
    *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "baddbmm_with_bias", "scale_is_a_tensor_of_no_dims", "changed_in_place_on_the_way", "sdpa_grouped", "bilinear",
        "heads_in_the_batch_and_back", "soft_cap")),
]  # fmt: skip
"""Spellings that take another way through Dynamo where sizes and numbers are symbols."""


@pytest.mark.parametrize("name", FUSED)
def test_fused(name: str) -> None:
    check(name, capture(FUSED[name][0], FUSED[name][1]))


@pytest.mark.parametrize("name", one_in(2, FUSED))
def test_fused_with_symbolic_sizes(name: str) -> None:
    check(name, capture_directly(FUSED[name][0], FUSED[name][1], dynamic=True))


@pytest.mark.parametrize("name", DYNAMIC)
def test_fused_with_symbolic_sizes_and_numbers(name: str) -> None:
    check(name, capture(FUSED[name][0], FUSED[name][1], dynamic=True))


def check(name: str, seen: Capture) -> None:
    function, args = FUSED[name]
    assert not seen.reasons
    assert len(seen.fused) == 1
    left = ("softmax", "scaled_dot_product_attention", "matmul", "einsum", "bmm", "dropout", "exp.default")
    if "projection" not in name:
        assert not [n for g in seen.graphs for n in g.graph.nodes if any(part in str(n.target) for part in left)]
    assert_same(seen.result, function(*args))


def test_what_the_spec_says() -> None:
    """Masks that the graph makes are expressions of positions, scales are run-time numbers."""

    def spec(name: str, dynamic: bool = False) -> Any:
        function, args = FUSED[name]
        return capture(function, args, dynamic=dynamic).fused[0].spec

    assert str(spec("sliding_window").mask) == "((j <= (i + n0)) & (((i + n0) - j) < n1))"
    assert spec("causal_by_masked_fill_of_zeros").fill == -math.inf
    assert str(spec("causal_by_masked_fill_of_zeros").mask) == "((j - i) <= 0)"
    assert str(spec("scale_split_over_both").score_mod) == "(score * s0)"
    assert spec("bilinear").bilinear == "t0"
    assert spec("one_head_with_projections").bilinear is None
    assert spec("projections_are_not_bilinear").bilinear is None
    assert spec("grouped_by_expand").group == 2
    assert spec("grouped_by_expand", dynamic=True).group == 2
    assert spec("heads_in_the_other_order").group == 1
    assert spec("sdpa_boolean_mask_with_an_empty_row").empty_row == "zero"
    assert spec("boolean_mask_given").empty_row == "nan"
    assert spec("softmax_in_float32").dtype == "bfloat16"
    assert [e.rank for e in spec("alibi_made_in_the_graph").extras] == [1]
