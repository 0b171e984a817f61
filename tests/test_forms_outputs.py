"""Results beside the weighted sum: weights, row maxima and sums, logsumexp; several users of one softmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from forms import SCALE, B, Forms, H, T, qkv, rand
from sampling import one_in

forms = Forms()
fused, refused = forms.fused, forms.refused


@fused(*qkv())
def w_returned(q, k, v):
    p = (q @ k.mT * SCALE).softmax(-1)
    return p @ v, p


@fused(*qkv())
def w_mean(q, k, v):
    p = (q @ k.mT * SCALE).softmax(-1)
    return p @ v, p.mean(1)


@fused(*qkv())
def w_dropout_returned(q, k, v):
    p = F.dropout((q @ k.mT * SCALE).softmax(-1), 0.1, False)
    return (p @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1), p


@fused(*(x.bfloat16() for x in qkv()))
def w_bf16(q, k, v):
    p = F.softmax(q @ k.mT * SCALE, -1, dtype=torch.float32).to(q.dtype)
    return p @ v, p


@fused(*qkv())
def lse_returned(q, k, v):
    x = q @ k.mT * SCALE
    return x.softmax(-1) @ v, torch.logsumexp(x, -1, keepdim=True)


@fused(*qkv())
def lse_returned_nokeep(q, k, v):
    x = q @ k.mT * SCALE
    return x.softmax(-1) @ v, torch.logsumexp(x, -1)


@fused(*qkv())
def lse_used_and_returned(q, k, v):
    x = q @ k.mT * SCALE
    total = torch.logsumexp(x, -1, keepdim=True)
    return (x - total).exp() @ v, total[..., 0]


@fused(*qkv())
def stats_by_hand(q, k, v):
    x = q @ k.mT * SCALE
    m = x.amax(-1, keepdim=True)
    e = (x - m).exp()
    s = e.sum(-1, keepdim=True)
    return (e @ v) / s, m, s, m + s.log()


@fused(*qkv(), rand(B, H, T, 5), count=2)
def two_values(q, k, v, w):
    p = (q @ k.mT * SCALE).softmax(-1)
    return p @ v, p @ w


@fused(*qkv(), rand(B, H, T, 5), count=2)
def two_values_and_weights(q, k, v, w):
    p = (q @ k.mT * SCALE).softmax(-1)
    return p @ v, p @ w, p


@fused(*qkv(), rand(H))
def sink_weights(q, k, v, s):
    x = q @ k.mT * SCALE
    p = torch.cat([x, s[None, :, None, None].expand(q.shape[0], -1, q.shape[2], 1)], dim=-1).softmax(-1)[..., :-1]
    return p @ v, p


@fused(*(x[:, :, :7] for x in qkv()), count=2)
def p_twice(q, k, v):
    p = (q @ k.mT * SCALE).softmax(-1)
    return p @ (p @ v)


@fused(*qkv())
def w_heads_in_batch(q, k, v):
    b, h, s, d = q.shape
    p = torch.bmm(q.reshape(b * h, s, d) * SCALE, k.reshape(b * h, -1, d).mT).softmax(-1)
    o = torch.bmm(p, v.reshape(b * h, -1, v.shape[-1])).view(b, h, s, -1).transpose(1, 2).reshape(b, s, -1)
    return o, p.view(b, h, s, -1), p.view(b, h, s, -1).mean(1)


@fused(*qkv())
def sigmoid_weights(q, k, v):
    p = torch.sigmoid(q @ k.mT * SCALE)
    return p @ v, p


@refused("used before", *qkv())
def w_used_before_the_values(q, k, v):
    p = (q @ k.mT * SCALE).softmax(-1)
    y = p.sum(-2)
    v2 = v * 2
    return p @ v2, y


@refused("scores are also used", *qkv())
def scores_returned(q, k, v):
    x = q @ k.mT * SCALE
    return x.softmax(-1) @ v, x


@refused("also used", *qkv(), rand(H))
def sink_weights_whole(q, k, v, s):
    x = q @ k.mT * SCALE
    p = torch.cat([x, s[None, :, None, None].expand(q.shape[0], -1, q.shape[2], 1)], dim=-1).softmax(-1)
    return p[..., :-1] @ v, p


@refused("changed in place", *qkv())
def w_inplace_later(q, k, v):
    p = (q @ k.mT * SCALE).softmax(-1)
    o = p @ v
    p.mul_(2)
    return o, p


@pytest.mark.parametrize("layout", one_in(2, forms.layouts))
@pytest.mark.parametrize("name", forms.right)
def test_fused(name: str, layout: str) -> None:
    forms.check(name, layout)


@pytest.mark.parametrize("name", forms.wrong)
def test_refused(name: str) -> None:
    forms.check_refused(name)
