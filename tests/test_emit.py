"""What capture puts into the FX graph: operands that copy nothing, results that lie as the original's, caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from capture import OracleInterpreter, assert_same, capture, capture_directly
from sampling import one_in
from test_capture_spellings import FUSED, rand
from torch import Tensor

ZERO_COPY = (
    "dot", "keys_first", "packed_qkv", "packed_qkv_by_chunk", "packed_by_head", "einsum_bshd", "one_key_head",
    "sequence_first_einsum_with_ellipsis", "heads_in_the_batch_and_back", "grouped_by_expand", "sdpa_grouped",
    "grouped_by_repeat_interleave", "grouped_in_five_dimensions", "boolean_mask_given", "sdpa_additive_mask",
    "padding_and_causal", "bilinear", "queries_without_batch", "temperature_by_head",
)  # fmt: skip


class OperandInterpreter(OracleInterpreter):
    """Notes the operands of every attention."""

    def __init__(self, gm: torch.fx.GraphModule) -> None:
        super().__init__(gm)
        self.operands: list[Tensor] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.attncc.attention.default:
            self.operands += [*args[:3], *args[3]]
        return super().call_function(target, args, kwargs)


@pytest.mark.parametrize("name", ZERO_COPY)
@pytest.mark.parametrize("dynamic", one_in(2, [True, False]), ids=["dynamic", "static"])
def test_operands_are_views_of_the_inputs(name: str, dynamic: bool) -> None:
    function, args = FUSED[name]
    (gm,) = capture_directly(function, args, dynamic=dynamic).graphs
    interpreter = OperandInterpreter(gm)
    interpreter.run(*args)
    inputs = {a.untyped_storage().data_ptr() for a in args}
    assert len(interpreter.operands) >= 3
    assert all(x.untyped_storage().data_ptr() in inputs for x in interpreter.operands)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("packed_qkv", "bshd"), ("grouped_by_expand", "bshd"), ("dot", "bhsd")],
)
def test_the_layout_makes_what_follows_free(name: str, layout: str) -> None:
    function, args = FUSED[name]
    (node,) = capture_directly(function, args).attentions()
    assert node.args[-1] == layout


def test_a_result_whose_strides_are_seen_is_laid_out_as_the_original() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y = (q @ k.mT).softmax(-1) @ v
        return y.mT, y.permute(2, 0, 1, 3).exp()

    args = FUSED["dot"][1]
    seen = capture(call, args)
    assert len(seen.fused) == 1
    assert_same(seen.result, call(*args))


def test_a_static_cache_is_read_after_it_is_written() -> None:
    def step(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        keys.index_copy_(2, at, k)
        values.index_copy_(2, at, v)
        seen = torch.arange(keys.shape[2])[None] <= at[:, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)

    def inputs() -> tuple[Tensor, ...]:
        news = (rand(2, 4, 3, 8), rand(2, 4, 3, 8) + 1, rand(2, 4, 3, 8) - 1)
        return (*news, torch.zeros(2, 4, 16, 8), torch.zeros(2, 4, 16, 8), torch.tensor([4, 5, 6]))

    args, expected = inputs(), inputs()
    seen = capture(step, args)
    assert [str(f.spec.mask) for f in seen.fused] == ["(j <= t0[i])"]
    assert_same(seen.result, step(*expected))
    assert_same(args[3], expected[3])


def test_a_cache_changed_between_score_and_output_is_not_read_later() -> None:
    def step(q: Tensor, keys: Tensor, v: Tensor) -> Tensor:
        p = (q @ keys.mT).softmax(-1)
        keys.zero_()
        return p @ v

    args, expected = (tuple(x.clone() for x in FUSED["dot"][1]) for _ in range(2))
    seen = capture(step, args)
    assert not seen.fused
    assert "changed in place" in seen.reasons[0]
    assert_same(seen.result, step(*expected))


def test_a_growing_cache() -> None:
    def step(q: Tensor, k: Tensor, v: Tensor, old_k: Tensor, old_v: Tensor) -> Tensor:
        keys, values = torch.cat([old_k, k], -2), torch.cat([old_v, v], dim=2)
        past = old_k.shape[2]
        mask = torch.arange(keys.shape[2])[None] <= torch.arange(past, past + q.shape[2])[:, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

    args = (rand(2, 4, 3, 8), rand(2, 4, 3, 8), rand(2, 4, 3, 8), rand(2, 4, 5, 8), rand(2, 4, 5, 8))
    for dynamic in (False, True):
        seen = capture(step, args, dynamic=dynamic)
        assert [f.spec.extras for f in seen.fused] == [()]
        assert_same(seen.result, step(*args))
    assert str(seen.fused[0].spec.mask) in ("(j <= (i + (Skv - Sq)))", "(j <= (i + n0))")


def test_one_graph_serves_other_sizes() -> None:
    """What was captured with symbolic sizes is run with others."""
    function, args = FUSED["grouped_by_expand"]
    (gm,) = capture(function, args, dynamic=True).graphs
    assert not any(isinstance(a, int) and a in (7, 11) for n in gm.graph.nodes for a in n.args)
    compiled = torch.compile(function, backend=lambda g, _: g.forward, dynamic=True)
    assert_same(compiled(*args), function(*args))


def test_an_attention_of_an_attention() -> None:
    """The second reads the first's output as it is: by the new node, and the old one is gone."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = F.scaled_dot_product_attention(q, k, v)
        return F.scaled_dot_product_attention(x, k, v) + (x @ k.mT).softmax(-1) @ v

    args = (rand(2, 4, 5, 8), rand(2, 4, 6, 8), rand(2, 4, 6, 8) + 1)
    seen = capture(call, args)
    assert len(seen.fused) == 3
    assert not [n for g in seen.graphs for n in g.graph.nodes if "scaled_dot" in str(n.target)]
    assert_same(seen.result, call(*args))


def test_a_view_of_the_result_stays_one() -> None:
    """A reshape of a result with its columns first was taken to be free of strides. It was a view with others than
    eager's, and the `view` behind it failed."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.bmm(q, k.mT).softmax(-1)
        image = torch.bmm(v.mT, weights.mT).reshape(2, 8, 3, 4)
        return image.view(2, -1)

    args = (rand(2, 12, 8), rand(2, 12, 8), rand(2, 12, 8))
    seen = capture(call, args)
    assert len(seen.fused) == 1
    assert_same(seen.result, call(*args))


def test_a_counter_that_goes_on_before_the_attention_is_read_as_it_was() -> None:
    """Static caches of Transformers count their tokens in a tensor: the mask is made, the counter moves, q meets k."""

    def step(q: Tensor, k: Tensor, v: Tensor, filled: Tensor) -> Tensor:
        visible = torch.arange(k.shape[2]) <= filled
        filled.add_(1)
        return (q @ k.mT).masked_fill(~visible, -torch.inf).softmax(-1) @ v

    q, k, v = rand(2, 2, 1, 8), rand(2, 2, 9, 8), rand(2, 2, 9, 8)
    seen = capture(step, (q, k, v, torch.tensor(3)))
    assert len(seen.fused) == 1
    assert_same(seen.result, step(q, k, v, torch.tensor(3)))


def test_a_mask_that_is_written_over_before_the_attention_is_not_copied() -> None:
    def step(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.mT + bias
        bias.zero_()
        return scores.softmax(-1) @ v

    q, k, v = rand(2, 2, 7, 8), rand(2, 2, 9, 8), rand(2, 2, 9, 8)
    seen = capture(step, (q, k, v, rand(7, 9)))
    (reason,) = seen.reasons
    assert reason.endswith("is changed in place before the attention's end")


@pytest.mark.parametrize("batch", [1, 2])
def test_operands_that_lie_as_they_should_are_taken_as_they_are(batch: int) -> None:
    """Axes of size 1 are read by select and come back by unsqueeze: each such view would cost microseconds a call."""

    def model(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = x.view(batch, 6, 3, 8).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, 6, 24)

    inputs = rand(batch, 6, 24), rand(batch, 3, 7, 8), rand(batch, 3, 7, 8)
    (graph,) = (gm.graph for gm in capture_directly(model, inputs).graphs)
    targets = [str(n.target) for n in graph.nodes if n.op == "call_function"]
    assert not [t for t in targets if "select" in t or "unsqueeze" in t] and len(targets) <= 5
