"""A Transformers model with its own eager attention: grouped heads, rotary positions, a causal mask and padding.

Run with: python examples/transformers_model.py (needs the extra "demo")
"""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import attncc


def factory() -> tuple[nn.Module, tuple[()], dict[str, torch.Tensor]]:
    """A small random Llama and keyword inputs, for `attncc explain examples/transformers_model.py:factory`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        attn_implementation="eager",
        use_cache=False,
    )
    tokens = torch.randint(0, config.vocab_size, (2, 60))
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0  # the second text is shorter: padded on the left
    return LlamaForCausalLM(config).eval(), (), {"input_ids": tokens, "attention_mask": mask}


def main() -> None:
    """Compile, compare the logits of real tokens, and say what was found."""
    model, _, inputs = factory()
    compiled = attncc.compile(model)
    with torch.inference_mode():
        real = inputs["attention_mask"].bool()
        torch.testing.assert_close(compiled(**inputs).logits[real], model(**inputs).logits[real], rtol=1e-4, atol=1e-5)
        print(attncc.explain(model, **inputs))


if __name__ == "__main__":
    main()
