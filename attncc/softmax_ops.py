"""Which operators compute a softmax or a part of one: the one table that all ask."""

from __future__ import annotations

import torch
from torch import fx

_aten = torch.ops.aten
_OPERATORS = frozenset(
    (
        _aten.softmax.int, _aten._softmax.default, _aten._safe_softmax.default,
        _aten.log_softmax.int, _aten._log_softmax.default, _aten.logsumexp.default, _aten.exp.default,
        _aten.exp2.default, _aten.scaled_dot_product_attention.default,
    )
)  # fmt: skip
_NAMES = ("exp", "exp2", "logsumexp", "scaled_dot_product_attention")


def is_softmax(node: fx.Node) -> bool:
    """Whether a node is one, in an ATen graph or in one as Dynamo writes it: a method or a function of that name."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.target in _OPERATORS or "softmax" in name or name in _NAMES


def has_softmax(gm: fx.GraphModule) -> bool:
    """Whether any node of a graph is one. Not so for a graph whose weights are a sigmoid of the scores."""
    return any(is_softmax(node) for node in gm.graph.nodes if node.op in ("call_function", "call_method"))
