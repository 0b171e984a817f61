"""`attncc.attention`: one fused attention, called like PyTorch's `scaled_dot_product_attention`."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from attncc import block_mask as blocks
from attncc import modspec
from attncc.attention_check import Sizes
from attncc.attention_form import Form, form_of
from attncc.runtime import dispatch, op, stats

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Normalizer = Literal["softmax", "softmax_plus_one", "sigmoid", "relu", "none"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    score_mod: Callable[..., Any] | None = None,
    mask_mod: Callable[..., Any] | None = None,
    block_mask: BlockMask | None = None,
    bilinear: Tensor | None = None,
    normalizer: Normalizer = "softmax",
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
) -> Any:
    """softmax(score_mod(scale · q kᵀ) + mask) v in one kernel, with the semantics of PyTorch's SDPA.

    Shapes: query [..., H, Sq, D], key [..., G, Skv, D], value [..., G, Skv, E] give [..., H, Sq, E]. Leading dimensions
    broadcast; without them the ranks 2 and 3 work as in SDPA. float32, bfloat16, float16 and float64, all three alike;
    key and value may also be int8, float8_e4m3fn or float8_e5m2, each by itself: a quantised cache.

    Args:
        attn_mask: broadcastable to [..., H, Sq, Skv]: bool (True keeps a key) or floating (added to the scores).
        is_causal: hide keys with kv_idx > q_idx, counted from the top left. Not together with `attn_mask`.
        scale: factor of the scores, by default 1/sqrt(D), D being the size of a row of `key`.
        enable_gqa: let G divide H, each key head serving H/G query heads in a row.
        score_mod: `f(score, b, h, q_idx, kv_idx)`, FlexAttention's signature, applied to the scaled score, before
            `attn_mask` is. Tensors that it captures are read in place and receive gradients. An index past the end of
            one reads its last element. At ranks 2 and 3 b is 0; above 4 it counts all leading dimensions.
        mask_mod: `f(b, h, q_idx, kv_idx) -> bool`, True keeps a key; all masks given must agree to keep it.
        block_mask: FlexAttention's BlockMask, one more mask; not needed for speed, as kernels find hidden blocks.
        bilinear: W [Dq, D] or [H, Dq, D]: the score is scale · q W kᵀ, and a row of `query` has the size Dq.
        normalizer: how scores become weights. "softmax"; "softmax_plus_one", exp(x) / (1 + sum of exp(x)) (Miller,
            "Attention Is Off By One", 2023); "sigmoid" (Ramapuram et al., arXiv:2409.04431) and "relu" (Wortsman et
            al., arXiv:2309.08586), a weight from each score by itself; "none", the score is the weight, so that
            `score_mod` can be any such function. Without a softmax a masked key weighs 0.
        sinks: [H], learned logits that take part in each row's softmax and have no value (Agarwal et al., gpt-oss,
            arXiv:2508.10925).
        k_scale: what each row of `key` is multiplied with: one number [], a key head's [G] or [..., G], or a token's
            [..., G, Skv], of any of the four float dtypes. The cache is read as it is, and stored in no other form.
        v_scale: the same for `value`.
        return_lse: also return the natural logarithm of the sum of exp over each row's scores, sinks included.
        return_weights: also return the weights, at the price of writing all of them.

    Returns:
        [..., H, Sq, E], laid out in memory like `query`. A row that sees no key is 0. With `return_lse` or
        `return_weights` a tuple: it, then lse [..., H, Sq] (float32, or float64 for float64; -inf for a row that sees
        nothing), then weights [..., H, Sq, Skv] in the dtype of `query`. Gradients are recomputed through PyTorch's own
        operators; tensors that are not on the CPU run on those altogether.

    Raises:
        ValueError: shapes, devices or arguments that do not go together. TypeError: dtypes that do not.
        NotImplementedError: a function that calls what kernels cannot express, naming the operator.

    The method is online softmax (Milakov and Gimelshein, arXiv:1805.02867) in blocks, as in FlashAttention (Dao et al.,
    arXiv:2205.14135).
    """
    call = None
    if attn_mask is score_mod is mask_mod is block_mask is bilinear is sinks is k_scale is v_scale is None and not (
        return_weights or torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()
    ):
        call = _remembered_by(query, key, value, is_causal, enable_gqa, normalizer, return_lse)
        plan = dispatch.remembered(call) if call is not None else None
        if plan is not None:
            factor = 1.0 / math.sqrt(key.shape[-1]) if scale is None else scale
            return _plain(plan.run((query, key, value, (), (factor,), ())), return_lse)
    if torch._C._is_any_autocast_enabled():
        query, key, value = (_autocast(t) for t in (query, key, value))
    flags = (is_causal, enable_gqa, normalizer, return_lse, return_weights)
    form = form_of(query, key, value, attn_mask, bilinear, sinks, k_scale, v_scale, flags)
    if form.sizes.zero_scores:
        bilinear = None
    tensors = [t for t in (bilinear, attn_mask, sinks, k_scale, v_scale) if t is not None]
    factor = scale if scale is not None else form.scale
    if score_mod is not None or mask_mod is not None or block_mask is not None:
        run = _untraced if torch.compiler.is_compiling() else _with_functions
        return run(form, query, key, value, tensors, factor, score_mod, mask_mod, block_mask)
    if form.plain:
        layout = "bshd" if query.stride(1) < query.stride(2) else "bhsd"
        operands = query, key, value, tensors, (factor,), (), form.text, layout
        found = op.attention_outputs(*operands) if return_lse else (op.attention(*operands),)
        if call is not None:
            dispatch.remember(call, query, key, value, form.text, layout)
        return _plain(found, return_lse)
    return _reshaped(form, query, key, value, tensors, (factor,), (), form.text)


def _remembered_by(q: Tensor, k: Tensor, v: Tensor, *facts: Hashable) -> tuple[Any, ...] | None:
    """What tells a call from others, for the plan to be found at once the next time; None where torch takes part."""
    return dispatch.call_key(q, k, v, *facts) if op.unobserved((q, k, v)) is dispatch.outputs else None


def _plain(found: Sequence[Tensor], lse: bool) -> Any:
    """The results of a plain call, from the outputs of its spec."""
    return (found[0], _logsumexp(*found[1:])) if lse else found[0]


def _logsumexp(maximum: Tensor, total: Tensor) -> Tensor:
    """By row, of its scores; `total` is the sum of exp(score - maximum)."""
    return maximum + total.log()


def _with_functions(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensors: list[Tensor],
    scale: float,
    score_mod: Callable[..., Any] | None,
    mask_mod: Callable[..., Any] | None,
    block_mask: BlockMask | None,
) -> Any:
    masks = [] if mask_mod is None else [mask_mod]
    if block_mask is not None:
        masks.append(blocks.visible(block_mask, form.sizes.q_len, form.sizes.kv_len))
    text, captured, scalars, integers = modspec.extend(form.spec, q, score_mod, masks)
    return _reshaped(form, q, k, v, [*tensors, *captured], (scale, *scalars), integers, text)


_untraced = _disable_dynamo(_with_functions)
"""Under Dynamo the functions are traced here, outside of its graph."""


def _reshaped(
    form: Form,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    text: str,
) -> Any:
    """Call the operator on [B, H, S, D] views of operands of any rank, broadcast where they differ."""
    sizes = form.sizes
    if not sizes.value_dim:  # weights and lse are what they are for values of one zero
        v = v.new_zeros(*v.shape[:-1], 1)
    if sizes.zero_scores:  # a sum of nothing: so it is for rows of one zero
        q, k = (t.new_zeros(*t.shape[:-1], 1) for t in (q, k))
    q = _rank4(q, sizes.batch, sizes.heads)
    kv_heads = sizes.heads // sizes.group
    k, v = (_rank4(t, sizes.batch, kv_heads) for t in (k, v))
    if len(sizes.batch) > 1:
        own, captured = extras[: len(form.tails)], extras[len(form.tails) :]
        extras = [*(_one_batch(t, sizes, tail) for t, tail in zip(own, form.tails, strict=True)), *captured]
    layout = "bshd" if q.stride(1) < q.stride(2) else "bhsd"
    if len(form.spec.outputs) == 1:
        return _ranked(op.attention(q, k, v, extras, scalars, integers, text, layout), sizes)[..., : sizes.value_dim]
    found = op.attention_outputs(q, k, v, extras, scalars, integers, text, layout)
    return _results(dict(zip(form.spec.outputs, found, strict=True)), sizes)


def _results(found: dict[str, Tensor], sizes: Sizes) -> tuple[Tensor, ...]:
    """What the caller asked for beside the output, from the outputs of the spec."""
    results = [_ranked(found["out"], sizes)[..., : sizes.value_dim]]
    if "sum" in found:
        results.append(_ranked(_logsumexp(found["max"], found["sum"]), sizes))
    if "weights" in found:
        results.append(_ranked(found["weights"], sizes))
    return tuple(results)


def _ranked(result: Tensor, sizes: Sizes) -> Tensor:
    """A result [B, H, …] with the leading dimensions of the call."""
    if sizes.rank == 4:
        return result
    if sizes.rank > 4:
        return result.reshape(*sizes.batch, *result.shape[1:])
    return result[0] if sizes.rank == 3 else result[0, 0]


def _rank4(tensor: Tensor, batch: tuple[int, ...], heads: int) -> Tensor:
    """[B, heads, S, D] from a tensor of rank 2 or more whose leading dimensions broadcast to `batch` and `heads`."""
    if tensor.ndim == 2:
        tensor = tensor[None]
    present = tensor.shape[-3]
    if present not in (1, heads):  # key and value have different numbers of heads
        stats.copies.add()
        tensor = tensor.repeat_interleave(heads // present, dim=-3)
    tensor = tensor.expand(*batch, heads, *tensor.shape[-2:])
    if len(batch) == 1:
        return tensor
    return tensor.reshape(math.prod(batch), *tensor.shape[-3:]) if batch else tensor[None]


def _one_batch(tensor: Tensor, sizes: Sizes, tail_dims: int) -> Tensor:
    """A tensor that has `tail_dims` dimensions after its batch's, with one in place of those; 0: it has no batch."""
    if not tail_dims:
        return tensor
    tail = tensor.shape[-tail_dims:]
    return tensor.expand(*sizes.batch, *tail).reshape(math.prod(sizes.batch), *tail)


def _autocast(tensor: Tensor) -> Tensor:
    """`tensor` as PyTorch casts the arguments of SDPA in an autocast region of its device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensor
    castable = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)  # not the codes of a cache
    return tensor.to(torch.get_autocast_dtype(device)) if castable else tensor
