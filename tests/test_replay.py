"""The second belt: what a replay runs of the original, and that it finds a pass that is wrong."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from capture import assert_same, capture
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attncc import replay
from attncc.replay import cone
from attncc.rewrite import rewrite


def test_the_cone_has_the_writes_to_what_it_reads() -> None:
    """It had them only where the value found last was no leaf: `x[:] = …` before a softmax was left out."""

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        x = q @ k.mT
        torch.ops.aten.slice.Tensor(x, 0, 0, 9).masked_fill_(mask, -1.0)
        return x.softmax(-1) @ v

    args = [torch.ones(2, 3, 3) for _ in range(3)]
    graph = make_fx(call, tracing_mode="fake")(*args, torch.ones(3, 3, dtype=torch.bool)).graph
    *_, output = graph.nodes
    (result,) = output.all_input_nodes
    leaves: list[fx.Node] = list(graph.find_nodes(op="placeholder"))
    for order in (leaves, leaves[::-1]):
        assert any("masked_fill_" in str(node.target) for node in cone(result, order))


def test_a_wrong_fusion_is_caught_by_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that loses the mask is found out, the site is refused, and the user is told."""
    fusion = importlib.import_module("attncc.passes.fuse_attention")
    monkeypatch.setattr(fusion, "split_mask", lambda x, _: (_without_mask(x), None, -float("inf")))

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(7, 7, dtype=torch.bool).tril()
        return (q @ k.mT).masked_fill(~mask, float("-inf")).softmax(-1) @ v

    args = [torch.randn(2, 4, 7, 8) for _ in range(3)]
    with pytest.warns(UserWarning, match="the fused attention is not used"):
        seen = capture(call, args)
    assert not seen.fused
    assert "replay" in seen.reasons[0]
    assert_same(seen.result, call(*args))


def _without_mask(x: Any) -> Any:
    return x.operands[1] if getattr(x, "name", "") == "where" else x


@pytest.mark.parametrize("fault", [False, True], ids=["right", "wrong"])
def test_long_fixed_lengths_are_replayed_short(fault: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed sizes of a real model, far too large to replay as they are, and a fault is still found in no time: the
    largest tensor has 8 * 31 * 2304 elements, where the scores had 8 * 12 * 640 * 640."""
    monkeypatch.setattr(replay, "LARGEST", 8 * 31 * 2304)
    fusion = importlib.import_module("attncc.passes.fuse_attention")
    if fault:
        monkeypatch.setattr(fusion, "split_mask", lambda x, _: (_without_mask(x), None, -float("inf")))

    def call(x: Tensor) -> Tensor:
        q, k, v = (t.view(8, 640, 12, 64).transpose(1, 2) for t in x.chunk(3, -1))
        mask = torch.ones(640, 640, dtype=torch.bool).tril()
        p = (q @ k.mT / 8).masked_fill(~mask, float("-inf")).softmax(-1)
        return (p @ v).transpose(1, 2).reshape(8, 640, 768)

    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        gm = make_fx(call, pre_dispatch=True)(torch.empty(8, 640, 3 * 768))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, found, _ = rewrite(gm)
    assert [f.fused for f in found] == [not fault]
    assert any("replay" in str(w.message) for w in told) == fault
