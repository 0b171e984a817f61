"""The score functions that `attncc bench` knows, in FlexAttention's form: an expression of the score and four indices.

Plain PyTorch on index tensors that broadcast gives the same function written out, which is what eager models and the
float64 reference compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

CAP = 5.0
"""Of the soft cap; scores have unit variance, so that it bends some of them visibly."""
REACH = 128
"""Distances beyond it share the last bias of a relative table."""
BUCKETS, NEAR = 32, 8
"""T5's buckets, both directions together, and how many distances of a direction have one of their own."""


def alibi(heads: int, kv_len: int) -> ScoreMod:
    """A slope of its own for each head, times the distance (Press et al., arXiv:2108.12409)."""
    slopes = 2.0 ** (-8.0 * (torch.arange(heads) + 1) / heads)

    def mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + slopes[h] * (j - i)

    return mod


def softcap(heads: int, kv_len: int) -> ScoreMod:
    """cap · tanh(s / cap), as in Gemma 2 (arXiv:2408.00118)."""

    def mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return CAP * torch.tanh(s / CAP)

    return mod


def relative(heads: int, kv_len: int) -> ScoreMod:
    """A learned bias for each clipped distance and head (after Shaw et al., arXiv:1803.02155)."""
    biases = torch.randn(2 * REACH + 1, heads, generator=torch.Generator().manual_seed(1))

    def mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + biases[(j - i).clamp(-REACH, REACH) + REACH, h]

    return mod


def t5(heads: int, kv_len: int) -> ScoreMod:
    """A learned bias for each logarithmic bucket of distances and head (Raffel et al., arXiv:1910.10683)."""
    biases = torch.randn(BUCKETS, heads, generator=torch.Generator().manual_seed(2))
    distance = torch.arange(-kv_len + 1, kv_len)
    half, size = BUCKETS // 2, distance.abs()
    far = NEAR + (size.clamp(min=1) / NEAR).log() / math.log(REACH / NEAR) * (half - NEAR)
    bucket = torch.where(size < NEAR, size, far.long().clamp(max=half - 1)) + half * (distance > 0)

    def mod(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + biases[bucket[j - i + (kv_len - 1)], h]

    return mod


SCORES: dict[str, Callable[[int, int], ScoreMod]] = {
    "alibi": alibi,
    "softcap": softcap,
    "relative": relative,
    "t5": t5,
}
"""By the name that cases give; each takes the numbers of heads and of keys."""
ADDITIVE = ("alibi", "relative", "t5")
"""Those that add a bias, which SDPA can be given written out."""


def written_out(mod: ScoreMod, scores: Tensor, rows: Tensor) -> Tensor:
    """`mod` of scores [B, H, len(rows), Skv], whose query rows have the numbers `rows`."""
    batch, heads, _, kv_len = scores.shape
    b, h = torch.arange(batch)[:, None, None, None], torch.arange(heads)[:, None, None]
    return mod(scores, b, h, rows[:, None], torch.arange(kv_len))
