"""FlexAttention's operator, written out and fused: the same values as its eager evaluation in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture import Capture, assert_same, capture
from sampling import one_in
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

B, H, S, D, BLOCK = 2, 4, 33, 8, 16


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


QKV = (rand(B, H, S, D), rand(B, H, S, D) + 0.1, rand(B, H, S, D) - 0.2)
SLOPES, TABLE = rand(H), rand(H, 2 * S)
DOCUMENTS = torch.tensor([[0] * 10 + [1] * 23, [0] * 20 + [1] * 13])


def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
    return j <= i


def strictly_below(b: Any, h: Any, i: Any, j: Any) -> Any:
    return j < i


def same_document(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (j <= i) & (DOCUMENTS[b, i] == DOCUMENTS[b, j])


def alibi(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + SLOPES[h] * (j - i)


def capped_with_table(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.tanh(s / 20) * 20 + TABLE[h, i - j + S]


def masked_by_score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.where(i - j < 7, s, -float("inf"))


def blocks(mask: Callable[..., Any], batch: int | None = None) -> BlockMask:
    return create_block_mask(mask, batch, None, S, S, device="cpu", BLOCK_SIZE=BLOCK)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "alibi": {"score_mod": alibi},
    "soft_cap_and_table": {"score_mod": capped_with_table},
    "mask_in_score_mod": {"score_mod": masked_by_score, "block_mask": blocks(causal)},
    "causal": {"block_mask": blocks(causal)},
    "rows_without_keys": {"block_mask": blocks(strictly_below)},
    "documents": {"block_mask": blocks(same_document, B), "score_mod": alibi},
    "kernel_options": {"kernel_options": {"BLOCK_M": 32}},
}


def eager(*args: Any, **kwargs: Any) -> Any:
    """The operator's own definition, in float64 and without a compiler of its own around it."""
    doubled = [a.double() if isinstance(a, Tensor) else a for a in args]
    torch._dynamo.reset()
    out = torch.compile(lambda *x: flex_attention(*x, **kwargs), backend="eager")(*doubled)
    return torch.utils._pytree.tree_map(lambda x: x.float(), out)


def seen(call: Callable[..., Any], args: Any, **options: Any) -> Capture:
    found = capture(call, args, **options)
    assert [f.fused for f in found.found] == [True], found.reasons
    return found


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        *one_in(2, [(name, False) for name in CALLS]),
        pytest.param("soft_cap_and_table", True, marks=pytest.mark.slow),
        ("documents", True),
    ],
)
def test_calls(name: str, dynamic: bool) -> None:
    found = seen(lambda q, k, v: flex_attention(q, k, v, **CALLS[name]), QKV, dynamic=dynamic)
    assert_same(found.result, eager(*QKV, **CALLS[name]))
    assert found.fused[0].location.startswith("test_flex.py:")


def test_masks_bound_the_loops_of_the_kernel() -> None:
    """mask_mod is an expression of positions in the spec, not a tensor; score_mod's numbers are scalars."""
    spec = seen(lambda q, k, v: flex_attention(q, k, v, block_mask=blocks_of_causal), QKV).fused[0].spec
    assert spec is not None and "j <= i" in str(spec.mask) and not spec.extras
    spec = seen(lambda q, k, v: flex_attention(q, k, v, score_mod=capped_with_table), QKV).fused[0].spec
    assert spec is not None and [e.rank for e in spec.extras] == [2]


blocks_of_causal = blocks(causal)


def test_a_block_mask_made_inside() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=blocks(causal))

    found = seen(call, QKV)
    assert found.fused[0].spec is not None and not found.fused[0].spec.extras
    assert_same(found.result, eager(*QKV, block_mask=blocks_of_causal))


def test_grouped_heads_and_a_layout_of_rows_first() -> None:
    q, k, v = rand(B, S, H, D).transpose(1, 2), rand(B, 2, S, D), rand(B, 2, S, D)
    found = seen(lambda *x: flex_attention(*x, enable_gqa=True, block_mask=blocks_of_causal), (q, k, v))
    assert found.fused[0].spec is not None and found.fused[0].spec.group == 2
    expected = eager(q, k, v, enable_gqa=True, block_mask=blocks_of_causal)
    assert expected.stride() == q.stride()
    assert_same(found.result, expected)


def test_bfloat16_scores_in_float32() -> None:
    args = [x.bfloat16() for x in QKV]
    found = seen(lambda q, k, v: flex_attention(q, k, v, score_mod=alibi), args)
    assert found.fused[0].spec is not None and found.fused[0].spec.dtype == "bfloat16"
    assert_same(found.result, eager(*args, score_mod=alibi).bfloat16())


def test_logsumexp_of_rows_some_of_which_see_no_key() -> None:
    mask = blocks(strictly_below)
    found = seen(lambda q, k, v: flex_attention(q, k, v, block_mask=mask, return_lse=True), QKV)
    assert found.fused[0].spec is not None and found.fused[0].spec.outputs == ("out", "max", "sum")
    out, lse = eager(*QKV, block_mask=mask, return_lse=True)
    assert_same(found.result[0], out)
    assert_same(found.result[1], lse)


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_casts_the_operands_and_nothing_else(inside: bool) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return flex_attention(q, k, v, score_mod=alibi)

    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        found = seen(call if inside else lambda *x: flex_attention(*x, score_mod=alibi), QKV)
    assert found.fused[0].spec is not None and found.fused[0].spec.dtype == "bfloat16"
    assert_same(found.result, eager(*(x.bfloat16() for x in QKV), score_mod=alibi).bfloat16())


def dense(lists: BlockMask) -> Tensor:
    """[S, S]: whether the blocks of a BlockMask without a mask function list a key."""
    return lists.to_dense()[0, 0].bool().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:S, :S]


@pytest.mark.parametrize("with_function", [False, True])
def test_lists_made_by_hand_are_a_part_of_the_mask(with_function: bool) -> None:
    """Compiled FlexAttention visits only the blocks that are listed: each third of the queries skips a third here."""
    numbers = torch.full((1, 1, 3), 2, dtype=torch.int32)
    indices = torch.tensor([[[[0, 2, 1], [0, 1, 2], [2, 1, 0]]]], dtype=torch.int32)
    function = same_document if with_function else None
    lists = BlockMask.from_kv_blocks(numbers, indices, BLOCK_SIZE=BLOCK, mask_mod=function, seq_lengths=(S, S))
    found = seen(lambda q, k, v: flex_attention(q, k, v, block_mask=lists), QKV)
    q, k, v = (x.double() for x in QKV)
    visible = dense(lists)
    if with_function:
        same = DOCUMENTS[:, None, :, None] == DOCUMENTS[:, None, None, :]
        visible = visible & same & torch.ones(S, S, dtype=torch.bool).tril()
    weights = torch._safe_softmax((q @ k.mT * D**-0.5).masked_fill(~visible, -torch.inf), -1)
    assert_same(found.result, (weights @ v).float())


def test_lists_that_the_function_explains_cost_nothing() -> None:
    """The lists of `create_block_mask`, as arguments: compared with the function once, then left out."""
    again = BlockMask.from_kv_blocks(
        blocks_of_causal.kv_num_blocks, blocks_of_causal.kv_indices,
        blocks_of_causal.full_kv_num_blocks, blocks_of_causal.full_kv_indices,
        BLOCK_SIZE=BLOCK, mask_mod=causal, seq_lengths=(S, S),
    )  # fmt: skip
    found = seen(lambda q, k, v: flex_attention(q, k, v, block_mask=again), QKV)
    assert found.fused[0].spec is not None and not found.fused[0].spec.extras


def test_a_call_that_cannot_be_written_out_is_left_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncc.expand.flex.trace_flat", lambda *_: 1 / 0)
    found = capture(lambda q, k, v: flex_attention(q, k, v, score_mod=alibi), QKV)
    assert not found.fused and "flex_attention" in found.found[0].source and found.reasons
    assert_same(found.result, eager(*QKV, score_mod=alibi))
