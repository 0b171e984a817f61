"""The softmax: by every name, by hand, in another precision, after the product with the values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from spellings.registry import SCALE, spelling


def scores(q, k):
    return q @ k.mT * SCALE


@spelling()
def module(q, k, v):
    return nn.Softmax(dim=-1)(scores(q, k)) @ v


@spelling()
def exponential_of_log_softmax(q, k, v):
    return F.log_softmax(scores(q, k), dim=-1).exp() @ v


@spelling()
def over_its_sum_without_a_maximum(q, k, v):
    e = torch.exp(scores(q, k))
    return (e / e.sum(dim=-1, keepdim=True)) @ v


@spelling()
def over_its_sum_with_max_values(q, k, v):
    x = scores(q, k)
    e = (x - x.max(dim=-1, keepdim=True).values).exp()
    return torch.matmul(e / torch.sum(e, dim=-1, keepdim=True), v)


@spelling()
def over_its_sum_with_max_detached_and_unsqueezed(q, k, v):
    x = scores(q, k)
    e = torch.exp(x - x.detach().max(-1)[0].unsqueeze(-1))
    return e.div(e.sum(-1).unsqueeze(-1)) @ v


@spelling()
def times_the_reciprocal_of_the_sum(q, k, v):
    x = scores(q, k)
    e = torch.exp(x - torch.amax(x, -1, True))
    return (e * e.sum(-1, keepdim=True).reciprocal()) @ v


@spelling(sites=0)
def normalised_by_its_l1_norm(q, k, v):
    x = scores(q, k)
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return (e / e.norm(p=1, dim=-1, keepdim=True)) @ v


@spelling()
def divided_after_the_product(q, k, v):
    x = scores(q, k)
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return (e @ v) / e.sum(-1, keepdim=True)


@spelling()
def divided_after_the_product_without_a_maximum(q, k, v):
    e = scores(q, k).exp()
    return torch.einsum("bhij,bhjd->bhid", e, v) / torch.einsum("bhij->bhi", e)[..., None]


@spelling()
def minus_logsumexp(q, k, v):
    x = scores(q, k)
    return torch.exp(x - torch.logsumexp(x, dim=-1, keepdim=True)) @ v


@spelling()
def minus_logsumexp_unsqueezed(q, k, v):
    x = scores(q, k)
    return (x - x.logsumexp(-1).unsqueeze(-1)).exp() @ v


@spelling()
def powers_of_two(q, k, v):
    x = q @ k.mT * (SCALE * math.log2(math.e))
    e = torch.exp2(x - x.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


@spelling()
def after_its_maximum_was_taken_off(q, k, v):
    x = scores(q, k)
    x = x - x.max(dim=-1, keepdim=True)[0]
    return F.softmax(x, dim=-1) @ v


@spelling()
def after_all_scores_lost_a_number(q, k, v):
    x = scores(q, k)
    return torch.softmax(x - 3.0, -1) @ v


@spelling()
def over_keys_that_are_rows(q, k, v):
    x = (k @ q.mT * SCALE).softmax(dim=2)
    return torch.einsum("bhji,bhjd->bhid", x, v)


@spelling(dtype=torch.bfloat16)
def dtype_argument_and_back(q, k, v):
    return F.softmax(scores(q, k), dim=-1, dtype=torch.float32).type_as(v) @ v


@spelling(dtype=torch.float16)
def float_and_half_again(q, k, v):
    return torch.softmax(scores(q, k).float(), dim=-1).half() @ v


@spelling(dtype=torch.bfloat16)
def by_hand_in_float32(q, k, v):
    x = scores(q, k).to(torch.float32)
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)).to(v.dtype) @ v


@spelling(dtype=torch.float64)
def double_precision(q, k, v):
    return scores(q, k).softmax(-1) @ v


@spelling()
def dropout_in_evaluation(q, k, v):
    p = nn.Dropout(0.1).eval()(scores(q, k).softmax(-1))
    return torch.dropout(p, 0.1, False) @ v


@spelling()
def not_a_number_becomes_zero(q, k, v, mask4):
    x = scores(q, k).masked_fill(~mask4, float("-inf"))
    return torch.nan_to_num(x.softmax(-1)) @ v


@spelling(sites=2)
def in_chunks_of_queries(q, k, v):
    parts = [scores(part, k).softmax(-1) @ v for part in (q[:, :, :3], q[:, :, 3:])]
    return torch.cat(parts, dim=2)
