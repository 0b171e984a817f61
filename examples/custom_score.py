"""A score of one's own in one call: ALiBi slopes, a soft cap and a sliding window, as plain functions of the indices.

Run with: python examples/custom_score.py
"""

import torch

import attncc

HEADS, WINDOW, CAP = 8, 64, 20.0
SLOPES = 2.0 ** -torch.arange(1.0, HEADS + 1)

Index = torch.Tensor


def score_mod(score: torch.Tensor, b: Index, h: Index, i: Index, j: Index) -> torch.Tensor:
    """Query i and key j of head h: a penalty by distance, then a soft cap."""
    return CAP * torch.tanh((score - SLOPES[h] * (i - j)) / CAP)


def mask_mod(b: Index, h: Index, i: Index, j: Index) -> torch.Tensor:
    """Only the last WINDOW keys up to the query itself; blocks of keys outside are never visited."""
    return (j <= i) & (i - j < WINDOW)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch, [B, H, Sq, Skv] scores and all."""
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None, :]
    h = torch.arange(HEADS)[:, None, None]
    b = torch.zeros((), dtype=torch.int64)
    scores = score_mod(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, b, h, i, j)
    return scores.masked_fill(~mask_mod(b, h, i, j), float("-inf")).softmax(dim=-1) @ v


def main() -> None:
    """Two lengths, one kernel."""
    torch.manual_seed(0)
    with torch.inference_mode():
        for length in (500, 129):
            q, k, v = torch.randn(3, 2, HEADS, length, 64).unbind()
            fused = attncc.attention(q, k, v, score_mod=score_mod, mask_mod=mask_mod)
            torch.testing.assert_close(fused, reference(q, k, v))
        print(attncc.explain(reference, q, k, v))
    print(attncc.stats())


if __name__ == "__main__":
    main()
