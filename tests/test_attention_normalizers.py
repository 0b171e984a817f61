"""`attncc.attention` with other normalizers, sinks and further results, against the formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sampling import one_in
from torch import Tensor

from attncc.attention import attention


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def weights_of(x: Tensor, normalizer: str, sinks: Tensor | None = None) -> Tensor:
    """The formulas, with everything materialised; hidden keys have x = -inf."""
    if normalizer == "sigmoid":
        return torch.sigmoid(x)
    if normalizer == "relu":
        return torch.relu(x)
    if normalizer == "none":
        return x.nan_to_num(neginf=0.0)
    if normalizer == "softmax_plus_one":
        sinks = x.new_zeros(x.shape[1])
    if sinks is None:
        return x.softmax(-1).nan_to_num(0.0)
    column = sinks.to(x.dtype)[:, None, None].expand(*x.shape[:3], 1)
    return torch.cat([x, column], -1).softmax(-1)[..., :-1]


def scores(q: Tensor, k: Tensor, keep: Tensor | None) -> Tensor:
    x = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT / math.sqrt(q.shape[-1])
    return x if keep is None else x.masked_fill(~keep, -math.inf)


def assert_near(got: Tensor, expected: Tensor) -> None:
    eps = torch.finfo(got.dtype).eps
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=4 * eps, atol=32 * eps if eps < 1e-3 else 4 * eps)


CASES: dict[str, dict[str, Any]] = {
    "softmax_plus_one": {"normalizer": "softmax_plus_one"},
    "sigmoid": {"normalizer": "sigmoid"},
    "relu": {"normalizer": "relu"},
    "none": {"normalizer": "none"},
    "sinks": {"sinks": torch.tensor([0.3, -math.inf, 4.0, -900.0])},
}


@pytest.mark.parametrize("rows", [1, 37])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", one_in(2, [torch.float32, torch.bfloat16]))
def test_normalizers_and_sinks(name: str, dtype: torch.dtype, rows: int) -> None:
    """With a mask that leaves some rows no key, in prefill and decode."""
    arguments = CASES[name]
    q, k, v = (rand(2, h, s, 16, dtype=dtype) for h, s in ((4, rows), (2, 53), (2, 53)))
    keep = torch.rand(2, 1, rows, 53) > 0.4
    keep[1, :, rows // 2] = False
    for mask in (None, keep):
        out = attention(q, k, v, mask, enable_gqa=True, **arguments)
        p = weights_of(scores(q, k, mask), arguments.get("normalizer", "softmax"), arguments.get("sinks"))
        expected = p.nan_to_num(0.0) @ v.double().repeat_interleave(2, 1)
        atol = 6 * torch.finfo(dtype).eps * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("rows", one_in(2, [37, 1]))
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.3, -math.inf, 4.0, 800.0])])
def test_lse_and_weights(sinks: Tensor | None, rows: int) -> None:
    q, k, v = rand(2, 4, rows, 16) * 20, rand(2, 4, 53, 16), rand(2, 4, 53, 16)
    keep = torch.rand(2, 1, rows, 53) > 0.4
    keep[1, :, rows // 2] = False
    out, lse, weights = attention(q, k, v, keep, sinks=sinks, return_lse=True, return_weights=True)
    x = scores(q, k, keep)
    expected = weights_of(x, "softmax", sinks).nan_to_num(0.0)
    columns = x if sinks is None else torch.cat([x, sinks.double()[:, None, None].expand(2, 4, rows, 1)], -1)
    assert lse.dtype == torch.float32 and weights.shape == (2, 4, rows, 53)
    torch.testing.assert_close(lse.double(), columns.logsumexp(-1), rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.double(), expected @ v.double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(attention(q, k, v, keep, sinks=sinks, return_lse=True)[1], lse)


def test_results_have_the_rank_of_the_query() -> None:
    q, k, v = rand(2, 3, 5, 7, 16), rand(2, 3, 5, 9, 16), rand(2, 3, 5, 9, 16)
    out, lse, weights = attention(q, k, v, return_lse=True, return_weights=True)
    assert (out.shape, lse.shape, weights.shape) == ((2, 3, 5, 7, 16), (2, 3, 5, 7), (2, 3, 5, 7, 9))
    for rank in (2, 3):
        index = (0,) * (5 - rank)
        found = attention(q[index], k[index], v[index], return_lse=True, return_weights=True)
        for got, expected in zip(found, (out, lse, weights), strict=True):
            torch.testing.assert_close(got, expected[index])


def test_results_without_keys_and_without_columns() -> None:
    q, k, v = rand(1, 2, 5, 16), rand(1, 2, 0, 16), rand(1, 2, 0, 16)
    out, lse, weights = attention(q, k, v, return_lse=True, return_weights=True)
    assert not out.any() and (lse == -math.inf).all() and weights.shape == (1, 2, 5, 0)
    k = rand(1, 2, 9, 16)
    out, lse = attention(q, k, k[..., :0], return_lse=True)
    assert out.shape == (1, 2, 5, 0)
    torch.testing.assert_close(lse.double(), scores(q, k, None).logsumexp(-1), rtol=1e-6, atol=1e-5)


def test_gradients_reach_sinks_and_flow_from_every_result() -> None:
    q, k, v, sinks = (
        t.double().requires_grad_() for t in (rand(1, 2, 3, 2), rand(1, 2, 4, 2), rand(1, 2, 4, 2), rand(2))
    )

    def call(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = attention(q, k, v, sinks=sinks, return_lse=True, return_weights=True)
        return results

    assert torch.autograd.gradcheck(call, (q, k, v, sinks), fast_mode=True)


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("normalizer is 'max'", {"normalizer": "max"}),
        ("sinks are part of a softmax", {"normalizer": "relu", "sinks": torch.zeros(2)}),
        (r"sinks \[3\] is not \[heads\] = \[2\]", {"sinks": torch.zeros(3)}),
        ("max and sum are outputs of a softmax", {"normalizer": "sigmoid", "return_lse": True}),
    ],
)
def test_what_does_not_go_together_is_named(says: str, arguments: dict[str, Any]) -> None:
    q = rand(1, 2, 5, 16)
    with pytest.raises(ValueError, match=says):
        attention(q, q, q, **arguments)
