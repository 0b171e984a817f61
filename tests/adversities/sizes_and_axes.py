"""Sizes that are 1, 0 or all the same; axes that are not the ones they seem to be."""

from __future__ import annotations

import torch

from adversities.registry import B, D, H, S, T, adversity, qkv, rand, weights


@adversity(*qkv())
def empty_keys(q, k, v):
    return (q @ k[:, :, :0].mT).softmax(-1) @ v[:, :, :0]


@adversity(rand(0, H, S, D), rand(0, H, T, D), rand(0, H, T, D))
def empty_batch(q, k, v):
    return weights(q, k) @ v


@adversity(rand(B, H, 1, D), rand(B, H, 1, D), rand(B, H, 1, D))
def one_by_one(q, k, v):
    return weights(q, k) @ v


@adversity(rand(1, 1, 1, 1), rand(1, 1, 1, 1), rand(1, 1, 1, 1))
def all_ones(q, k, v):
    return weights(q, k) @ v


@adversity(rand(B, H, S, 1), rand(B, H, T, 1), rand(B, H, T, 3))
def head_of_one(q, k, v):
    return weights(q, k) @ v


@adversity(rand(B, H, S, D).half(), rand(B, H, T, D).half(), rand(B, H, T, D).half())
def halves(q, k, v):
    return (q @ k.mT * 0.35).softmax(-1) @ v


@adversity(rand(B, H, S, D).bfloat16(), rand(B, H, T, D), rand(B, H, T, D))
def mixed2(q, k, v):
    return (q.float() @ k.mT * 0.35).softmax(-1) @ v


@adversity(rand(B, H, S, D).double(), rand(B, H, T, D).double(), rand(B, H, T, D))
def mixed3(q, k, v):
    return (q @ k.mT * 0.35).softmax(-1).float() @ v


@adversity(*qkv())
def int_scores(q, k, v):
    return (q @ k.mT * 3).round().long().float().softmax(-1) @ v


@adversity(*qkv())
def same_k_v(q, k, v):
    return weights(q, k) @ k


@adversity(rand(B, S, D))
def all_same(x):
    return (x @ x.mT).softmax(-1) @ x


@adversity(rand(B, S, S))
def square(x):
    return (x @ x.mT).softmax(-1) @ x


@adversity(rand(B, S, S))
def square_t(x):
    return (x.mT @ x).softmax(-1) @ x


@adversity(rand(S, S, S, S))
def cube(x):
    return (x @ x.mT).softmax(-1) @ x


@adversity(rand(S, S, S, S))
def cube_over2(x):
    return (x @ x.mT).softmax(2) @ x


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def permuted_all(q, k, v):
    return torch.einsum("abcd,cbad->abc", q, k).softmax(-1)[..., None] * v


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def wrong_v(q, k, v):
    return torch.einsum("bhij,bjhd->bhid", (q @ k.mT).softmax(-1), v)


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def wrong_v2(q, k, v):
    return torch.einsum("bhij,hbjd->bhid", (q @ k.mT).softmax(-1), v)


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def wrong_k(q, k, v):
    return torch.einsum("bhid,hbjd->bhij", q, k).softmax(-1) @ v


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def diag_heads(q, k, v):
    return torch.einsum("bhij,bhjd->bid", (q @ k.mT).softmax(-1), v)


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def sum_batch(q, k, v):
    return torch.einsum("bhij,bhjd->hid", (q @ k.mT).softmax(-1), v)


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def score_sum_heads(q, k, v):
    return torch.einsum("bhid,bhjd->bij", q, k).softmax(-1)[:, None] @ v


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def score_all_heads_k(q, k, v):
    return torch.einsum("bhid,bgjd->bhij", q, k).softmax(-1) @ v


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def softmax_then_sum_j(q, k, v):
    return (q @ k.mT).softmax(-1).sum(-1, keepdim=True) * v


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def shifted_v(q, k, v):
    return (q @ k.mT).softmax(-1)[..., 1:] @ v[:, :, :-1]


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def softmax_first_half(q, k, v):
    x = q @ k.mT
    return torch.cat([x[..., :2].softmax(-1), x[..., 2:].softmax(-1)], -1) @ v


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def flip_p(q, k, v):
    return (q @ k.mT).softmax(-1).flip(-1) @ v


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def flip_both(q, k, v):
    return (q @ k.mT).flip(-1).softmax(-1) @ v.flip(-2)


@adversity(rand(4, 4, 4, 4), rand(4, 4, 4, 4), rand(4, 4, 4, 4))
def flip_x(q, k, v):
    return (q @ k.mT).flip(-1).softmax(-1) @ v


@adversity(rand(4, 4, 6, 4), rand(4, 4, 6, 4), rand(4, 4, 6, 4))
def strided_keys(q, k, v):
    return (q @ k[:, :, ::2].mT).softmax(-1) @ v[:, :, 1::2]


@adversity(rand(4, 4, 6, 4), rand(4, 4, 6, 4), rand(4, 4, 6, 4))
def block_local(q, k, v):
    q, k, v = (t.unflatten(2, (2, 3)) for t in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).flatten(2, 3)


@adversity(rand(4, 4, 6, 4), rand(4, 4, 6, 4), rand(4, 4, 6, 4))
def axial(q, k, v):
    q, k, v = (t.unflatten(2, (2, 3)).transpose(2, 3) for t in (q, k, v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(2, 3).flatten(2, 3)


@adversity(rand(4, 4, 6, 4), rand(4, 4, 6, 4), rand(4, 4, 6, 4))
def softmax_2d_keys(q, k, v):
    k, v = (t.unflatten(2, (2, 3)) for t in (k, v))
    x = torch.einsum("bhid,bhxyd->bhixy", q, k)
    p = x.flatten(-2).softmax(-1).unflatten(-1, (2, 3))
    return torch.einsum("bhixy,bhxyd->bhid", p, v)


@adversity(rand(4, 4, 6, 4), rand(4, 4, 6, 4), rand(4, 4, 6, 4))
def softmax_2d_transposed(q, k, v):
    k, v = (t.unflatten(2, (2, 3)) for t in (k, v))
    x = torch.einsum("bhid,bhxyd->bhixy", q, k)
    p = x.flatten(-2).softmax(-1).unflatten(-1, (3, 2))
    return torch.einsum("bhiyx,bhxyd->bhid", p, v)


@adversity(rand(4, 4, 6, 4), rand(4, 4, 6, 4), rand(4, 4, 6, 4))
def softmax_one_of_2d(q, k, v):
    k, v = (t.unflatten(2, (2, 3)) for t in (k, v))
    x = torch.einsum("bhid,bhxyd->bhixy", q, k)
    p = x.softmax(-1)
    return torch.einsum("bhixy,bhxyd->bhid", p, v)
