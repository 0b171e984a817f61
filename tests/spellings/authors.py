"""Whole functions in the style of well-known code."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from spellings.registry import SCALE, D, spelling


@spelling(layout="x")
def the_annotated_transformer(x, memory, wq, wk, wv, attention_mask):
    def attention(query, key, value, mask=None, dropout=None):
        d_k = query.size(-1)
        scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(d_k)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        p_attn = scores.softmax(dim=-1)
        if dropout is not None:
            p_attn = dropout(p_attn)
        return torch.matmul(p_attn, value)

    query, key, value = (
        (y @ w).view(x.size(0), -1, 4, D).transpose(1, 2) for y, w in ((x, wq), (memory, wk), (memory, wv))
    )
    y = attention(query, key, value, attention_mask[:, None, None, :], nn.Dropout(0.1).eval())
    return y.transpose(1, 2).contiguous().view(x.size(0), -1, 4 * D)


@spelling(layout="x", same=True)
def fairseq(x, wq, wk, wv, wo, keep):
    """[S, B, dim], heads in the batch, the scale on the projected query."""
    x = x.transpose(0, 1)
    length, batch, dim = x.shape
    q, k, v = (F.linear(x, w) for w in (wq, wk, wv))
    q = q * SCALE
    q, k, v = (t.contiguous().view(length, batch * 4, D).transpose(0, 1) for t in (q, k, v))
    attn = torch.bmm(q, k.transpose(1, 2))
    attn = attn.view(batch, 4, length, length)
    attn = attn.masked_fill((~keep).unsqueeze(1).unsqueeze(2).to(torch.bool), float("-inf"))
    attn = attn.view(batch * 4, length, length)
    attn = F.softmax(attn, dim=-1, dtype=torch.float32).type_as(attn)
    out = torch.bmm(attn, v).transpose(0, 1).contiguous().view(length, batch, dim)
    return F.linear(out, wo)


@spelling(layout="x", same=True)
def bert(x, wq, wk, wv, attention_mask):
    def transpose_for_scores(y):
        return y.view(*y.size()[:-1], 4, D).permute(0, 2, 1, 3)

    q, k, v = (transpose_for_scores(F.linear(x, w)) for w in (wq, wk, wv))
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores = scores / math.sqrt(D)
    scores = scores + (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    probs = nn.functional.softmax(scores, dim=-1)
    context = torch.matmul(F.dropout(probs, p=0.1, training=False), v).permute(0, 2, 1, 3).contiguous()
    return context.view(*context.size()[:-2], 4 * D)


@spelling(layout="x", same=True)
def nanogpt(x, wqkv, wo, triangle):
    b, t, c = x.size()
    q, k, v = F.linear(x, wqkv).split(c, dim=2)
    k = k.view(b, t, 4, c // 4).transpose(1, 2)
    q = q.view(b, t, 4, c // 4).transpose(1, 2)
    v = v.view(b, t, 4, c // 4).transpose(1, 2)
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(triangle[:, :, :t, :t] == 0, float("-inf"))
    att = F.softmax(att, dim=-1)
    return F.linear((att @ v).transpose(1, 2).contiguous().view(b, t, c), wo)


@spelling(layout="x", same=True)
def llama(x, wq, wk, wv):
    b, s, _dim = x.shape
    q, k, v = ((x @ w).view(b, s, 4, D).transpose(1, 2) for w in (wq, wk, wv))
    angles = torch.arange(s)[:, None] * (10000.0 ** (-torch.arange(0, D, 2).float() / D))[None]
    cos, sin = (torch.cat([f(angles)] * 2, -1)[None, None] for f in (torch.cos, torch.sin))

    def rotate(y):
        return torch.cat([-y[..., D // 2 :], y[..., : D // 2]], dim=-1)

    q, k = (y * cos + rotate(y) * sin for y in (q, k))
    mask = torch.full((s, s), float("-inf"))
    mask = torch.triu(mask, diagonal=1)
    scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(D)
    scores = scores + mask
    scores = F.softmax(scores.float(), dim=-1).type_as(q)
    return torch.matmul(scores, v).transpose(1, 2).contiguous().view(b, s, -1)


@spelling(layout="x", same=True)
def gpt_j(x, wq, wk, wv, triangle):
    """float32 scores, where with a tensor, the scale as a tensor."""
    b, s, dim = x.shape
    q, k, v = ((x @ w).view(b, s, 4, D).permute(0, 2, 1, 3) for w in (wq, wk, wv))
    scores = torch.matmul(q.to(torch.float32), k.to(torch.float32).transpose(-1, -2))
    least = torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype)
    scores = torch.where(triangle.bool()[:, :, k.size(-2) - q.size(-2) : k.size(-2), : k.size(-2)], scores, least)
    scores = scores / torch.sqrt(torch.tensor(D, dtype=torch.float32))
    probs = nn.functional.softmax(scores, dim=-1).to(v.dtype)
    return torch.matmul(probs, v).permute(0, 2, 1, 3).contiguous().view(b, s, dim)


@spelling(layout="x", same=True)
def t5(x, wq, wk, wv, table, relative, attention_mask):
    b, _s, _ = x.shape
    q, k, v = (F.linear(x, w).view(b, -1, 4, D).transpose(1, 2) for w in (wq, wk, wv))
    scores = torch.matmul(q, k.transpose(3, 2))
    position_bias = F.embedding(relative, table).permute([2, 0, 1]).unsqueeze(0)
    position_bias = position_bias + (1.0 - attention_mask[:, None, None].float()) * torch.finfo(x.dtype).min
    scores += position_bias
    weights = nn.functional.softmax(scores.float(), dim=-1).type_as(scores)
    return torch.matmul(weights, v).transpose(1, 2).contiguous().view(b, -1, 4 * D)


@spelling(layout="x")
def diffusers_old(x, memory, wq, wk, wv):
    """head_to_batch_dim, baddbmm of an empty tensor, batch_to_head_dim."""

    def head_to_batch(y):
        b, s, dim = y.shape
        return y.reshape(b, s, 4, dim // 4).permute(0, 2, 1, 3).reshape(b * 4, s, dim // 4)

    query, key, value = head_to_batch(x @ wq), head_to_batch(memory @ wk), head_to_batch(memory @ wv)
    scores = torch.baddbmm(
        torch.empty(query.shape[0], query.shape[1], key.shape[1], dtype=query.dtype, device=query.device),
        query,
        key.transpose(-1, -2),
        beta=0,
        alpha=SCALE,
    )
    out = torch.bmm(scores.softmax(dim=-1).to(value.dtype), value)
    b, s, d = out.shape
    return out.reshape(b // 4, 4, s, d).permute(0, 2, 1, 3).reshape(b // 4, s, d * 4)


@spelling(layout="x")
def perceiver_with_rearranged_heads(x, memory, wq, wk, wv):
    """As einops writes it: 'b n (h d) -> (b h) n d'."""

    def heads(y):
        b, n, _ = y.shape
        return y.reshape(b, n, 4, -1).permute(0, 2, 1, 3).reshape(b * 4, n, -1)

    q, k, v = heads(x @ wq), heads(memory @ wk), heads(memory @ wv)
    sim = torch.einsum("b i d, b j d -> b i j", q, k) * SCALE
    attn = sim.softmax(dim=-1)
    out = torch.einsum("b i j, b j d -> b i d", attn, v)
    return out.reshape(x.shape[0], 4, x.shape[1], -1).permute(0, 2, 1, 3).flatten(2)


@spelling(layout="channels", same=True)
def linear_conv_heads_first_as_audio_unets(channels):
    b, c, n = channels.shape
    qkv = channels.repeat(1, 3, 1).chunk(3, dim=1)
    q, k, v = (t.reshape(b, 4, c // 4, n) for t in qkv)
    q = q * SCALE
    sim = torch.einsum("b h d i, b h d j -> b h i j", q, k)
    sim = sim - sim.amax(dim=-1, keepdim=True).detach()
    attn = sim.softmax(dim=-1)
    out = torch.einsum("b h i j, b h d j -> b h i d", attn, v)
    return out.permute(0, 1, 3, 2).reshape(b, c, n)


@spelling(layout="x", same=True)
def swin_windows(x, wqkv, bias, additive):
    b, n, c = x.shape
    qkv = F.linear(x, wqkv).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    attn = (q * SCALE) @ k.transpose(-2, -1) + bias.unsqueeze(0)
    windows = additive.shape[0]
    attn = attn.view(b // windows, windows, 4, n, n) + additive[:, 0].unsqueeze(1).unsqueeze(0)
    attn = attn.view(-1, 4, n, n).softmax(-1)
    return (attn @ v).transpose(1, 2).reshape(b, n, c)


@spelling(layout="x")
def informer_full_attention(x, memory, wq, wk, wv):
    b, length, _ = x.shape
    queries, keys, values = (y @ w for y, w in ((x, wq), (memory, wk), (memory, wv)))
    queries, keys, values = (y.view(b, -1, 4, D) for y in (queries, keys, values))
    scores = torch.einsum("blhe,bshe->bhls", queries, keys)
    a = torch.softmax((1.0 / D**0.5) * scores, dim=-1)
    return torch.einsum("bhls,bshd->blhd", a, values).contiguous().view(b, length, -1)


@spelling(layout="x", same=True)
def graphormer(x, wq, wk, wv, bias4, keep):
    n, b, dim = x.shape[1], x.shape[0], x.shape[2]
    x = x.permute(1, 0, 2)
    q, k, v = (F.linear(x, w).contiguous().view(n, b * 4, D).transpose(0, 1) for w in (wq, wk, wv))
    attn = torch.bmm(q * SCALE, k.transpose(1, 2))
    attn += bias4.view(b * 4, n, n)
    attn = attn.view(b, 4, n, n).masked_fill((~keep).unsqueeze(1).unsqueeze(2), float("-inf")).view(b * 4, n, n)
    attn = torch.softmax(attn.float(), dim=-1).type_as(attn)
    return torch.bmm(attn, v).transpose(0, 1).contiguous().view(n, b, dim)


@spelling(layout="x", same=True)
def segment_anything(x, wqkv, bias4):
    """Heads in the batch from the packed projection, unbind of the first dimension."""
    b, n, _ = x.shape
    qkv = F.linear(x, wqkv).reshape(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, b * 4, n, -1).unbind(0)
    attn = (q * SCALE) @ k.transpose(-2, -1)
    attn = (attn.view(b, 4, n, n) + bias4).view(b * 4, n, n).softmax(dim=-1)
    return (attn @ v).view(b, 4, n, -1).permute(0, 2, 1, 3).reshape(b, n, -1)
