"""Inputs of models that nothing general leads to: by the type of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.random_inputs import GRID, LENGTH, Inputs, hidden, image, image_size, mels, text, words
from models.special_parts import PARTS


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
    config, whole = getattr(config, "vision_config", config), config
    mask = torch.ones(2, 64, dtype=torch.int64)
    mask[1, 32:] = 0
    rows = torch.randn(2, 64, config.num_channels * config.patch_size**2)
    shapes = {"pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[8, 8], [8, 4]])}
    return {"pixel_values": rows, **shapes, **(text(whole) if whole is not config else {})}


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


def _kosmos2(config: Any) -> Inputs:
    """A text that begins with the latents of its image."""
    tokens = config.latent_query_num
    positions = torch.zeros(2, tokens + LENGTH, dtype=torch.bool)
    positions[:, 1 : tokens + 1] = True
    mask = torch.ones_like(positions, dtype=torch.int64)
    mask[1, -4:] = 0
    return {"pixel_values": image(config), "input_ids": words(config, tokens + LENGTH),
            "attention_mask": mask, "image_embeds_position_mask": positions}  # fmt: skip


def _instructblip(config: Any) -> Inputs:
    tokens = config.num_query_tokens
    token = getattr(config, "image_token_id", None) or config.video_token_id
    video = config.model_type.endswith("video")
    ids = torch.cat([torch.full((2, tokens * (4 if video else 1)), token), words(config)], 1)
    pixels = image(config, 2, 4) if video else image(config)
    return {"pixel_values": pixels, "input_ids": ids, "qformer_input_ids": words(config.qformer_config)}


def _row_of_patches(config: Any) -> Inputs:
    """As MiniCPM: all images in one row as high as a patch."""
    patch = config.patch_size
    return {"pixel_values": torch.randn(1, 3, patch, 96 * patch), "target_sizes": torch.tensor([[8, 8], [8, 4]])}


def _positioned_patches(config: Any) -> Inputs:
    """As Gemma 4: patches with their places, padding with negative ones."""
    places = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"), -1).view(1, 36, 2)
    places = places.repeat(2, 1, 1)
    places[1, 27:] = -1
    return {"pixel_values": torch.rand(2, 36, 3 * config.patch_size**2), "pixel_position_ids": places}


def _frames(config: Any, length: int, name: str = "input_features") -> Inputs:
    """Frames of sounds, [B, T, mel], with a mask of what is padding."""
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length // 2 :] = False
    return {name: torch.randn(2, length, mels(config)[0]), f"{name}_mask": mask}


def _bands(config: Any, length: int) -> Inputs:
    """The same as [B, mel, T]."""
    made = _frames(config, length)
    return {**made, "input_features": made["input_features"].mT.contiguous()}


def _query_tokens(config: Any) -> Inputs:
    states = torch.randn(2, LENGTH, config.encoder_hidden_size)
    return {"query_embeds": torch.randn(2, 7, config.hidden_size), "encoder_hidden_states": states}


def _pair(config: Any) -> Inputs:
    """Two images that are compared."""
    return {"pixel_values": torch.rand(1, 2, 3, 96, 128)}


def _clip_of_frames(config: Any) -> Inputs:
    vision = config.vision_config
    frames = torch.randn(2, vision.num_frames, 3, vision.image_size, vision.image_size)
    return {**text(config), "pixel_values": frames}


def _layout(config: Any) -> Inputs:
    """Words with their boxes on a page, and the page."""
    boxes = torch.rand(2, LENGTH, 4).sort(-1).values
    ids = words(config)
    return {**text(config), "bbox": boxes, "pixel_values": torch.randn(2, 3, 224, 224), "decoder_input_ids": ids[:, :7]}


def _prompted(config: Any) -> Inputs:
    _, columns = image_size(config)
    pixels, prompt = torch.randn(2, 3, columns, columns), torch.randn(2, 3, columns, columns)
    return {"pixel_values": pixels, "prompt_pixel_values": prompt, "prompt_masks": torch.rand_like(prompt)}


def _experts(config: Any) -> Inputs:
    return {"inputs_embeds": torch.randn(2, LENGTH, hidden(config)), "num_patches": LENGTH}


SPECIAL: dict[str, Callable[[Any], Inputs]] = {
    **PARTS,
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
    "siglip2": _siglip2,
    "kosmos-2": _kosmos2,
    "instructblip": _instructblip,
    "instructblipvideo": _instructblip,
    "minicpm_ocr_vision": _row_of_patches,
    "minicpmv4_6_vision": _row_of_patches,
    "minicpmv4_7_vision": _row_of_patches,
    "gemma4_vision": _positioned_patches,
    "phi4_multimodal_audio": lambda c: {"hidden_states": torch.randn(2, 120, c.input_size), "mask": None},
    "qwen3_asr_encoder": lambda c: _bands(c, 4 * c.n_window),
    "fun_asr_nano_encoder": lambda c: _frames(c, 24) | {"input_features": torch.randn(2, 24, 560)},
    "gemma4_audio": lambda c: {"input_features": torch.randn(2, 120, 128)},
    "blip_2_qformer": _query_tokens,
    "superglue": _pair,
    "lightglue": _pair,
    "xclip": _clip_of_frames,
    "udop": _layout,
    "seggpt": _prompted,
    "idefics": lambda c: {
        **text(c),
        "pixel_values": image(c, 2, 1),
        "image_attention_mask": torch.ones(2, LENGTH, 1, dtype=torch.int64),
    },
    "idefics2": lambda c: text(c),
    "paddleocr_vl_vision": lambda c: {"pixel_values": torch.randn(1, 96, 3, 14, 14), "grid_thw": GRID},
    "molmo2_vision": lambda c: {"pixel_values": torch.randn(2, 27 * 27, 588)},
    "clvp": lambda c: {**text(c), "input_features": torch.randn(2, 80, 120)},
    "rag": lambda c: {
        **text(c),
        "context_input_ids": words(c)[:, :7].repeat(2, 1),
        "context_attention_mask": torch.ones(4, 7, dtype=torch.int64),
        "doc_scores": torch.randn(2, 2),
        "decoder_input_ids": words(c, 7),
        "n_docs": 2,
    },
    "xclip_vision_model": lambda c: {"pixel_values": image(c, 2 * c.num_frames)},
    "videoprism": lambda c: {**text(c), "pixel_values_videos": image(c, 2, c.vision_config.num_frames)},
    "nemotron3_5_transcribe_audio": lambda c: _frames(c, 128),
    "efficientloftr": _pair,
    "timesfm2_5": lambda c: {"past_values": torch.randn(2, 4 * c.patch_length)},
    "bridgetower_vision_model": lambda c: {"image": image(c)},
    "clap": lambda c: {**text(c), "input_features": torch.randn(2, 1, 1001, 64)},
    "tvp": lambda c: {
        "input_ids": words(c)[:1],
        "attention_mask": torch.ones(1, LENGTH, dtype=torch.int64),
        "pixel_values": torch.randn(1, 2, 3, c.max_img_size, c.max_img_size),
    },
    "deepseek_ocr2_encoder": _experts,
    "perceiver": lambda c: {"inputs": torch.randn(2, LENGTH, c.d_model)},
    "timesfm": lambda c: {
        "past_values": torch.randn(2, 4 * c.patch_length),
        "past_values_padding": torch.zeros(2, 4 * c.patch_length),
        "freq": torch.zeros(2, 1, dtype=torch.int64),
    },
}
"""Inputs by the type of the model, where nothing else leads to them."""
