"""Bilinear attention: scores q W k with a learned matrix for each head, Luong's "general" score.

Run with: python examples/bilinear.py
"""

import torch
from torch import nn

import attncc


class BilinearAttention(nn.Module):
    """Attends from one sequence to another; queries and keys may have different widths."""

    def __init__(self, heads: int, query_dim: int, key_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(heads, query_dim, key_dim) / key_dim)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [B, H, Sq, query_dim], k [B, H, Skv, key_dim], v [B, H, Skv, E] -> [B, H, Sq, E]."""
        scores = torch.einsum("bhid,hde,bhje->bhij", q, self.weight, k)
        return torch.einsum("bhij,bhje->bhie", scores.softmax(dim=-1), v)


def factory() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Model and inputs, for `attncc explain examples/bilinear.py:factory`."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, 50, 48)
    k, v = torch.randn(2, 4, 123, 64), torch.randn(2, 4, 123, 32)
    return BilinearAttention(heads=4, query_dim=48, key_dim=64).eval(), (q, k, v)


def main() -> None:
    """The module compiled, and the same attention called directly."""
    model, (q, k, v) = factory()
    with torch.inference_mode():
        expected = model(q, k, v)
        torch.testing.assert_close(attncc.compile(model)(q, k, v), expected)
        torch.testing.assert_close(attncc.attention(q, k, v, bilinear=model.weight, scale=1.0), expected)
        print(attncc.explain(model, q, k, v))


if __name__ == "__main__":
    main()
