"""Inputs that a model may take: guessed from its signature and configuration, mended by what it complains about."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 99
LENGTH = 13
GRID = torch.tensor([[1, 8, 8], [1, 8, 4]])
"""Frames, rows and columns of patches of two images, for models that take images of any size in one row."""

_MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)")
_WIDTHS = (
    re.compile(r"normalized_shape=\[(\d+)\]"),
    re.compile(r"mat1 and mat2 shapes cannot be multiplied \(\d+x\d+ and (\d+)x\d+\)"),
)
Inputs = dict[str, Any]


def number(config: Any, name: str, default: int) -> int:
    """A number of a configuration, the first where it is a list; `default` where it is not there, None or 0."""
    value = getattr(config, name, default)
    value = value[0] if isinstance(value, list | tuple) and value else value
    return int(value) if isinstance(value, int | float) and value else default


def accepted(model: nn.Module, problems: list[str]) -> Inputs | None:
    """Inputs with which a forward pass works; None where none do, after every failure was added to `problems`."""
    for given in candidates(model):
        inputs: Inputs | None = given
        for _ in range(3):
            if inputs is None:
                break
            try:
                with torch.no_grad():
                    model(**inputs)
                return inputs
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}"[:300])
                inputs = _mended(model, inputs, error)
    return None


def _mended(model: nn.Module, inputs: Inputs, error: Exception) -> Inputs | None:
    """Other inputs, after a complaint that says what is wrong with these; None where it does not."""
    missing = _MISSING.search(str(error))
    if missing:
        names = re.findall(r"'(\w+)'", missing[1])
        if "grid_thw" in names:
            return _patches(model.config)
        made = {name: NAMED[name](model.config) for name in names if name in NAMED}
        return {**inputs, **made} if len(made) == len(names) else None
    for width in _WIDTHS:
        found = width.search(str(error))
        floats = [n for n, t in inputs.items() if isinstance(t, Tensor) and t.is_floating_point() and t.ndim in (2, 3)]
        if found and len(floats) == 1:
            changed = torch.randn(2, 4 * LENGTH, int(found[1]))
            return None if changed.shape == inputs[floats[0]].shape else {**inputs, floats[0]: changed}
    return None


def candidates(model: nn.Module) -> Iterator[Inputs]:
    """Inputs that the forward method may take, the likeliest first."""
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    if config.model_type in SPECIAL:
        yield {n: t for n, t in SPECIAL[config.model_type](config).items() if n in names}
    main = getattr(model, "main_input_name", "input_ids")
    groups = [*_texts_and_images(config, names, main), *_audio(config, names)]
    groups += [{n: torch.randn(2, LENGTH, _hidden(config))} for n in ("hidden_states", "inputs_embeds") if n in names]
    if "past_values" in names:
        groups.append({"past_values": torch.randn(2, number(config, "context_length", 32), 1)})
    yield from (group for group in groups if group)


def _hidden(config: Any) -> int:
    return number(config, "hidden_size", 0) or number(config, "d_model", 64)


def words(config: Any, length: int = LENGTH) -> Tensor:
    """Random words, none of them special."""
    text = getattr(config, "text_config", None) or config
    vocabulary = min(number(text, "vocab_size", VOCABULARY), VOCABULARY)
    return torch.randint(3, max(5, vocabulary - 24), (2, length))


def _texts_and_images(config: Any, names: Any, main: str) -> list[Inputs]:
    text: Inputs = {}
    if "input_ids" in names:
        ids = words(config)
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        text = {"input_ids": ids, "attention_mask": mask} if "attention_mask" in names else {"input_ids": ids}
        if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", True):
            text["decoder_input_ids"] = ids[:, :7].clone()
        if "bbox" in names:
            text["bbox"] = torch.arange(4).expand(2, LENGTH, 4).contiguous()
    decoder = {"decoder_input_ids": words(config, 7)} if "decoder_input_ids" in names else {}
    size = number(config, "image_size", 0) or number(getattr(config, "vision_config", None), "image_size", 224)
    channels = number(config, "num_channels", 3)
    image = {"pixel_values": torch.randn(2, channels, size, size)} if "pixel_values" in names else {}
    groups: list[Inputs] = [text] if main == "input_ids" else []
    if text and image:
        groups.append(text | image)
    groups += [text, *([image | decoder] if image else []), *([image] if image else [])]
    for name in ("pixel_values", "pixel_values_videos"):
        if name in names:
            groups += [{name: torch.randn(1, f, channels, size, size)} for f in (number(config, "num_frames", 8), 8)]
    if "flattened_patches" in names:
        patches = {"flattened_patches": torch.rand(2, 12, 2 + 16 * 16 * 3)}
        groups += [patches | decoder, patches]
    return groups


def _audio(config: Any, names: Any) -> list[Inputs]:
    mel = number(config, "num_mel_bins", 0) or number(config, "input_feat_per_channel", 80)
    steps = min(2 * number(config, "max_source_positions", 60), 3000)
    shapes: list[tuple[int, ...]] = [(2, 4000), (2, 1, 4000), (2, mel, steps), (2, 120, mel), (2, mel, 120)]
    shapes += [(2, 1024, mel), (2, 1, 1001, mel)]
    sounds: list[Inputs] = [
        {name: torch.randn(*shape)} for name in ("input_values", "input_features") if name in names for shape in shapes
    ]
    if "decoder_input_ids" in names:
        return [s | {"decoder_input_ids": words(config, 7)} for s in sounds] + sounds
    return sounds


def _patches(config: Any) -> Inputs:
    """Images of any size as one row of patches."""
    patch, channels = number(config, "patch_size", 16), number(config, "in_channels", 3)
    size = channels * number(config, "temporal_patch_size", 1) * patch * patch
    return {"hidden_states": torch.randn(int(GRID.prod(1).sum()), size), "grid_thw": GRID}


def _series(config: Any) -> Inputs:
    past = config.context_length + max(config.lags_sequence)
    values = {f"{w}_values": torch.randn(2, n) for w, n in (("past", past), ("future", config.prediction_length))}
    times = {
        f"{w}_time_features": torch.randn(2, n, config.num_time_features)
        for w, n in (("past", past), ("future", config.prediction_length))
    }
    return {**values, **times, "past_observed_mask": torch.ones(2, past)}


def _mllama(config: Any) -> Inputs:
    size, tiles = config.image_size, config.max_num_tiles
    mask = torch.ones(2, 1, tiles, dtype=torch.int64)
    mask[1, 0, tiles // 2 :] = 0
    ids = torch.ones(2, 1, dtype=torch.int64)
    pixels = torch.randn(2, 1, tiles, 3, size, size)
    return {"pixel_values": pixels, "aspect_ratio_ids": ids, "aspect_ratio_mask": mask}


def _siglip2(config: Any) -> Inputs:
    mask = torch.ones(2, 64, dtype=torch.int64)
    mask[1, 32:] = 0
    patches = torch.randn(2, 64, config.num_channels * config.patch_size**2)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[8, 8], [8, 4]])}


def _episode(config: Any) -> Inputs:
    steps = torch.arange(7).expand(2, 7)
    states, actions = torch.randn(2, 7, config.state_dim), torch.randn(2, 7, config.act_dim)
    one = torch.randn(2, 7, 1)
    return {"states": states, "actions": actions, "rewards": one, "returns_to_go": one, "timesteps": steps,
            "attention_mask": torch.ones(2, 7, dtype=torch.int64)}  # fmt: skip


def _lxmert(config: Any) -> Inputs:
    ids, mask = words(config), torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 9:] = 0
    features = {"visual_feats": torch.randn(2, 5, config.visual_feat_dim), "visual_pos": torch.rand(2, 5, 4)}
    return {"input_ids": ids, "attention_mask": mask, **features}


def _blip2(config: Any) -> Inputs:
    tokens = config.num_query_tokens
    ids = torch.cat([torch.full((2, tokens), config.image_token_id), words(config)], 1)
    size = config.vision_config.image_size
    return {"pixel_values": torch.randn(2, 3, size, size), "input_ids": ids}


def _speech(config: Any) -> Inputs:
    hidden = config.hidden_size
    return {"input_values": torch.randn(2, LENGTH, hidden), "decoder_input_values": torch.randn(2, 7, hidden)}


def _mel_with_mask(config: Any) -> Inputs:
    mask = torch.ones(2, 2 * config.max_source_positions, dtype=torch.int64)
    mask[1, config.max_source_positions :] = 0
    return {"input_features": torch.randn(2, config.num_mel_bins, mask.shape[1]), "input_features_mask": mask}


SPECIAL: dict[str, Callable[[Any], Inputs]] = {
    "mllama_vision_model": _mllama,
    "siglip2_vision_model": _siglip2,
    "time_series_transformer": _series,
    "autoformer": _series,
    "informer": _series,
    "decision_transformer": _episode,
    "lxmert": _lxmert,
    "blip-2": _blip2,
    "speecht5": _speech,
    "audioflamingo3_encoder": _mel_with_mask,
    "perceiver": lambda c: {"inputs": torch.randn(2, LENGTH, c.d_model)},
    "timesfm": lambda c: {
        "past_values": torch.randn(2, 4 * c.patch_length),
        "past_values_padding": torch.zeros(2, 4 * c.patch_length),
        "freq": torch.zeros(2, 1, dtype=torch.int64),
    },
}
"""Inputs by the type of the model, where nothing else leads to them."""

NAMED: dict[str, Callable[[Any], Any]] = {
    "task_inputs": lambda c: torch.randint(3, 60, (2, 77)),
    "input_ids": words,
}
"""An argument that a forward method cannot do without, by its name."""
