"""The oracle against PyTorch's own float64 attention, which shares no line with it."""

import pytest
import torch
import torch.nn.functional as F

from attncc import expr as ex
from attncc import reference
from attncc.spec import AttentionSpec, Extra

SCALED = ex.op("mul", ex.Score(), ex.Scalar("s0", "float32"))
CAUSAL = ex.op("le", ex.Index("j"), ex.Index("i"))
Q, K = ex.Elem("q"), ex.Elem("k")


def qkv(sq: int = 7, skv: int = 7, heads: int = 4, kv_heads: int = 4, d: int = 5, e: int = 5) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = (2, heads, sq, d), (2, kv_heads, skv, d), (2, kv_heads, skv, e)
    return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def test_scaled_dot_product_with_grouped_heads_matches_sdpa() -> None:
    q, k, v = qkv(kv_heads=2, e=3, skv=11)
    spec = AttentionSpec("float64", 5, 3, group=2, score_mod=SCALED, scalars=("s0",))
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(reference.attention(spec, q, k, v, scalars=[0.3]), expected)


def test_causal_mask_and_bias_match_sdpa() -> None:
    q, k, v = qkv()
    bias = torch.randn(4, 7, 7, dtype=torch.float64)
    load = ex.Load("t0", (ex.Index("h"), ex.Index("i"), ex.Index("j")), "float64")
    spec = AttentionSpec("float64", 5, 5, score_mod=ex.op("add", ex.Score(), load), mask=CAUSAL,
                         extras=(Extra("t0", "float64", 3),))  # fmt: skip
    mask = bias.masked_fill(~torch.ones(7, 7).tril().bool(), float("-inf"))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None], scale=1.0)
    torch.testing.assert_close(reference.attention(spec, q, k, v, [bias]), expected)


def test_bilinear_weight_takes_the_place_of_q() -> None:
    q, k, v = qkv()
    w = torch.randn(4, 5, 5, dtype=torch.float64)
    spec = AttentionSpec("float64", 5, 5, bilinear="t0", extras=(Extra("t0", "float64", 3),))
    expected = torch.softmax((q @ w) @ k.mT, -1) @ v
    torch.testing.assert_close(reference.attention(spec, q, k, v, [w]), expected)


@pytest.mark.parametrize(("fill", "empty_row"), [(float("-inf"), "zero"), (float("-inf"), "nan"), (-1e9, "zero")])
def test_rows_that_see_no_key(fill: float, empty_row: str) -> None:
    q, k, v = qkv()
    spec = AttentionSpec("float64", 5, 5, mask=ex.op("lt", ex.Index("i"), ex.Const(3, "int64")), fill=fill,
                         empty_row=empty_row)  # fmt: skip
    out = reference.attention(spec, q, k, v)
    expected = {"zero": torch.zeros_like(v[:, :, :1]), "nan": torch.full_like(v[:, :, :1], float("nan"))}[empty_row]
    if fill == -1e9:
        expected = v.mean(2, keepdim=True)
    torch.testing.assert_close(out[:, :, 3:], expected.expand(-1, -1, 4, -1), equal_nan=True)
    torch.testing.assert_close(out[:, :, :3], (torch.softmax(q @ k.mT, -1) @ v)[:, :, :3])


def test_a_sink_takes_weight_and_gives_no_value() -> None:
    q, k, v = qkv()
    sinks = torch.randn(4, dtype=torch.float64)
    spec = AttentionSpec("float64", 5, 5, sink=ex.Load("t0", (ex.Index("h"),), "float64"),
                         extras=(Extra("t0", "float64", 1),))  # fmt: skip
    columns = torch.cat([q @ k.mT, sinks[None, :, None, None].expand(2, 4, 7, 1)], -1)
    given = reference.outputs(spec, q, k, v, [sinks])
    weights = torch.softmax(columns, -1)[..., :-1]
    torch.testing.assert_close(given["weights"], weights)
    torch.testing.assert_close(given["out"], weights @ v)
    torch.testing.assert_close(given["max"] + given["sum"].log(), torch.logsumexp(columns, -1))


def test_without_a_normalizer_score_mod_gives_the_weights() -> None:
    q, k, v = qkv()
    spec = AttentionSpec(
        "float64", 5, 5, normalizer="none", score_mod=ex.op("sigmoid", ex.Score()), mask=CAUSAL, fill=0.0
    )
    expected = torch.sigmoid(q @ k.mT).tril() @ v
    torch.testing.assert_close(reference.attention(spec, q, k, v), expected)


def test_additive_scores_read_a_weight_for_each_column() -> None:
    q, k, v = qkv()
    w = torch.randn(5, dtype=torch.float64)
    element = ex.op("mul", ex.Load("t0", (ex.Index("d"),), "float64"), ex.op("tanh", ex.op("add", Q, K)))
    spec = AttentionSpec("float64", 5, 5, element=element, extras=(Extra("t0", "float64", 1),))
    scores = torch.tanh(q[:, :, :, None] + k[:, :, None]) @ w
    torch.testing.assert_close(reference.attention(spec, q, k, v, [w]), torch.softmax(scores, -1) @ v)


@pytest.mark.parametrize("keys", [0, 7])
def test_row_statistics_of_rows_without_keys(keys: int) -> None:
    q, k, v = qkv(skv=keys)
    hidden = ex.op("lt", ex.Index("i"), ex.Const(0, "int64"))
    given = reference.outputs(AttentionSpec("float64", 5, 5, mask=hidden), q, k, v)
    assert (given["max"] == float("-inf")).all()
    assert (given["sum"] == 0).all()
    assert (given["out"] == 0).all()
