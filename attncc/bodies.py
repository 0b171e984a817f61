"""Graphs inside of graphs: the bodies of `torch.cond`, `while_loop`, checkpoints and other higher-order operators."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

_LEFT = (torch.ops.higher_order.flex_attention, torch.ops.higher_order.flex_attention_backward)
"""Operators whose bodies are functions of one element."""


def bodies(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, str, fx.GraphModule]]:
    """Calls of higher-order operators, the attribute of `gm` that is a body of theirs, and the body; each body once."""
    seen: set[str] = set()
    for node in gm.graph.nodes:
        if not isinstance(node.target, torch._ops.HigherOrderOperator) or node.target in _LEFT:
            continue
        for argument in node.all_input_nodes:
            name = str(argument.target)
            body = getattr(gm, name, None) if argument.op == "get_attr" else None
            if isinstance(body, fx.GraphModule) and name not in seen:
                seen.add(name)
                yield node, name, body
