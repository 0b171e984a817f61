"""FlexAttention's masks and score functions as people write them, BlockMask included, against FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sampling import one_in
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask, flex_attention, or_masks

from attncc.attention import attention

SIZE = 300
"""Of sequences: two whole blocks of FlexAttention and a part of one."""


def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
    return q_idx >= kv_idx


def sliding_window(size: int) -> Callable[..., Any]:
    def near(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx - kv_idx <= size

    return and_masks(near, causal)


def dilated(size: int, step: int) -> Callable[..., Any]:
    def near(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        distance = (q_idx - kv_idx).abs()
        return (distance <= size) & (distance % step == 0)

    return near


def prefix(lengths: Tensor) -> Callable[..., Any]:
    def inside(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx < lengths[b]

    return or_masks(inside, causal)


def neighborhood(width: int, kernel: int) -> Callable[..., Any]:
    """Two-dimensional neighborhood attention over an image of `width` columns."""

    def near(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_x, q_y, k_x, k_y = q_idx // width, q_idx % width, kv_idx // width, kv_idx % width
        center = q_x.clamp(kernel // 2, width - 1 - kernel // 2)
        return ((center - k_x).abs() <= kernel // 2) & ((q_y - k_y).abs() <= kernel // 2)

    return near


def documents(lengths: list[int], inner: Callable[..., Any]) -> Callable[..., Any]:
    """Packed documents, each with the mask `inner` over positions inside it."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    offsets = torch.tensor([0, *lengths]).cumsum(0)

    def same(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_logical, kv_logical = q_idx - offsets[document[q_idx]], kv_idx - offsets[document[kv_idx]]
        return (document[q_idx] == document[kv_idx]) & inner(b, h, q_logical, kv_logical)

    return same


def alibi(heads: int) -> Callable[..., Any]:
    def biased(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + (kv_idx - q_idx) * torch.exp2(-((h + 1) * 8.0 / heads))

    return biased


def soft_cap(cap: float) -> Callable[..., Any]:
    def capped(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


MASKS: dict[str, Callable[..., Any]] = {
    "causal": causal,
    "sliding window": sliding_window(40),
    "dilated": dilated(64, 8),
    "prefix": prefix(torch.tensor([200, 30])),
    "neighborhood": neighborhood(20, 5),
    "documents": documents([90, 140, 70], causal),
}


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, heads, SIZE, 16, dtype=torch.float64).to(dtype) for heads in (4, 2, 2)]


def assert_same(arguments: dict[str, Any], block_mask: BlockMask | None) -> None:
    q, k, v = operands()
    got = attention(q, k, v, enable_gqa=True, block_mask=block_mask, **arguments)
    score_mod = arguments.get("score_mod")
    wide = [t.double() for t in (q, k, v)]
    expected = flex_attention(*wide, score_mod=score_mod, block_mask=block_mask, enable_gqa=True)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("sliding window", "documents") else pytest.mark.slow) for n in MASKS]
)
def test_a_block_mask_hides_what_it_hides_in_flex_attention(name: str) -> None:
    assert_same({}, create_block_mask(MASKS[name], 2, None, SIZE, SIZE, device="cpu"))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("mod", one_in(2, [alibi(4), soft_cap(3.0)]))
def test_score_functions_beside_a_block_mask(mod: Callable[..., Any]) -> None:
    assert_same({"score_mod": mod}, create_block_mask(causal, None, None, SIZE, SIZE, device="cpu"))


def test_lists_of_blocks_count_where_no_function_says_the_same() -> None:
    """Blocks chosen by hand: what is not listed is hidden, what is listed as full needs no function."""
    q, k, v = operands(torch.float64)
    listed = torch.rand(2, 4, 3, 3) > 0.4
    listed[1, 2, 1] = False
    counts = listed.sum(-1).int()
    order = listed.int().argsort(dim=-1, descending=True, stable=True).int()
    whole = torch.eye(3, dtype=torch.bool).expand(2, 4, 3, 3) & ~listed
    full_order = whole.int().argsort(dim=-1, descending=True, stable=True).int()
    block_mask = BlockMask.from_kv_blocks(
        counts, order, whole.sum(-1).int(), full_order, mask_mod=causal, seq_lengths=(SIZE, SIZE)
    )
    at = torch.arange(SIZE) // 128
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    keep = whole[:, :, at][..., at] | (listed[:, :, at][..., at] & (rows >= columns))
    got = attention(q, k, v, enable_gqa=True, block_mask=block_mask)
    torch.testing.assert_close(got, attention(q, k, v, keep, enable_gqa=True), rtol=0, atol=1e-12)


def test_a_block_mask_for_shorter_sequences_is_refused() -> None:
    q, k, v = operands()
    short = create_block_mask(causal, None, None, 128, 128, device="cpu")
    with pytest.raises(ValueError, match="block_mask is for 128 queries and 128 keys, the call has 300 and 300"):
        attention(q, k, v, enable_gqa=True, block_mask=short)
    with pytest.raises(TypeError, match="block_mask is a function"):
        attention(q, k, v, enable_gqa=True, block_mask=causal)  # type: ignore[arg-type]
