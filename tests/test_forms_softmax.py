"""Every spelling of a softmax is one attention: by logarithms, powers of two, divided before or after the product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from capture import capture_directly
from forms import SCALE, B, D, E, Forms, H, S, T, qkv, rand
from sampling import one_in

forms = Forms()
fused, refused = forms.fused, forms.refused


@fused(*qkv())
def log_softmax_exp(q, k, v):
    return F.log_softmax(q @ k.mT * SCALE, -1).exp() @ v


@fused(*qkv())
def lse_nokeep(q, k, v):
    x = q @ k.mT * SCALE
    return (x - torch.logsumexp(x, -1)[..., None]).exp() @ v


@fused(*qkv())
def divide_after(q, k, v):
    x = q @ k.mT * SCALE
    e = (x - x.amax(-1, keepdim=True)).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


@fused(*qkv())
def divide_after_noshift(q, k, v):
    e = (q @ k.mT * SCALE).exp()
    return (e @ v) / e.sum(-1)[..., None]


@fused(*qkv())
def divide_after_transposed(q, k, v):
    x = q @ k.mT * SCALE
    e = (x - x.amax(-1, keepdim=True)).exp()
    return (e @ v).transpose(1, 2) / e.sum(-1).transpose(1, 2)[..., None]


@fused(*qkv())
def divide_eps_noshift(q, k, v):
    e = (q @ k.mT * SCALE).exp()
    return e / (e.sum(-1, keepdim=True) + 1e-6) @ v


@fused(*qkv())
def reciprocal(q, k, v):
    x = q @ k.mT * SCALE
    e = (x - x.max(-1, keepdim=True).values).exp()
    return (e @ v) * e.sum(-1, keepdim=True).reciprocal()


@fused(*qkv())
def exp2_softmax(q, k, v):
    x = q @ k.mT * (SCALE * 1.4426950408889634)
    m = x.amax(-1, keepdim=True).detach()
    e = torch.exp2(x - m)
    return (e @ v) / e.sum(-1, keepdim=True)


@fused(*qkv())
def exp2_lse(q, k, v):
    x = q @ k.mT * SCALE
    total = torch.logsumexp(x, -1, keepdim=True)
    return torch.exp2((x - total) * 1.4426950408889634) @ v


@fused(*qkv())
def merged_keys(q, k, v):
    x = q @ k.mT
    x = x[..., :10].unflatten(-1, (2, 5))
    p = x.flatten(-2).softmax(-1)
    return p @ v[:, :, :10]


@fused(*qkv())
def detached_shift(q, k, v):
    x = q @ k.mT * SCALE
    x = x - x.detach().amax(-1, keepdim=True)
    return x.softmax(-1) @ v


@fused(*qkv())
def weights_scaled(q, k, v):
    return ((q @ k.mT * SCALE).softmax(-1) * 0.5) @ v


@fused(*qkv(), torch.tensor(0.3))
def weights_scaled_t(q, k, v, t):
    return ((q @ k.mT * SCALE).softmax(-1) * t) @ v


@fused(*qkv(), torch.ones(S, T).tril(2).bool())
def renormalised_mask(q, k, v, m):
    p = (q @ k.mT * SCALE).softmax(-1) * m
    return p / p.sum(-1, keepdim=True) @ v


@fused(*qkv(), torch.ones(S, T).tril(-2).bool())
def masked_then_zero(q, k, v, m):
    p = (q @ k.mT * SCALE).masked_fill(~m, float("-inf")).softmax(-1).masked_fill(~m, 0)
    return p @ v


@fused(*qkv(), torch.ones(S, T).tril(-2).bool())
def masked_min_then_zero(q, k, v, m):
    x = q @ k.mT * SCALE
    p = x.masked_fill(~m, torch.finfo(x.dtype).min).softmax(-1) * m
    return p @ v


@fused(*qkv(), torch.ones(S, T).tril(-2).bool())
def nan_to_num(q, k, v, m):
    p = (q @ k.mT * SCALE).masked_fill(~m, float("-inf")).softmax(-1)
    return torch.nan_to_num(p) @ v


@fused(*qkv(), torch.ones(S, T).tril(-2).bool())
def isnan(q, k, v, m):
    p = (q @ k.mT * SCALE).masked_fill(~m, float("-inf")).softmax(-1)
    return p.masked_fill(torch.isnan(p), 0.0) @ v


@fused(*qkv(), torch.ones(S, T).tril(-2).bool())
def safe_flash(q, k, v, m):
    x = (q @ k.mT * SCALE).masked_fill(~m, float("-inf"))
    t = x.amax(-1, keepdim=True)
    t = torch.where(t == float("-inf"), torch.zeros_like(t), t)
    e = (x - t).exp()
    s = e.sum(-1, keepdim=True)
    s = torch.where(s == 0, torch.ones_like(s), s)
    return (e / s) @ v


@refused("is added to the sum", *qkv())
def divide_after_eps(q, k, v):
    x = q @ k.mT * SCALE
    e = (x - x.amax(-1, keepdim=True)).exp()
    return (e @ v) / (e.sum(-1, keepdim=True) + 1e-6)


@refused("is added to the sum", *qkv())
def divide_eps(q, k, v):
    x = q @ k.mT * SCALE
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / (e.sum(-1, keepdim=True) + 1e-6) @ v


@refused("not divided by their sum", *qkv())
def unnormalised_shift(q, k, v):
    x = q @ k.mT * SCALE
    return (x - x.amax(-1, keepdim=True)).exp() @ v


@refused("another softmax", *qkv())
def double_softmax(q, k, v):
    return (q @ k.mT * SCALE).softmax(-1).softmax(-1) @ v


@refused("another axis", *qkv())
def over_heads(q, k, v):
    return (q @ k.mT * SCALE).softmax(1) @ v


@pytest.mark.parametrize("layout", one_in(2, forms.layouts))
@pytest.mark.parametrize("name", forms.right)
def test_fused(name: str, layout: str) -> None:
    forms.check(name, layout)


@pytest.mark.parametrize("name", forms.wrong)
def test_refused(name: str) -> None:
    forms.check_refused(name)


def test_one_key_is_no_site() -> None:
    """A softmax over a single key is 1: nothing to fuse, and nothing to tell the user."""

    def call(q, k, v):
        return (q @ k.mT).softmax(-1) @ v

    seen = capture_directly(call, (rand(B, H, S, D), rand(B, H, 1, D), rand(B, H, 1, E)))
    assert not seen.found


def test_an_original_that_overflows_is_replayed_on_smaller_scores() -> None:
    """Without the maximum subtracted, exp overflows on the replay's large scores; the fused attention does not."""

    def call(q, k, v):
        e = (q @ k.mT).exp()
        return (e @ v) / e.sum(-1, keepdim=True)

    args = tuple(rand(B, H, n, 64) / 4 for n in (S, T, T))
    assert len(capture_directly(call, args).fused) == 1
