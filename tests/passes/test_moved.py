"""Attention whose scores or weights are laid out anew on the way is named, with the reason; routers and gates are not.

Whatever is said of them, they run as PyTorch runs them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from capture import assert_same, capture
from torch import Tensor, nn

from attncc.advice import OTHERWISE, next_step

B, S, D, W = 2, 12, 8, 2
"""W: keys that a row sees before itself, and after."""


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return rand(B, S, D), rand(B, S, D) + 0.1, rand(B, S, D) - 0.2


def chunks(x: Tensor, length: int) -> Tensor:
    """Overlapping chunks, W positions apart."""
    count = (x.shape[1] - length) // W + 1
    return x.as_strided((B, count, length, D), (x.shape[1] * D, W * D, D, 1))


def diagonals(q: Tensor, k: Tensor) -> Tensor:
    """Scores [batch, row, 2 W + 1] of the keys around each row."""
    x = torch.einsum("bcxd,bcyd->bcxy", chunks(q, 2 * W), chunks(k, 2 * W))
    count = x.shape[1]
    x = F.pad(x, (0, 0, 0, 1)).view(B, count, 2 * W, 2 * W + 1)
    scores = x.new_zeros(B, count + 1, W, 2 * W + 1)
    scores[:, :-1, :, W:] = x[:, :, :W, : W + 1]
    scores[:, -1, :, W:] = x[:, -1, W:, : W + 1]
    scores[:, 1:, :, :W] = x[:, :, -(W + 1) : -1, W + 1 :]
    return scores.view(B, S, 2 * W + 1)


def band(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As Longformer has it: diagonals as columns, and the weights skewed back."""
    p = diagonals(q, k).softmax(-1).masked_fill(v[..., :1].isnan(), 0.0)
    p = F.dropout(p.view(B, S // W, W, 2 * W + 1), 0.1, training=False)
    p = F.pad(p, (0, W + 1)).view(B, S // W, -1)[..., :-W].view(B, S // W, W, 3 * W + 1)[..., :-1]
    values = chunks(F.pad(v, (0, 0, W, W)), 3 * W)
    return torch.einsum("bcwd,bcdh->bcwh", p, values).reshape(B, S, D)


def written_in_part(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.zeros(B, S, S)
    p[..., 1:] = (q @ k.mT).softmax(-1)[..., 1:]
    return p @ v


def seen_by_strides(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = (q @ k.mT).softmax(-1)
    return p.as_strided((B, S, S - 2), (S * S, S, 1)) @ v[:, 2:]


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (band, "aten.pad (padding)"),
        (written_in_part, "aten.copy_ (a write into a part of a tensor)"),
        (seen_by_strides, "aten.as_strided (overlapping views)"),
    ],
)
def test_what_stands_between_is_named(function: Callable[..., Tensor], operator: str) -> None:
    seen = capture(function, qkv())
    (found,) = seen.found
    assert not found.fused and not seen.attentions()
    assert f"between the softmax and the product with V stands {operator} at test_moved.py:" in found.reason
    assert "mask_mod" in next_step(found.reason) != OTHERWISE
    assert_same(seen.result, function(*qkv()))


def test_what_stands_before_the_softmax_is_named() -> None:
    def turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).roll(1, -1).softmax(-1) @ v

    seen = capture(turned, qkv())
    (reason,) = seen.reasons
    assert "between the product of queries and keys and the softmax stands aten.roll (a rotation) at test_" in reason
    assert_same(seen.result, turned(*qkv()))


class Router(nn.Module):
    """Tokens go to the two experts that a padded product chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(D, 4)
        self.experts = nn.Parameter(rand(6, D, D))

    def forward(self, x: Tensor) -> Tensor:
        shares = F.pad(self.gate(x), (0, 2), value=-1e9).softmax(-1)
        top, chosen = shares.topk(2, -1)
        kept = torch.zeros_like(shares).scatter(-1, chosen, top)
        return torch.einsum("bse,bsef->bsf", kept, torch.einsum("bsd,edf->bsef", x, self.experts))


class RouterOfData(Router):
    """The same, by the likeness to experts that the batch describes itself."""

    def forward(self, x: Tensor) -> Tensor:
        shares = F.pad(x @ x[:, :4].mT, (0, 2), value=-1e9).softmax(-1)
        top, chosen = shares.topk(2, -1)
        kept = torch.zeros_like(shares).scatter(-1, chosen, top)
        return torch.einsum("bse,bsef->bsf", kept, torch.einsum("bsd,edf->bsef", x, self.experts))


class DenseGate(Router):
    """All experts, each with its share."""

    def forward(self, x: Tensor) -> Tensor:
        shares = F.pad(self.gate(x), (0, 2), value=-1e9).softmax(-1)
        return torch.einsum("bse,bsef->bsf", shares.flip(-1), torch.einsum("bsd,edf->bsef", x, self.experts))


class Head(Router):
    """Classes, and the mean of what stands for them."""

    def forward(self, x: Tensor) -> Tensor:
        classes = F.pad(self.gate(x), (0, 2), value=-1e9).softmax(-1)
        return F.pad(classes, (0, 2)) @ self.experts[0]


@pytest.mark.parametrize("kind", [Router, RouterOfData, DenseGate, Head])
def test_routers_gates_and_heads_are_no_sites(kind: type[nn.Module]) -> None:
    model = kind()
    x = rand(B, S, D)
    seen = capture(model, (x,))
    assert not seen.found
    assert_same(seen.result, model(x))
