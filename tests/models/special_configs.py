"""What single configurations need to become a small model: by the type of the model, and by the name of a number."""

from __future__ import annotations

from typing import Any

from models.random_inputs import VOCABULARY

UNSET = {"prediction_length": 8, "image_token_id": 98, "image_token_index": 98, "n_routed_experts": 4,
          "num_experts_per_tok": 2, "n_shared_experts": 1, "max_source_positions": 60}  # fmt: skip
"""Numbers that a default configuration may leave out."""
MISSED = {"num_key_value_heads": lambda c: c.num_attention_heads, "rope_theta": lambda c: 10000.0,
           "initializer_range": lambda c: 0.02, "shared_expert_intermediate_size": lambda c: 256,
           "pad_token_id": lambda c: 1, "vocab_size": lambda c: VOCABULARY}  # fmt: skip
"""What a model asks of a configuration that does not have it."""
_MIXED = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
_SECTIONED = {
    "head_dim": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    },
}
GIVEN: dict[str, dict[str, Any]] = {
    "chameleon": {"vocabulary_map": {"<image>": 90}},
    "emu3": {"vocabulary_map": {"<image>": 90}},
    "xmod": {"default_language": "en_XX"},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 16},
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model", "hidden_size": 768}},
    "diffusion_gemma_text": _MIXED,
    "diffusion_gemma": {"text_config": _MIXED},
    **{name: {"prediction_length": 8} for name in ("time_series_transformer", "autoformer", "informer")},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 1e4}},
    "cohere_compass": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    },
    "glm4v_moe_text": _SECTIONED,
    "glm4v_moe": {"text_config": _SECTIONED},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "tvp": {"num_frames": 2},
    "sam_hq": {
        "vision_config": {
            "image_size": 256,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "global_attn_indexes": [1],
        },
        "prompt_encoder_config": {"image_size": 256},
        "mask_decoder_config": {"vit_dim": 256},
    },
    "vitmatte": {"convstream_hidden_sizes": [48, 96, 192], "fusion_hidden_sizes": [256, 128, 64, 32]},
    "lw_detr": {"projector_scale_factors": [1.0]},
    "seggpt": {"image_size": [128, 64], "pretrain_image_size": 64},
    "instructblipvideo": {"video_token_id": 90},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "depth_pro": {
        "patch_size": 48,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [64, 64],
        "scaled_images_feature_dims": [64, 64, 32],
        **{
            f"{part}_model_config": {
                "model_type": "dinov2",
                "image_size": 48,
                "patch_size": 16,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
            }
            for part in ("image", "patch", "fov")
        },
    },
    "dots3_note_vision_encoder": {
        "pyramid_num_routed": [-1, 4, 4],
        "embed_dim": 256,
        "adapter_in_dim": 256,
        "num_hidden_layers": 3,
        "num_heads": 4,
    },
    "dots3_note_text": {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "n_routed_experts": 4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "kv_lora_rank": 64,
        "q_lora_rank": 64,
        "num_key_value_heads": 4,
        "index_n_heads": 4,
        "index_topk": 8,
    },
}
"""Arguments without which a configuration makes no model, or none that is small, by the type of the model."""
_OMNI = {
    name: 60 + n
    for n, name in enumerate(
        ("vision_start_token_id", "vision_end_token_id", "audio_start_token_id", "audio_end_token_id")
    )
}
SMALL: dict[str, dict[str, Any]] = {
    "mimi_decoder": {"upsample_groups": 256},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 256},
    "sam2_hiera_det_model": {"global_attention_blocks": [4]},
    "sam3_vision_model": {"fpn_hidden_size": 128, "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]]},
    "sam2_vision_model": {"backbone_feature_sizes": [[56, 56], [28, 28], [14, 14]]},
    "pix2struct_text_model": {"initializer_range": 0.02},
    "qwen2_5_omni_thinker": _OMNI,
    "qwen3_omni_moe_thinker": _OMNI,
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "step3p5": {"sliding_window": 8},
    "jev": {"hidden_size": 1024},
    "vitmatte": {"hidden_size": 256},
    "hrm_text": {"num_layers_per_stack": 1, "num_hidden_layers": 8},
    "llama4_vision_model": {"intermediate_size": 768},
    "idefics2_perceiver": {"hidden_size": 256},
    "rwkv": {"hidden_size": 256, "attention_hidden_size": 256, "intermediate_size": 512},
    "gemma3n_audio": {"hidden_size": 256, "conf_num_attention_heads": 4},
    "blt": {"encoder_hash_byte_group_vocab": 999, "num_hidden_layers": 2},
    "autoformer": {"label_length": 4},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [128, 512]},
}
"""Numbers that shrinking leaves as they are, by the type of the model."""
