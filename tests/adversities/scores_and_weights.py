"""Steps between score and sum that make something else of a softmax, or do not."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from adversities.registry import B, D, H, S, T, adversity, chance, qkv, rand, weights


@adversity(*qkv())
def where_score_cond(q, k, v):
    x = q @ k.mT
    return torch.where(x > 0, x, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def mask_from_v(q, k, v):
    x = q @ k.mT
    return x.masked_fill(v.sum(-1)[:, :, None] > 0, -1000000000.0).softmax(-1) @ v


@adversity(*qkv())
def bias_from_softmax(q, k, v):
    x = q @ k.mT
    return (x + x.softmax(-1)).softmax(-1) @ v


@adversity(*qkv())
def score_minus_mean(q, k, v):
    x = q @ k.mT
    return (x - x.mean(-1, keepdim=True)).softmax(-1) @ v


@adversity(*qkv())
def score_div_max(q, k, v):
    x = q @ k.mT
    return (x / x.abs().amax(-1, keepdim=True)).softmax(-1) @ v


@adversity(*qkv())
def minus_amax_rows(q, k, v):
    x = q @ k.mT
    return (x - x.amax(-2, keepdim=True)).softmax(-1) @ v


@adversity(*qkv())
def minus_min(q, k, v):
    x = q @ k.mT
    return (x - x.amin(-1, keepdim=True)).softmax(-1) @ v


@adversity(*qkv())
def exp_half(q, k, v):
    x = q @ k.mT
    e = (x / 2).exp()
    return e / x.exp().sum(-1, keepdim=True) @ v


@adversity(*qkv())
def exp_squared(q, k, v):
    x = q @ k.mT
    e = x.exp()
    return e * e / e.sum(-1, keepdim=True) @ v


@adversity(*qkv())
def sqrt_weights(q, k, v):
    return weights(q, k).sqrt() @ v


@adversity(*qkv())
def pow_weights(q, k, v):
    p = weights(q, k) ** 2
    return p / p.sum(-1, keepdim=True) @ v


@adversity(*qkv())
def one_minus(q, k, v):
    return (1 - weights(q, k)) @ v


@adversity(*qkv())
def plus_residual(q, k, v):
    return (weights(q, k) + 0.1) @ v


@adversity(*qkv())
def p_plus_p(q, k, v):
    p = weights(q, k)
    return (p + p) @ v


@adversity(rand(B, H, S, D), rand(B, H, S, D), rand(B, H, S, D))
def p_plus_pT(q, k, v):
    p = weights(q, k)
    return (p + p.mT) / 2 @ v


@adversity(rand(B, H, S, D), rand(B, H, S, D), rand(B, H, S, D))
def p_squared(q, k, v):
    p = weights(q, k)
    return p @ p @ v


@adversity(rand(B, H, S, D), rand(B, H, S, D), rand(B, H, S, D))
def p_eye(q, k, v):
    p = weights(q, k) + torch.eye(S)
    return p @ v


@adversity(*qkv())
def negative_weights(q, k, v):
    return -weights(q, k) @ v


@adversity(*qkv(), rand(H, 1, 1))
def gated_heads(q, k, v, g):
    return weights(q, k) * g @ v


@adversity(*qkv(), rand(B, H, S, 1))
def gated_rows(q, k, v, g):
    return weights(q, k) * g @ v


@adversity(*qkv(), rand(B, H, 1, T))
def gated_keys(q, k, v, g):
    return weights(q, k) * g @ v


@adversity(*qkv())
def log1p_score(q, k, v):
    return torch.log1p((q @ k.mT).relu()).softmax(-1) @ v


@adversity(*qkv())
def abs_score(q, k, v):
    return (q @ k.mT).abs().neg().softmax(-1) @ v


@adversity(*qkv())
def gelu_weights(q, k, v):
    return F.gelu(q @ k.mT) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def relu_hidden_finite(q, k, v, m):
    return F.relu((q @ k.mT).masked_fill(~m, -1000000000.0)) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def sigmoid_hidden_finite(q, k, v, m):
    return (q @ k.mT).masked_fill(~m, -1000000000.0).sigmoid() @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def sigmoid_small_fill(q, k, v, m):
    return (q @ k.mT).masked_fill(~m, -3.0).sigmoid() @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def exp_weights_masked(q, k, v, m):
    e = (q @ k.mT).exp() * m
    return e / e.sum(-1, keepdim=True) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def exp_weights_masked_wrong_sum(q, k, v, m):
    e = (q @ k.mT).exp()
    return e * m / e.sum(-1, keepdim=True) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def softmax_masked_renorm(q, k, v, m):
    p = weights(q, k) * m
    return p / p.sum(-1, keepdim=True) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def softmax_nan_to_num(q, k, v, m):
    return torch.nan_to_num((q @ k.mT).masked_fill(~m, -math.inf).softmax(-1)) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5), chance(S, T, hidden=0.5))
def weights_cleared_elsewhere(q, k, v, m, n):
    return (q @ k.mT).masked_fill(~m, -math.inf).softmax(-1).masked_fill(~n, 0) @ v


@adversity(*qkv(), chance(B, 1, S, 1, hidden=0.5))
def rows_cleared(q, k, v, m):
    return weights(q, k).masked_fill(~m, 0) @ v


@adversity(*qkv())
def topk_like(q, k, v):
    x = q @ k.mT
    return x.masked_fill(x < x.kthvalue(3, -1, keepdim=True).values, -math.inf).softmax(-1) @ v


@adversity(*qkv())
def dropout_train(q, k, v):
    return F.dropout(weights(q, k), 0.0, True) @ v


@adversity(*qkv())
def parts_of_the_weights_with_the_values_of_others(q, k, v):
    """Attention to values in another order than the keys."""
    p = weights(q, k)
    return p[..., :6] @ v[:, :, 5:] + p[..., 6:] @ v[:, :, :5]


@adversity(*qkv())
def parts_of_the_scores_with_other_queries(q, k, v):
    x = torch.cat([q @ k[:, :, :4].mT, (q + 1) @ k[:, :, 4:].mT], -1)
    return x.softmax(-1) @ v


@adversity(*qkv())
def parts_of_the_scores_with_other_scales(q, k, v):
    x = torch.cat([q @ k[:, :, :4].mT * 0.5, q @ k[:, :, 4:].mT * 0.4], -1)
    return x.softmax(-1) @ v


@adversity(*qkv())
def parts_of_the_scores_twice_and_out_of_order(q, k, v):
    x = torch.cat([q @ k[:, :, 4:].mT, q @ k[:, :, :4].mT, q @ k[:, :, 4:].mT], -1)
    return x.softmax(-1) @ torch.cat((v, v[:, :, :7]), 2)


@adversity(*qkv())
def scores_of_queries_side_by_side(q, k, v):
    x = torch.cat([q[:, :, :3] @ k.mT, q[:, :, 3:] @ k.mT], -2)
    return x.softmax(-1) @ v


@adversity(*qkv())
def scores_of_queries_side_by_side_over_queries(q, k, v):
    x = torch.cat([q[:, :, :3] @ k.mT, q[:, :, 3:] @ k.mT], -2)
    return x.softmax(-2) @ v


@adversity(*qkv())
def one_part_of_the_scores_is_one_key(q, k, v):
    x = torch.cat([q @ k[:, :, :1].mT, q @ k[:, :, 1:].mT], -1)
    p = x.softmax(-1)
    return p[..., :1] @ v[:, :, :1] + p[..., 1:] @ v[:, :, 1:]


@adversity(*qkv())
def parts_of_the_weights_subtracted(q, k, v):
    p = weights(q, k)
    return p[..., :6] @ v[:, :, :6] - p[..., 6:] @ v[:, :, 6:]
