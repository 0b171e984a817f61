"""Weights that are a function of the score alone; what looks alike and is a gated layer is left alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from forms import SCALE, B, D, E, Forms, S, T, qkv, rand
from sampling import one_in

forms = Forms()
fused, refused = forms.fused, forms.refused


@fused(*qkv())
def sigmoid(q, k, v):
    return torch.sigmoid(q @ k.mT * SCALE) @ v


@fused(*qkv())
def sigmoid_bias(q, k, v):
    return torch.sigmoid(q @ k.mT * SCALE - math.log(k.shape[-2])) @ v


@fused(*qkv(), torch.ones(S, T).tril(2).bool())
def sigmoid_masked(q, k, v, m):
    return torch.sigmoid((q @ k.mT * SCALE).masked_fill(~m, float("-inf"))) @ v


@fused(*qkv(), torch.ones(S, T).tril(2).bool())
def sigmoid_masked_after(q, k, v, m):
    return torch.sigmoid(q @ k.mT * SCALE).masked_fill(~m, 0) @ v


@fused(*qkv())
def relu(q, k, v):
    return F.relu(q @ k.mT * SCALE) @ v


@fused(*qkv())
def relu_over_s(q, k, v):
    return F.relu(q @ k.mT * SCALE) / k.shape[-2] @ v


@fused(*qkv())
def relu2(q, k, v):
    return F.relu(q @ k.mT * SCALE).square() @ v


@fused(*qkv())
def relu2_pow_causal(q, k, v):
    x = q @ k.mT * SCALE
    return (F.relu(x) ** 2 * torch.ones(x.shape[-2:]).tril()) @ v


@fused(*qkv())
def silu(q, k, v):
    return F.silu(q @ k.mT * SCALE) @ v


@fused(*qkv())
def gelu(q, k, v):
    return F.gelu(q @ k.mT * SCALE) @ v


@fused(*qkv())
def gelu_tanh(q, k, v):
    return F.gelu(q @ k.mT * SCALE, approximate="tanh") @ v


@fused(*qkv())
def elu1(q, k, v):
    return (F.elu(q @ k.mT * SCALE) + 1) @ v


@fused(*qkv())
def softplus(q, k, v):
    return F.softplus(q @ k.mT * SCALE) @ v


@fused(*qkv())
def leaky(q, k, v):
    return F.leaky_relu(q @ k.mT * SCALE, 0.1) @ v


@fused(*qkv())
def tanh(q, k, v):
    return torch.tanh(q @ k.mT * SCALE) @ v


@fused(*qkv())
def exp_only(q, k, v):
    return torch.exp(q @ k.mT * SCALE) @ v


@fused(*qkv())
def retention(q, k, v):
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
    dec = torch.where(i >= j, 0.9 ** (i - j).float(), 0.0)
    return (q @ k.mT * SCALE * dec) @ v


@refused("", *qkv())
def linear(q, k, v):
    return (q @ k.mT * SCALE) @ v


@refused("", rand(B, S, D), rand(D, T), rand(T, E))
def mlp(x, a, b):
    return F.relu(x @ a) @ b


@refused("", rand(B, S, D), rand(T, D), rand(E, T))
def mlp_linear(x, a, b):
    return F.linear(F.silu(F.linear(x, a)) * F.linear(x, a), b)


@refused("sum of something other", *qkv())
def relu_normalised(q, k, v):
    w = F.relu(q @ k.mT * SCALE)
    return w / w.sum(-1, keepdim=True) @ v


@pytest.mark.parametrize("layout", one_in(2, forms.layouts))
@pytest.mark.parametrize("name", forms.right)
def test_fused(name: str, layout: str) -> None:
    forms.check(name, layout)


@pytest.mark.parametrize("name", forms.wrong)
def test_refused(name: str) -> None:
    forms.check_refused(name)
