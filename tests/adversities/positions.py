"""Whole calls, broadcasts, positions and tables, writes into the scores."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from adversities.registry import B, D, H, S, T, adversity, chance, qkv, rand, weights, whole


@adversity(*qkv())
def sdpa_mixed_mask(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(S, T).tril())


@adversity(*qkv())
def sdpa_scale0(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=0.0)


@adversity(*qkv())
def sdpa_neg(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=-1.0, is_causal=True)


@adversity(rand(B, H, S, D), rand(B, 2, T, D), rand(B, 1, T, D))
def sdpa_gqa_uneven(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@adversity(rand(B, H, S, D), rand(1, 1, T, D), rand(1, 1, T, D))
def sdpa_broadcast(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


@adversity(rand(1, 1, S, D), rand(B, H, T, D), rand(B, H, T, D))
def q_broadcast(q, k, v):
    return weights(q, k) @ v


@adversity(rand(S, D), rand(B, H, T, D), rand(T, D))
def qv_shared(q, k, v):
    return weights(q, k) @ v


@adversity(rand(B, 1, S, D), rand(1, H, T, D), rand(B, H, T, 5))
def mixed_broadcast(q, k, v):
    return weights(q, k) @ v


@adversity(rand(B, H, S, D), rand(B, H, T, D), rand(T))
def v_vector(q, k, v):
    return weights(q, k) @ v


@adversity(rand(D), rand(T, D), rand(T, D))
def q_vector(q, k, v):
    return (k @ q).softmax(-1) @ v


@adversity(rand(B, S, H, D), rand(B, T, H, D), rand(B, T, H, D), chance(B, T, hidden=0.3))
def einsum_mask_bj(q, k, v, m):
    x = torch.einsum("bihd,bjhd->bijh", q, k).masked_fill(~m[:, None, :, None], -1000000000.0)
    return torch.einsum("bijh,bjhd->bihd", x.softmax(2), v)


@adversity(rand(S, S, S, S), rand(S, S, S, S), rand(S, S, S, S), chance(S, S, hidden=0.3))
def all_sizes_equal_mask_bh(q, k, v, m):
    return (q @ k.mT).masked_fill(~m[:, :, None, None], -1000000000.0).softmax(-1) @ v


@adversity(rand(S, S, S, S), rand(S, S, S, S), rand(S, S, S, S), chance(S, S, hidden=0.3))
def all_sizes_equal_mask_bi(q, k, v, m):
    return (q @ k.mT).masked_fill(~m[:, None, :, None], -1000000000.0).softmax(-1) @ v


@adversity(rand(S, S, S, S), rand(S, S, S, S), rand(S, S, S, S), rand(S, S))
def all_sizes_equal_bias_hj(q, k, v, b):
    return (q @ k.mT + b[:, None]).softmax(-1) @ v


@adversity(rand(S, S, S, S), rand(S, S, S, S), rand(S, S, S, S), rand(S, S, S, S))
def bias_diag(q, k, v, b):
    return (q @ k.mT + torch.diagonal(b, 0, 0, 1).permute(2, 0, 1)[:, None]).softmax(-1) @ v


@adversity(*qkv(), rand(64), whole(0, 64, (B, S, T)))
def gather_by_batch(q, k, v, t, i):
    return (q @ k.mT + t[i][:, None]).softmax(-1) @ v


@adversity(*qkv(), rand(H, 64), whole(-64, 64, (S, T)))
def gather_negative(q, k, v, t, i):
    return (q @ k.mT + t[:, i]).softmax(-1) @ v


@adversity(*qkv(), rand(H, 20))
def gather_negative_positions(q, k, v, t):
    i, j = (torch.arange(S)[:, None], torch.arange(T)[None])
    return (q @ k.mT + t[:, i - j]).softmax(-1) @ v


@adversity(*qkv(), rand(H, 20))
def gather_wraps(q, k, v, t):
    i, j = (torch.arange(S)[:, None], torch.arange(T)[None])
    return (q @ k.mT + t[:, (i - j) % 20]).softmax(-1) @ v


@adversity(*qkv(), rand(H, 20))
def gather_clamped(q, k, v, t):
    i, j = (torch.arange(S)[:, None], torch.arange(T)[None])
    return (q @ k.mT + t[:, (i - j).clamp(-3, 3) + 3]).softmax(-1) @ v


@adversity(*qkv(), rand(H, 20))
def gather_floordiv_neg(q, k, v, t):
    i, j = (torch.arange(S)[:, None], torch.arange(T)[None])
    return (q @ k.mT + t[:, (i - j) // 2 + 10]).softmax(-1) @ v


@adversity(*qkv())
def mod_negative(q, k, v):
    i, j = (torch.arange(S)[:, None], torch.arange(T)[None])
    return torch.where((i - j) % 3 == 1, q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def fmod_negative(q, k, v):
    i, j = (torch.arange(S)[:, None], torch.arange(T)[None])
    return torch.where(torch.fmod(i - j, 3) == 1, q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def trunc_div(q, k, v):
    i, j = (torch.arange(S)[:, None], torch.arange(T)[None])
    return torch.where(torch.div(i - j, 2, rounding_mode="trunc") == 0, q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def float_positions(q, k, v):
    i, j = (torch.arange(S).float()[:, None], torch.arange(T).float()[None])
    return (q @ k.mT - ((i - j) / 3) ** 2).softmax(-1) @ v


@adversity(*qkv())
def uint8_wrap(q, k, v):
    i, j = (torch.arange(S, dtype=torch.uint8)[:, None], torch.arange(T, dtype=torch.uint8)[None])
    return torch.where(i - j > 200, q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def int8_overflow(q, k, v):
    i, j = (torch.arange(S, dtype=torch.int8)[:, None] * 30, torch.arange(T, dtype=torch.int8)[None] * 20)
    return torch.where(i + j > 0, q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def half_positions(q, k, v):
    i, j = ((torch.arange(S)[:, None] * 1000).half(), (torch.arange(T)[None] * 1001).half())
    return torch.where(i >= j, q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def bool_arith(q, k, v):
    m = torch.ones(S, T, dtype=torch.bool).tril()
    return (q @ k.mT + (m.float() - 1) * 1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def xor_mask(q, k, v):
    m = torch.ones(S, T, dtype=torch.bool).tril(2) ^ torch.ones(S, T, dtype=torch.bool).tril(-2)
    return (q @ k.mT).masked_fill(~m, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def linspace_alibi(q, k, v):
    return (q @ k.mT + torch.linspace(0, 1, T)).softmax(-1) @ v


@adversity(*qkv())
def arange_float_step(q, k, v):
    return (q @ k.mT + torch.arange(0, T * 0.5, 0.5)).softmax(-1) @ v


@adversity(*qkv())
def cumsum_positions(q, k, v):
    j = torch.ones(T, dtype=torch.long).cumsum(0) - 1
    i = torch.arange(S)
    return torch.where(j[None] <= i[:, None], q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv(), chance(B, T, hidden=0.3))
def left_padding_positions(q, k, v, m):
    pos = m.long().cumsum(-1) - 1
    return torch.where(pos[:, None, None, :] <= torch.arange(S)[:, None], q @ k.mT, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def q_used_elsewhere_inplace(q, k, v):
    x = weights(q, k)
    q2 = q.view(B, H, S * D)
    q2.zero_()
    return (x @ v, q)


@adversity(*qkv())
def kv_swapped_inplace(q, k, v):
    p = weights(q, k)
    k.copy_(v)
    return p @ k


@adversity(*qkv())
def scores_out_param(q, k, v):
    x = torch.empty(B, H, S, T)
    torch.matmul(q, k.mT, out=x)
    return x.softmax(-1) @ v


@adversity(*qkv())
def setitem_scores(q, k, v):
    x = q @ k.mT
    x[..., 0] = -1000000000.0
    return x.softmax(-1) @ v


@adversity(*qkv())
def setitem_tril(q, k, v):
    x = q @ k.mT
    i = torch.triu_indices(S, T, 1)
    x[:, :, i[0], i[1]] = -math.inf
    return x.softmax(-1) @ v


@adversity(*qkv())
def tril_inplace(q, k, v):
    x = q @ k.mT
    x.tril_()
    return x.softmax(-1) @ v


@adversity(*qkv())
def tril_of_exp(q, k, v):
    e = (q @ k.mT).exp().tril(2)
    return e / e.sum(-1, keepdim=True) @ v
