"""Softmaxes over a further column that has no value: learned sinks, softmax plus one, in every form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from forms import SCALE, Forms, H, S, T, qkv, rand
from sampling import one_in

forms = Forms()
fused, refused = forms.fused, forms.refused


@fused(*qkv(), rand(H))
def gpt_oss_sink(q, k, v, s):
    x = q @ k.mT * SCALE
    sinks = s.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    c = torch.cat([x, sinks], dim=-1)
    c = c - c.max(dim=-1, keepdim=True).values
    p = F.softmax(c, dim=-1, dtype=c.dtype)
    return p[..., :-1] @ v


@fused(*qkv(), rand(H))
def sink_first(q, k, v, s):
    x = q @ k.mT * SCALE
    sinks = s.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    p = torch.cat([sinks, x], dim=-1).softmax(-1)
    return p[..., 1:] @ v


@fused(*qkv(), rand(H), torch.ones(S, T).tril(2).bool())
def sink_masked(q, k, v, s, m):
    x = (q @ k.mT * SCALE).masked_fill(~m, float("-inf"))
    p = torch.cat([x, s[None, :, None, None].expand(q.shape[0], -1, q.shape[2], 1)], dim=-1).softmax(-1)
    return p[..., : x.shape[-1]] @ v


@fused(*qkv(), rand(H))
def sink_by_hand(q, k, v, s):
    x = q @ k.mT * SCALE
    s = s[:, None, None]
    m = torch.maximum(x.amax(-1, keepdim=True), s)
    e = torch.exp(x - m)
    return e / (e.sum(-1, keepdim=True) + torch.exp(s - m)) @ v


@fused(*qkv())
def plus_one(q, k, v):
    e = (q @ k.mT * SCALE).exp()
    return e / (1 + e.sum(-1, keepdim=True)) @ v


@fused(*qkv())
def plus_one_shifted(q, k, v):
    x = q @ k.mT * SCALE
    m = x.amax(-1, keepdim=True)
    e = (x - m).exp()
    return e / (e.sum(-1, keepdim=True) + (-m).exp()) @ v


@fused(*qkv())
def plus_one_clamped(q, k, v):
    x = q @ k.mT * SCALE
    m = x.amax(-1, keepdim=True).clamp(min=0)
    e = (x - m).exp()
    return e / (e.sum(-1, keepdim=True) + (-m).exp()) @ v


@fused(*qkv())
def plus_one_pad(q, k, v):
    x = q @ k.mT * SCALE
    return F.pad(x, (1, 0)).softmax(-1)[..., 1:] @ v


@fused(*qkv())
def plus_one_zero_cat(q, k, v):
    x = q @ k.mT * SCALE
    z = torch.zeros(*x.shape[:-1], 1)
    return torch.cat([x, z], -1).softmax(-1)[..., :-1] @ v


@fused(*qkv())
def plus_one_after(q, k, v):
    e = (q @ k.mT * SCALE).exp()
    return (e @ v) / (1 + e.sum(-1, keepdim=True))


@pytest.mark.parametrize("layout", one_in(2, forms.layouts))
@pytest.mark.parametrize("name", forms.right)
def test_fused(name: str, layout: str) -> None:
    forms.check(name, layout)
