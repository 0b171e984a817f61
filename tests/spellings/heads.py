"""Fewer key heads than query heads, in all ways to say so."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spellings.registry import SCALE, spelling


def attend(q, k, v):
    return (q @ k.mT * SCALE).softmax(-1) @ v


@spelling(g=2)
def repeat_kv_of_transformers(q, k, v):
    def repeat_kv(x, n):
        b, heads, s, d = x.shape
        x = x[:, :, None, :, :].expand(b, heads, n, s, d)
        return x.reshape(b, heads * n, s, d)

    return attend(q, repeat_kv(k, 2), repeat_kv(v, 2))


@spelling(g=2)
def repeat_interleave_of_llama(q, k, v):
    return attend(q, torch.repeat_interleave(k, dim=1, repeats=2), torch.repeat_interleave(v, dim=1, repeats=2))


@spelling(g=2)
def repeated_after_unsqueeze(q, k, v):
    k, v = (x.unsqueeze(2).repeat(1, 1, 2, 1, 1).flatten(1, 2) for x in (k, v))
    return attend(q, k, v)


@spelling(g=2)
def stacked_copies(q, k, v):
    k, v = (torch.stack([x, x], dim=2).flatten(1, 2) for x in (k, v))
    return attend(q, k, v)


@spelling(g=2, layout="bshd")
def repeated_before_the_transpose(q, k, v):
    k, v = (x[:, :, :, None].expand(-1, -1, -1, 2, -1).flatten(2, 3) for x in (k, v))
    return attend(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)


@spelling(g=2)
def grouped_einsum(q, k, v):
    b, h, s, d = q.shape
    x = torch.einsum("bgnsd,bgtd->bgnst", q.view(b, 2, h // 2, s, d), k) * SCALE
    return torch.einsum("bgnst,bgtd->bgnsd", x.softmax(-1), v).reshape(b, h, s, d)


@spelling(g=2)
def grouped_queries_in_the_rows(q, k, v):
    b, h, s, d = q.shape
    p = (q.reshape(b, 2, -1, d) @ k.mT * SCALE).softmax(-1)
    return (p @ v).view(b, h, s, d)


@spelling(g=2)
def heads_chosen_by_index(q, k, v):
    head = torch.arange(q.shape[1]) // 2
    return attend(q, k[:, head], v[:, head])


@spelling(g=1)
def one_key_head_by_expand(q, k, v):
    return attend(q, k.expand(-1, q.shape[1], -1, -1), v.expand_as(k).expand(-1, q.shape[1], -1, -1))


@spelling(g=1)
def one_key_head_without_its_dimension(q, k, v):
    k, v = k.squeeze(1), v.squeeze(1)
    x = torch.einsum("bhid,bjd->bhij", q, k) * SCALE
    return torch.einsum("bhij,bjd->bhid", x.softmax(-1), v)


@spelling(g=1)
def one_key_head_with_heads_in_the_rows_as_bigcode(q, k, v):
    b, h, s, d = q.shape
    k, v = k[:, 0], v[:, 0]
    x = torch.baddbmm(torch.empty(b, h * s, k.shape[1]), q.reshape(b, h * s, d), k.mT, beta=0, alpha=SCALE)
    p = x.view(b, h, s, -1).softmax(-1).view(b, h * s, -1)
    return torch.bmm(p, v).view(b, h, s, d)


@spelling(g=2)
def sdpa_of_groups(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@spelling(g=2)
def sdpa_of_repeated_heads(q, k, v, mask4):
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask4)


@spelling(g=2)
def grouped_with_a_bias_by_head(q, k, v, bias):
    b, h, s, d = q.shape
    x = torch.matmul(q.reshape(b, 2, 2, s, d), k[:, :, None].mT) * SCALE + bias.view(2, 2, s, -1)
    return (x.softmax(-1) @ v[:, :, None]).reshape(b, h, s, d)
