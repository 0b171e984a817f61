"""`attn_implementation="attncc"`: a Transformers model that generates text through attncc's kernels, uncompiled.

Run with: python examples/transformers_generate.py (needs the extra "demo")
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import attncc
from attncc.integrations import transformers as integration


def main() -> None:
    """The tokens that Transformers' own eager attention gives, for two texts of different lengths."""
    integration.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(1, config.vocab_size, (2, 20))
    mask = torch.ones_like(tokens)
    mask[1, :7] = 0  # the second text is shorter: padded on the left
    texts = {}
    for implementation in ("eager", "attncc"):
        model.set_attn_implementation(implementation)
        texts[implementation] = model.generate(tokens, attention_mask=mask, max_new_tokens=16, do_sample=False)
    assert torch.equal(texts["eager"], texts["attncc"])
    print(texts["attncc"][:, 20:])
    print(attncc.stats())


if __name__ == "__main__":
    main()
