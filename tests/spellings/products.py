"""The products of attention: by every name, in every rank and order of dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from spellings.registry import SCALE, D, spelling


@spelling(layout="bshd")
def einsum_of_a_list_in_the_letters_nqkhd(q, k, v):
    energy = torch.einsum("nqhd,nkhd->nhqk", [q, k])
    attention = torch.softmax(energy / (D ** (1 / 2)), dim=3)
    return torch.einsum("nhql,nlhd->nqhd", [attention, v]).reshape(q.shape[0], q.shape[1], -1)


@spelling()
def einsum_with_spaces_as_x_transformers(q, k, v):
    sim = torch.einsum("b h i d, b h j d -> b h i j", q, k) * SCALE
    return torch.einsum("b h i j, b h j d -> b h i d", sim.softmax(dim=-1), v)


@spelling()
def einsum_with_the_scale_as_an_operand(q, k, v, scale):
    x = torch.einsum("bhid,bhjd,->bhij", q, k, scale)
    return torch.einsum("bhij,bhje->bhie", x.softmax(-1), v)


@spelling()
def einsum_with_a_temperature_by_head_and_a_gate(q, k, v, slopes):
    x = torch.einsum("h,bhid,bhjd->bhij", slopes, q, k)
    return torch.einsum("bhij,bhje,h->bhie", x.softmax(-1), v, slopes)


@spelling()
def einsum_keys_first(q, k, v):
    x = torch.einsum("bhjd,bhid->bhji", k, q) * SCALE
    return torch.einsum("bhji,bhje->bhie", F.softmax(x, dim=2), v)


@spelling(layout="bshd")
def einsum_straight_to_rows(q, k, v):
    p = torch.einsum("bihd,bjhd->bijh", q, k).mul(SCALE).softmax(2)
    return torch.einsum("bijh,bjhd->bihd", p, v).flatten(2)


@spelling(layout="sbhd")
def baddbmm_of_nothing_as_megatron(q, k, v):
    s, b, h, d = q.shape
    q, k = q.reshape(s, b * h, d), k.reshape(k.shape[0], b * h, d)
    nothing = torch.empty(b * h, s, k.shape[0])
    x = torch.baddbmm(nothing, q.transpose(0, 1), k.transpose(0, 1).transpose(1, 2), beta=0.0, alpha=SCALE)
    p = x.view(b, h, s, -1).softmax(-1).view(b * h, s, -1)
    out = torch.bmm(p, v.reshape(v.shape[0], b * h, -1).transpose(0, 1))
    return out.view(b, h, s, -1).permute(2, 0, 1, 3).contiguous().view(s, b, -1)


@spelling(same=True, layout="packed")
def timm_packed(packed):
    b, n, _ = packed.shape
    qkv = packed.reshape(b, n, 3, -1, D).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    q = q * SCALE
    attn = q @ k.transpose(-2, -1)
    attn = attn.softmax(dim=-1)
    return (attn @ v).transpose(1, 2).reshape(b, n, -1)


@spelling(same=True, layout="packed")
def packed_by_split_and_unflatten(packed):
    q, k, v = packed.split(packed.shape[-1] // 3, dim=-1)
    q, k, v = (t.unflatten(-1, (-1, D)).transpose(1, 2) for t in (q, k, v))
    return F.softmax(q @ k.mT / D**0.5, -1) @ v


@spelling(same=True, layout="packed")
def packed_by_tensor_split_and_swapaxes(packed):
    q, k, v = torch.tensor_split(packed, 3, dim=2)
    q, k, v = (t.reshape(t.size(0), t.size(1), 4, D).swapaxes(1, 2) for t in (q, k, v))
    return torch.matmul(torch.softmax(torch.matmul(q, k.swapaxes(-1, -2)) * SCALE, -1), v).swapaxes(1, 2).flatten(-2)


@spelling(same=True, layout="packed")
def packed_by_slices(packed):
    n = packed.shape[-1] // 3
    q, k, v = packed[..., :n], packed[..., n : 2 * n], packed[..., 2 * n :]
    q, k, v = (t.view(t.shape[0], t.shape[1], -1, D).movedim(2, 1) for t in (q, k, v))
    return ((q @ k.mT) * SCALE).softmax(-1).matmul(v).movedim(1, 2).flatten(2)


@spelling(same=True, layout="packed")
def packed_by_narrow_and_stack(packed):
    parts = torch.stack([packed.narrow(-1, p * 4 * D, 4 * D) for p in range(3)])
    q, k, v = parts.unflatten(-1, (4, D)).transpose(2, 3)
    return (q @ k.mT * SCALE).softmax(-1) @ v


@spelling(same=True, layout="packed")
def packed_by_head_in_the_batch(packed):
    """As OpenAI's guided diffusion: channels first, heads in the batch, the scale on both."""
    qkv = packed.transpose(1, 2)
    b, width, length = qkv.shape
    q, k, v = qkv.reshape(b * 4, width // 4, length).split(D, dim=1)
    scale = 1 / D**0.25
    weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
    weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
    return torch.einsum("bts,bcs->bct", weight, v).reshape(b, -1, length)


@spelling(same=True, layout="image")
def image_as_latent_diffusion(image):
    b, c, h, w = image.shape
    q = image.reshape(b, c, h * w).permute(0, 2, 1)
    k = image.reshape(b, c, h * w)
    w_ = torch.bmm(q, k) * (int(c) ** (-0.5))
    w_ = torch.nn.functional.softmax(w_, dim=2)
    v = image.reshape(b, c, h * w)
    return torch.bmm(v, w_.permute(0, 2, 1)).reshape(b, c, h, w)


@spelling(same=True, layout="image")
def image_as_self_attention_gan(image):
    b, c, width, height = image.size()
    query = image.reshape(b, -1, width * height).permute(0, 2, 1)
    key = image.reshape(b, -1, width * height)
    attention = F.softmax(torch.bmm(query, key), dim=-1)
    out = torch.bmm(image.reshape(b, -1, width * height), attention.permute(0, 2, 1))
    return 0.1 * out.view(b, c, width, height) + image


@spelling(same=True, layout="image")
def image_as_non_local_network(image):
    theta = image.flatten(2).permute(0, 2, 1)
    f = torch.matmul(theta, image.flatten(2))
    y = torch.matmul(F.softmax(f, dim=-1), image.flatten(2).permute(0, 2, 1))
    return y.permute(0, 2, 1).contiguous().view(image.shape) + image


@spelling(same=True, layout="x")
def projections_by_linear(x, wqkv, bqkv, wo):
    b, s, _ = x.shape
    q, k, v = F.linear(x, wqkv, bqkv).view(b, s, 3, 4, -1).permute(2, 0, 3, 1, 4)
    p = F.softmax(q @ k.transpose(-2, -1) / q.size(-1) ** 0.5, dim=-1)
    return F.linear((p @ v).transpose(1, 2).contiguous().view(b, s, -1), wo)


@spelling(layout="x")
def cross_attention_with_projections(x, memory, wq, wk, wv):
    q = (x @ wq).view(x.shape[0], x.shape[1], 4, D).transpose(1, 2)
    k, v = ((memory @ w).view(memory.shape[0], memory.shape[1], 4, D).transpose(1, 2) for w in (wk, wv))
    return ((q @ k.transpose(2, 3) * SCALE).softmax(dim=3) @ v).permute(0, 2, 1, 3).reshape(x.shape)


@spelling(same=True, layout="x")
def projections_by_einsum_as_flax(x, wq, wk, wv):
    wq, wk, wv = (w.view(-1, 4, D) for w in (wq, wk, wv))
    q, k, v = (torch.einsum("btm,mhd->bthd", x, w) for w in (wq, wk, wv))
    p = torch.einsum("bqhd,bkhd->bhqk", q / D**0.5, k).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", p, v)


@spelling()
def three_dimensional_bmm_of_heads_in_the_batch(q, k, v):
    b, h, s, d = q.shape
    q, k, v = (x.contiguous().view(b * h, -1, d) for x in (q, k, v))
    attn = torch.bmm(q, k.transpose(1, 2)).div_(d**0.5).softmax(dim=2)
    return torch.bmm(attn, v).view(b, h, s, -1)


@spelling()
def linalg_matmul_and_adjoint(q, k, v):
    x = torch.linalg.matmul(q, k.adjoint()).mul(SCALE)
    return torch.linalg.matmul(torch.special.softmax(x, -1), v)


@spelling(sites=4)
def a_python_loop_over_heads(q, k, v):
    heads = []
    for n in range(4):
        heads.append((q[:, n] @ k[:, n].transpose(1, 2) * SCALE).softmax(-1) @ v[:, n])
    return torch.cat(heads, dim=-1)


@spelling(layout="latents")
def latents_without_batch_as_perceiver(latents, v):
    context = v[:, 0]
    x = torch.einsum("nd,bjd->bnj", latents, context) * SCALE
    return torch.einsum("bnj,bjd->bnd", x.softmax(-1), context)


@spelling(layout="state")
def one_state_as_luong(state, v):
    outputs = v[:, 0]
    x = torch.bmm(outputs, state.unsqueeze(2)).squeeze(2)
    alpha = F.softmax(x, dim=1)
    return torch.bmm(alpha.unsqueeze(1), outputs).squeeze(1)


@spelling(layout="energy")
def pooling_by_a_learned_vector(energy, v):
    x = v[:, 0]
    alpha = torch.softmax(x @ energy, dim=-1)
    return (alpha.unsqueeze(-1) * x).sum(1)


@spelling(layout="latents")
def two_dimensional_with_inner(latents):
    return torch.softmax(torch.inner(latents, latents) * SCALE, dim=1).mm(latents)


@spelling(layout="latents")
def two_dimensional_with_addmm_and_t(latents):
    x = torch.addmm(torch.zeros(1), latents, latents.t(), beta=0, alpha=SCALE)
    return torch.mm(F.softmax(x, 1), latents)
