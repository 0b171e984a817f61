"""`torch.utils.checkpoint` in compiled code: a body that needs no gradient is run as if it were not checkpointed."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from attncc.expand.splice import fake, splice, trace_whole

_CONTEXT = "_checkpoint_context_fn"


class _Meta(dict[str, Any]):
    """Metadata of a body whose context function PyTorch's tracer asks for although there need not be one."""

    def __missing__(self, key: str) -> None:
        return None


def is_checkpoint(node: fx.Node) -> bool:
    """Whether a node runs a body that is to be recomputed in the backward pass."""
    return node.target is torch.ops.higher_order.tag_activation_checkpoint


def expand_checkpoint(gm: fx.GraphModule, node: fx.Node) -> None:
    """Write the body out where no gradient is to flow through it; else prepare it for the tracer."""
    attribute, inputs = node.args[0], list(node.args[1:])
    body = getattr(gm, str(attribute.target))
    values = [fake(x) for x in inputs]
    if torch.is_grad_enabled() and any(isinstance(v, torch.Tensor) and v.requires_grad for v in values):
        if not isinstance(body.meta, _Meta):
            body.meta = _Meta(body.meta)
        return
    outputs = splice(gm, node, trace_whole(fx.Interpreter(body).run, *values), inputs)
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def forget_contexts(traced: fx.GraphModule) -> None:
    """Take out of traced bodies the context functions that are none."""
    for child in traced.children():
        if isinstance(child, fx.GraphModule) and child.meta.get(_CONTEXT, child) is None:
            del child.meta[_CONTEXT]
