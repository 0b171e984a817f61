"""Inputs that a model may take: guessed from its signature and configuration, mended by what it complains about."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from models.named_inputs import NAMED
from models.random_inputs import (
    LENGTH,
    Inputs,
    hidden,
    image,
    image_size,
    mels,
    number,
    patches,
    text,
    words,
)
from models.special_inputs import SPECIAL
from torch import Tensor, nn

_MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)")
_WIDTHS = (
    re.compile(r"normalized_shape=\[(\d+)\]"),
    re.compile(r"mat1 and mat2 shapes cannot be multiplied \(\d+x\d+ and (\d+)x\d+\)"),
)


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
        if {"grid_thw", "image_grid_thw"} & {*names}:
            return patches(model.config, inspect.signature(model.forward).parameters)
        made = {name: NAMED[name](model.config) for name in names if name in NAMED}
        return {**inputs, **made} if len(made) == len(names) else None
    floats = [n for n, t in inputs.items() if isinstance(t, Tensor) and t.is_floating_point() and t.ndim in (2, 3)]
    if len(floats) != 1:
        return None
    given = inputs[floats[0]]
    in_a_row = any("grid" in name for name in inputs)
    if in_a_row and given.ndim == 2 and "input to conv2d" in str(error):
        patch = number(model.config, "patch_size", 16)
        return {**inputs, floats[0]: given.view(len(given), -1, patch, patch)}
    for width in _WIDTHS:
        found = width.search(str(error))
        if found:
            changed = torch.randn(*(given.shape[:-1] if in_a_row else (2, 4 * LENGTH)), int(found[1]))
            return None if changed.shape == given.shape else {**inputs, floats[0]: changed}
    return None


def candidates(model: nn.Module) -> Iterator[Inputs]:
    """Inputs that the forward method may take, the likeliest first."""
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    if config.model_type in SPECIAL:
        yield {n: t for n, t in SPECIAL[config.model_type](config).items() if n in names}
    if {"grid_thw", "image_grid_thw"} & {*names} and "input_ids" not in names:
        yield patches(config, names)
    main = getattr(model, "main_input_name", "input_ids")
    groups = [*_texts_and_images(config, names, main), *_audio(config, names)]
    groups += [{n: torch.randn(2, LENGTH, hidden(config))} for n in ("hidden_states", "inputs_embeds") if n in names]
    if "past_values" in names:
        groups.append({"past_values": torch.randn(2, number(config, "context_length", 32), 1)})
    groups.append(_required(config, names))
    yield from (group for group in groups if group)


def _required(config: Any, names: Any) -> Inputs:
    """What a forward method cannot do without, made by its name; nothing where one of the names says nothing."""
    required = [n for n, p in names.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {n: NAMED[n](config) for n in required} if all(n in NAMED for n in required) else {}


def _texts_and_images(config: Any, names: Any, main: str) -> list[Inputs]:
    sentence: Inputs = {}
    if "input_ids" in names:
        sentence = {n: t for n, t in text(config).items() if n in names}
        if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", True):
            sentence["decoder_input_ids"] = sentence["input_ids"][:, :7].clone()
        if "bbox" in names:
            sentence["bbox"] = torch.arange(4).expand(2, LENGTH, 4).contiguous()
    decoder = {"decoder_input_ids": words(config, 7)} if "decoder_input_ids" in names else {}
    pixels = {"pixel_values": image(config)} if "pixel_values" in names else {}
    groups: list[Inputs] = [sentence] if main == "input_ids" else []
    if sentence and pixels:
        groups.append(sentence | pixels)
    groups += [sentence, *([pixels | decoder] if pixels else []), *([pixels] if pixels else [])]
    for name in ("pixel_values", "pixel_values_videos"):
        if name in names:
            groups += [{name: image(config, 1, frames)} for frames in (number(config, "num_frames", 8), 8)]
    if pixels and max(image_size(config)) < 512:
        groups.append({"pixel_values": torch.randn(1, 3, 512, 512)})
    if "flattened_patches" in names:
        flat = {"flattened_patches": torch.rand(2, 12, 2 + 16 * 16 * 3)}
        groups += [flat | decoder, flat]
    return groups


def _audio(config: Any, names: Any) -> list[Inputs]:
    steps = min(2 * number(config, "max_source_positions", 60), 3000)
    shapes: list[tuple[int, ...]] = [(2, 4000), (2, 1, 4000)]
    for mel in mels(config):
        shapes += [(2, mel, steps), (2, 120, mel), (2, mel, 120), (2, 1024, mel), (2, 1, 1001, mel)]
    sounds: list[Inputs] = [
        {name: torch.randn(*shape)} for name in ("input_values", "input_features") if name in names for shape in shapes
    ]
    sounds += [{"spectrogram": torch.randn(2, 20, mel)} for mel in mels(config) if "spectrogram" in names]
    sounds += [{"mel_spectrogram": torch.randn(2, mel, 20)} for mel in mels(config) if "mel_spectrogram" in names]
    if "decoder_input_ids" in names:
        return [s | {"decoder_input_ids": words(config, 7)} for s in sounds] + sounds
    return sounds
