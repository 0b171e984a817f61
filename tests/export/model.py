"""The model that most tests of artifacts export: grouped heads, a causal mask and padding, in one attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """x [B, S, 48], keep [B, S] (True for a real token) → {"out": [B, S, 48], "last": [B, 48]}."""

    def __init__(self, heads: int = 4, kv_heads: int = 2, head_dim: int = 12) -> None:
        super().__init__()
        self.sizes = heads, kv_heads, head_dim
        self.project = nn.Linear(48, (heads + 2 * kv_heads) * head_dim)
        self.back = nn.Linear(heads * head_dim, 48)

    def forward(self, x: Tensor, keep: Tensor) -> dict[str, Tensor]:
        """One layer of a decoder."""
        heads, kv_heads, head_dim = self.sizes
        batch, length, _ = x.shape
        parts = self.project(x).view(batch, length, -1, head_dim).transpose(1, 2)
        q, k, v = parts.split([heads, kv_heads, kv_heads], dim=1)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = q @ k.transpose(-2, -1) / head_dim**0.5
        position = torch.arange(length, device=x.device)
        visible = (position <= position[:, None]) & keep[:, None, None, :]
        scores = scores.masked_fill(~visible, float("-inf"))
        out = self.back((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))
        return {"out": out, "last": out[:, -1]}


def inputs(batch: int, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random tokens; the first row of the batch is whole, each later one has more padding at its end."""
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    x = torch.randn(batch, length, 48, generator=generator).to(dtype)
    real = torch.tensor([max(1, length - 2 * row) for row in range(batch)])
    return x, torch.arange(length) < real[:, None]


SIZES = ((2, 13), (1, 1), (3, 1), (5, 2), (2, 97), (1, 130), (7, 31))
"""Batches and lengths that select different kernels."""
