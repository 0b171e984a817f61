"""Small random models of any Transformers configuration, and inputs that they take.

A configuration is shrunk by its own proportions: as many heads less as make four of them, widths divided by the same
number, so that head sizes and rotary positions stay what they are; two layers, or one of each kind where the layers
differ. What comes out is tried, in several ways, until a forward pass works.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

HEADS = 4
VOCABULARY = 99
LENGTH = 13
LARGEST = 90_000_000
"""Parameters that a model may have to be run here."""
LARGEST_CYCLE = 8
"""Layers that are kept so that the first of each kind is among them."""

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth",
           "num_encoder_layers", "num_decoder_layers", "num_blocks", "num_block", "num_attention_layers",
           "num_self_attends_per_block")  # fmt: skip
_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads",
          "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads")  # fmt: skip
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "encoder_num_key_value_heads",
             "decoder_num_key_value_heads", "num_global_key_value_heads")  # fmt: skip
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_dim", "word_embed_proj_dim",
           "lru_width", "projection_dim", "projection_hidden_size")  # fmt: skip
_INNER = ("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "n_inner",
          "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size", "mlp_dim")  # fmt: skip
_VOCABULARY = ("vocab_size", "text_vocab_size", "audio_vocab_size", "codebook_size", "vocab_size_per_layer_input",
               "encoder_vocab_size", "decoder_vocab_size", "question_encoder_vocab_size",
               "entity_vocab_size")  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "unk_token_id", "sep_token_id")


def configurations(config_class: Any) -> Iterator[Any]:
    """Small configurations, the boldest first."""
    default = config_class()
    for heads in (HEADS, 16, None):
        try:
            yield _shrunk(default, heads)
        except Exception:
            continue
    yield default


def _shrunk(config: Any, heads: int | None) -> Any:
    """A copy of a configuration with few layers, few words and, where asked, few heads."""
    small = copy.deepcopy(config)
    for name, value in list(vars(small).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            _set(small, name, _shrunk(value, heads))
    if getattr(getattr(small, "backbone_config", None), "model_type", "") == "timm_backbone":
        _plain_backbone(small)
    _fewer_layers(small)
    for name in _VOCABULARY:
        if _number(small, name, 2 * VOCABULARY):
            _set(small, name, VOCABULARY)
    for name in _TOKENS:
        if _number(small, name, VOCABULARY):
            _set(small, name, 1)
    for name in list(vars(small)):
        if name.endswith(("_token_id", "_token_index")) and _number(small, name, VOCABULARY):
            _set(small, name, VOCABULARY - 1 - len(name) % 20)
    for name in _EXPERTS:
        if _number(small, name, 4):
            _set(small, name, 4)
    for name in _PER_TOKEN:
        if _number(small, name, 2) or getattr(small, name, 2) is None:
            _set(small, name, 2)
    for name in ("n_group", "topk_group", "num_expert_group"):
        if _number(small, name, 1):
            _set(small, name, 1)
    if _number(small, "image_size", 256):
        small.image_size = 224 if 224 % int(_get(small, "patch_size", 16) or 16) == 0 else 8 * int(small.patch_size)
    if heads is not None:
        _fewer_heads(small, heads)
    return small


def _plain_backbone(config: Any) -> None:
    """Transformers' own ResNet in the place of timm's, which is not installed."""
    from transformers import ResNetConfig

    _set(config, "use_timm_backbone", False)
    stages = ["stage2", "stage3", "stage4"] if len(config.backbone_config.out_indices or ()) > 1 else ["stage4"]
    config.backbone_config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], out_features=stages
    )


def _fewer_layers(config: Any) -> None:
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    layers = 2
    if isinstance(kinds, list | tuple) and kinds:
        unique = list(dict.fromkeys(kinds))
        until = next(n for n in range(1, len(kinds) + 1) if len(set(kinds[:n])) == len(unique))
        kinds = kinds[: max(2, until)] if until <= LARGEST_CYCLE else unique
        layers = len(kinds)
    full = {getattr(config, n, None) for n in _LAYERS}
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) in full and len(value) > layers and name != "layer_types":
            _set(config, name, type(value)(value[:layers]))
    for name in _LAYERS:
        if _number(config, name, layers):
            _set(config, name, layers)
    if isinstance(kinds, list | tuple) and kinds:
        _set(config, "layer_types", list(kinds))
    for name in ("depths", "num_layers_per_stage", "layers_per_stage", "stage_depths", "blocks_per_stage"):
        value = getattr(config, name, None)
        if isinstance(value, list | tuple) and all(isinstance(x, int) for x in value):
            _set(config, name, type(value)(min(x, 2) for x in value))


def _fewer_heads(config: Any, wanted: int) -> None:
    """As many heads as wanted, or the least number above that divides theirs; every width in the same proportion."""
    heads = next((getattr(config, n) for n in _HEADS if _number(config, n, wanted)), None)
    if heads is None:
        return
    few = next((n for n in range(wanted, 2 * wanted + 1) if heads % n == 0), wanted)
    for name in (*_HEADS, *_KV_HEADS):
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            _set(config, name, max(1, value * few // heads))
        elif hasattr(config, name) and name == "num_key_value_heads":
            _set(config, name, few)
    for name in _WIDTHS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value % heads == 0:
            _set(config, name, value // heads * few)
    for name in _INNER:
        if _number(config, name, 256):
            _set(config, name, 256)


def _set(config: Any, name: str, value: Any) -> None:
    """Set an attribute where the configuration lets it be set."""
    with contextlib.suppress(NotImplementedError, AttributeError):
        setattr(config, name, value)


def _get(config: Any, name: str, default: Any) -> Any:
    value = getattr(config, name, default)
    return value[0] if isinstance(value, list | tuple) else value


def _number(config: Any, name: str, above: int) -> bool:
    value = getattr(config, name, None)
    return isinstance(value, int) and not isinstance(value, bool) and value > above


def candidates(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs that the forward method may take, the likeliest first."""
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    size = int(_get(config, "image_size", 0) or _get(getattr(config, "vision_config", None), "image_size", 224) or 224)
    channels = int(_get(config, "num_channels", 3) or 3)
    text: dict[str, Any] = {}
    if "input_ids" in names:
        ids = torch.randint(3, VOCABULARY - 24, (2, LENGTH))
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        text = {"input_ids": ids, "attention_mask": mask} if "attention_mask" in names else {"input_ids": ids}
        if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", True):
            text["decoder_input_ids"] = ids[:, :7].clone()
        if "bbox" in names:
            text["bbox"] = torch.arange(4).expand(2, LENGTH, 4).contiguous()
    decoder = {"decoder_input_ids": torch.randint(3, 80, (2, 7))} if "decoder_input_ids" in names else {}
    image = {"pixel_values": torch.randn(2, channels, size, size)} if "pixel_values" in names else {}
    frames = int(_get(config, "num_frames", 8) or 8)
    videos = [
        {n: torch.randn(1, f, channels, size, size)}
        for n in ("pixel_values", "pixel_values_videos")
        if n in names
        for f in (frames, 8)
    ]
    if "flattened_patches" in names:
        patches = {"flattened_patches": torch.rand(2, 12, 2 + 16 * 16 * 3)}
        groups_of_patches = [patches | decoder, patches]
    else:
        groups_of_patches = []
    mel = int(_get(config, "num_mel_bins", 0) or _get(config, "input_feat_per_channel", 0) or 80)
    steps = 2 * int(_get(config, "max_source_positions", 60) or 60)
    features = [
        {n: torch.randn(*shape)}
        for n in ("input_features", "input_values")
        if n in names
        for shape in ((2, mel, min(steps, 3000)), (2, 120, mel), (2, mel, 120), (2, 1024, mel))
    ]
    wave = [
        {n: torch.randn(2, *s)} for n in ("input_values", "input_features") if n in names for s in ((4000,), (1, 4000))
    ]
    hidden = int(_get(config, "hidden_size", 0) or _get(config, "d_model", 0) or 64)
    states = {n: torch.randn(2, LENGTH, hidden) for n in ("hidden_states", "inputs_embeds") if n in names}
    groups: list[dict[str, Any]] = []
    if main == "input_ids":
        groups.append(text)
    if text and image:
        groups.append(text | image)
    groups += [text, *([image | decoder] if image else []), *([image] if image else []), *videos]
    groups += groups_of_patches
    groups += [f | decoder for f in [*wave, *features]] + [*wave, *features]
    groups += [{n: t} for n, t in states.items()]
    if "past_values" in names:
        groups.append({"past_values": torch.randn(2, int(_get(config, "context_length", 32) or 32), 1)})
    yield from (group for group in groups if group)


def _wake(model: nn.Module) -> None:
    """Random numbers instead of the zeros that some weights start with: through them nothing would be seen."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not parameter.abs().max() > 1e-6:
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("weight"):
                nn.init.ones_(parameter)


def build(config_class: Any, model_class: Any, implementation: str) -> tuple[nn.Module, dict[str, Any]]:
    """A small random model that runs, and inputs for it. Raises RuntimeError with every failure where none does."""
    problems: list[Exception | str] = []
    for config in configurations(config_class):
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
        except Exception as error:
            problems.append(error)
            continue
        if size > LARGEST:
            problems.append(f"{size / 1e6:.0f} million parameters")
            continue
        torch.manual_seed(0)
        try:
            model = model_class._from_config(copy.deepcopy(config), attn_implementation=implementation).eval()
        except Exception as error:
            problems.append(error)
            continue
        _wake(model)
        for inputs in candidates(model):
            try:
                with torch.no_grad():
                    model(**inputs)
                return model, inputs
            except Exception as error:
                problems.append(error)
    raise RuntimeError("; ".join(dict.fromkeys(f"{type(p).__name__}: {p}"[:200] for p in problems)))
