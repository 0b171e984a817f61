"""The ways to compute an attention that `attncc bench` compares: each takes q, k, v of a `Case`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

import attncc
from attncc.bench.cases import Case

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def eager(case: Case) -> Attention:
    """Two matmuls and a softmax, as a model spells them out."""
    group = case.heads // case.kv_heads
    keep = case.visible(range(case.q_len))

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = q @ k.transpose(-2, -1) / case.head_dim**0.5
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf"))
        return scores.softmax(dim=-1) @ v

    return attention


def inductor(case: Case) -> Attention:
    """The same under `torch.compile` with PyTorch's own compiler."""
    compiled: Attention = torch.compile(eager(case), dynamic=False, fullgraph=True)
    return compiled


def sdpa(case: Case) -> Attention:
    """`scaled_dot_product_attention`; a window needs its mask written out."""
    mask = None if case.window is None else case.visible(range(case.q_len))
    causal, grouped = case.causal and mask is None, case.heads != case.kv_heads

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)

    return attention


def flex(case: Case) -> Attention:
    """FlexAttention, compiled, with a BlockMask where there is a mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask_mod, blocks = _mask_mod(case), None
    if mask_mod is not None:
        blocks = create_block_mask(mask_mod, None, None, case.q_len, case.kv_len, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    grouped = case.heads != case.kv_heads

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = compiled(q, k, v, block_mask=blocks, enable_gqa=grouped)
        return out

    return attention


def fused(case: Case) -> Attention:
    """`attncc.attention`; a window is a `mask_mod`, never a tensor."""
    mask_mod = None if case.window is None else _mask_mod(case)
    causal, grouped = case.causal and mask_mod is None, case.heads != case.kv_heads

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = attncc.attention(q, k, v, is_causal=causal, enable_gqa=grouped, mask_mod=mask_mod)
        return out

    return attention


CONTENDERS: Mapping[str, Callable[[Case], Attention]] = {
    "eager": eager,
    "sdpa": sdpa,
    "flex": flex,
    "inductor": inductor,
    "attncc": fused,
}
"""By the name that tables show. attncc comes last."""


def _mask_mod(case: Case) -> Callable[..., torch.Tensor] | None:
    """The mask of `case` in FlexAttention's form, an expression of the four indices; None where all is visible."""
    window = case.window

    def causal(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return j <= i

    def near(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i - j < window) & (j - i < window)

    def both(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (j <= i) & (i - j < window)

    if window is None:
        return causal if case.causal else None
    return both if case.causal else near
