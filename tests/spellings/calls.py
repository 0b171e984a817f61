"""Whole calls, plain and with something around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spellings.registry import D, spelling

sdpa = F.scaled_dot_product_attention


@spelling()
def sdpa_plain(q, k, v):
    return sdpa(q, k, v)


@spelling(same=True)
def sdpa_causal_and_scale(q, k, v):
    return sdpa(q, k, v, is_causal=True, scale=0.3)


@spelling()
def sdpa_causal_of_other_lengths(q, k, v):
    return sdpa(q, k, v, is_causal=True)


@spelling()
def sdpa_scale_of_a_number_per_head_size(q, k, v):
    return sdpa(q, k, v, scale=1.0 / q.shape[-1])


@spelling()
def sdpa_scaled_before(q, k, v):
    return sdpa(q * D**0.5, k, v)


@spelling()
def sdpa_with_padding(q, k, v, keep):
    return sdpa(q, k, v, attn_mask=keep[:, None, None, :].expand(-1, 1, q.shape[2], -1))


@spelling()
def sdpa_with_a_float_mask(q, k, v, additive):
    return sdpa(q, k, v, attn_mask=additive, dropout_p=0.0)


@spelling()
def sdpa_with_a_bias(q, k, v, bias):
    return sdpa(q, k, v, attn_mask=bias.unsqueeze(0))


@spelling()
def sdpa_with_bias_and_mask(q, k, v, bias, mask4):
    return sdpa(q, k, v, attn_mask=torch.where(mask4, bias, float("-inf")))


@spelling()
def sdpa_of_a_mask_of_rank_two(q, k, v, mask):
    return sdpa(q, k, v, mask)


@spelling(dtype=torch.bfloat16)
def sdpa_in_bfloat16(q, k, v):
    return sdpa(q, k, v)


@spelling()
def sdpa_of_three_dimensions(q, k, v):
    return sdpa(*(x.flatten(0, 1) for x in (q, k, v)))


@spelling(same=True, layout="packed")
def sdpa_of_packed_projections(packed):
    b, s, _ = packed.shape
    q, k, v = (x.view(b, s, -1, D).transpose(1, 2) for x in packed.chunk(3, dim=-1))
    return sdpa(q, k, v, is_causal=True).transpose(1, 2).contiguous().view(b, s, -1)


@spelling(same=True, sites=2)
def one_after_another(q, k, v):
    return sdpa(sdpa(q, k, v), k, v)


@spelling(same=True)
def multi_head_attention_forward(q, wqkv, bqkv, wo):
    x = q.transpose(1, 2).flatten(2).transpose(0, 1)
    out, _ = F.multi_head_attention_forward(
        x, x, x, x.shape[-1], 4, wqkv, bqkv, None, None, False, 0.0, wo, None, training=False, need_weights=False
    )
    return out
