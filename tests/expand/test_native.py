"""nn.MultiheadAttention and nn.Transformer: every site found, with the fast path of eval mode and without it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from capture import capture
from torch import Tensor, nn

B, S, T, E, H = 2, 7, 9, 32, 4


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


X, Y = rand(B, S, E), rand(B, T, E)
PADDING = torch.arange(T) >= torch.tensor([[T], [5]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(S)
NO_WEIGHTS = {"need_weights": False}


def check(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], sites: int, grad: bool = False) -> None:
    """`sites` fused, none left, and values as eager gives them in float64."""
    model = model.eval()
    seen = capture(lambda *x: model(*x, **kwargs), args, grad=grad)
    assert (len(seen.fused), seen.reasons) == (sites, [])
    double = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in kwargs.items()}
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(*(x.double() for x in args), **double)
    for actual, wanted in zip(*map(torch.utils._pytree.tree_leaves, (seen.result, expected)), strict=True):
        if wanted is None:  # the weights that nobody asked for
            assert actual is None
            continue
        torch.testing.assert_close(actual.detach(), wanted.float(), atol=2e-5, rtol=1e-4, equal_nan=True)


MULTIHEAD: dict[str, tuple[dict[str, Any], tuple[Tensor, ...], dict[str, Any]]] = {
    "self": ({}, (X, X, X), {}),
    "padded": ({}, (X, X, X), {"key_padding_mask": PADDING[:, :S]}),
    "causal": ({}, (X, X, X), {"attn_mask": CAUSAL, "is_causal": True}),
    "cross": ({}, (X, Y, Y), {"key_padding_mask": PADDING}),
    "additive_mask_per_head": ({}, (X, X, X), {"attn_mask": rand(B * H, S, S)}),
    "bias_kv_and_zero": ({"add_bias_kv": True, "add_zero_attn": True}, (X, Y, Y), {"key_padding_mask": PADDING}),
    "rows_first": ({"batch_first": False, "kdim": 20, "vdim": 24}, (rand(S, B, E), rand(T, B, 20), rand(T, B, 24)), {}),
    "unbatched": ({}, (X[0], Y[0], Y[0]), {}),
}


@pytest.mark.parametrize(("name", "grad"), [*((n, False) for n in MULTIHEAD), ("self", True), ("padded", True)])
def test_multihead_attention(name: str, grad: bool) -> None:
    options, args, kwargs = MULTIHEAD[name]
    torch.manual_seed(0)
    model = nn.MultiheadAttention(E, H, **{"batch_first": True, **options})
    check(model, args, {**kwargs, **NO_WEIGHTS}, 1, grad)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("average", [False, True])
def test_weights_that_are_asked_for_come_from_the_kernel(average: bool, grad: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(E, H, batch_first=True)
    check(model, (X, X, X), {"key_padding_mask": PADDING[:, :S], "average_attn_weights": average}, 1, grad)


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(E, H, 40, batch_first=True, **options)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}])
def test_encoder(options: dict[str, Any], grad: bool) -> None:
    check(nn.TransformerEncoder(layer(**options), 2), (X,), {"mask": CAUSAL, "is_causal": True}, 2, grad)


def test_encoder_with_padding_and_nested_tensors_allowed() -> None:
    """Eager PyTorch puts zeros where the padding is, compiled PyTorch does not: what counts is the rest."""
    model, padding = nn.TransformerEncoder(layer(), 2).eval(), PADDING[:, :S]
    seen = capture(lambda x: model(x, src_key_padding_mask=padding), (X,))
    assert len(seen.fused) == 2
    with torch.no_grad():
        expected = model(X, src_key_padding_mask=padding)
    torch.testing.assert_close(seen.result[~padding], expected[~padding], atol=2e-5, rtol=1e-4)


def test_a_mask_of_numbers_hides_what_is_not_zero_in_the_fast_path_of_a_layer() -> None:
    """So PyTorch's kernel takes it, whatever its documentation says; rows of nothing are NaN."""
    mask = torch.zeros(S, S).masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), 0.5)
    check(layer(), (X,), {"src_mask": mask}, 1)


def test_decoder_and_whole_transformer() -> None:
    """PyTorch asks the mask whether it is causal, which would end the graph before the first attention."""
    torch.manual_seed(0)
    model = nn.Transformer(E, H, 1, 2, 40, batch_first=True)
    masks = {"src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING, "tgt_mask": CAUSAL}
    model.encoder.enable_nested_tensor = False
    check(model, (Y, X), masks, 5)
