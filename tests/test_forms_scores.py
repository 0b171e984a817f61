"""Scores beyond the plain product: sums of two, additive, distances, cosines, bilinear ones, relative positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from forms import SCALE, B, D, E, Forms, H, R, S, T, qkv, rand
from sampling import one_in

forms = Forms()
fused, refused = forms.fused, forms.refused


@fused(*qkv(), rand(B, H, S, R), rand(B, 1, T, R))
def nope_rope(q, k, v, qr, kr):
    return ((q @ k.mT + qr @ kr.mT) * SCALE).softmax(-1) @ v


@fused(*qkv(), rand(B, H, S, R), rand(B, 1, T, R), torch.ones(S, T).tril(2).bool())
def nope_rope_scales(q, k, v, qr, kr, m):
    return (q @ k.mT * SCALE + qr @ kr.mT * 0.2).masked_fill(~m, -1e9).softmax(-1) @ v


@fused(
    rand(B, S, H, D),
    rand(B, T, D),
    rand(B, S, H, R),
    rand(B, T, R),
    torch.zeros(S, T).masked_fill(~torch.ones(S, T).tril(2).bool(), float("-inf")),
)
def absorbed_mla(q, c, qr, kr, m):
    x = (torch.einsum("bshc,btc->bsht", q, c) + torch.einsum("bshr,btr->bsht", qr, kr)) * SCALE
    x = x + m[:, None]
    return torch.einsum("bsht,btc->bshc", x.softmax(-1), c)


@fused(*qkv(), rand(B, H, S, R), rand(B, H, T, R), rand(H, S, T))
def split_bias_between(q, k, v, qr, kr, b):
    return (q @ k.mT * SCALE + b + qr @ kr.mT * SCALE).softmax(-1) @ v


@fused(*qkv(), rand(H, D), rand(S + T, D))
def transformer_xl(q, k, v, u, r):
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None]
    rel = r[i - j + k.shape[2]]
    return ((q + u[:, None]) @ k.mT + torch.einsum("bhid,ijd->bhij", q, rel)).softmax(-1) @ v


@fused(*qkv(), rand(B, H, S, R), rand(B, 1, T, R))
def sigmoid_split(q, k, v, qr, kr):
    return torch.sigmoid((q @ k.mT + qr @ kr.mT) * SCALE) @ v


@fused(*qkv(), rand(B, H, S, R), rand(B, 1, T, R))
def product_of_scores(q, k, v, qr, kr):
    return ((q @ k.mT) * (qr @ kr.mT)).softmax(-1) @ v


@fused(rand(B, S, D), rand(B, T, D), rand(B, T, E), rand(D))
def additive(q, k, v, w):
    return (w * torch.tanh(q[:, :, None] + k[:, None])).sum(-1).softmax(-1) @ v


@fused(rand(B, S, D), rand(B, T, D), rand(B, T, E), rand(D))
def additive_matmul(q, k, v, w):
    return (torch.tanh(q[:, :, None] + k[:, None]) @ w).softmax(-1) @ v


@fused(rand(B, S, D), rand(B, T, D), rand(B, T, E), rand(1, D), rand(1), rand(D, D), rand(D))
def additive_linear(q, k, v, w, c, wq, bq):
    q = F.linear(q, wq, bq)
    k = F.linear(k, wq)
    return F.linear(torch.tanh(q.unsqueeze(2) + k.unsqueeze(1)), w, c).squeeze(-1).softmax(-1) @ v


@fused(*qkv(), rand(H, D))
def additive_heads(q, k, v, w):
    x = torch.einsum("bhijd,hd->bhij", torch.tanh(q[:, :, :, None] + k[:, :, None]), w)
    return x.softmax(-1) @ v


@fused(*qkv(), rand(H, D), torch.ones(S, T).tril(2).bool())
def gatv2(q, k, v, w, m):
    x = (F.leaky_relu(q[:, :, :, None] + k[:, :, None], 0.2) * w[:, None, None]).sum(-1)
    return x.masked_fill(~m, float("-inf")).softmax(-1) @ v


@fused(*qkv())
def l2(q, k, v):
    return (-((q[:, :, :, None] - k[:, :, None]) ** 2).sum(-1) / 2).softmax(-1) @ v


@fused(*qkv())
def l1(q, k, v):
    return (-(q[:, :, :, None] - k[:, :, None]).abs().sum(-1)).softmax(-1) @ v


@fused(*qkv())
def l2_expanded(q, k, v):
    d = (q * q).sum(-1)[..., None] - 2 * q @ k.mT + (k * k).sum(-1)[:, :, None]
    return (-d / 2).softmax(-1) @ v


@fused(*qkv())
def rbf_unnormalised(q, k, v):
    return torch.exp(-((q[:, :, :, None] - k[:, :, None]) ** 2).sum(-1) / 2) @ v


@fused(*qkv())
def cosine(q, k, v):
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 10).softmax(-1) @ v


@fused(*qkv())
def cosine_after(q, k, v):
    n = q.norm(dim=-1)[..., None] * k.norm(dim=-1)[:, :, None]
    return (q @ k.mT / n).softmax(-1) @ v


@fused(*qkv(), rand(D, D))
def bilinear_k(q, k, v, w):
    return (q @ w @ k.mT).softmax(-1) @ v


@fused(*qkv(), rand(H, D, D))
def bilinear_h(q, k, v, w):
    return torch.einsum("bhic,hcd,bhjd->bhij", q, w, k).softmax(-1) @ v


@pytest.mark.parametrize("layout", one_in(2, forms.layouts))
@pytest.mark.parametrize("name", forms.right)
def test_fused(name: str, layout: str) -> None:
    forms.check(name, layout)
