"""Captures a function as `torch.compile` would and runs what comes out by the float64 oracle, no kernel involved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from attncc import reference
from attncc.rewrite import Found, History, rewrite
from attncc.spec import AttentionSpec
from attncc.tracer import trace

OPERATORS = (torch.ops.attncc.attention.default, torch.ops.attncc.attention_outputs.default)


class OracleInterpreter(fx.Interpreter):
    """Runs a rewritten graph with every attention done by `attncc.reference`, in the layout that it promises."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in OPERATORS:
            return super().call_function(target, args, kwargs)
        q, k, v, extras, scalars, integers, text, layout = args
        assert q.ndim == k.ndim == v.ndim == 4
        spec = AttentionSpec.from_json(text)
        given = reference.outputs(spec, q, k, v, extras, scalars, integers)
        compute = torch.float64 if spec.dtype == "float64" else torch.float32
        results = [given[o].to(compute if o in ("max", "sum") else q.dtype).contiguous() for o in spec.outputs]
        if layout == "bshd":
            results[0] = results[0].transpose(1, 2).contiguous().transpose(1, 2)
        return results[0] if target is OPERATORS[0] else results


@dataclass
class Capture:
    """What was found in a function, what the rewritten function gives, and the graphs."""

    result: Any = None
    found: list[Found] = field(default_factory=list)
    again: Any = None
    """The result for other inputs, where asked for."""
    graphs: list[fx.GraphModule] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)

    @property
    def fused(self) -> list[Found]:
        return [f for f in self.found if f.fused]

    @property
    def reasons(self) -> list[str]:
        return [f.reason for f in self.found if not f.fused]

    def attentions(self) -> list[fx.Node]:
        return [n for g in self.graphs for n in g.graph.nodes if n.target in OPERATORS]


def capture(
    function: Callable[..., Any],
    args: Sequence[Any],
    *,
    again: Sequence[Any] | None = None,
    dynamic: bool = False,
    grad: bool = False,
    **kwargs: Any,
) -> Capture:
    """Compile `function` for these inputs, call it (and with `again`, once more) and return everything to be seen."""
    seen = Capture()

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        fakes = [n.meta["example_value"] for n in gm.graph.nodes if n.op == "placeholder"]
        out, found, history = rewrite(trace(gm, fakes, inputs))
        seen.found += found
        seen.graphs.append(out)
        seen.histories.append(history)
        return lambda *inputs: OracleInterpreter(out).run(*inputs)

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        compiled = torch.compile(function, backend=backend, dynamic=dynamic)
        seen.result = compiled(*args, **kwargs)
        if again is not None:
            seen.again = compiled(*again, **kwargs)
    return seen


def capture_directly(
    function: Callable[..., Any],
    args: Sequence[Tensor],
    *,
    again: Sequence[Tensor] | None = None,
    dynamic: bool | Collection[int] = False,
    verify: bool = True,
) -> Capture:
    """As `capture`, without Dynamo: several times faster, for tests that go through many programs.

    `dynamic` says which sizes are symbols: all, none, or those of these numbers; `verify`, whether sites are replayed.
    """
    return rewritten(traced(function, args, dynamic), args, again=again, verify=verify)


def traced(
    function: Callable[..., Any], args: Sequence[Tensor], dynamic: bool | Collection[int] = False
) -> fx.GraphModule:
    """The graph that the backend would get, in ATen operators. `dynamic` as in `capture_directly`."""

    def symbols(tensor: Tensor) -> StatelessSymbolicContext[Any, Any]:
        chosen = tensor.shape if dynamic is True else dynamic or ()
        kinds = [DimDynamic.DUCK if size in chosen else DimDynamic.STATIC for size in tensor.shape]
        return StatelessSymbolicContext(dynamic_sizes=kinds)

    # The cache of fake results costs more than it saves where every program is traced once.
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        fakes = [
            mode.from_tensor(a, symbolic_context=symbols(a), source=ConstantSource(f"x{n}")) for n, a in enumerate(args)
        ]
        with torch.no_grad(), mode:
            return make_fx(function, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)


def rewritten(
    gm: fx.GraphModule, args: Sequence[Tensor], *, again: Sequence[Tensor] | None = None, verify: bool = True
) -> Capture:
    """What is found in a graph, which is changed, and what it then gives."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        out, found, history = rewrite(gm, verify=verify)
    seen = Capture(OracleInterpreter(out).run(*args), found, graphs=[out], histories=[history])
    if again is not None:
        seen.again = OracleInterpreter(out).run(*again)
    return seen


def assert_same(actual: Any, expected: Any, *, tolerance: float = 1e-5) -> None:
    """Equal values (NaN for NaN), shapes, dtypes and strides, in tensors and tuples of them."""
    if isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        meaningful = [p for p, n in enumerate(expected.shape) if n != 1]
        assert [actual.stride(p) for p in meaningful] == [expected.stride(p) for p in meaningful]
        scale = 1 + expected.double().nan_to_num(0).abs().max().item() if expected.numel() else 1
        loose = {torch.bfloat16: 4e-2, torch.float16: 5e-3}.get(expected.dtype, tolerance)
        torch.testing.assert_close(actual, expected, atol=loose * scale, rtol=loose, equal_nan=True)
    elif isinstance(expected, tuple | list):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, tolerance=tolerance)
    else:
        assert actual == expected
