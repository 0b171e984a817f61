"""Put a traced function into an FX graph in the place of some of its nodes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

_PLACE = ("stack_trace", "nn_module_stack", "source_fn_stack")


def fake(node: Any) -> Any:
    """The value that Dynamo (or export) saw for a node; anything else is itself."""
    return node.meta.get("example_value", node.meta.get("val")) if isinstance(node, fx.Node) else node


def trace_flat(function: Callable[..., Any], *fakes: Any) -> fx.GraphModule:
    """`function` as ATen operators below autograd and `torch.func`: what `vmap` does is written out in it."""
    mode = _mode(fakes)
    with torch.no_grad(), mode, fx.traceback.preserve_node_meta():
        traced: fx.GraphModule = make_fx(function, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)
    traced.graph.eliminate_dead_code()
    return traced


def trace_whole(function: Callable[..., Any], *fakes: Any) -> fx.GraphModule:
    """`function` as pre-dispatch operators, with the gradient modes of the caller."""
    with _mode(fakes), fx.traceback.preserve_node_meta():
        traced: fx.GraphModule = make_fx(function, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True)(
            *fakes
        )
    return traced


def _mode(fakes: Sequence[Any]) -> AbstractContextManager[Any]:
    return next((f.fake_mode for f in fakes if isinstance(f, FakeTensor)), nullcontext())


def autocast_dtype(node: fx.Node, device: str) -> torch.dtype | None:
    """The dtype to which autocast casts the operands of a product at this place of a graph; None where it is off."""
    state = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    entered: dict[fx.Node, tuple[bool, torch.dtype]] = {}
    for other in node.graph.nodes:
        if other is node:
            break
        if other.target is torch.amp.autocast_mode._enter_autocast and other.args[0] == device:
            entered[other] = (bool(other.args[2]), other.args[1] or state[1])
        elif other.target is torch.amp.autocast_mode._exit_autocast:
            entered.pop(other.args[0], None)
    enabled, dtype = list(entered.values())[-1] if entered else state
    return dtype if enabled else None


def splice(gm: fx.GraphModule, before: fx.Node, traced: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Copies of the nodes of `traced` before a node of `gm`, fed with `inputs`; returns what stands for its outputs.

    Copies keep the line of the user's program that they came from, or get that of `before`.
    """
    place = {key: before.meta[key] for key in _PLACE if key in before.meta}
    given = iter(inputs)
    made: dict[fx.Node, Any] = {}
    with gm.graph.inserting_before(before):
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                made[node] = next(given)
            elif node.op == "output":
                out = fx.map_arg(node.args[0], made.__getitem__)
                return list(out) if isinstance(out, list | tuple) else [out]
            else:
                made[node] = new = gm.graph.node_copy(node, made.__getitem__)
                if node.op == "get_attr":
                    new.target = _adopt(gm, getattr(traced, str(node.target)))
                new.meta = place | {k: v for k, v in node.meta.items() if v is not None}
                new.meta["example_value"] = node.meta.get("val")
    raise ValueError("a traced graph without an output")


def _adopt(gm: fx.GraphModule, value: Any) -> str:
    """Store a constant of another graph under a name of its own."""
    number = 0
    while hasattr(gm, f"_spliced_{number}"):
        number += 1
    if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
        gm.register_buffer(f"_spliced_{number}", value, persistent=False)
    else:
        setattr(gm, f"_spliced_{number}", value)
    return f"_spliced_{number}"


def duplicate(gm: fx.GraphModule) -> fx.GraphModule:
    """The same graph over the same attributes, free to be changed."""
    return fx.GraphModule(gm, copy.deepcopy(gm.graph), type(gm).__name__)
