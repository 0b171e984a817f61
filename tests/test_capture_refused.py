"""What looks like attention and is not, or cannot be fused yet: left alone, with the reason and the line, and right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import assert_same, capture
from sampling import one_in
from torch import Tensor, nn

B, H, S, D = 2, 4, 7, 8
SCALE = D**-0.5

REFUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {}


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def qkv(s: int = S) -> tuple[Tensor, ...]:
    return rand(B, H, S, D), rand(B, H, s, D) + 0.1, rand(B, H, s, D) - 0.2


def refused(reason: str, *args: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        REFUSED[function.__name__] = (function, args, reason)
        return function

    return register


def weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * SCALE).softmax(-1)


@refused("another axis", *qkv())
def softmax_over_the_queries(q, k, v):
    return (q @ k.mT * SCALE).softmax(-2) @ v


@refused("another axis", *qkv())
def softmax_over_the_heads(q, k, v):
    return (q @ k.mT * SCALE).softmax(1) @ v


@refused("another axis", *qkv())
def softmax_over_the_batch(q, k, v):
    return (q @ k.mT * SCALE).softmax(0) @ v


@refused("another axis", *qkv())
def weights_transposed(q, k, v):
    return weights(q, k).mT @ v


@refused("another axis", *qkv())
def sum_over_the_wrong_label(q, k, v):
    return torch.einsum("bhij,bhie->bhje", weights(q, k), v)


@refused("changed in place", *qkv())
def weights_changed_in_place(q, k, v):
    p = weights(q, k)
    p[..., 0] = 0
    return p @ v


@refused("changed in place", *qkv())
def scores_changed_through_a_view(q, k, v):
    x = q @ k.mT
    x[:, :, 0].zero_()
    return x.softmax(-1) @ v


@refused("changed in place", *qkv())
def keys_changed_before_the_end(q, k, v):
    k = k + 1
    p = weights(q, k)
    k.mul_(2)
    return p @ v, k


@refused("changed in place", *qkv())
def queries_changed_before_the_end(q, k, v):
    q = q + 0
    x = q @ k.mT
    q.zero_()
    return x.softmax(-1) @ v + q


@refused("also used by", *qkv())
def scores_changed_after_the_softmax(q, k, v):
    x = q @ k.mT
    p = x.softmax(-1)
    x.add_(1)
    return p @ v + x.sum(-1, keepdim=True)


@refused("also used by", *qkv())
def a_mask_of_the_mean_score(q, k, v):
    x = q @ k.mT
    return x.masked_fill(x < x.mean(-1, keepdim=True), -1e9).softmax(-1) @ v


@refused("made of another softmax, or of sums or maxima", *qkv())
def a_mask_of_the_largest_score(q, k, v):
    x = q @ k.mT
    return x.masked_fill(x < x.amax(-1, keepdim=True) - 1, -1e9).softmax(-1) @ v


@refused("also used by", *qkv())
def a_mask_of_the_neighbouring_score(q, k, v):
    x = q @ k.mT
    return x.masked_fill(x.roll(1, -1) < 0, -1e9).softmax(-1) @ v


@refused("queries and keys both", *qkv(), rand(B, H, S, S, 2))
def a_mask_with_a_dimension_of_its_own(q, k, v, mask):
    x = (q @ k.mT)[..., None] + mask
    return x.sum(-1).softmax(-1) @ v


@refused("complex64", *qkv())
def scores_of_complex_numbers(q, k, v):
    x = torch.complex(q, k) @ torch.complex(k, q).mT
    return x.abs().softmax(-1) @ v


@refused("also used by", *qkv())
def scores_used_again(q, k, v):
    x = q @ k.mT
    return x.softmax(-1) @ v + x.sum(-1, keepdim=True)


@refused("changed between", *qkv())
def weights_masked_after_the_softmax(q, k, v):
    return (weights(q, k) * torch.ones(S, S).tril()) @ v


@refused("other positions", *qkv())
def normalised_by_something_else(q, k, v):
    e = torch.exp(q @ k.mT * SCALE)
    return (e / e.sum((-1, -2), keepdim=True)) @ v


@refused("both operands", *qkv())
def queries_and_keys_of_the_same_row(q, k, v):
    x = torch.einsum("bhjd,bhjd->bhj", q, k).softmax(-1)
    return torch.einsum("bhj,bhje->bhe", x, v)


@refused("queries and keys", *qkv(), rand(B, H, S, S))
def scores_that_are_no_product(q, k, v, x):
    return x.softmax(-1) @ v + q + k


@pytest.mark.parametrize("dynamic", one_in(2, [False, True]), ids=["static", "dynamic"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, dynamic: bool) -> None:
    function, args, reason = REFUSED[name]
    seen = capture(function, [x.clone() for x in args], dynamic=dynamic)
    assert not seen.fused
    assert not seen.attentions()
    assert len(seen.reasons) == 1
    assert reason in seen.reasons[0]
    (found,) = seen.found
    assert found.location.startswith("test_capture_refused.py:")
    assert found.source
    assert_same(seen.result, function(*args))


def test_random_dropout_is_left_alone() -> None:
    for call in (
        lambda q, k, v: F.dropout(weights(q, k), p=0.5, training=True) @ v,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.25),
    ):
        seen = capture(call, qkv())
        assert not seen.fused
        assert ["draws random numbers" in r for r in seen.reasons] == [True]
        torch.manual_seed(3)
        expected = call(*qkv())
        torch.manual_seed(3)
        assert_same(capture(call, qkv()).result, expected)


def test_weights_used_by_something_else_are_given_by_the_kernel() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        p = weights(q, k)
        return p @ v, p.mT @ v, p.topk(2, -1).values

    seen = capture(call, qkv())
    assert [f.spec.outputs for f in seen.fused if f.spec is not None] == [("out", "weights")]
    assert len(seen.reasons) == 1 and "another axis" in seen.reasons[0]
    assert_same(seen.result, call(*qkv()))


def test_keys_chosen_by_data() -> None:
    """Their number is known only when the graph runs: fused where the graph knows it as a symbol, right in any case."""

    def by_number(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        chosen = keep.nonzero()[:, 0]
        return weights(q, k[:, :, chosen]) @ v[:, :, chosen]

    def by_mask(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return weights(q, k[:, :, keep]) @ v[:, :, keep]

    for call in (by_number, by_mask):
        args = (*qkv(), torch.arange(S) % 3 > 0)
        assert_same(capture(call, args).result, call(*args))


def test_values_changed_after_the_softmax_are_read_as_they_are_then() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        v = v + 0
        p = weights(q, k)
        v.add_(1)
        return p @ v

    seen = capture(call, qkv())
    assert len(seen.fused) == 1
    assert_same(seen.result, call(*qkv()))


def test_a_mask_of_the_scores_is_part_of_the_score() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = q @ k.mT
        return x.masked_fill(x < 0, -1e9).softmax(-1) @ v

    seen = capture(call, qkv())
    assert len(seen.fused) == 1
    assert seen.fused[0].spec is not None
    assert seen.fused[0].spec.mask is None
    assert_same(seen.result, call(*qkv()))


def test_what_is_no_attention_gives_no_site() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.gate, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
            self.router = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(self.up(x) * self.gate(x).sigmoid())
            shares = self.router(x).softmax(-1)
            return x + y * shares[..., :1], (x @ self.router.weight.T).softmax(-1).argmax(-1)

    model = Gated()
    seen = capture(model, (rand(2, 5, 8),))
    assert not seen.found
    assert_same(seen.result, model(rand(2, 5, 8)))


def test_a_copy_may_be_changed() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        copy = k.clone()
        p = weights(q, copy)
        copy.mul_(2)
        return p @ v, copy

    seen = capture(call, qkv())
    assert len(seen.fused) == 1
    assert_same(seen.result, call(*qkv()))


def test_gradients_switched_between_score_and_output() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            p = weights(q, k)
        return p @ v

    q, k, v = qkv()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    seen = capture(call, leaves, grad=True)
    assert not seen.fused
    seen.result.sum().backward()
    assert leaves[0].grad is None
    assert leaves[2].grad is not None


def test_nothing_is_said_twice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(capture(lambda q, k, v: weights(q, k) @ v, qkv()).found) == 1
