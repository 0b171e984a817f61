"""Sums and differences of softmaxes: each has a product with V of its own; factors of the row come after it."""

from __future__ import annotations

import pytest
import torch
from forms import SCALE, B, D, E, Forms, H, S, T, qkv, rand
from sampling import one_in

forms = Forms()
fused, refused = forms.fused, forms.refused


@fused(*qkv(), *(x + 0.3 for x in qkv()[:2]), torch.tensor(0.4), count=2)
def diff(q, k, v, q2, k2, lam):
    return ((q @ k.mT * SCALE).softmax(-1) - lam * (q2 @ k2.mT * SCALE).softmax(-1)) @ v


@fused(*qkv(), *(x + 0.3 for x in qkv()[:2]), rand(H), count=2)
def diff_heads(q, k, v, q2, k2, lam):
    return ((q @ k.mT * SCALE).softmax(-1) - lam[:, None, None] * (q2 @ k2.mT * SCALE).softmax(-1)) @ v


@fused(
    rand(B, 2 * H, S, D),
    rand(B, 2 * H, T, D),
    rand(B, H, T, E),
    rand(D),
    rand(D),
    torch.ones(S, T).tril(4).bool(),
    count=2,
)
def diff_doubled(q, k, v, l1, l2, m):
    p = (q @ k.mT * SCALE).masked_fill(~m, float("-inf")).softmax(-1)
    p = p.view(q.shape[0], q.shape[1] // 2, 2, q.shape[2], k.shape[2])
    lam = (l1 * l2).sum() - 0.2
    return (p[:, :, 0] - lam * p[:, :, 1]) @ v


@fused(*qkv(), *(x + 0.3 for x in qkv()[:2]), torch.tensor(0.4), count=2)
def diff_after(q, k, v, q2, k2, lam):
    return (q @ k.mT * SCALE).softmax(-1) @ v - lam * ((q2 @ k2.mT * SCALE).softmax(-1) @ v)


@fused(*qkv(), rand(B, H, S))
def rows_gated(q, k, v, g):
    return ((q @ k.mT * SCALE).softmax(-1) * g[..., None]) @ v


@refused("another axis", *qkv(), *(x + 0.3 for x in qkv()[:2]))
def diff_wrong_axis(q, k, v, q2, k2):
    return ((q @ k.mT * SCALE).softmax(-1) - 0.3 * (q2 @ k2.mT * SCALE).softmax(-2)) @ v


@pytest.mark.parametrize("layout", one_in(2, forms.layouts))
@pytest.mark.parametrize("name", forms.right)
def test_fused(name: str, layout: str) -> None:
    forms.check(name, layout)


@pytest.mark.parametrize("name", forms.wrong)
def test_refused(name: str) -> None:
    forms.check_refused(name)
