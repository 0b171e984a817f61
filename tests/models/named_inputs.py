"""Arguments that a forward method cannot do without, by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.random_inputs import LENGTH, hidden, image_size, mels, number, words
from torch import Tensor


def padding(config: Any) -> Tensor:
    """A mask of two texts, the second of them padded."""
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 9:] = 0
    return mask


def _map(config: Any, scale: int = 1, parts: int = 1) -> Tensor:
    """Features of an image, [B, C / parts, H, W]."""
    return torch.randn(2, hidden(config) // parts, 8 * scale, 8 * scale)


NAMED: dict[str, Callable[[Any], Any]] = {
    "input_ids": words,
    "task_inputs": lambda c: torch.randint(3, 60, (2, 77)),
    "image_embeddings": _map,
    "image_positional_embeddings": _map,
    "dense_prompt_embeddings": _map,
    "sparse_prompt_embeddings": lambda c: torch.randn(2, 3, 5, hidden(c)),
    "multimask_output": lambda c: True,
    "high_resolution_features": lambda c: [_map(c, 4, 8), _map(c, 2, 4)],
    "hq_token_only": lambda c: False,
    "intermediate_embeddings": lambda c: [torch.randn(2, 8, 8, c.vit_dim)],
    "input_points": lambda c: torch.rand(2, 3, 5, 2) * image_size(c)[0],
    "input_labels": lambda c: torch.ones(2, 3, 5, dtype=torch.int64),
    "input_boxes": lambda c: torch.rand(2, 3, 4) * image_size(c)[0],
    "input_masks": lambda c: None,
    "latents": lambda c: torch.randn(2, hidden(c), 20),
    "context": lambda c: torch.randn(2, LENGTH, hidden(c)),
    "attention_mask": padding,
    "audio_mel": lambda c: torch.randn(2, 120, mels(c)[0]),
    "audio_mel_mask": lambda c: torch.arange(120) >= torch.tensor([[120], [72]]),
    "audio_input_ids": lambda c: torch.randint(c.mel_vocab_size, (2, 20, c.n_mel_bins)),
    "image_features": lambda c: torch.randn(2, 16, 2 * hidden(c)),
    "pooled_patches_idx": lambda c: torch.arange(32).view(8, 4),
    "noise_embeds": lambda c: torch.randn(2, c.block_size, hidden(c)),
    "context_hidden_states": lambda c: torch.randn(2, LENGTH, hidden(c) * len(c.target_layer_ids)),
    "patch_embeds": _map,
    "decoder_queries": lambda c: torch.randn(2, 7, hidden(c)),
    "backbone_features": lambda c: [_map(c, 4), _map(c, 2), _map(c)],
    "encoder_hidden_states": lambda c: torch.randn(2, 64, hidden(c)),
    "text_features": lambda c: torch.randn(2, LENGTH, hidden(c)),
    "vision_features": lambda c: torch.randn(2, 64, hidden(c)),
    "vision_pos_encoding": lambda c: torch.randn(2, 64, hidden(c)),
    "box_embeddings": lambda c: torch.rand(2, 3, 4) / 2 + 0.2,
    "box_mask": lambda c: torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool),
    "box_labels": lambda c: torch.ones(2, 3, dtype=torch.int64),
    "img_feats": lambda c: (_map(c),),
    "noisy_images": lambda c: torch.randn(2, number(c, "latent_size", 64)),
    "timesteps": lambda c: torch.tensor([0.25, 0.5]),
    "condition": lambda c: torch.randn(2, hidden(c)),
    "marks": lambda c: torch.tensor([[4, 9]]),
    "num_options": lambda c: torch.tensor([[2, 2]]),
    "question_type_ids": lambda c: torch.zeros(1, 2, dtype=torch.int64),
    "state": lambda c: torch.randn(2, c.max_state_dim),
}
"""An argument that a forward method cannot do without, by its name."""
