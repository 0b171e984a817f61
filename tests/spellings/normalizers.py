"""Other weights than a softmax over the keys: sinks, sigmoid, relu, differences of two."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from spellings.registry import SCALE, spelling


def scores(q, k):
    return q @ k.mT * SCALE


@spelling()
def sink_column_as_gpt_oss(q, k, v, sinks):
    x = scores(q, k)
    column = sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
    combined = torch.cat([x, column], dim=-1)
    combined = combined - combined.max(dim=-1, keepdim=True).values
    p = F.softmax(combined, dim=-1, dtype=combined.dtype)
    return p[..., :-1] @ v


@spelling()
def sink_column_first(q, k, v, sinks):
    column = sinks[None, :, None, None].expand(q.shape[0], -1, q.shape[2], 1)
    p = torch.cat([column, scores(q, k)], dim=-1).softmax(-1)[..., 1:]
    return p @ v


@spelling()
def sink_in_the_denominator(q, k, v, sinks):
    x = scores(q, k)
    e = x.exp()
    return (e / (e.sum(-1, keepdim=True) + sinks.view(-1, 1, 1).exp())) @ v


@spelling()
def plus_one(q, k, v):
    e = torch.exp(scores(q, k))
    return (e / (1 + e.sum(-1, keepdim=True))) @ v


@spelling()
def plus_one_shifted(q, k, v):
    x = scores(q, k)
    top = x.amax(-1, keepdim=True).clamp(min=0)
    e = torch.exp(x - top)
    return (e / (e.sum(-1, keepdim=True) + torch.exp(-top))) @ v


@spelling()
def a_padded_zero(q, k, v):
    x = F.pad(scores(q, k), (0, 1))
    return x.softmax(-1)[..., :-1] @ v


@spelling()
def a_key_and_value_of_zeros(q, k, v):
    """add_zero_attn."""
    k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    return scores(q, k).softmax(-1) @ v


@spelling(once=False)
def sigmoid_minus_the_log_of_the_length(q, k, v):
    return torch.sigmoid(scores(q, k) - math.log(k.shape[2])) @ v


@spelling()
def sigmoid_of_hidden_scores(q, k, v, mask):
    return scores(q, k).masked_fill(~mask, float("-inf")).sigmoid() @ v


@spelling()
def relu_over_the_length(q, k, v):
    return (F.relu(scores(q, k)) / k.shape[2]) @ v


@spelling()
def relu_squared(q, k, v, mask):
    x = F.relu(scores(q, k)) ** 2
    return x.masked_fill(~mask, 0.0) @ v


@spelling(sites=2)
def difference_of_two(q, k, v, q2, k2, lam):
    p = scores(q, k).softmax(-1) - lam * scores(q2, k2).softmax(-1)
    return p @ v


@spelling(sites=2)
def difference_of_two_outputs(q, k, v, q2, k2, lam):
    return scores(q, k).softmax(-1) @ v - lam * (scores(q2, k2).softmax(-1) @ v)


@spelling(sites=2)
def difference_as_the_paper_writes_it(q, k, v):
    b, _, s, _d = q.shape
    p = scores(q, k).softmax(-1).view(b, 2, 2, s, -1)
    p = p[:, :, 0] - 0.3 * p[:, :, 1]
    return p @ v[:, ::2]
