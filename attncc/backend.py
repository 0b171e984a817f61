"""The `torch.compile` backend: capture a graph, fuse its attention, hand the rest to the inner compiler.

    torch.compile(model, backend="attncc", mode=None, options={"inner": "eager", "strict": False, "verify": True})

All three ways into attncc meet here: `attncc.compile` and `attncc.explain` call the same `compile_graph`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.utils import detect_fake_mode

from attncc.expand import NotFlat
from attncc.options import Options, disabled
from attncc.report import Site
from attncc.repro import keep
from attncc.rewrite import Found, rewrite
from attncc.runtime import dispatch, op
from attncc.softmax_ops import has_softmax
from attncc.trace_log import record
from attncc.tracer import trace

log = logging.getLogger("attncc")

Compiled = Callable[..., Any]
Observer = Callable[[list[Found], fx.GraphModule], None]
"""Gets what was found in a graph, and that graph as it was before anything was fused."""


class UnfusedAttention(RuntimeError):
    """With `strict=True`: an attention of the model could not be fused. The message gives every reason."""


class InternalError(UserWarning):
    """attncc failed where it should have refused. The graph runs as PyTorch runs it; the failure is a bug of attncc."""


def attncc(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Entry point of `torch.compile(backend="attncc")`.

    Raises ValueError for an unknown mode or option and UnfusedAttention under `strict`.
    """
    return compile_graph(gm, example_inputs, Options.parse(mode, options))


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, observe: Observer | None = None
) -> Compiled:
    """Compile one graph of Dynamo; `observe` receives what was found in it, fused or not."""
    if disabled():
        return _forward(gm)
    if options.database is not None:
        dispatch.use_database(options.database)
    fused, found = _fuse(gm, example_inputs, options, observe)
    if options.strict:
        check_fused(found)
    if options.inner == "inductor":
        return _inductor(fused, example_inputs)
    return _forward(_called_directly(fused))


def check_fused(found: Sequence[Found | Site]) -> None:
    """Raise UnfusedAttention, with every reason, where something was not fused."""
    unfused = [f"{site.location}: {site.reason}" for site in found if not site.fused]
    if unfused:
        raise UnfusedAttention("attention left unfused under strict=True:\n  " + "\n  ".join(unfused))


def _called_directly(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with its attention called past torch's dispatcher where nothing there has a say: 3 µs less a call."""
    for node in gm.graph.nodes:
        node.target = op.DIRECT.get(node.target, node.target)
    gm.recompile()
    return gm


def _forward(gm: fx.GraphModule) -> Compiled:
    forward: Compiled = gm.forward
    return forward


def _fuse(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, observe: Observer | None
) -> tuple[fx.GraphModule, list[Found]]:
    """The graph with its attention fused; `gm` itself where there is none."""
    try:
        aten = trace(gm, example_values(gm, example_inputs), example_inputs)
        before = keep(aten) if observe is not None else aten
        fused, found, history = rewrite(aten, verify=options.verify)
        record(history, found)
        if observe is not None:
            observe(found, before)
    except NotFlat as reason:
        log.info("a graph is left to PyTorch: %s", reason)
        return gm, []
    except Exception as error:
        if options.strict:
            raise
        warnings.warn(
            f"attncc failed to compile a graph ({type(error).__name__}: {error}); it runs as PyTorch runs it. "
            "This is a bug of attncc: please report it with the model.",
            InternalError,
            stacklevel=2,
        )
        log.debug("internal error", exc_info=True)
        return gm, []
    return (fused if any(site.fused for site in found) else gm), found


def example_values(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> list[Any]:
    """The inputs of a graph as Dynamo saw them: fakes of one mode, symbolic sizes included.

    What a backend receives as example inputs may be real tensors or fakes of another mode; the placeholders' own
    values never are.
    """
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    recorded = [n.meta.get("example_value", n.meta.get("val")) for n in placeholders]
    if all(v is not None for v in recorded):
        return recorded
    mode = detect_fake_mode(example_inputs)
    if mode is not None:
        return list(example_inputs)
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    return [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in example_inputs]


def _inductor(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
    """Hand a graph to Inductor, which must not fuse again what was refused.

    Inductor's SDPA patterns match softmax over any axis. They belong to its pattern matcher and have no switch of
    their own, so a graph in which a softmax is left is compiled without the matcher.
    """
    from torch._inductor.compile_fx import compile_fx

    patches = {"pattern_matcher": False} if has_softmax(gm) else {}
    compiled: Compiled = compile_fx(gm, list(example_inputs), config_patches=patches)
    return compiled


def _reset() -> None:
    """Called by `torch._dynamo.reset()`: forget the counters; kernels stay, they do not depend on a model."""
    from attncc.runtime import stats

    stats.stats(reset=True)


attncc.reset = _reset  # type: ignore[attr-defined]
