"""Masks: where they come from, and the dozen ways in which they are put to the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from spellings.registry import SCALE, spelling


def scores(q, k):
    return q @ k.transpose(-2, -1) * SCALE


def attend(x, v):
    return torch.matmul(x.softmax(dim=-1), v)


def positions(q, k):
    return torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None, :]


# Given


@spelling()
def fill_where_equal_to_zero(q, k, v, keep):
    return attend(scores(q, k).masked_fill(keep[:, None, None] == 0, float("-inf")), v)


@spelling()
def fill_with_minus_infinity_constant(q, k, v, mask):
    return attend(scores(q, k).masked_fill(mask.logical_not(), -torch.inf), v)


@spelling()
def fill_in_place_with_a_large_number(q, k, v, hidden):
    x = scores(q, k)
    x.masked_fill_(hidden.unsqueeze(1), -1e10)
    return attend(x, v)


@spelling()
def fill_with_minus_finfo_max(q, k, v, keep):
    x = scores(q, k)
    return attend(x.masked_fill(~keep[:, None, None, :], -torch.finfo(x.dtype).max), v)


@spelling()
def fill_with_a_tensor(q, k, v, mask4):
    x = scores(q, k)
    return attend(torch.where(mask4, x, torch.tensor(torch.finfo(x.dtype).min, dtype=x.dtype)), v)


@spelling()
def fill_with_a_full_tensor(q, k, v, mask4):
    x = scores(q, k)
    return attend(torch.where(mask4, x, torch.full_like(x, -1e9)), v)


@spelling()
def fill_where_hidden(q, k, v, hidden):
    x = scores(q, k)
    return attend(torch.where(hidden[:, None], torch.finfo(x.dtype).min, x), v)


@spelling()
def fill_by_boolean_assignment(q, k, v, mask):
    x = scores(q, k)
    x[:, :, ~mask] = float("-inf")
    return attend(x, v)


@spelling()
def fill_by_boolean_assignment_under_a_mask_of_keys(q, k, v, keep):
    x = scores(q, k).transpose(1, 3)
    x[~keep] = -1e9
    return attend(x.transpose(1, 3), v)


@spelling()
def added_infinity(q, k, v, additive):
    return attend(scores(q, k) + additive, v)


@spelling()
def added_as_bert(q, k, v, attention_mask):
    extended = attention_mask.unsqueeze(1).unsqueeze(2).to(dtype=q.dtype)
    extended = (1.0 - extended) * -10000.0
    return attend(scores(q, k) + extended, v)


@spelling()
def added_finfo_as_transformers(q, k, v, attention_mask):
    b, t = attention_mask.shape
    expanded = attention_mask[:, None, None, :].expand(b, 1, q.shape[2], t).to(q.dtype)
    inverted = 1.0 - expanded
    inverted = inverted.masked_fill(inverted.to(torch.bool), torch.finfo(q.dtype).min)
    return attend(scores(q, k) + inverted, v)


@spelling()
def added_log_of_the_mask(q, k, v, float_mask):
    return attend(scores(q, k) + float_mask.log()[:, None, None, :], v)


@spelling()
def added_by_where(q, k, v, mask):
    return attend(scores(q, k) + torch.where(mask, 0.0, float("-inf")), v)


@spelling()
def subtracted(q, k, v, float_mask):
    return attend(scores(q, k) - 1e9 * (1 - float_mask[:, None, None]), v)


@spelling()
def multiplied_and_added_as_gpt1(q, k, v, triangle):
    b = triangle[:, :, : q.size(2), : k.size(2)]
    w = torch.matmul(q, k.transpose(2, 3)) * SCALE
    return attend(w * b + -1e4 * (1 - b), v)


@spelling()
def multiplied_and_added_with_an_enormous_number(q, k, v, float_mask):
    m = float_mask[:, None, None, :]
    return attend(scores(q, k) * m - 1e30 * (1.0 - m), v)


@spelling()
def integer_mask_below_one(q, k, v, attention_mask):
    return attend(scores(q, k).masked_fill(attention_mask[:, None, None] < 1, -1e9), v)


@spelling()
def integer_mask_cast_and_inverted(q, k, v, attention_mask):
    hidden = (1 - attention_mask).bool()
    return attend(scores(q, k).masked_fill(hidden[:, None, None, :], float("-inf")), v)


@spelling()
def byte_mask_ne(q, k, v, attention_mask):
    keep = attention_mask.to(torch.uint8).ne(0)
    return attend(scores(q, k).masked_fill(~keep.view(keep.shape[0], 1, 1, -1), float("-inf")), v)


@spelling()
def mask_transposed(q, k, v, tree):
    mask = tree.transpose(0, 1).contiguous().t()
    return attend(scores(q, k).masked_fill(~mask, -1e9), v)


@spelling()
def padding_by_lengths(q, k, v, lengths):
    keep = torch.arange(k.shape[2])[None, :] < lengths[:, None]
    return attend(scores(q, k).masked_fill(~keep[:, None, None, :], float("-inf")), v)


@spelling()
def padding_of_rows_and_columns_by_product(q, k, v, keep_rows, keep):
    mask = keep_rows.unsqueeze(2).float() * keep.unsqueeze(1).float()
    x = scores(q, k).masked_fill(mask.unsqueeze(1) == 0, -1e9)
    return attend(x, v)


@spelling()
def padding_by_einsum(q, k, v, keep_rows, keep):
    mask = torch.einsum("bi,bj->bij", keep_rows.float(), keep.float())[:, None]
    return attend(scores(q, k) + (1 - mask) * torch.finfo(q.dtype).min, v)


@spelling()
def two_masks_one_after_the_other(q, k, v, mask, keep):
    x = scores(q, k).masked_fill(~mask, float("-inf"))
    return attend(x.masked_fill(~keep[:, None, None], float("-inf")), v)


@spelling()
def a_mask_and_a_bias(q, k, v, mask4, bias):
    return attend((scores(q, k) + bias).masked_fill(~mask4, float("-inf")), v)


# Triangles


@spelling(same=True)
def causal_of_a_buffer_as_nanogpt(q, k, v, triangle):
    t = q.shape[2]
    x = scores(q, k).masked_fill(triangle[:, :, :t, :t] == 0, float("-inf"))
    return attend(x, v)


@spelling()
def causal_of_a_sliced_buffer_as_gpt2(q, k, v, triangle):
    s, t = q.size(-2), k.size(-2)
    seen = triangle.bool()[:, :, t - s : t, :t]
    x = scores(q, k)
    return attend(torch.where(seen, x, torch.full([], torch.finfo(x.dtype).min, dtype=x.dtype)), v)


@spelling(same=True)
def causal_of_triu_of_ones(q, k, v):
    s = q.shape[2]
    x = scores(q, k).masked_fill(torch.triu(torch.ones(s, s), diagonal=1).bool(), float("-inf"))
    return attend(x, v)


@spelling(same=True)
def causal_of_the_old_tutorial(q, k, v):
    s = q.shape[2]
    mask = (torch.triu(torch.ones(s, s)) == 1).transpose(0, 1)
    mask = mask.float().masked_fill(mask == 0, float("-inf")).masked_fill(mask == 1, 0.0)
    return attend(scores(q, k) + mask, v)


@spelling(same=True)
def causal_of_nn_transformer(q, k, v):
    return attend(scores(q, k) + nn.Transformer.generate_square_subsequent_mask(q.shape[2]), v)


@spelling()
def causal_of_new_ones(q, k, v):
    x = scores(q, k)
    s, t = x.shape[-2:]
    return attend(x.masked_fill(x.new_ones(s, t, dtype=torch.bool).triu_(1), float("-inf")), v)


@spelling()
def causal_bottom_right_by_tril(q, k, v):
    s, t = q.shape[2], k.shape[2]
    return attend(torch.where(torch.ones(s, t).tril(t - s) > 0, scores(q, k), -1e9), v)


@spelling()
def causal_bottom_right_by_positions(q, k, v):
    i, j = positions(q, k)
    x = scores(q, k)
    return attend(x.masked_fill(j > i + (k.shape[2] - q.shape[2]), torch.finfo(x.dtype).min), v)


@spelling()
def causal_by_ge_of_named_functions(q, k, v):
    i, j = positions(q, k)
    return attend(torch.where(torch.greater_equal(i, j), scores(q, k), float("-inf")), v)


@spelling()
def causal_of_the_old_llama(q, k, v, attention_mask):
    """_make_causal_mask, _expand_mask, their sum, and a maximum with finfo.min over it all."""
    s, t = q.shape[2], k.shape[2]
    low = torch.finfo(q.dtype).min
    mask = torch.full((s, s), low)
    at = torch.arange(mask.size(-1))
    mask.masked_fill_(at < (at + 1).view(mask.size(-1), 1), 0)
    mask = torch.cat([torch.zeros(s, t - s), mask], dim=-1)[None, None].expand(q.shape[0], 1, s, t)
    inverted = 1.0 - attention_mask[:, None, None].expand(-1, 1, s, t).to(q.dtype)
    x = scores(q, k) + (inverted.masked_fill(inverted.bool(), low) + mask)
    x = torch.max(x, torch.tensor(torch.finfo(x.dtype).min))
    return attend(x, v)


@spelling()
def causal_and_padding_together(q, k, v, keep):
    i, j = positions(q, k)
    mask = (j <= i)[None, None] & keep[:, None, None, :]
    return attend(scores(q, k).masked_fill(~mask, float("-inf")), v)


@spelling(same=True)
def causal_and_padding_as_two_additions(q, k, v, attention_mask):
    s = q.shape[2]
    causal = torch.full((s, s), -1e30).triu(1)
    padding = (1 - attention_mask[:, None, None].float()) * -1e30
    return attend(scores(q, k) + causal + padding, v)


# Windows, prefixes, documents, blocks


@spelling()
def window_by_tril_and_triu(q, k, v):
    s, t = q.shape[2], k.shape[2]
    band = torch.ones(s, t, dtype=torch.bool).tril(2).triu(-2)
    return attend(scores(q, k).masked_fill(~band, float("-inf")), v)


@spelling()
def window_by_distance(q, k, v):
    i, j = positions(q, k)
    return attend(scores(q, k).masked_fill((i - j).abs() > 3, float("-inf")), v)


@spelling(same=True)
def window_as_mistral(q, k, v):
    s = q.shape[2]
    mask = torch.full((s, s), 1.0)
    mask = torch.tril(mask, diagonal=0)
    mask = torch.triu(mask, diagonal=-3)
    mask = torch.log(mask)
    return attend(scores(q, k) + mask, v)


@spelling()
def window_with_global_tokens(q, k, v):
    i, j = positions(q, k)
    seen = ((i - j).abs() < 3) | (j < 2) | (i < 2)
    return attend(scores(q, k).masked_fill(~seen, float("-inf")), v)


@spelling()
def dilated_window(q, k, v):
    i, j = positions(q, k)
    seen = (j <= i) & ((i - j) % 2 == 0) & (i - j < 8)
    return attend(scores(q, k).masked_fill(~seen, float("-inf")), v)


@spelling()
def strided_blocks(q, k, v):
    i, j = positions(q, k)
    seen = torch.div(i, 4, rounding_mode="floor") == j // 4
    return attend(torch.where(seen | (j == 0), scores(q, k), float("-inf")), v)


@spelling()
def blocks_of_a_table(q, k, v, blocks):
    i, j = positions(q, k)
    seen = blocks[i // 4, j // 4] | (j == 0)
    return attend(scores(q, k).masked_fill(~seen, float("-inf")), v)


@spelling()
def prefix_given_by_batch(q, k, v, prefix):
    i, j = positions(q, k)
    seen = (j <= i)[None] | (j < prefix[:, None, None])
    return attend(torch.where(seen[:, None], scores(q, k), float("-inf")), v)


@spelling(same=True)
def documents_given(q, k, v, documents):
    seen = documents.unsqueeze(2).eq(documents.unsqueeze(1))
    return attend(scores(q, k).masked_fill(~seen.unsqueeze(1), float("-inf")), v)


@spelling(same=True)
def documents_counted_by_separators(q, k, v, tokens):
    ids = (tokens == 0).cumsum(dim=-1)
    causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    seen = (ids[:, :, None] == ids[:, None, :]) & causal
    return attend(torch.where(seen[:, None], scores(q, k), torch.finfo(q.dtype).min), v)


@spelling(same=True)
def patches_counted_by_their_starts(q, k, v, documents):
    """As byte latent transformers number the patches that bytes belong to."""
    ids = (documents.unsqueeze(1) <= torch.arange(q.shape[2])[None, :, None]).sum(dim=-1) - 1
    seen = (ids.unsqueeze(2) == ids.unsqueeze(1)).unsqueeze(1)
    hidden = 1.0 - seen.to(q.dtype)
    return attend(scores(q, k) + hidden.masked_fill(hidden.bool(), torch.finfo(q.dtype).min), v)


@spelling(same=True)
def patches_counted_by_starts_from_lengths(q, k, v, documents):
    """The same where the first start, 0, is joined to the sums of the lengths."""
    starts = torch.cat([documents.new_zeros(documents.shape[0], 1), documents.cumsum(dim=-1)[:, :-1]], dim=-1)
    ids = (starts.unsqueeze(1) <= torch.arange(q.shape[2])[None, :, None]).sum(dim=-1) - 1
    seen = (ids.unsqueeze(2) == ids.unsqueeze(1)).unsqueeze(1)
    return attend(torch.where(seen, scores(q, k), torch.finfo(q.dtype).min), v)


@spelling()
def lengths_summed_from_a_mask(q, k, v, keep):
    lengths = keep.to(torch.int64).sum(dim=-1, keepdim=True)
    seen = torch.arange(k.shape[2])[None] < lengths
    return attend(scores(q, k).masked_fill(~seen[:, None, None], float("-inf")), v)


@spelling()
def tree_of_tokens(q, k, v, tree):
    return attend(scores(q, k) + (~tree).float() * torch.finfo(q.dtype).min, v)


@spelling(same=True)
def diagonal_hidden_as_lsa(q, k, v):
    x = scores(q, k)
    hidden = torch.eye(x.shape[-1], dtype=torch.bool)
    return attend(x.masked_fill(hidden, -torch.finfo(x.dtype).max), v)


@spelling(same=True)
def shifted_windows_as_swin(q, k, v, bias):
    x = scores(q, k) + bias[None]
    region = torch.arange(x.shape[-1]) // 3
    hidden = torch.zeros(x.shape[-1], x.shape[-1]).masked_fill(region[:, None] != region[None], -100.0)
    return attend(x + hidden[None, None], v)


@spelling()
def weights_cleared_where_hidden(q, k, v, keep):
    """As ESPnet: the smallest number before the softmax, 0 after it, so that empty rows give 0."""
    hidden = ~keep[:, None, None, :]
    x = scores(q, k).masked_fill(hidden, torch.finfo(q.dtype).min)
    return F.softmax(x, dim=-1).masked_fill(hidden, 0.0) @ v


@spelling(same=True)
def weights_cleared_where_nothing_is_hidden(q, k, v):
    """As SEW-D without a mask given: the model makes a mask of ones, hides with it before and after the softmax."""
    hidden = ~torch.ones(k.shape[0], 1, 1, k.shape[2], dtype=torch.int64).bool()
    x = scores(q, k).masked_fill(hidden, torch.finfo(q.dtype).min)
    return F.softmax(x, dim=-1).masked_fill_(hidden, 0) @ v


@spelling(same=True)
def hidden_keys_shown_where_all_are_hidden(q, k, v, bias):
    """As Mask2Former: a mask made of predictions; a query that it would leave without a key sees all of them."""
    hidden = (bias.sigmoid() < 0.5)[None]
    hidden = hidden & (hidden.sum(-1) != hidden.shape[-1]).unsqueeze(-1)
    return attend(scores(q, k).masked_fill(hidden, float("-inf")), v)
