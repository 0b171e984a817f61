"""Random words, images and sounds that fit a configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VOCABULARY = 99
LENGTH = 13
GRID = torch.tensor([[1, 8, 8], [1, 8, 4]])
"""Frames, rows and columns of patches of two images, for models that take images of any size in one row."""
Inputs = dict[str, Any]


def number(config: Any, name: str, default: int) -> int:
    """A number of a configuration, the first where it is a list; `default` where it is not there, None or 0."""
    value = getattr(config, name, default)
    value = value[0] if isinstance(value, list | tuple) and value else value
    return int(value) if isinstance(value, int | float) and value else default


def hidden(config: Any) -> int:
    """The width of a model."""
    return number(config, "hidden_size", 0) or number(config, "d_model", 64)


def words(config: Any, length: int = LENGTH) -> Tensor:
    """Random words, none of them special."""
    text = getattr(config, "text_config", None) or config
    vocabulary = min(number(text, "vocab_size", VOCABULARY), VOCABULARY)
    return torch.randint(3, max(5, vocabulary - 24), (2, length))


def text(config: Any) -> Inputs:
    """Words of two texts, the second of them padded."""
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 9:] = 0
    return {"input_ids": words(config), "attention_mask": mask}


def image_size(config: Any) -> tuple[int, int]:
    """Rows and columns of the images that a model takes."""
    size = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", None)
    size = size or getattr(getattr(config, "backbone_config", None), "image_size", None) or 224
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    return int(rows), int(columns)


def image(config: Any, *shape: int) -> Tensor:
    """Random images."""
    part = config if hasattr(config, "num_channels") else getattr(config, "vision_config", config)
    return torch.randn(*(shape or (2,)), number(part, "num_channels", 3), *image_size(config))


def mels(config: Any) -> list[int]:
    """Numbers of frequencies that a model of sounds may take."""
    names = ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_feat_size", "input_size", "mel_bins",
             "model_in_dim", "mel_dim")  # fmt: skip
    parts = [config, *(p for p in vars(config).values() if hasattr(p, "model_type"))]
    found = [number(part, name, 0) for part in parts for name in names]
    return list(dict.fromkeys([n for n in found if n] + [80, 128]))


def patches(config: Any, names: Any) -> Inputs:
    """Images of any size as one row of patches, under the names that a forward method gives them."""
    patch, channels = number(config, "patch_size", 16), number(config, "in_channels", 0)
    channels = channels or number(config, "num_channels", 3)
    size = channels * number(config, "temporal_patch_size", 1) * patch * patch
    rows = "hidden_states" if "hidden_states" in names else "pixel_values"
    grid = "grid_thw" if "grid_thw" in names else "image_grid_thw"
    given = {rows: torch.randn(int(GRID.prod(1).sum()), size), grid: GRID}
    return given | ({"merge_sizes": torch.ones(2, dtype=torch.int64)} if "merge_sizes" in names else {})
