"""Whole models with random weights: every attention that they have is fused, the numbers are those of eager float64."""

from __future__ import annotations

from typing import Any

import pytest
from models.architectures import ALL, Architecture
from models.exact import Float64
from torch import Tensor

import attncc
from attncc.rewrite import Found

LIGHT = {
    ("bert", "sdpa"), ("deberta-v2", "eager"), ("modernbert", "sdpa"), ("mistral", "eager"), ("bloom", "eager"),
    ("gpt2", "sdpa"), ("vit", "sdpa"),
}  # fmt: skip
WITHOUT_SDPA = {"deberta-v2", "mpnet", "gemma2", "bloom", "xlm", "layoutlm", "roformer", "squeezebert", "mpt", "gptj",
                "gpt-oss", "swin", "blip", "detr", "longformer", "led"}  # fmt: skip
FLEX = {"bert", "modernbert", "llama", "mistral", "qwen3", "gemma2", "bart", "vit"}
CASES = [
    pytest.param(name, implementation, marks=() if (name, implementation) in LIGHT else pytest.mark.slow)
    for name in ALL
    for implementation in ("eager", "sdpa", "flex_attention")
    if implementation == "eager" or (name in FLEX if implementation == "flex_attention" else name not in WITHOUT_SDPA)
]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_every_site_is_fused_and_a_padded_batch_gives_the_same_numbers(
    name: str, implementation: str, found: list[Found]
) -> None:
    architecture = ALL[name]
    model, inputs = architecture.build(implementation), architecture.inputs()
    assert model.config._attn_implementation == implementation
    actual = attncc.compile(model)(**inputs)
    reasons = [f"{site.location}: {site.reason}" for site in found if not site.fused]
    assert (len(found), reasons) == (architecture.sites(model.config), [])
    check(architecture, inputs, actual, model(**inputs))


def check(architecture: Architecture, inputs: dict[str, Tensor], actual: Any, eager: Any) -> None:
    """The first result and, where there is one, the pooled or encoded other: as near to float64 as eager float32."""
    exact_model = architecture.build("eager").double()
    double = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    with Float64():
        exact = exact_model(**double)
    names = [n for n in ("last_hidden_state", "logits", "logits_per_image") if isinstance(exact.get(n), Tensor)]
    assert names
    for name in names:
        a, e, x = (output[name] for output in (actual, eager, exact))
        mask = inputs.get("attention_mask")
        if mask is not None and x.shape[:2] == mask.shape and "decoder_input_ids" not in inputs:
            a, e, x = (t[mask.bool()] for t in (a, e, x))
        scale = float(x.abs().max())
        assert float((a - x).abs().max()) <= 2 * float((e - x).abs().max()) + 1e-6 * scale, name
