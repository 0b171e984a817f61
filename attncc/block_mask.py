"""FlexAttention's BlockMask as a mask_mod: what its kernels make visible, said for one score."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def visible(block_mask: BlockMask, q_len: int, kv_len: int) -> Callable[..., Any]:
    """`f(b, h, q_idx, kv_idx) -> bool` for a call of the given lengths.

    A key is visible where its block is listed as full, or where it is listed and `block_mask.mask_mod` allows it: the
    lists count, not only the function that they may have been made from. Sizes 1 of the lists are broadcast.

    Raises TypeError for what is no BlockMask, ValueError for one that is for shorter sequences.
    """
    lists = [getattr(block_mask, name, None) for name in ("kv_num_blocks", "kv_indices")]
    if not all(isinstance(each, Tensor) for each in lists):
        raise TypeError(f"attention: block_mask is a {type(block_mask).__name__}, not a BlockMask")
    rows, columns = block_mask.seq_lengths
    if q_len > rows or kv_len > columns:
        raise ValueError(
            f"attention: block_mask is for {rows} queries and {columns} keys, the call has {q_len} and {kv_len}"
        )
    partial = _listed(*lists)
    full = None
    if block_mask.full_kv_num_blocks is not None and block_mask.full_kv_indices is not None:
        full = _listed(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    mask_mod, (q_block, kv_block) = block_mask.mask_mod, block_mask.BLOCK_SIZE
    one_batch, one_head = (partial.shape[dim] == 1 for dim in (0, 1))

    def mask(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        place = (b * 0 if one_batch else b, h * 0 if one_head else h, q_idx // q_block, kv_idx // kv_block)
        seen = partial[place] & mask_mod(b, h, q_idx, kv_idx)
        return seen if full is None else full[place] | seen

    return mask


def _listed(counts: Tensor, indices: Tensor) -> Tensor:
    """bool [B, H, query blocks, key blocks] from the numbers of listed key blocks and their lists."""
    position = torch.arange(indices.shape[-1], device=indices.device)
    listed = (position < counts[..., None]).to(torch.uint8)
    table = torch.zeros(indices.shape, dtype=torch.uint8, device=indices.device)
    # unused entries of a list may repeat used ones
    return table.scatter_reduce(-1, indices.long(), listed, "amax").bool()
