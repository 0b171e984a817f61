"""More results than the weighted sum."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spellings.registry import SCALE, spelling


def scores(q, k):
    return q @ k.mT * SCALE


@spelling()
def weights_returned(q, k, v):
    p = scores(q, k).softmax(-1)
    return p @ v, p


@spelling()
def weights_averaged_over_the_heads(q, k, v):
    p = F.softmax(scores(q, k), -1)
    return p @ v, p.mean(dim=1)


@spelling()
def weights_of_one_row(q, k, v):
    p = F.softmax(scores(q, k), -1)
    return p @ v, p[:, :, 0]


@spelling()
def logsumexp_returned(q, k, v):
    x = scores(q, k)
    return x.softmax(-1) @ v, torch.logsumexp(x, dim=-1)


@spelling()
def logsumexp_used_and_returned(q, k, v):
    x = scores(q, k)
    lse = x.logsumexp(-1, keepdim=True)
    return torch.exp(x - lse) @ v, lse.squeeze(-1)


@spelling()
def gated_by_its_logsumexp(q, k, v, sinks):
    """Granite's sinks: the gate is on the result, and is made of what the attention sums."""
    x = scores(q, k)
    gate = (torch.logsumexp(x, dim=-1) - sinks.view(1, -1, 1)).sigmoid()
    return (F.softmax(x, dim=-1) @ v) * gate.unsqueeze(-1)


@spelling()
def maximum_and_sum_returned(q, k, v):
    x = scores(q, k)
    top = x.amax(-1, keepdim=True)
    e = torch.exp(x - top)
    total = e.sum(-1, keepdim=True)
    return (e / total) @ v, top, total


@spelling(beside="values of its own")
def entropy_of_the_weights(q, k, v, mask):
    """The sum of p log p is a weighted sum of the same weights."""
    p = scores(q, k).masked_fill(~mask, -1e9).softmax(-1)
    return p @ v, -(p * (p + 1e-9).log()).sum(-1)


@spelling(sites=2)
def two_values_for_the_same_weights(q, k, v):
    p = scores(q, k).softmax(-1)
    return p @ v, p @ torch.flip(v, [2])


@spelling()
def weights_dropped_out_in_evaluation_and_returned(q, k, v, mask4):
    p = scores(q, k).masked_fill(~mask4, torch.finfo(q.dtype).min).softmax(-1)
    return F.dropout(p, 0.1, training=False) @ v, p
