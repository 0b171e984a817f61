"""Attention written out in a module of one's own: packed projections, a causal mask, a learned bias by distance.

Run with: python examples/hand_written_module.py
"""

import torch
from torch import nn

import attncc


class RelativeAttention(nn.Module):
    """Causal self-attention with a learned bias for each head and distance, clipped at `reach`."""

    def __init__(self, width: int, heads: int, reach: int = 32) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(heads, reach + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, width] -> the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        position = torch.arange(tokens)
        distance = (position[:, None] - position[None, :]).clamp(0, self.reach)
        scores = scores + self.bias[:, distance]
        scores = scores.masked_fill(position[None, :] > position[:, None], float("-inf"))
        mixed = scores.softmax(dim=-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


def factory() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Model and inputs, for `attncc explain examples/hand_written_module.py:factory`."""
    torch.manual_seed(0)
    return RelativeAttention(width=256, heads=4).eval(), (torch.randn(2, 200, 256),)


def main() -> None:
    """Compile, compare, and say what was found."""
    model, (x,) = factory()
    compiled = attncc.compile(model)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(compiled(x[:, :77]), model(x[:, :77]))  # another length
        print(attncc.explain(model, x))


if __name__ == "__main__":
    main()
