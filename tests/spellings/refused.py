"""What only looks like attention, or is one that no fused kernel computes: left alone, with the reason, and right."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spellings.registry import SCALE, spelling


def scores(q, k):
    return q @ k.mT * SCALE


@spelling(reason="another axis")
def softmax_over_queries(q, k, v):
    return scores(q, k).softmax(-2) @ v


@spelling(reason="another axis")
def softmax_over_heads(q, k, v):
    return scores(q, k).softmax(1) @ v


@spelling(reason="another axis")
def softmax_over_the_batch(q, k, v):
    return torch.softmax(scores(q, k), 0) @ v


@spelling(reason="other positions")
def softmax_over_all_pairs(q, k, v):
    x = scores(q, k)
    return x.flatten(2).softmax(-1).view(x.shape) @ v


@spelling(reason="", sites=0)
def heads_mixed_after_the_softmax(q, k, v, mixer):
    p = torch.einsum("bhij,hg->bgij", scores(q, k).softmax(-1), mixer)
    return p @ v


@spelling(reason="changed between")
def weights_masked_without_a_new_sum(q, k, v, mask):
    return (scores(q, k).softmax(-1) * mask) @ v


@spelling(reason="", sites=0)
def weights_masked_and_summed_anew(q, k, v, mask):
    p = scores(q, k).softmax(-1) * mask
    return (p / (p.sum(-1, keepdim=True) + 1e-9)) @ v


@spelling(reason="", sites=0)
def softmax_of_the_softmax(q, k, v):
    return scores(q, k).softmax(-1).softmax(-1) @ v


@spelling(reason="", sites=0)
def a_sum_with_epsilon(q, k, v):
    x = scores(q, k)
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return (e / (e.sum(-1, keepdim=True) + 0.1)) @ v


@spelling(reason="", sites=0)
def only_the_largest_scores(q, k, v):
    x = scores(q, k)
    kept = torch.topk(x, 3, dim=-1).values[..., -1:]
    return x.masked_fill(x < kept, float("-inf")).softmax(-1) @ v


@spelling(reason="", sites=0)
def scores_standardised_by_row(q, k, v):
    x = scores(q, k)
    x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
    return x.softmax(-1) @ v


@spelling(reason="changed in place")
def weights_changed_in_place(q, k, v):
    p = scores(q, k).softmax(-1)
    p[..., 0] = 0
    return p @ v


@spelling(reason="", sites=0)
def gumbel_noise(q, k, v, bias):
    x = scores(q, k)
    return F.softmax(x + torch.rand_like(x) * 0, dim=-1) @ v


@spelling(reason="", sites=0)
def cumulative_scores(q, k, v):
    return scores(q, k).cumsum(-1).softmax(-1) @ v


@spelling(sites=0, once=False)
def hard_choice(q, k, v):
    x = scores(q, k)
    return F.one_hot(x.argmax(-1), x.shape[-1]).to(v.dtype) @ v


@spelling(reason="", sites=0)
def linear_attention(q, k, v):
    """A softmax of queries and one of keys, no scores at all."""
    return q.softmax(-1) @ (k.softmax(-2).mT @ v)


@spelling(reason="values of its own")
def values_that_depend_on_the_query(q, k, v, pair_keys):
    p = scores(q, k).softmax(-1)
    return torch.einsum("bhij,bhijd->bhid", p, v[:, :, None] + pair_keys)


@spelling(reason="other positions", sites=0)
def parts_of_the_weights_that_overlap(q, k, v):
    p = scores(q, k).softmax(-1)
    return p[..., :6] @ v[:, :, :6] + p[..., 5:] @ v[:, :, 5:]
