"""Whole models with random weights: every attention fused, the numbers those of eager PyTorch."""

from typing import Any

import pytest
import torch
from torch import nn

import attncc

transformers = pytest.importorskip("transformers", reason="whole models need the extra `demo`")

LAYERS = 2
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
                         "num_attention_heads": 4, "vocab_size": 99}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "bert": ("BertModel", SMALL, LAYERS),
    "roberta": ("RobertaModel", SMALL, LAYERS),
    "distilbert": ("DistilBertModel", {"dim": 64, "hidden_dim": 96, "n_layers": LAYERS, "n_heads": 4, "vocab_size": 99},
                   LAYERS),
    "llama, grouped keys": ("LlamaModel", {**SMALL, "num_key_value_heads": 2}, LAYERS),
    "mistral, window": ("MistralModel", {**SMALL, "num_key_value_heads": 2, "sliding_window": 8}, LAYERS),
    "gpt2": ("GPT2Model", {"n_embd": 64, "n_layer": LAYERS, "n_head": 4, "vocab_size": 99}, LAYERS),
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def build(name: str, implementation: str) -> nn.Module:
    architecture, arguments, _ = MODELS[name]
    cls = getattr(transformers, architecture)
    config = cls.config_class(**arguments, attn_implementation=implementation)
    return cls(config).eval()


def float64(name: str, model: nn.Module) -> nn.Module:
    """The same weights in float64, through SDPA: eager adds finfo.min twice there, and padding rows become NaN."""
    exact = build(name, "sdpa").double()
    exact.load_state_dict(model.state_dict())
    return exact


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_every_site_is_fused_and_a_padded_batch_gives_the_same_hidden_states(name: str, implementation: str) -> None:
    model = build(name, implementation)
    ids = torch.randint(0, 99, (3, 21))
    mask = torch.ones(3, 21, dtype=torch.long)
    mask[1, 15:] = 0
    mask[2, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        report = attncc.explain(model, **inputs)
        assert (len(report.sites), report.fused) == (MODELS[name][2],) * 2, str(report)
        before = attncc.stats().calls
        actual = attncc.compile(model)(**inputs).last_hidden_state
        assert attncc.stats().calls == before + MODELS[name][2]
        expected = model(**inputs).last_hidden_state
        exact = float64(name, model)(**inputs).last_hidden_state
    seen = mask.bool()
    error = (actual[seen].double() - exact[seen]).abs().max()
    eager_error = (expected[seen].double() - exact[seen]).abs().max()
    assert error <= 2 * eager_error + 1e-6


def test_generation_gives_the_tokens_of_eager_pytorch() -> None:
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 99, (2, 7))
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids, **arguments)
    before = attncc.stats().calls
    actual = attncc.compile(model, dynamic=True).generate(ids, **arguments)
    torch.testing.assert_close(actual, expected)
    assert attncc.stats().calls > before
