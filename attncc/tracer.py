"""Dynamo's FX graph to pre-dispatch ATen: before autograd, and with `scaled_dot_product_attention` still whole.

Source of the method: `torch.fx.experimental.proxy_tensor.make_fx(pre_dispatch=True)`, the tracer under `torch.export`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx


def trace(gm: fx.GraphModule, fakes: Sequence[Any]) -> fx.GraphModule:
    """The pre-dispatch ATen graph of `gm`; its nodes carry fakes (`meta["val"]`) and the user's `stack_trace`.

    `fakes` are the example inputs, all of one FakeTensorMode. A backend takes them from the placeholders'
    `example_value`: the ones it is called with may belong to another mode.
    """
    mode: AbstractContextManager[Any] = nullcontext()
    for value in fakes:
        if isinstance(value, FakeTensor):
            mode = value.fake_mode
    with mode, torch.fx.traceback.preserve_node_meta():
        interpreter = fx.Interpreter(gm)
        traced: fx.GraphModule = make_fx(
            lambda *args: interpreter.run(*args), pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True
        )(*fakes)
    return traced
