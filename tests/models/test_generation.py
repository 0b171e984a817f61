"""Token by token through every kind of cache: the compiled model gives eager's tokens."""

from __future__ import annotations

from typing import Any

import pytest
from models.architectures import DECODERS, ENCODER_DECODERS
from torch import Tensor, nn

import attncc
from attncc.rewrite import Found

MODELS = {**DECODERS, **ENCODER_DECODERS}
NEW = 6
LIGHT = {("llama", "sdpa", "static")}
SDPA = {"llama", "qwen2", "phi3", "gpt2", "t5", "whisper", "deepseek-v3"}
STATIC = {"llama", "mistral", "gemma3", "bart"}
CASES = [
    pytest.param(name, implementation, cache, marks=() if (name, implementation, cache) in LIGHT else pytest.mark.slow)
    for name in MODELS
    for implementation in ("eager", "sdpa")
    for cache in (None, "static")
    if (implementation == "eager" or name in SDPA) and (cache is None or name in STATIC)
]


@pytest.mark.parametrize(("name", "implementation", "cache"), CASES)
def test_generation_gives_the_tokens_of_eager(
    name: str, implementation: str, cache: str | None, found: list[Found]
) -> None:
    architecture = MODELS[name]
    model = architecture.build(implementation)
    inputs = {n: t for n, t in architecture.inputs(left=True).items() if n != "decoder_input_ids"}
    arguments: dict[str, Any] = {
        **inputs, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None,
        "cache_implementation": cache, "disable_compile": True, "return_dict_in_generate": True,
    }  # fmt: skip
    expected = model.generate(**arguments, output_logits=True)
    before = attncc.stats().calls
    actual = attncc.compile(model, dynamic=True).generate(**arguments).sequences
    assert attncc.stats().calls == before + calls(architecture.sites(model.config), model, cache)
    assert [site.reason for site in found if not site.fused] == []
    same_tokens(actual, expected.sequences, expected.logits)


def calls(sites: int, model: nn.Module, cache: str | None) -> int:
    """How many attentions run compiled: a decoder's for every token. `generate` calls an encoder by itself, and the
    first token of a decoder attends to itself alone where its cache grows: there is no softmax over one key."""
    if not model.config.is_encoder_decoder:
        return NEW * sites
    own = (sites - model.config.num_hidden_layers) // 2
    return 2 * NEW * own - (own if cache is None else 0)


def same_tokens(actual: Tensor, expected: Tensor, logits: tuple[Tensor, ...]) -> None:
    """Equal up to where the two best logits of a row are within 1e-4: from there on the texts may part."""
    assert actual.shape == expected.shape
    for row in range(len(expected)):
        for step, of_step in enumerate(logits, start=expected.shape[1] - len(logits)):
            if actual[row, step] == expected[row, step]:
                continue
            best, second = of_step[row].topk(2).values
            assert best - second < 1e-4, f"row {row} differs at token {step}"
            break
