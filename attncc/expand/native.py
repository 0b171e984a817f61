"""The kernels that nn.MultiheadAttention and nn.TransformerEncoderLayer call in eval mode, operator by operator.

Source: aten/src/ATen/native/transformers/attention.cpp and transformer.cpp, the dense paths. A mask of any dtype hides
where it is not zero, and a row in which all is hidden gives NaN: both are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.modules import transformer

from attncc.expand.splice import fake, splice, trace_whole

_WHERE = {0: (None, None, slice(None), slice(None)), 1: (slice(None), None, None, slice(None)), 2: (...,)}
"""By mask_type, where the dimensions of a mask are in [B, H, Sq, Skv]: [Sq, Skv], [B, Skv], all four."""


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`torch._native_multi_head_attention`: [B, S, embed_dim] and the weights [B, (H,) S, S]."""
    if mask is not None and mask_type not in _WHERE:
        raise ValueError(f"_native_multi_head_attention with mask_type {mask_type}")
    size = embed_dim // num_head
    parts = zip((query, key, value), qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
    q, k, v = (F.linear(x, w, b).unflatten(-1, (num_head, size)).transpose(1, 2) for x, w, b in parts)
    scores = (q * (1 / math.sqrt(size))) @ k.transpose(-2, -1)
    if mask is not None:
        hidden = mask.to(torch.bool)[_WHERE[mask_type]]  # type: ignore[index]
        scores = scores.masked_fill(hidden, -math.inf)
    weights = torch.softmax(scores, -1)
    out = F.linear((weights @ v).transpose(1, 2).flatten(-2), proj_weight, proj_bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """`torch._transformer_encoder_layer_fwd`: [B, S, embed_dim] of the same."""

    def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps)

    x = normed(src, norm_weight_1, norm_bias_1) if norm_first else src
    attended, _ = multi_head_attention(
        x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, False, False, mask_type
    )
    x = src + attended
    x = x if norm_first else normed(x, norm_weight_1, norm_bias_1)
    inner = normed(x, norm_weight_2, norm_bias_2) if norm_first else x
    inner = F.linear(inner, ffn_weight_1, ffn_bias_1)
    inner = F.gelu(inner) if use_gelu else F.relu(inner)
    x = x + F.linear(inner, ffn_weight_2, ffn_bias_2)
    return x if norm_first else normed(x, norm_weight_2, norm_bias_2)


@torch._dynamo.substitute_in_graph(transformer._detect_is_causal_mask, skip_signature_check=True)
def detect_is_causal_mask(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether the caller says that a mask is causal: a hint, the mask itself is always passed on.

    PyTorch's own compares the elements, and a question to a tensor ends Dynamo's graph before the first attention.
    """
    return is_causal is True


KERNELS: dict[Any, Callable[..., Any]] = {
    torch._native_multi_head_attention: multi_head_attention,
    torch.ops.aten._native_multi_head_attention.default: multi_head_attention,
    torch._transformer_encoder_layer_fwd: encoder_layer,
    torch.ops.aten._transformer_encoder_layer_fwd.default: encoder_layer,
}


def is_kernel(node: fx.Node) -> bool:
    """Whether a node calls one of these, on dense tensors."""
    return node.target in KERNELS and not getattr(fake(node.args[0]), "is_nested", True)


def expand_kernel(gm: fx.GraphModule, node: fx.Node) -> None:
    """Write one call out in place."""
    inputs = list(node.all_input_nodes)

    def whole(*values: Any) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), dict(zip(inputs, values, strict=True)).__getitem__)
        return KERNELS[node.target](*args, **kwargs)

    traced = trace_whole(whole, *map(fake, inputs))
    outputs = splice(gm, node, traced, inputs)
    if isinstance(fake(node), torch.Tensor):
        node.replace_all_uses_with(outputs[0])
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)
