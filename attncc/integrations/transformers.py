"""Transformers' own door: `attn_implementation="attncc"`.

    from attncc.integrations.transformers import register
    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="attncc")

Every model whose attention goes through Transformers' `AttentionInterface` can be loaded, made or switched
(`set_attn_implementation`) like that. Nothing is compiled around it: only attention itself becomes one kernel call.
`attncc.compile` needs no registration, sees the masks' formulas and fuses models that do not use the interface too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attncc.attention import attention

NAME = "attncc"

_NOT_OURS = {"indices", "block_indices", "sinks", "cache", "relative_position_bias"}
"""Arguments that change what attention computes and that its call here cannot take; None is no argument."""


def register() -> None:
    """Make `attn_implementation="attncc"` known to Transformers, its masks included. Calling it again does nothing new.

    Raises ImportError where Transformers is not installed.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError(
            "attncc.integrations.transformers needs Transformers 5: pip install 'transformers>=5,<6'"
        ) from error

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, attention_mask)


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    config: Any = None,
    allow_is_causal_skip: bool = True,
    **arguments: Any,
) -> Tensor | None:
    """What `AttentionMaskInterface` asks for: [B, 1, Sq, Skv], True keeps a key; None where only causality hides keys.

    Differs from Transformers' mask for SDPA in one thing: it is not left out where queries and keys differ in number,
    so that `attention_forward` can take the corner of the triangle from the shapes. Raises ValueError for a model whose
    attention does not go through `AttentionInterface`: it would take this mask for numbers to add.
    """
    from transformers.masking_utils import sdpa_mask

    _check_model(type(config).__module__)
    skip = allow_is_causal_skip and (q_length == 1 or q_length == kv_length)
    mask: Tensor | None = sdpa_mask(
        batch_size, q_length, kv_length, allow_is_causal_skip=skip, config=config, **arguments
    )
    return mask


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **unused: Any,
) -> tuple[Tensor, Tensor | None]:
    """What `AttentionInterface` asks for: query [B, H, Sq, D], key and value [B, G, Skv, D] give [B, Sq, H, D].

    Key heads are shared without being repeated, masks and biases are read in place. Weights [B, H, Sq, Skv] come with
    `output_attentions`. Dropout is left to the model's own eager attention.

    Raises ValueError for arguments that would change the result and are not known, naming them.
    """
    strange = sorted(name for name in _NOT_OURS if unused.get(name) is not None)
    if strange:
        raise ValueError(
            f'{type(module).__name__} gives {", ".join(strange)} to its attention, which attn_implementation="attncc" '
            'does not take; use attn_implementation="sdpa" or "eager", with attncc.compile to fuse what can be fused'
        )
    causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", True))
    causal = causal and attention_mask is None and query.shape[2] > 1
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[2]]
    elif causal and query.shape[2] != key.shape[2]:
        attention_mask, causal = _last_queries(query, key), False
    if dropout > 0:
        given = {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}
        mask = _last_queries(query, key) if causal else attention_mask
        given = {name: x for name, x in given.items() if x is not None}
        return _eager(module, query, key, value, mask, scaling=scaling, dropout=dropout, **given, **unused)
    mask_mod = None
    if position_bias is not None:
        bias = position_bias[..., : key.shape[2]]
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            mask_mod = _reads(attention_mask)
            attention_mask = bias
        else:
            attention_mask = bias if attention_mask is None else bias + attention_mask
            mask_mod = _causal if causal else None
        causal = False
    result = attention(
        query,
        key,
        value,
        _readable(attention_mask, query),
        causal,
        scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        score_mod=_soft_cap(softcap) if softcap is not None else None,
        mask_mod=mask_mod,
        sinks=s_aux,
        return_weights=output_attentions,
    )
    out, weights = result if output_attentions else (result, None)
    return out.transpose(1, 2).contiguous(), weights


def _last_queries(query: Tensor, key: Tensor) -> Tensor:
    """The causal mask [Sq, Skv] of queries that are the last of the keys' positions."""
    rows, columns = query.shape[2], key.shape[2]
    return torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)


def _readable(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask in a dtype that `attncc.attention` reads."""
    if mask is None or mask.dtype in (torch.bool, torch.float32, query.dtype):
        return mask
    return mask.to(query.dtype if mask.is_floating_point() else torch.bool)


def _causal(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return j <= i


def _reads(mask: Tensor) -> Callable[..., Tensor]:
    """A mask function that reads a mask [B or 1, H or 1, Sq or 1, Skv]."""
    whole = [size != 1 for size in mask.shape]
    mask = mask[tuple(slice(None) if w else 0 for w in whole)]
    return lambda b, h, i, j: mask[tuple(at for at, w in zip((b, h, i, j), whole, strict=True) if w)]


@lru_cache(maxsize=64)
def _soft_cap(cap: float) -> Callable[..., Tensor]:
    """cap · tanh(score / cap), one function a cap, so that what was traced of it is found again."""
    return lambda score, b, h, i, j: torch.tanh(score / cap) * cap


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention that the model's own file defines, with the additive mask that it takes."""
    source = sys.modules[type(module).__module__]
    eager: Callable[..., tuple[Tensor, Tensor | None]] | None = getattr(source, "eager_attention_forward", None)
    if eager is None:
        raise ValueError(
            f"{type(module).__name__} asks for dropout, and its file has no eager_attention_forward to compute it "
            'with; use attn_implementation="eager" or "sdpa"'
        )
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros((), dtype=query.dtype, device=query.device).masked_fill(~mask, torch.finfo(query.dtype).min)
    if mask is not None and mask.ndim == 2:
        mask = mask[None, None]
    return eager(module, query, key, value, mask, **arguments)


@lru_cache(maxsize=1024)
def _check_model(configuration: str) -> None:
    """Raise ValueError where the model of a module of configurations is known not to use `AttentionInterface`."""
    name = configuration.replace("configuration_", "modeling_")
    source = sys.modules.get(name)
    if name != configuration and source is not None and not hasattr(source, "ALL_ATTENTION_FUNCTIONS"):
        raise ValueError(
            f"the attention of {name} does not go through Transformers' AttentionInterface, so that "
            'attn_implementation="attncc" cannot reach it; use "eager" or "sdpa" and attncc.compile(model)'
        )
