"""Keys and values that come out of a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spellings.registry import SCALE, D, spelling


def attend(q, k, v, mask=None):
    x = q @ k.mT * SCALE
    if mask is not None:
        x = x.masked_fill(~mask, torch.finfo(x.dtype).min)
    return x.softmax(-1) @ v


@spelling()
def joined_with_the_past(q, k, v, past_k, past_v):
    k, v = torch.cat([past_k, k], dim=2), torch.cat((past_v, v), dim=-2)
    return attend(q, k, v), k, v


@spelling(one=True)
def one_token_after_the_past(q, k, v, past_k, past_v):
    return attend(q, torch.cat([past_k, k], dim=-2), torch.cat([past_v, v], dim=-2))


@spelling()
def causal_after_the_past(q, k, v, past_k, past_v):
    k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    s, t = q.shape[2], k.shape[2]
    return attend(q, k, v, torch.ones(s, t, dtype=torch.bool).tril(t - s))


@spelling()
def static_cache_by_index_copy(q, k, v, cache_k, cache_v, at, query_at):
    cache_k.index_copy_(2, at, k)
    cache_v.index_copy_(2, at, v)
    mask = torch.arange(cache_k.shape[2])[None] <= query_at[:, None]
    return attend(q, cache_k, cache_v, mask)


@spelling()
def static_cache_by_index_put(q, k, v, cache_k, cache_v, at, query_at):
    cache_k[:, :, at] = k
    cache_v[:, :, at] = v
    mask = torch.arange(cache_k.shape[2]) <= query_at[:, None]
    return F.scaled_dot_product_attention(q, cache_k, cache_v, attn_mask=mask[None, None])


@spelling()
def static_cache_by_slice(q, k, v, cache_k, cache_v):
    end = 3 + k.shape[2]
    cache_k[:, :, 3:end] = k
    cache_v[:, :, 3:end] = v
    return attend(q, cache_k[:, :, :end], cache_v[:, :, :end])


@spelling()
def static_cache_copied_into(q, k, v, cache_k, cache_v):
    cache_k.narrow(2, 0, k.shape[2]).copy_(k)
    cache_v.narrow(2, 0, v.shape[2]).copy_(v)
    seen = torch.arange(cache_k.shape[2]) < k.shape[2]
    return attend(q, cache_k, cache_v, seen)


@spelling()
def static_cache_as_a_new_tensor(q, k, v, cache_k, cache_v, at, query_at):
    k, v = cache_k.index_copy(2, at, k), cache_v.index_copy(2, at, v)
    mask = torch.arange(k.shape[2])[None] <= query_at[:, None]
    return attend(q, k, v, mask), k, v


@spelling()
def sliding_cache_that_rolls(q, k, v, cache_k, cache_v):
    n = k.shape[2]
    cache_k = torch.cat([cache_k[:, :, n:], k], dim=2)
    cache_v = torch.cat([cache_v[:, :, n:], v], dim=2)
    return attend(q, cache_k, cache_v)


@spelling()
def paged_by_gather(q, cache_k, cache_v, at):
    return attend(q, cache_k.index_select(2, at), cache_v[:, :, at])


# Keys and values that never come together


@spelling()
def scores_of_the_past_beside_the_new(q, k, v, past_k, past_v):
    """Two products of scores under one softmax, whose weights are cut again for two sums."""
    p = (torch.cat([q @ past_k.mT, q @ k.mT], dim=-1) * SCALE).softmax(-1)
    past = past_k.shape[2]
    return p[..., :past] @ past_v + p[..., past:] @ v


@spelling()
def scores_of_the_past_by_bmm(q, k, v, past_k, past_v):
    b, h, s, _ = q.shape
    rows = q.flatten(0, 1)
    past, new = (torch.bmm(rows, x.flatten(0, 1).mT).view(b, h, s, -1) / D**0.5 for x in (past_k, k))
    p = torch.cat([past, new], dim=-1).softmax(-1).view(b * h, s, -1)
    y = torch.bmm(p[:, :, : past_k.shape[2]], past_v.flatten(0, 1))
    return torch.baddbmm(y, p[:, :, past_k.shape[2] :], v.flatten(0, 1)).view(b, h, s, -1)


@spelling()
def scores_scaled_before_they_meet(q, k, v, past_k, past_v):
    past, new = q @ past_k.mT * SCALE, q @ k.mT * SCALE
    p = torch.cat((new, past), dim=-1).softmax(-1)
    return p @ torch.cat((v, past_v), dim=-2)


@spelling()
def blocks_with_global_keys_as_pegasus_x(q, k, v, past_k, past_v):
    """Every block of two rows attends to itself and to global keys that it shares with all others."""
    b, h, s, d = q.shape
    x, own_k, own_v = (F.pad(t, (0, 0, 0, 1)).view(b, h, -1, 2, d) for t in (q, k[:, :, :s], v[:, :, :s]))
    shared = torch.einsum("bhnkf,bhgf->bhnkg", x * SCALE, past_k)
    own = torch.einsum("bhnkf,bhnxf->bhnkx", x * SCALE, own_k)
    p = torch.cat([shared, own], dim=-1).softmax(-1)
    cut = past_k.shape[2]
    y = torch.einsum("bhnkg,bhgf->bhnkf", p[..., :cut], past_v)
    y = y + torch.einsum("bhnkx,bhnxf->bhnkf", p[..., cut:], own_v)
    return y.reshape(b, h, -1, d)


@spelling()
def weights_cut_for_parts_of_the_values(q, k, v):
    p = (q @ k.mT * SCALE).softmax(-1)
    return p[..., :3] @ v[:, :, :3] + p[..., 3:5] @ v[:, :, 3:5] + p[..., 5:] @ v[:, :, 5:]
