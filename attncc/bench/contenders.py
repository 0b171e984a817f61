"""The ways to compute an attention that `attncc bench` compares: each takes q, k, v of a `Case`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

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
    """`scaled_dot_product_attention`; every mask but the causal one alone has to be written out."""
    mask = None if _only_causal(case) else case.visible(range(case.q_len))
    causal, grouped = case.causal and mask is None, case.heads != case.kv_heads

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)

    return attention


def flex(case: Case) -> Attention:
    """FlexAttention, compiled, with a BlockMask where there is a mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask_mod, blocks = _mask_mod(case), None
    if mask_mod is not None:
        batch = None if case.padded is None else case.batch
        blocks = create_block_mask(mask_mod, batch, None, case.q_len, case.kv_len, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    grouped = case.heads != case.kv_heads

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = compiled(q, k, v, block_mask=blocks, enable_gqa=grouped)
        return out

    return attention


def fused(case: Case) -> Attention:
    """`attncc.attention`; a mask is a `mask_mod`, never written out."""
    mask_mod = None if _only_causal(case) else _mask_mod(case)
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


def _only_causal(case: Case) -> bool:
    """Whether `is_causal` says all that there is to say of the mask."""
    return not replace(case, causal=False).masked


MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _mask_mod(case: Case) -> MaskMod | None:
    """The mask of `case` in FlexAttention's form, an expression of the four indices; None where all is visible."""
    by_form, by_data = _by_form(case), _by_data(case)
    if by_form is None or by_data is None:
        return by_form or by_data

    def both(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return by_form(b, h, i, j) & by_data(b, h, i, j)

    return both


def _by_form(case: Case) -> MaskMod | None:
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


def _by_data(case: Case) -> MaskMod | None:
    """The one mask that is known by a tensor. Raises ValueError for several."""
    tensors = case.mask_tensors()
    if len(tensors) > 1:
        raise ValueError(f"{case.label}: one of filled, padded and documents at a time")
    makers = {"position": _filled, "real": _padded, "document": _packed}
    return next((makers[name](tensor) for name, tensor in tensors.items()), None)


def _filled(position: torch.Tensor) -> MaskMod:
    def mask(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return j <= position[i]

    return mask


def _padded(real: torch.Tensor) -> MaskMod:
    def mask(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return real[b, j]

    return mask


def _packed(document: torch.Tensor) -> MaskMod:
    def mask(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return document[i] == document[j]

    return mask
