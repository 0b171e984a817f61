"""Code written for FlexAttention, unchanged: masks composed of functions, a BlockMask, documents packed in one row.

Run with: python examples/flex_attention_code.py
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import and_masks, create_block_mask, flex_attention

import attncc

HEADS, LENGTHS = 4, [300, 120, 92]
TOKENS = sum(LENGTHS)


def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """No key after the query."""
    return q_idx >= kv_idx


def documents(lengths: list[int]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Each token sees its own document only."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def same(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return document[q_idx] == document[kv_idx]

    return same


def soft_cap(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    """Scores between -20 and 20."""
    return 20.0 * torch.tanh(score / 20.0)


def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A call of FlexAttention as a model has it; `attncc.compile` captures it with its functions."""
    packed = and_masks(documents(LENGTHS), causal)
    block_mask = create_block_mask(packed, None, None, TOKENS, TOKENS, device="cpu")
    return flex_attention(q, k, v, score_mod=soft_cap, block_mask=block_mask, enable_gqa=True)


def main() -> None:
    """The same attention by the compiled model and by a direct call, which needs no BlockMask."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, HEADS, TOKENS, 32), torch.randn(2, 2, TOKENS, 32), torch.randn(2, 2, TOKENS, 32)
    with torch.inference_mode():
        expected = model(q.double(), k.double(), v.double())
        compiled = attncc.compile(model)(q, k, v)
        torch.testing.assert_close(compiled.double(), expected, rtol=1e-4, atol=1e-5)
        packed = and_masks(documents(LENGTHS), causal)
        out, lse = attncc.attention(q, k, v, score_mod=soft_cap, mask_mod=packed, enable_gqa=True, return_lse=True)
        torch.testing.assert_close(out, compiled)
        print(f"logsumexp of the first row: {lse[0, 0, 0]:.3f}")
        print(attncc.explain(model, q, k, v))


if __name__ == "__main__":
    main()
