"""`vmap` in compiled code: sites are found in what PyTorch's batching rules make of it; the rest runs as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import assert_same, capture
from torch import Tensor
from torch.func import vmap

import attncc
from attncc.expand.regions import scaled_dot_product_attention

B, H, S, D = 2, 4, 7, 8


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


QKV = (rand(B, H, S, D), rand(B, H, S, D) + 0.1, rand(B, H, S, D) - 0.2)
MASK = torch.rand(S, S, generator=torch.Generator().manual_seed(0)) > 0.4


def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * 0.3, -1) @ v


def masked_call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=MASK)


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "batch": (vmap(one), QKV),
    "heads": (vmap(one, in_dims=1, out_dims=1), QKV),
    "batch_and_heads": (vmap(vmap(one)), QKV),
    "heads_of_shared_keys": (vmap(one, in_dims=(1, None, None), out_dims=1), (QKV[0], QKV[1][:, 0], QKV[2][:, 0])),
    "call": (vmap(F.scaled_dot_product_attention), QKV),
    "masked_call": (vmap(masked_call, in_dims=1, out_dims=1), QKV),
}


@pytest.mark.parametrize(("name", "dynamic"), [*((name, False) for name in CASES), ("heads", True)])
def test_inside(name: str, dynamic: bool) -> None:
    mapped, args = CASES[name]
    seen = capture(lambda *x: mapped(*x) * 2, args, dynamic=dynamic)
    assert [f.fused for f in seen.found] == [True], seen.reasons
    torch.testing.assert_close(seen.result, mapped(*args) * 2, atol=1e-5, rtol=1e-5)


def test_outside_runs_as_pytorch_runs_it() -> None:
    compiled = attncc.compile(one)
    torch.testing.assert_close(vmap(compiled)(*QKV), one(*QKV), atol=1e-6, rtol=1e-6)


def test_random_numbers_are_drawn_as_pytorch_draws_them() -> None:
    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout(torch.softmax(q @ k.mT, -1), 0.5, True) @ v

    mapped = vmap(dropped, randomness="different")
    compiled = attncc.compile(lambda *x: mapped(*x))
    compiled(*QKV)
    torch.manual_seed(3)
    expected = mapped(*QKV)
    torch.manual_seed(3)
    assert_same(compiled(*QKV), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, MASK, MASK & (torch.arange(S) > 2)[:, None], rand(S, S)])
def test_the_spelling_of_an_attention_call(mask: Tensor | None, causal: bool) -> None:
    if causal and mask is not None:
        return
    args = [x.double() for x in QKV]
    expected = F.scaled_dot_product_attention(*args, attn_mask=mask, is_causal=causal, scale=0.2)
    mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    torch.testing.assert_close(scaled_dot_product_attention(*args, mask, is_causal=causal, scale=0.2), expected)
