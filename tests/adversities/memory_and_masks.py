"""Changes in place, aliases, broadcasts, masks of every kind: what they hide, and what they only seem to."""

from __future__ import annotations

import math

import torch

from adversities.registry import B, D, H, S, T, adversity, chance, qkv, rand, weights, whole


@adversity(*qkv())
def inplace_on_q_after_scores(q, k, v):
    q = q + 0
    x = q @ k.mT
    q.mul_(3)
    return x.softmax(-1) @ v + q.sum()


@adversity(*qkv())
def inplace_on_v_view(q, k, v):
    v = v.clone()
    p = weights(q, k)
    v[:, :, 0] = 0
    return p @ v


@adversity(*qkv())
def alias_out(q, k, v):
    """The write was removed as one to memory that nothing reads: the fused result was not known to be it."""
    o = weights(q, k) @ v
    o[:, :, 0] = 1
    return o


@adversity(*qkv())
def alias_out_view(q, k, v):
    o = weights(q, k) @ v
    w = o.transpose(1, 2)
    w.add_(1)
    return (o, w)


@adversity(*qkv())
def reshape_copy_alias(q, k, v):
    o = weights(q, k) @ v
    y = o.transpose(1, 2).reshape(B, S, -1)
    y.add_(1)
    return (y, o.contiguous())


@adversity(*qkv())
def reshape_twice(q, k, v):
    o = weights(q, k) @ v
    y = o.transpose(1, 2).reshape(B, S, -1)
    z = o.transpose(1, 2).reshape(B, S, -1)
    y.add_(1)
    return (y, z)


@adversity(
    rand(1, H, S, D).expand(B, H, S, D), rand(B, 1, T, D).expand(B, H, T, D), rand(B, H, 1, D).expand(B, H, T, D)
)
def expanded_inputs(q, k, v):
    return weights(q, k) @ v


@adversity(*qkv(), chance(T, S, hidden=0.4))
def transposed_mask(q, k, v, m):
    return (q @ k.mT).masked_fill(~m.T, -1000000000.0).softmax(-1) @ v


@adversity(*qkv(), chance(S, 1, hidden=0.4))
def mask_row_broadcast(q, k, v, m):
    return (q @ k.mT).masked_fill(~m, -1000000000.0).softmax(-1) @ v


@adversity(*qkv(), chance(H, 1, 1, hidden=0.4))
def mask_head_broadcast(q, k, v, m):
    return (q @ k.mT).masked_fill(~m, -1000000000.0).softmax(-1) @ v


@adversity(*qkv(), chance(H, 1, 1, hidden=0.4))
def mask_head_inf(q, k, v, m):
    return (q @ k.mT).masked_fill(~m, -math.inf).softmax(-1) @ v


@adversity(*qkv(), whole(-2, 3, (S, T)))
def int_mask_truthy(q, k, v, m):
    return (q @ k.mT).masked_fill(m.bool(), -1000000000.0).softmax(-1) @ v


@adversity(*qkv(), whole(0, 3, (S, T)))
def int_added(q, k, v, m):
    return (q @ k.mT + m * -2).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.4))
def bool_times_minus(q, k, v, m):
    return (q @ k.mT + (1 - m.float()) * -3).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.4))
def positive_fill(q, k, v, m):
    return (q @ k.mT).masked_fill(m, 5.0).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.4))
def small_fill(q, k, v, m):
    return (q @ k.mT).masked_fill(m, -2.0).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.4))
def zero_fill(q, k, v, m):
    return (q @ k.mT).masked_fill(m, 0.0).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.4))
def inf_fill(q, k, v, m):
    return (q @ k.mT).masked_fill(m, math.inf).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.4), chance(B, 1, 1, T, hidden=0.4))
def two_fills_differ(q, k, v, m, n):
    return (q @ k.mT).masked_fill(m, -10000.0).masked_fill(n, -1000000000.0).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.2), chance(B, 1, 1, T, hidden=0.2))
def two_adds(q, k, v, m, n):
    return (q @ k.mT + ~m * -1000000000.0 + ~n * -1000000000.0).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.7), chance(B, 1, 1, T, hidden=0.7))
def two_adds_finfo(q, k, v, m, n):
    """In a row of which nothing is seen, what both masks hide counts less than what one does: they were one."""
    lo = torch.finfo(torch.float32).min
    return (q @ k.mT + torch.zeros(S, T).masked_fill(~m, lo) + torch.zeros(B, 1, 1, T).masked_fill(~n, lo)).softmax(
        -1
    ) @ v


@adversity(*qkv(), chance(S, T, hidden=0.7), chance(B, 1, 1, T, hidden=0.7))
def two_adds_1e30(q, k, v, m, n):
    lo = -1e30
    return (q @ k.mT + torch.zeros(S, T).masked_fill(~m, lo) + torch.zeros(B, 1, 1, T).masked_fill(~n, lo)).softmax(
        -1
    ) @ v


@adversity(*qkv(), chance(S, T, hidden=0.7))
def mask_then_scale(q, k, v, m):
    return ((q @ k.mT).masked_fill(~m, -10000.0) / 100).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.7))
def mask_then_tanh(q, k, v, m):
    return (3 * torch.tanh((q @ k.mT).masked_fill(~m, -1000000000.0) / 3)).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.7), rand(S, T))
def mask_then_bias(q, k, v, m, b):
    return ((q @ k.mT).masked_fill(~m, -1000000000.0) + b * 1000000000.0).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def mask_inf_then_bias(q, k, v, m):
    return ((q @ k.mT).masked_fill(~m, -math.inf) * 0.5 + 1).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def negated_scale_of_mask(q, k, v, m):
    return (-(q @ k.mT).masked_fill(~m, 1000000000.0)).softmax(-1) @ v


@adversity(*qkv(), chance(S, T, hidden=0.5))
def mask_times_negative(q, k, v, m):
    return ((q @ k.mT).masked_fill(~m, -1000000000.0) * -1.0).softmax(-1) @ v


@adversity(*qkv(), torch.tensor(-0.5), chance(S, T, hidden=0.5))
def mask_times_negative_tensor(q, k, v, s, m):
    return ((q @ k.mT).masked_fill(~m, -1000000000.0) * s).softmax(-1) @ v


@adversity(*qkv(), torch.tensor(0.0), chance(S, T, hidden=0.5))
def mask_times_zero_tensor(q, k, v, s, m):
    return ((q @ k.mT).masked_fill(~m, -1000000000.0) * s).softmax(-1) @ v


@adversity(*qkv(), torch.tensor(0.0))
def div_by_zero_scale(q, k, v, s):
    return (q @ k.mT / s).softmax(-1) @ v


@adversity(rand(B, H, S, D) * 400, rand(B, H, T, D) * 4, rand(B, H, T, D))
def huge_scores(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


@adversity(rand(B, H, S, D).index_fill(2, torch.tensor([2]), math.nan), rand(B, H, T, D), rand(B, H, T, D))
def nan_row(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


@adversity(
    rand(B, H, S, D),
    rand(B, H, T, D),
    rand(B, H, T, D).index_fill(2, torch.tensor([3]), math.nan),
    torch.arange(T) != 3,
)
def nan_in_hidden_value(q, k, v, m):
    return (q @ k.mT).masked_fill(~m, -math.inf).softmax(-1) @ v


@adversity(
    rand(B, H, S, D),
    rand(B, H, T, D).index_fill(2, torch.tensor([3]), math.inf),
    rand(B, H, T, D),
    torch.arange(T) != 3,
)
def inf_in_hidden_key(q, k, v, m):
    return (q @ k.mT).masked_fill(~m, -math.inf).softmax(-1) @ v


@adversity(*qkv(), rand(B, H, S, T), rand(B, 1, S, T))
def bias_masked_in_place_after_its_source_changed(q, k, v, b, m):
    """Computed again it would be another bias: what it was made of is overwritten too."""
    source = b + 0
    bias = source * 2
    source.add_(1)
    bias.masked_fill_(m > 0, -math.inf)
    return (q @ k.mT + bias).softmax(-1) @ v + source.sum()


@adversity(*qkv(), rand(B, H, S, T), rand(B, 1, S, T))
def bias_masked_in_place_and_read_again(q, k, v, b, m):
    bias = b * 2
    kept = bias + 0
    bias.masked_fill_(m > 0, -1.0)
    bias[..., 0] = 3
    return (q @ k.mT + bias).softmax(-1) @ v + (q @ k.mT + kept).softmax(-1) @ v, bias


@adversity(*qkv(), rand(B, H, S, T))
def bias_of_a_view_that_changes(q, k, v, b):
    source = b.clone()
    bias = source[..., :T] * 0.5
    bias.add_(1)
    source[..., 1] = 7
    bias.mul_(2)
    return (q @ k.mT + bias).softmax(-1) @ v
