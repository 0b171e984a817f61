"""Dynamo's FX graph to pre-dispatch ATen: before autograd, and with `scaled_dot_product_attention` still whole.

Source of the method: `torch.fx.experimental.proxy_tensor.make_fx(pre_dispatch=True)`, the tracer under `torch.export`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.amp import autocast_mode
from torch.fx.experimental.proxy_tensor import make_fx

from attncc.expand import expand
from attncc.expand.checkpoint import forget_contexts


def trace(gm: fx.GraphModule, fakes: Sequence[Any], example_inputs: Sequence[Any] = ()) -> fx.GraphModule:
    """The pre-dispatch ATen graph of `gm`; its nodes carry fakes (`meta["val"]`) and the user's `stack_trace`,
    its arguments whether a gradient is to reach them (`meta["requires_grad"]`) and whether they are parameters of the
    model (`meta["parameter"]`).

    `fakes` are the example inputs, all of one FakeTensorMode. A backend takes them from the placeholders'
    `example_value`: the ones it is called with may belong to another mode. `example_inputs`, where given, are those:
    values may be looked at to choose between forms of the same function.
    """
    gm = expand(gm, example_inputs)
    mode: AbstractContextManager[Any] = nullcontext()
    for value in fakes:
        if isinstance(value, FakeTensor):
            mode = value.fake_mode
    with mode, torch.fx.traceback.preserve_node_meta():
        interpreter = _Interpreter(gm)
        traced: fx.GraphModule = make_fx(
            lambda *args: interpreter.run(*args), pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True
        )(*fakes)
    forget_contexts(traced)
    placeholders = (n for n in traced.graph.nodes if n.op == "placeholder")
    for node, value in zip(placeholders, fakes, strict=False):
        node.meta["requires_grad"] = torch.is_grad_enabled() and getattr(value, "requires_grad", False)
        node.meta["parameter"] = isinstance(value, torch.nn.Parameter)
    if isinstance(mode, FakeTensorMode):
        _adopt_constants(traced, mode)
    return traced


def _adopt_constants(traced: fx.GraphModule, mode: FakeTensorMode) -> None:
    """Give constants made in the graph, such as `torch.tensor(3.0)`, fakes of the inputs' mode; make_fx has its own."""
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor) and value.fake_mode is not mode:
            with mode:
                node.meta["val"] = torch.empty_strided(
                    value.size(), value.stride(), dtype=value.dtype, device=value.device
                )


class _Interpreter(fx.Interpreter):
    """Runs a graph for the tracer, which records autocast regions but leaves entering them to the caller.

    Entered for real, they give the fakes inside and behind them the dtypes that they will have.
    """

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is autocast_mode._enter_autocast:
            device, dtype, enabled, cache = args
            return autocast_mode.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache).__enter__()
        if target is autocast_mode._exit_autocast:
            return args[0].__exit__(None, None, None)
        return super().call_function(target, args, kwargs)
