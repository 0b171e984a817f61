"""Small random models of any Transformers configuration, and inputs that they take.

A configuration is shrunk by its own proportions: as many heads less as make four of them, widths divided by the same
number, so that head sizes and rotary positions stay what they are; two layers, or one of each kind where the layers
differ. What comes out is tried, in several ways, until a forward pass works.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from models.inputs import accepted
from models.random_inputs import VOCABULARY
from models.special_configs import GIVEN, MISSED, SMALL, UNSET
from torch import nn

HEADS = 4
LARGEST = 500_000_000
"""Parameters that a model may have to be run here."""
LARGEST_CYCLE = 8
"""Layers that are kept so that the first of each kind is among them."""

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth",
           "num_encoder_layers", "num_decoder_layers", "num_blocks", "num_block", "num_attention_layers",
           "num_self_attends_per_block", "l_layers", "x_layers", "r_layers", "resampler_depth",
           "conf_num_hidden_layers")  # fmt: skip
_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads",
          "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
          "num_self_attention_heads", "num_cross_attention_heads", "conf_num_attention_heads")  # fmt: skip
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "encoder_num_key_value_heads",
             "decoder_num_key_value_heads", "num_global_key_value_heads")  # fmt: skip
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_dim", "word_embed_proj_dim",
           "lru_width", "projection_dim", "projection_hidden_size", "attention_hidden_size")  # fmt: skip
_INNER = ("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "n_inner",
          "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size", "mlp_dim")  # fmt: skip
_STAGES = ("depths", "num_layers_per_stage", "layers_per_stage", "stage_depths", "blocks_per_stage")
_VOCABULARY = ("vocab_size", "text_vocab_size", "audio_vocab_size", "codebook_size", "vocab_size_per_layer_input",
               "encoder_vocab_size", "decoder_vocab_size", "question_encoder_vocab_size",
               "entity_vocab_size")  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "unk_token_id", "sep_token_id")


def configurations(config_class: Any) -> Iterator[Any]:
    """Small configurations, the boldest first."""
    default = config_class(**GIVEN.get(config_class.model_type, {}))
    for heads, rounds in ((HEADS, 1), (HEADS, 2), (16, 1), (None, 1), (None, 2)):
        try:
            yield _shrunk(default, heads, rounds)
        except Exception:
            continue
    yield default


def _shrunk(config: Any, heads: int | None, rounds: int) -> Any:
    """A copy of a configuration with few layers, few words and, where asked, few heads.

    `rounds` says how often each kind of layer is there, where the layers differ.
    """
    small = copy.deepcopy(config)
    widths: dict[int, int] = {}
    parts = [name for name, value in vars(small).items() if hasattr(value, "to_dict") and hasattr(value, "model_type")]
    for name in parts:
        value = getattr(small, name)
        part = _shrunk(value, heads, rounds)
        if isinstance(getattr(value, "hidden_size", None), int) and value.hidden_size != part.hidden_size:
            widths[value.hidden_size] = part.hidden_size
        _set(small, name, part)
    for name in parts:
        _follow(getattr(small, name), widths)
    if getattr(getattr(small, "backbone_config", None), "model_type", "") == "timm_backbone":
        _plain_backbone(small)
    _fewer_layers(small, rounds)
    for name in _VOCABULARY:
        if _number(small, name, 2 * VOCABULARY):
            _set(small, name, 64 if name == "codebook_size" else VOCABULARY)  # a power of two
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
    _complete(small)
    for name in ("n_group", "topk_group", "num_expert_group"):
        if _number(small, name, 1):
            _set(small, name, 1)
    if _number(small, "image_size", 256):
        small.image_size = 224 if 224 % int(_get(small, "patch_size", 16) or 16) == 0 else 8 * int(small.patch_size)
    if heads is not None:
        _fewer_heads(small, heads)
        for name, value in SMALL.get(small.model_type, {}).items():
            _set(small, name, copy.deepcopy(value))
    return small


def _complete(config: Any) -> None:
    """Values for what the default leaves out."""
    for name, value in UNSET.items():
        if getattr(config, name, value) is None:
            _set(config, name, value)
    kinds = getattr(config, "layer_types", None) or ()
    if getattr(config, "sliding_window", 8) is None and "sliding_attention" in kinds:
        _set(config, "sliding_window", 8)
    heads, width = (getattr(config, n, None) for n in ("num_attention_heads", "hidden_size"))
    if vars(config).get("head_dim", 1) is None and isinstance(heads, int) and isinstance(width, int):
        _set(config, "head_dim", width // heads)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in getattr(type(config), "ignore_keys_at_rope_validation", ()):
        size = getattr(config, "head_dim", 0) or (width or 0) // (heads or 1)
        half = int(size * rope.get("partial_rotary_factor", 1.0)) // 2
        rope.setdefault("mrope_section", [half - 2 * (half // 3), half // 3, half // 3])
    layers = getattr(config, "num_hidden_layers", None)
    for name, kind in (("layer_types", "full_attention"), ("mlp_layer_types", "dense")):
        if getattr(config, name, kind) is None and isinstance(layers, int):
            _set(config, name, [kind] * layers)


def _plain_backbone(config: Any) -> None:
    """Transformers' own ResNet in the place of timm's, which is not installed."""
    from transformers import ResNetConfig

    _set(config, "use_timm_backbone", False)
    stages = ["stage2", "stage3", "stage4"] if len(config.backbone_config.out_indices or ()) > 1 else ["stage4"]
    config.backbone_config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], out_features=stages
    )


def _follow(config: Any, widths: dict[int, int]) -> None:
    """The width of another part, where a part names it: as the queries that read the states of an encoder."""
    names = ["encoder_hidden_size", "cross_attention_hidden_size", "vision_hidden_size", "encoder_width"]
    names += [n for n in vars(config) if n.endswith(("out_hidden_size", "output_dim", "out_dim", "output_size"))]
    if not any(isinstance(getattr(config, n, None), int) for n in _HEADS):
        names.append("hidden_size")
    for name in names:
        value = getattr(config, name, None)
        if value in widths:
            _set(config, name, widths[value])


def _fewer_layers(config: Any, rounds: int) -> None:
    """Two layers, or `rounds` of each kind; two a stage where there are stages."""
    stages = [n for n in _STAGES if isinstance(getattr(config, n, None), list | tuple)]
    for name in stages:
        value = getattr(config, name)
        if all(isinstance(x, int) for x in value):
            _set(config, name, type(value)(min(x, 2) for x in value))
    if stages and not getattr(config, "layer_types", None):
        for name in ("encoder_layers", "decoder_layers"):
            if _number(config, name, 2):
                _set(config, name, 2)
        return
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    layers = 2
    if isinstance(kinds, list | tuple) and kinds:
        unique = list(dict.fromkeys(kinds))
        until = next(n for n in range(1, len(kinds) + 1) if len(set(kinds[:n])) == len(unique))
        kinds = list(kinds[: max(2, until)] if until <= LARGEST_CYCLE else unique) * rounds
        layers = len(kinds)
    names = getattr(config, "stage_names", None) or ()
    flat = len(names) == getattr(config, "num_hidden_layers", -1) + 1
    outputs = len(getattr(config, "_out_indices", None) or (-1,)) if flat else 0
    layers = max(layers, outputs)
    full = {getattr(config, n, None) for n in _LAYERS}
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) in full and len(value) > layers and name != "layer_types":
            _set(config, name, type(value)(value[:layers]))
    for name in _LAYERS:
        if _number(config, name, layers):
            _set(config, name, layers)
    if flat and len(names) > layers + 1:
        config.stage_names = list(names[: layers + 1])
        config.set_output_features_output_indices(None, list(range(layers + 1))[-outputs:])
    if isinstance(kinds, list | tuple) and kinds:
        _set(config, "layer_types" if getattr(config, "layer_types", None) else "layers_block_type", list(kinds))
    if isinstance(getattr(config, "intermediate_layers_indices", None), list):
        _set(config, "intermediate_layers_indices", [0, 1])
    if _number(config, "num_kv_shared_layers", 0):
        _set(config, "num_kv_shared_layers", layers // 2)


def _fewer_heads(config: Any, wanted: int) -> None:
    """As many heads as wanted, or the least number above that divides theirs; every width in the same proportion."""
    heads = next((getattr(config, n) for n in _HEADS if _number(config, n, wanted)), None)
    if heads is None:
        return
    few = next((n for n in range(wanted, 2 * wanted + 1) if heads % n == 0), wanted)
    new: dict[str, int] = {}  # all of them read before any is set: some are two names of one
    for name in (*_HEADS, *_KV_HEADS):
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            new[name] = max(1, value * few // heads)
        elif hasattr(config, name) and name == "num_key_value_heads":
            new[name] = few
    for name in _WIDTHS:
        value = getattr(config, name, None)
        if isinstance(value, int) and value % heads == 0:
            new[name] = value // heads * few
    inner = new.get("hidden_size", 0) * int(getattr(config, "mamba_expand", 0) or 0)
    if inner and _number(config, "mamba_d_head", 0):
        new["mamba_n_heads"] = inner // config.mamba_d_head
    if inner and _number(config, "n_mamba_heads", 0):
        new["mamba_headdim"] = inner // config.n_mamba_heads
    new |= {name: 256 for name in _INNER if _number(config, name, 256)}
    for name in _INNER:
        if isinstance(getattr(config, name, None), list | tuple):
            _set(config, name, [256] * len(getattr(config, name)))
    for name, value in new.items():
        _set(config, name, value)


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


def _wake(model: nn.Module) -> None:
    """Random numbers instead of the zeros that some weights start with: through them nothing would be seen."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not parameter.abs().max() > 1e-6:
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("weight"):
                nn.init.ones_(parameter)


def build(config_class: Any, model_classes: Sequence[Any], implementation: str) -> tuple[nn.Module, dict[str, Any]]:
    """A small random model that runs, and inputs for it. Raises RuntimeError with every failure where none does."""
    problems: list[str] = []
    for model_class in model_classes:
        for config in configurations(config_class):
            try:
                size = _size(model_class, config)
                if size > LARGEST:
                    problems.append(f"{size / 1e6:.0f} million parameters")
                    continue
                torch.manual_seed(0)
                model = _made(model_class, copy.deepcopy(config), implementation).eval()
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}"[:300])
                continue
            _wake(model)
            inputs = accepted(model, problems)
            if inputs is not None:
                return model, inputs
    raise RuntimeError("; ".join(dict.fromkeys(problems)))


def _made(model_class: Any, config: Any, implementation: str) -> nn.Module:
    """A model, or a part of one that is only a module."""
    if hasattr(model_class, "_from_config"):
        return model_class._from_config(config, attn_implementation=implementation)
    config._attn_implementation = implementation
    part = model_class(config)
    part.config = config
    return part


_ABSENT = re.compile(r"'(\w+)' object has no attribute '(\w+)'")


def _size(model_class: Any, config: Any) -> int:
    """The parameters of a model; what it asks of its configuration and does not find there is added to it."""
    for _ in range(6):
        try:
            with torch.device("meta"):
                return sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
        except AttributeError as error:
            absent = _ABSENT.search(str(error))
            parts = [p for p in (config, *vars(config).values()) if absent and type(p).__name__ == absent[1]]
            make = MISSED.get(absent[2], (lambda _: 0.0) if "drop" in absent[2] else None) if absent else None
            if absent is None or not parts or make is None:
                raise
            for part in parts:
                setattr(part, absent[2], make(part))
    raise RuntimeError("a configuration that lacks many things")
