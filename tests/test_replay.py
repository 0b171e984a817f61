"""What a replay runs of the original: everything that makes the value, in-place changes included."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from attncc.replay import cone


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
