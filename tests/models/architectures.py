"""Tiny configurations of unlike architectures, and how many attentions each has: counted from its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WORDS = 99
LAYERS = 2
BASE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
                        "num_attention_heads": 4, "vocab_size": WORDS}  # fmt: skip
GROUPED: dict[str, Any] = {**BASE, "num_key_value_heads": 2}
BART: dict[str, Any] = {"d_model": 64, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "vocab_size": WORDS,
                        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96,
                        "decoder_ffn_dim": 96, "pad_token_id": 0, "decoder_start_token_id": 1}  # fmt: skip
VISION: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
                          "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
MLA: dict[str, Any] = {"kv_lora_rank": 24, "q_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
                       "v_head_dim": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
                       "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}  # fmt: skip
RESNET: dict[str, Any] = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16],
                          "depths": [1, 1, 1, 1], "out_features": ["stage4"]}  # fmt: skip
DETR: dict[str, Any] = {**{k: v for k, v in BART.items() if k not in ("vocab_size", "decoder_start_token_id")},
                        "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
                        "backbone_config": RESNET, "num_queries": 5}  # fmt: skip


def layers(config: Any) -> int:
    """One attention a layer."""
    return int(config.num_hidden_layers)


def encoder_decoder(config: Any) -> int:
    """One a layer of the encoder, two a layer of the decoder."""
    return int(config.encoder_layers + 2 * config.decoder_layers)


def t5(config: Any) -> int:
    """As `encoder_decoder`, by T5's names."""
    return int(config.num_layers + 2 * config.num_decoder_layers)


@dataclass(frozen=True)
class Architecture:
    """A model class, the arguments of its configuration, its number of attentions and which inputs it takes."""

    cls: str
    arguments: dict[str, Any] = field(default_factory=dict)
    sites: Callable[[Any], int] = layers
    takes: str = "text"
    """`text`, `text to text`, `image`, `audio`, `audio to text` or `image and text`."""

    def build(self, implementation: str = "eager") -> nn.Module:
        """The model with random weights, sharp enough for masks to matter."""
        import transformers

        torch.manual_seed(0)
        cls = getattr(transformers, self.cls)
        model: nn.Module = cls._from_config(self.config(), attn_implementation=implementation).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.12)
            elif "sink" in name:
                nn.init.normal_(parameter)
        return model

    def config(self) -> Any:
        """Its configuration."""
        import transformers

        config = getattr(transformers, self.cls).config_class(**self.arguments)
        config._experts_implementation = "eager"  # the grouped product has no float64
        return config

    def inputs(self, *, left: bool = False) -> dict[str, Tensor]:
        """A batch of three, the texts in it padded on the right or on the left."""
        torch.manual_seed(1)
        batch: dict[str, Tensor] = {}
        config = self.config()
        if "image" in self.takes:
            config = getattr(config, "vision_config", config)
            size = getattr(config, "image_size", 64)
            batch["pixel_values"] = torch.randn(3, 3, size, size)
        if self.takes == "audio":
            batch["input_values"] = torch.randn(3, 800)
        if self.takes == "audio to text":
            batch["input_features"] = torch.randn(3, config.num_mel_bins, 2 * config.max_source_positions)
        if "text" in self.takes.split(" to ")[0]:
            ids = torch.randint(3, WORDS - 3, (3, 13))
            mask = torch.ones_like(ids)
            for row, count in ((1, 3), (2, 9)):
                mask[row, slice(None, count) if left else slice(-count, None)] = 0
            batch |= {"input_ids": ids, "attention_mask": mask}
        if self.takes.endswith("to text"):
            batch["decoder_input_ids"] = torch.randint(3, WORDS - 3, (3, 6))
        return batch


ENCODERS = {
    "bert": Architecture("BertModel", BASE),
    "roberta": Architecture("RobertaModel", BASE),
    "distilbert": Architecture("DistilBertModel", {"dim": 64, "hidden_dim": 96, "n_layers": LAYERS, "n_heads": 4,
                                                   "vocab_size": WORDS}, lambda c: c.n_layers),
    "albert": Architecture("AlbertModel", {**BASE, "embedding_size": 32}),
    "electra": Architecture("ElectraModel", {**BASE, "embedding_size": 32}),
    "deberta-v2": Architecture("DebertaV2Model", {**BASE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
                                                  "position_buckets": 8, "share_att_key": True}),
    "mpnet": Architecture("MPNetModel", BASE),
    "modernbert": Architecture("ModernBertModel", {**BASE, "local_attention": 6, "pad_token_id": 0}),
    "longformer": Architecture("LongformerModel", {**BASE, "attention_window": [4, 8]}),
    "xlm": Architecture("XLMModel", {"emb_dim": 64, "n_layers": LAYERS, "n_heads": 4, "vocab_size": WORDS},
                        lambda c: c.n_layers),
    "layoutlm": Architecture("LayoutLMModel", BASE),
    "roformer": Architecture("RoFormerModel", {**BASE, "embedding_size": 64}),
    "squeezebert": Architecture("SqueezeBertModel", {**BASE, "embedding_size": 64}),
}  # fmt: skip

DECODERS = {
    "llama": Architecture("LlamaForCausalLM", GROUPED),
    "mistral": Architecture("MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    "mixtral": Architecture("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}),
    "qwen2": Architecture("Qwen2ForCausalLM", GROUPED),
    "qwen3": Architecture("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma2": Architecture("Gemma2ForCausalLM", {**GROUPED, "head_dim": 16, "sliding_window": 5,
                                                 "query_pre_attn_scalar": 16}),
    "gemma3": Architecture("Gemma3ForCausalLM", {**GROUPED, "head_dim": 16, "sliding_window": 5,
                           "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16}),
    "phi3": Architecture("Phi3ForCausalLM", {**GROUPED, "pad_token_id": 0}),
    "cohere": Architecture("CohereForCausalLM", GROUPED),
    "gpt2": Architecture("GPT2LMHeadModel", {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": WORDS},
                         lambda c: c.n_layer),
    "gpt-neox": Architecture("GPTNeoXForCausalLM", BASE),
    "bloom": Architecture("BloomForCausalLM", {"hidden_size": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": WORDS},
                          lambda c: c.n_layer),
    "falcon": Architecture("FalconForCausalLM", {**GROUPED, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "opt": Architecture("OPTForCausalLM", {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": LAYERS,
                        "num_attention_heads": 4, "vocab_size": WORDS, "word_embed_proj_dim": 64}),
    "llama4": Architecture("Llama4ForCausalLM", {**GROUPED, "head_dim": 16, "attention_chunk_size": 5,
                           "intermediate_size_mlp": 96, "num_local_experts": 2, "pad_token_id": 0,
                           "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]}),
    "longcat": Architecture("LongcatFlashForCausalLM", {**BASE, **MLA, "num_layers": 1, "ffn_hidden_size": 96,
                            "expert_ffn_hidden_size": 32, "head_dim": 8, "moe_topk": 2, "zero_expert_num": 1,
                            "num_key_value_heads": 4}, lambda c: 2 * c.num_layers),
    "gptj": Architecture("GPTJForCausalLM", {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": WORDS,
                                             "rotary_dim": 8}, lambda c: c.n_layer),
    "mpt": Architecture("MptForCausalLM", {"d_model": 64, "n_layers": LAYERS, "n_heads": 4, "vocab_size": WORDS},
                        lambda c: c.n_layers),
    "deepseek-v3": Architecture("DeepseekV3ForCausalLM", {**BASE, **MLA, "num_key_value_heads": 4}),
    "gpt-oss": Architecture("GptOssForCausalLM", {**GROUPED, "head_dim": 16, "num_local_experts": 4,
                            "num_experts_per_tok": 2, "sliding_window": 5, "pad_token_id": 0}),
}  # fmt: skip

ENCODER_DECODERS = {
    "t5": Architecture("T5ForConditionalGeneration", {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": LAYERS,
                       "num_heads": 4, "vocab_size": WORDS, "decoder_start_token_id": 0}, t5, "text to text"),
    "bart": Architecture("BartForConditionalGeneration", BART, encoder_decoder, "text to text"),
    "marian": Architecture("MarianMTModel", BART, encoder_decoder, "text to text"),
    "led": Architecture("LEDForConditionalGeneration", {**BART, "attention_window": [8, 4], "decoder_layers": 1},
                        encoder_decoder, "text to text"),
    "pegasus": Architecture("PegasusForConditionalGeneration", BART, encoder_decoder, "text to text"),
    "whisper": Architecture("WhisperForConditionalGeneration", {**BART, "num_mel_bins": 16,
                            "max_source_positions": 30, "max_target_positions": 40, "bos_token_id": 1,
                            "eos_token_id": 2, "suppress_tokens": None, "begin_suppress_tokens": None},
                            encoder_decoder, "audio to text"),
}  # fmt: skip

OTHERS = {
    "vit": Architecture("ViTModel", VISION, takes="image"),
    "dinov2": Architecture("Dinov2Model", VISION, takes="image"),
    "clip": Architecture("CLIPModel", {"text_config": {**BASE, "eos_token_id": 2}, "vision_config": VISION,
                         "projection_dim": 32},
                         lambda c: layers(c.text_config) + layers(c.vision_config), "image and text"),
    "siglip": Architecture("SiglipVisionModel", VISION, lambda c: layers(c) + 1, "image"),  # and one that pools
    "swin": Architecture("SwinModel", {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
                         "image_size": 32, "patch_size": 2}, lambda c: sum(c.depths), "image"),
    "detr": Architecture("DetrModel", DETR, encoder_decoder, "image"),
    "sam": Architecture("SamVisionModel", {**VISION, "output_channels": 16, "window_size": 3, "mlp_dim": 96,
                        "global_attn_indexes": [1], "num_pos_feats": 32}, takes="image"),
    "wav2vec2": Architecture("Wav2Vec2Model", {**BASE, "conv_dim": [16, 16], "conv_stride": [5, 4],
                             "conv_kernel": [10, 8], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8,
                             "num_conv_pos_embedding_groups": 4}, takes="audio"),
    "blip": Architecture("BlipForConditionalGeneration", {"text_config": {**BASE, "encoder_hidden_size": 64,
                         "is_decoder": True, "bos_token_id": 1, "sep_token_id": 2, "pad_token_id": 0},
                         "vision_config": VISION},
                         lambda c: 2 * layers(c.text_config) + layers(c.vision_config), "image and text"),
}  # fmt: skip

ALL = {**ENCODERS, **DECODERS, **ENCODER_DECODERS, **OTHERS}
