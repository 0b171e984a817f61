"""Inputs of parts of models, and of models that other models feed: by the type of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.random_inputs import LENGTH, Inputs, hidden, image, mels, text, words


def _detr_encoder(config: Any) -> Inputs:
    """Features of an image, and of a text that is padded."""
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, 9:] = False
    features, places = torch.randn(2, hidden(config), 8, 8), torch.randn(2, hidden(config), 8, 8)
    return {"vision_features": [features], "vision_pos_embeds": [places],
            "text_features": torch.randn(2, LENGTH, hidden(config)), "text_mask": mask}  # fmt: skip


def _mask_decoder(config: Any) -> Inputs:
    """Features of an image in three sizes, read by queries and by a prompt."""
    width = hidden(config)
    maps = [torch.randn(2, width, n, n) for n in (32, 16, 8)]
    return {"decoder_queries": torch.randn(2, 7, width), "backbone_features": maps,
            "encoder_hidden_states": torch.randn(2, 64, width),
            "prompt_features": torch.randn(2, LENGTH, width)}  # fmt: skip


def _codebooks(config: Any) -> Inputs:
    """Words, and the codes of sounds: one row a codebook in Musicgen, one column in Dia."""
    decoder = getattr(config, "decoder_config", None) or getattr(config, "decoder", config)
    if hasattr(decoder, "num_codebooks"):
        codes = torch.randint(3, 40, (2 * decoder.num_codebooks, 7))
        return {**text(config), "decoder_input_ids": codes}
    return {**text(config), "decoder_input_ids": torch.randint(3, 40, (2, 7, decoder.num_channels))}


def _denoised(config: Any) -> Inputs:
    """As the diffusion transformer of Qwen2.5-Omni: codes become a spectrogram."""
    return {"hidden_states": torch.randn(2, 16, config.mel_dim), "condition_vector": torch.randn(2, 20, config.mel_dim),
            "speaker_embedding": torch.randn(2, 16, config.enc_emb_dim), "time_step": torch.tensor(0.5),
            "quantized_code": torch.randint(0, 90, (2, 8))}  # fmt: skip


def _bytes_to_patches(config: Any) -> Inputs:
    """Bytes in patches of four, each of which sees its own."""
    patches = torch.arange(LENGTH).div(4, rounding_mode="floor")
    count, parts = int(patches[-1]) + 1, config.cross_attn_k
    seen = torch.arange(count).repeat_interleave(parts)[:, None] == patches
    mask = torch.zeros(2, 1, count * parts, LENGTH).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {"input_ids": words(config), "patch_ids": patches.expand(2, -1), "num_patches": count,
            "encoder_attention_mask": mask}  # fmt: skip


def _patches_to_bytes(config: Any) -> Inputs:
    """Bytes that read the patches that they are in."""
    mask = _bytes_to_patches(config)["encoder_attention_mask"].mT.contiguous()
    return {"inputs_embeds": torch.randn(2, LENGTH, hidden(config)), "encoder_attention_mask": mask,
            "patch_embeds": torch.randn(2, 4, config.hidden_size_global)}  # fmt: skip


def _robot(config: Any) -> Inputs:
    """As PI0: what one camera sees, and a task in words."""
    vision = config.vlm_config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    ids = torch.cat([torch.full((2, tokens), config.vlm_config.image_token_id), words(config.vlm_config)], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": image(vision, 2, 1),
            "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
            "action_embeds": torch.randn(2, 6, config.dit_config.hidden_size)}  # fmt: skip


def _waves(config: Any) -> Inputs:
    """Sounds, and their spectrograms."""
    return {"input_values": torch.randn(2, 1, 6400), "input_features": torch.randn(2, 20, 160)}


def _lengths(config: Any) -> Inputs:
    """Spectrograms of two sounds in one row, [mel, T], with their lengths."""
    return {"input_features": torch.randn(mels(config)[0], 300), "feature_lens": torch.tensor([200, 100])}


PARTS: dict[str, Callable[[Any], Inputs]] = {
    "voxtral_realtime": lambda c: {**text(c), "input_features": torch.randn(2, 128, 8 * LENGTH), "num_delay_tokens": 2},
    "moshi_depth": lambda c: {
        "input_ids": words(c, c.num_codebooks),
        "last_hidden_state": torch.randn(2, c.num_codebooks, c.input_size),
    },
    "pi0": _robot,
    "blt_local_encoder": _bytes_to_patches,
    "blt_local_decoder": _patches_to_bytes,
    "musicgen_melody": _codebooks,
    "vibevoice_acoustic_tokenizer_encoder": lambda c: {"hidden_states": torch.randn(2, 1, 6400)},
    "vibevoice_acoustic_tokenizer_decoder": lambda c: {"hidden_states": torch.randn(2, 64, 5)},
    "sam3_detr_encoder": _detr_encoder,
    "sam3_lite_text_detr_encoder": _detr_encoder,
    "sam3_mask_decoder": _mask_decoder,
    "sam3_lite_text_mask_decoder": _mask_decoder,
    "musicgen": _codebooks,
    "dia": _codebooks,
    "dia_decoder": lambda c: {
        "input_ids": torch.randint(3, 40, (2, 7, c.num_channels)),
        "encoder_hidden_states": torch.randn(2, LENGTH, c.cross_hidden_size),
    },
    "qwen2_5_omni_dit": _denoised,
    "neucodec": _waves,
    "xcodec2": _waves,
    "qwen2_5_omni_audio_encoder": _lengths,
    "qwen3_omni_moe_audio_encoder": _lengths,
    "dots3_note_audio_encoder": lambda c: {
        "input_features": torch.randn(2, mels(c)[0], 200),
        "chunk_sample_lengths": torch.tensor([32000, 16000]),
    },
    "t5gemma2_decoder": lambda c: {**text(c), "encoder_hidden_states": torch.randn(2, LENGTH, c.hidden_size)},
    "inkling_vision": lambda c: {"pixel_values": torch.randn(2, c.temporal_patch_size, c.patch_size, c.patch_size, 3)},
    "florence_vision": lambda c: {"hidden_states": torch.randn(2, 3, 224, 224)},
    "muse_spark_audio": lambda c: {"input_values": torch.randn(2, 1920 * 8)},
}
"""Inputs by the type of the model."""
