"""`attn_implementation="attncc"`: the model's numbers and tokens are those of its own eager attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models.exact import Float64
from sampling import one_in
from torch import Tensor, nn

import attncc
from attncc.integrations.transformers import attention_forward, attention_mask, register

transformers = pytest.importorskip("transformers", reason="the integration needs the extra `demo`")

SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "vocab_size": 99}  # fmt: skip
T5: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 99,
                      "decoder_start_token_id": 0}  # fmt: skip
BART: dict[str, Any] = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
                        "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
                        "vocab_size": 99}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "bert": ("BertModel", SMALL, 2),
    "llama, grouped keys": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2}, 2),
    "mistral, window": ("MistralForCausalLM", {**SMALL, "num_key_value_heads": 2, "sliding_window": 5}, 2),
    "gemma2, soft cap and windows": ("Gemma2ForCausalLM", {**SMALL, "num_key_value_heads": 2, "head_dim": 16,
                                     "sliding_window": 5, "query_pre_attn_scalar": 16}, 2),
    "gpt-oss, sinks": ("GptOssForCausalLM", {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4,
                       "num_experts_per_tok": 2, "sliding_window": 5, "pad_token_id": 0}, 2),
    "t5, position bias": ("T5ForConditionalGeneration", T5, 6),
    "bart, cross attention": ("BartForConditionalGeneration", BART, 6),
}  # fmt: skip
LIGHT = {("llama, grouped keys", "static"), ("gemma2, soft cap and windows", None)}
GENERATED = [
    pytest.param(name, cache, marks=() if (name, cache) in LIGHT else pytest.mark.slow)
    for name in MODELS
    for cache in (None, "static")
    if name != "bert"
]


@pytest.fixture(autouse=True)
def registered() -> None:
    register()
    torch.manual_seed(0)


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The model with its own attention and with attncc's, equal weights; sharp scores, so that masks matter."""
    architecture, arguments, _ = MODELS[name]
    cls = getattr(transformers, architecture)
    config = cls.config_class(**arguments)
    config._experts_implementation = "eager"  # the grouped product has no float64
    eager = cls._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    for parameter_name, parameter in eager.named_parameters():
        if parameter.ndim > 1 or "sinks" in parameter_name:
            nn.init.normal_(parameter, std=0.12 if parameter.ndim > 1 else 1.0)
    ours = cls._from_config(copy.deepcopy(config), attn_implementation="attncc").eval()
    ours.load_state_dict(eager.state_dict())
    return eager.to(dtype), ours.to(dtype)


def padded(name: str, *, left: bool = False) -> dict[str, Tensor]:
    ids = torch.randint(3, 99, (3, 11))
    mask = torch.ones_like(ids)
    for row, count in ((1, 3), (2, 8)):
        mask[row, slice(None, count) if left else slice(-count, None)] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "cross" in name or "t5" in name:
        inputs["decoder_input_ids"] = ids[:, :5]
    return inputs


@pytest.mark.parametrize("name", one_in(2, MODELS))
def test_the_logits_of_a_padded_batch_are_eagers(name: str) -> None:
    eager, ours = build(name, torch.float64)
    inputs = padded(name)
    with torch.no_grad():
        with Float64():
            expected = eager(**inputs)[0]
        before = attncc.stats().calls
        actual = ours(**inputs)[0]
        assert attncc.stats().calls == before + MODELS[name][2]
    seen = inputs["attention_mask"].bool() if "decoder_input_ids" not in inputs else slice(None)
    torch.testing.assert_close(actual[seen], expected[seen], atol=1e-6, rtol=1e-6)  # some norms are in float32


@pytest.mark.parametrize(("name", "cache"), GENERATED)
def test_generation_gives_eagers_tokens(name: str, cache: str | None) -> None:
    eager, ours = build(name)
    inputs = {n: t for n, t in padded(name, left=True).items() if not n.startswith("decoder")}
    arguments = {**inputs, "max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "eos_token_id": None,
                 "cache_implementation": cache, "disable_compile": True}  # fmt: skip
    before = attncc.stats().calls
    tokens = ours.generate(**arguments)
    assert attncc.stats().calls >= before + 7 * MODELS[name][2] // 3
    torch.testing.assert_close(tokens, eager.generate(**arguments))


def test_switching_to_it_and_back() -> None:
    _, model = build("llama, grouped keys")
    inputs = padded("llama")
    with torch.no_grad():
        ours = model(**inputs).logits
        model.set_attn_implementation("eager")
        before = attncc.stats().calls
        eager = model(**inputs).logits
        assert attncc.stats().calls == before
        model.set_attn_implementation("attncc")
        assert torch.equal(model(**inputs).logits, ours)
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[seen], eager[seen], atol=1e-4, rtol=1e-4)


def test_from_pretrained(tmp_path: Any) -> None:
    eager, _ = build("bert")
    eager.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="attncc")
    assert model.config._attn_implementation == "attncc"
    inputs = padded("bert")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs)[0][0], eager(**inputs)[0][0], atol=1e-4, rtol=1e-4)


def test_training_with_dropout_is_eagers_and_without_has_gradients() -> None:
    eager, ours = build("llama, grouped keys")
    inputs = padded("llama")
    for dropout in (0.3, 0.0):
        losses = []
        for model in (eager.train(), ours.train()):
            for layer in model.model.layers:
                layer.self_attn.attention_dropout = dropout
            torch.manual_seed(1)
            model.zero_grad()
            loss = model(**inputs, labels=inputs["input_ids"]).loss
            loss.backward()
            losses.append((loss.detach(), model.model.layers[0].self_attn.q_proj.weight.grad))
        torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-3)


def test_attention_weights_are_given_where_a_call_asks_for_them() -> None:
    eager, ours = build("bert")
    inputs = padded("bert")
    with torch.no_grad():
        expected = eager(**inputs, output_attentions=True).attentions
        actual = ours(**inputs, output_attentions=True).attentions
    assert actual is not None
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_queries_at_the_end_of_the_keys_see_all_before_them() -> None:
    """Some models drop query rows after the mask is made: causality then counts from the bottom right."""
    q, k, v = torch.randn(1, 4, 3, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    module = nn.Module()
    out, weights = attention_forward(module, q, k, v, None, is_causal=True)
    mask = torch.ones(3, 9, dtype=torch.bool).tril(6)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)
    assert weights is None and out.is_contiguous()
    torch.testing.assert_close(out, expected)


def test_a_mask_is_left_out_only_where_the_shapes_say_the_same() -> None:
    config = transformers.LlamaConfig(**SMALL)
    arguments = {"batch_size": 1, "config": config}
    assert attention_mask(q_length=7, kv_length=7, **arguments) is None
    assert attention_mask(q_length=1, kv_length=7, q_offset=6, **arguments) is None
    mask = attention_mask(q_length=3, kv_length=7, **arguments)
    assert mask is not None and torch.equal(mask[0, 0], torch.ones(3, 7, dtype=torch.bool).tril())


@pytest.mark.slow
def test_a_bias_beside_a_mask_or_causality() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 16).unbind()
    bias = torch.randn(1, 4, 7, 7)
    seen = torch.rand(2, 1, 7, 7) > 0.3
    for mask, causal in ((seen, False), (None, True), (None, False), (torch.randn(2, 1, 7, 7), False)):
        out, _ = attention_forward(nn.Module(), q, k, v, mask, is_causal=causal, position_bias=bias)
        total = bias if mask is None or mask.dtype == torch.bool else bias + mask
        hidden = seen if mask is seen else torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.tensor(True)
        total = total.expand(2, 4, 7, 7).masked_fill(~hidden, float("-inf"))
        expected = nn.functional.scaled_dot_product_attention(q, k, v, total).transpose(1, 2)
        torch.testing.assert_close(out, expected)


def test_an_argument_that_changes_the_result_is_refused_by_name() -> None:
    q = torch.randn(1, 2, 3, 16)
    with pytest.raises(ValueError, match=r"Module gives indices to its attention.*sdpa"):
        attention_forward(nn.Module(), q, q, q, None, indices=torch.zeros(1, 3, 2))


def test_models_that_do_not_use_the_interface_are_refused() -> None:
    """MPNet adds its mask to the scores, whatever the implementation: a boolean one would be added as 0 and 1."""
    config = transformers.MPNetConfig(**SMALL)
    model = transformers.MPNetModel._from_config(config, attn_implementation="attncc").eval()
    with pytest.raises(ValueError, match=r"modeling_mpnet does not go through Transformers' AttentionInterface"):
        model(**padded("mpnet"))
