"""What tracing and passes cost, counted rather than timed: as much for every layer, however many there are."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attncc.rewrite import rewrite

SOURCES = str(Path(__file__).parent.parent)


def layers(count: int):
    """A stack of causal attentions with projections, residuals and a perceptron."""

    def model(x: Tensor, w: Tensor) -> Tensor:
        for _ in range(count):
            q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (x @ w).chunk(3, -1))
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
            p = (q @ k.mT / 8**0.5).masked_fill(~mask, float("-inf")).softmax(-1)
            x = x + (p @ v).transpose(1, 2).flatten(2)
            x = x + (x @ w[:, :16]).relu() @ w[:, 16:32]
        return x

    return model


def calls(count: int) -> int:
    """Calls of this project's own functions while a model of so many layers is rewritten."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        gm = make_fx(layers(count), pre_dispatch=True)(torch.empty(2, 5, 16), torch.empty(16, 48))
        profile = cProfile.Profile()
        _, found, _ = profile.runcall(rewrite, gm)
    assert [site.fused for site in found] == [True] * count
    return sum(n for (file, _, _), (_, n, *_) in pstats.Stats(profile).stats.items() if file.startswith(SOURCES))


def test_every_layer_costs_the_same() -> None:
    calls(1)  # what is remembered from one graph to the next is known from here on
    two, four, eight = (calls(n) for n in (2, 4, 8))
    assert eight - four < 1.15 * 2 * (four - two)
