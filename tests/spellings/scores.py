"""What becomes of the score before the softmax: scales, biases, caps, further products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from spellings.registry import SCALE, D, spelling


def attend(x, v):
    return torch.matmul(F.softmax(x, dim=-1), v)


# Scales


@spelling()
def scale_of_the_shape(q, k, v):
    return attend(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), v)


@spelling()
def scale_of_the_shape_on_the_query(q, k, v):
    return attend(q * q.shape[-1] ** -0.5 @ k.mT, v)


@spelling()
def scale_by_a_tensor_made_on_the_spot(q, k, v):
    return attend(torch.matmul(q, k.mT) / torch.sqrt(torch.tensor(D, dtype=torch.float32)), v)


@spelling()
def scale_by_rsqrt_of_a_tensor(q, k, v):
    return attend(torch.matmul(q, k.mT) * torch.rsqrt(torch.tensor(float(D))), v)


@spelling()
def scale_by_full_like_and_pow(q, k, v):
    """GPT-2 of Transformers 4."""
    x = torch.matmul(q, k.transpose(-1, -2))
    x = x / torch.full([], v.size(-1) ** 0.5, dtype=x.dtype, device=x.device)
    return attend(x, v)


@spelling()
def scale_on_the_keys_by_division(q, k, v):
    return attend(q @ (k / D**0.5).mT, v)


@spelling()
def scale_split_by_the_fourth_root(q, k, v):
    root = math.sqrt(math.sqrt(D))
    return attend(q / root @ (k / root).mT, v)


@spelling()
def scale_after_in_place(q, k, v):
    x = q @ k.mT
    x.div_(D**0.5).add_(1.0)
    return attend(x, v)


@spelling(layout="x", same=True)
def projected_query_scaled_in_place(x, wq, wk, wv):
    q, k, v = (F.linear(x, w).unflatten(-1, (4, D)).transpose(1, 2) for w in (wq, wk, wv))
    q /= D**0.5
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


@spelling()
def scale_and_layer_number_as_megatron(q, k, v):
    layer = 3
    x = torch.matmul(q, k.mT) / (math.sqrt(D) * layer)
    return attend(x * layer, v)


@spelling()
def scale_is_an_argument(q, k, v, scale):
    return attend(q @ k.mT / scale, v)


@spelling(once=False)
def scale_by_log_of_the_length(q, k, v):
    """Scalable softmax."""
    return attend(q @ k.mT * (SCALE * math.log(k.shape[2])), v)


@spelling()
def temperature_by_head_clamped_as_swin2(q, k, v, temperature):
    x = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return attend(x * torch.clamp(temperature, max=math.log(100.0)).exp(), v)


@spelling()
def cosine_by_norms_of_the_score(q, k, v):
    x = q @ k.mT / (q.norm(dim=-1, keepdim=True) * k.norm(dim=-1, keepdim=True).mT + 1e-6)
    return attend(x * 5.0, v)


@spelling()
def normalised_queries_and_keys(q, k, v):
    q, k = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) for x in (q, k))
    return attend(q @ k.mT * SCALE, v)


@spelling()
def layer_norm_of_queries_and_keys(q, k, v):
    return attend(F.layer_norm(q, (D,)) @ F.layer_norm(k, (D,)).mT * SCALE, v)


@spelling()
def query_gains_by_element(q, k, v, energy):
    return attend((q * energy) @ k.mT, v)


@spelling(dtype=torch.bfloat16)
def upcast_before_the_product(q, k, v):
    return attend((q.float() @ k.float().mT) * SCALE, v.float()).to(q.dtype)


# Biases


@spelling()
def bias_by_head(q, k, v, bias):
    return attend(torch.add(q @ k.mT * SCALE, bias), v)


@spelling()
def bias_before_the_scale(q, k, v, bias4):
    return attend((q @ k.mT + bias4) / D**0.5, v)


@spelling()
def bias_masked_in_place_as_parakeet(q, k, v, bias4, mask4):
    """What the score reads is a bias that is overwritten before: it is computed again, and the original not at all."""
    bias = bias4 * SCALE
    bias = bias.masked_fill_(~mask4, float("-inf"))
    return attend(q @ k.mT * SCALE + bias, v)


@spelling()
def bias_from_a_table_as_swin(q, k, v, table, relative):
    s, t = q.shape[2], k.shape[2]
    bias = table[relative.view(-1)].view(s, t, -1).permute(2, 0, 1).contiguous()
    return attend(q @ k.mT * SCALE + bias.unsqueeze(0), v)


@spelling()
def bias_by_embedding_as_t5(q, k, v, table, relative):
    bias = F.embedding(relative, table).permute([2, 0, 1]).unsqueeze(0)
    x = torch.matmul(q, k.transpose(3, 2))
    x += bias
    return torch.matmul(F.softmax(x.float(), dim=-1).type_as(x), v)


@spelling()
def bias_of_buckets_made_in_the_graph_as_t5(q, k, v, table):
    context = torch.arange(q.shape[2])[:, None]
    distance = torch.arange(k.shape[2])[None, :] - context
    buckets = (distance > 0).to(torch.long) * 16
    distance = torch.abs(distance)
    small = distance < 8
    large = 8 + (torch.log(distance.float() / 8) / math.log(128 / 8) * 8).to(torch.long)
    large = torch.min(large, torch.full_like(large, 15))
    buckets = buckets + torch.where(small, distance, large)
    return attend(q @ k.mT + F.embedding(buckets, table).permute(2, 0, 1)[None], v)


@spelling()
def bias_by_index_of_both_axes(q, k, v, table, relative):
    return attend(q @ k.mT * SCALE + table.t()[:, relative], v)


@spelling()
def alibi_by_distance(q, k, v, slopes):
    i, j = torch.arange(q.shape[2]), torch.arange(k.shape[2])
    distance = (j[None, :] - i[:, None]).abs().neg()
    return attend(q @ k.mT * SCALE + slopes.view(-1, 1, 1) * distance, v)


@spelling()
def alibi_by_key_as_mpt(q, k, v, slopes):
    t = k.shape[2]
    alibi = torch.arange(1 - t, 1, dtype=torch.int32).view(1, 1, 1, t)
    return attend(q @ k.mT * SCALE + alibi * slopes.view(1, -1, 1, 1), v)


@spelling()
def alibi_by_baddbmm_as_bloom(q, k, v, slopes, attention_mask):
    b, h, s, d = q.shape
    arange_tensor = ((attention_mask.cumsum(dim=-1) - 1) * attention_mask)[:, None, :]
    alibi = (slopes[..., None] * arange_tensor).reshape(b * h, 1, -1)
    x = torch.baddbmm(alibi, q.reshape(b * h, s, d), k.reshape(b * h, -1, d).mT, beta=1.0, alpha=SCALE)
    x = x.view(b, h, s, -1).masked_fill((attention_mask == 0)[:, None, None], torch.finfo(q.dtype).min)
    p = F.softmax(x, dim=-1, dtype=torch.float32).to(q.dtype).view(b * h, s, -1)
    return torch.bmm(p, v.reshape(b * h, -1, d)).view(b, h, s, -1)


@spelling()
def bias_of_the_query_as_shaw(q, k, v, pair_keys):
    x = q @ k.mT + torch.einsum("bhid,ijd->bhij", q, pair_keys)
    return attend(x * SCALE, v)


@spelling(same=True)
def shifted_scores_as_transformer_xl(q, k, v, wq):
    positions = wq[: k.shape[2], :D]
    ac = torch.einsum("bhid,bhjd->bhij", q, k)
    bd = torch.einsum("bhid,jd->bhij", q + 0.5, positions)
    pad = torch.zeros(*bd.shape[:3], 1)
    bd = torch.cat([pad, bd], dim=-1).view(*bd.shape[:2], bd.shape[3] + 1, bd.shape[2])[:, :, 1:].view_as(bd)
    return attend((ac + bd) * SCALE, v)


@spelling()
def gathered_by_distance_as_deberta(q, k, v, positions, relative):
    to_position = torch.matmul(q, positions.t())
    index = (relative % positions.shape[0])[None, None].expand(q.shape[0], q.shape[1], -1, -1)
    return attend((q @ k.mT + torch.gather(to_position, -1, index)) / math.sqrt(D * 2), v)


@spelling()
def bias_of_keys_alone(q, k, v, energy):
    return attend(q @ k.mT * SCALE + torch.matmul(k, energy)[:, :, None, :], v)


@spelling()
def tanh_cap_as_gemma2(q, k, v, mask4):
    x = torch.matmul(q, k.transpose(2, 3)) * SCALE
    x = x / 50.0
    x = torch.tanh(x)
    x = x * 50.0
    return attend(x.masked_fill(~mask4, torch.finfo(x.dtype).min), v)


@spelling()
def score_of_a_learned_gate(q, k, v, temperature):
    x = q @ k.mT * SCALE
    return attend(x * torch.sigmoid(temperature) + 0.1 * x.abs(), v)


@spelling()
def score_clamped(q, k, v):
    return attend(torch.clamp(q @ k.mT * SCALE, min=-3.0, max=3.0), v)


# Products


@spelling()
def bilinear_on_the_query(q, k, v, w):
    return attend(torch.matmul(q, w) @ k.mT, v)


@spelling()
def bilinear_by_head_in_einsum(q, k, v, w_heads):
    return attend(torch.einsum("bhic,hcd,bhjd->bhij", q, w_heads, k) * SCALE, v)


@spelling()
def bilinear_by_linear_on_the_keys(q, k, v, w):
    return attend(q @ F.linear(k, w).transpose(-1, -2) / D, v)


@spelling()
def split_rope_added(q, k, v, q_rope, k_rope):
    x = torch.matmul(q, k.mT) + torch.matmul(q_rope, k_rope.mT)
    return attend(x * 12**-0.5, v)


@spelling()
def split_rope_concatenated(q, k, v, q_rope, k_rope):
    q = torch.cat([q, q_rope], dim=-1)
    k = torch.cat([k, k_rope.expand(-1, k.shape[1], -1, -1)], dim=-1)
    return attend(q @ k.mT * 12**-0.5, v)


@spelling()
def latent_attention_absorbed(q, q_rope, k_rope, latent, w_up, w_up_v):
    absorbed = torch.einsum("bhid,hdc->bhic", q, w_up)
    x = torch.einsum("bhic,btc->bhit", absorbed, latent) + torch.einsum("bhir,btr->bhit", q_rope, k_rope[:, 0])
    o = torch.einsum("bhit,btc->bhic", (x * SCALE).softmax(-1), latent)
    return torch.einsum("bhic,hdc->bhid", o, w_up_v)


@spelling()
def latent_attention_expanded(q, latent, w_up, w_up_v):
    k, v = (torch.einsum("btc,hdc->bhtd", latent, w) for w in (w_up, w_up_v))
    return attend(q @ k.mT * SCALE, v)


@spelling()
def additive_as_bahdanau(q, k, v, energy):
    x = torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)) @ energy
    return attend(x, v)


@spelling()
def additive_by_sum(q, k, v, energy):
    x = (energy * torch.tanh(q[:, :, :, None, :] + k[:, :, None, :, :])).sum(-1)
    return attend(x, v)


@spelling()
def negative_distance(q, k, v):
    """|q - k|² spelled as its three products."""
    x = -(q.pow(2).sum(-1, keepdim=True) - 2 * q @ k.mT + k.pow(2).sum(-1)[..., None, :])
    return attend(x * SCALE, v)


@spelling()
def negative_distance_by_cdist(q, k, v):
    return attend(-torch.cdist(q, k), v)


@spelling()
def negative_distance_by_norm(q, k, v):
    return attend(-torch.linalg.vector_norm(q[:, :, :, None] - k[:, :, None], dim=-1), v)


@spelling()
def negative_sum_of_absolute_differences(q, k, v):
    return attend(-torch.norm(q.unsqueeze(3) - k.unsqueeze(2), p=1, dim=-1) * SCALE, v)


@spelling(reason="F.normalize")
def cosine_similarity_of_all_pairs(q, k, v):
    return attend(F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1) / 0.1, v)


@spelling(reason="values of its own")
def heads_mixed_before_the_softmax(q, k, v, mixer):
    x = torch.einsum("bhij,hg->bgij", q @ k.mT, mixer)
    return attend(x * SCALE, v)


@spelling(same=True)
def scaled_queries_against_a_table_of_distances(q, k, v):
    """As SpeechT5: the scaled queries meet the keys in one product, a row for each distance in another."""
    b, h, s, d = q.shape
    q = (q * SCALE).reshape(b * h, s, d)
    distance = torch.arange(s)[:, None] - torch.arange(s)[None]
    table = torch.sin(distance[..., None] * torch.arange(1.0, d + 1))
    near = torch.matmul(q.transpose(0, 1), table.transpose(-2, -1)).transpose(0, 1)
    x = torch.bmm(q, k.reshape(b * h, s, d).transpose(1, 2)) + near
    return torch.bmm(x.softmax(-1), v.reshape(b * h, s, -1))
