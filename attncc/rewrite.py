"""The whole of capture: an ATen graph in, the same graph with its attention fused out, and what was found in it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from attncc import ir, replay
from attncc.convert import Converted, convert, fix_divided_sizes
from attncc.emit import emit
from attncc.emitter import Emitter
from attncc.locate import location
from attncc.passes import PASSES
from attncc.passes.fuse_attention import fuse_attention
from attncc.passes.near_misses import near_misses
from attncc.passes.refused import Refused
from attncc.prune import prune
from attncc.spec import AttentionSpec
from attncc.symbolic import Dim, product, value
from attncc.verify import verify as verify_graph

log = logging.getLogger("attncc")
History = list[tuple[str, str]]
_REPLAYED: dict[Any, str | None] = {}
"""Results by everything that a replay depends on: the layers of a model are alike."""


class UnsoundFusion(UserWarning):
    """A fused site gave other values than the original on the replay's inputs: it runs as PyTorch runs it."""


@dataclass
class Found:
    """One attention of a graph, or one softmax between two products that is none (`fused` False, `reason`)."""

    fused: bool
    location: str
    """`file.py:12` of the user's code, or "" where that is not known."""
    source: str
    """That line."""
    reason: str = ""
    spec: AttentionSpec | None = None
    sizes: dict[str, int | str] = field(default_factory=dict)
    """B, H, Sq and Skv; symbolic ones by name."""
    size_hints: dict[str, int] = field(default_factory=dict)
    """The same, symbols replaced by their example values."""
    device: str = "cpu"
    requires_grad: bool = False
    unsound: str = ""
    """What the replay saw, where it refused the site."""


def rewrite(aten: fx.GraphModule, *, verify: bool = True) -> tuple[fx.GraphModule, list[Found], History]:
    """Fuse the attention of a pre-dispatch ATen graph, in place.

    Returns the graph, what was found in the order of the program, and the IR after every pass. `verify` says whether
    fused sites are replayed against the original; the IR is verified always. A graph without attention is unchanged.
    """
    order = {node.name: n for n, node in enumerate(aten.graph.nodes)}
    found, history = _attempt(aten, verify)
    missed = not all(f.fused for f in found.values()) or (not found and _has_softmax(aten))
    if missed and fix_divided_sizes(aten):
        again, history = _attempt(aten, verify)
        found = {**{name: f for name, f in found.items() if f.fused}, **again}
    for site in found.values():
        if site.unsound:
            warnings.warn(
                f"{site.location}: {site.unsound}; the fused attention is not used", UnsoundFusion, stacklevel=2
            )
    return aten, [found[name] for name in sorted(found, key=lambda n: order.get(n, len(order)))], history


def _has_softmax(aten: fx.GraphModule) -> bool:
    softmax = (torch.ops.aten.softmax.int, torch.ops.aten._softmax.default, torch.ops.aten.exp.default)
    return any(node.target in softmax for node in aten.graph.nodes)


def _attempt(aten: fx.GraphModule, verify: bool) -> tuple[dict[str, Found], History]:
    """One walk through all passes; what was found, by the name of the FX node."""
    converted = convert(aten)
    graph = converted.graph
    history: History = [("convert", str(graph))]
    verify_graph(graph)
    before = graph
    for run in PASSES:
        before = graph if run is fuse_attention else before
        graph = run(graph)
        verify_graph(graph)
        history.append((run.__name__, str(graph)))
    found: dict[str, Found] = {}
    differentiable = _differentiable(aten)
    for node in graph:
        if isinstance(node, ir.Attention):
            grad = converted.sources[node.name].node in differentiable
            site = _fuse(aten, converted, node, graph.hints, verify)
            site.requires_grad = grad
            found[node.name] = site
    for name, reason in near_misses(before, graph):
        anchor = converted.sources[name].node
        found[name] = Found(False, *location(anchor), reason=reason)
    if any(f.fused for f in found.values()):
        prune(aten)
        aten.graph.lint()
        aten.recompile()
    return found, history


def _differentiable(aten: fx.GraphModule) -> set[fx.Node]:
    """The nodes that depend on an argument to which a gradient is to flow."""
    reached: set[fx.Node] = set()
    for node in aten.graph.nodes:
        if node.meta.get("requires_grad") or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _fuse(
    aten: fx.GraphModule, converted: Converted, node: ir.Attention, hints: Mapping[str, int], verify: bool
) -> Found:
    """Put one Attention into the graph, if it stands the replay."""
    anchor = converted.sources[node.name].node
    value_ = anchor.meta["val"]
    site = Found(True, *location(anchor), spec=node.spec, device=value_.device.type)
    axes = dict(node.axes)
    for name, role in {"B": "b", "H": "h", "Sq": "i", "Skv": "j"}.items():
        size: Dim = product(axes[a] for a in dict(node.roles)[role])
        site.sizes[name] = size if isinstance(size, int) else str(size)
        site.size_hints[name] = value(size, hints) or 1
    emitter = Emitter(converted, anchor)
    try:
        _check_modes(converted, node, anchor)
        result = emit(emitter, node)
        if verify:
            _replay(emitter, node, result, site)
    except Refused as refused:
        emitter.undo()
        site.fused, site.reason = False, refused.reason
        return site
    _require(aten, node)
    anchor.replace_all_uses_with(result)
    converted.sources[node.name].node = result  # what reads the output directly reads it here from now on
    return site


def _check_modes(converted: Converted, node: ir.Attention, anchor: fx.Node) -> None:
    """Raises Refused where gradients or autocast are switched between the score and the output."""
    names = {name.partition(".")[0] for name in node.covers}
    start = min((p for n, p in converted.positions.items() if n.name in names), default=0)
    if any(start < fence < converted.positions[anchor] for fence in converted.fences):
        raise Refused("a mode of PyTorch (gradients or autocast) changes between the score and the output", node.name)


def _replay(emitter: Emitter, node: ir.Attention, result: fx.Node, site: Found) -> None:
    """Raises Refused where the emitted nodes do not compute what the original does."""
    names = dict.fromkeys(r for r in node.reads)
    leaves = [emitter.value(name) for name in names]
    lengths = [n for n in (site.sizes["Sq"], site.sizes["Skv"]) if isinstance(n, int)]
    try:
        key = _signature(result, emitter.anchor, leaves)
        if key not in _REPLAYED:
            _REPLAYED[key] = replay.differs(result, emitter.anchor, leaves, lengths)
        problem = _REPLAYED[key]
    except replay.TooLarge as error:
        log.debug("%s: not replayed: %s", site.location, error)
        return
    except Exception as error:
        log.debug("%s: replay failed", site.location, exc_info=True)
        raise Refused(f"the replay of the site failed: {type(error).__name__}: {error}", node.name) from error
    if problem is not None:
        site.unsound = f"the replay showed {problem}"
        raise Refused(f"the replay showed {problem}", node.name)


def _signature(result: fx.Node, original: fx.Node, leaves: list[fx.Node]) -> tuple[Any, ...]:
    """All that a replay depends on, names left out."""
    nodes = [*replay.cone(result, leaves), *replay.cone(original, leaves)]
    number: dict[fx.Node, int] = {}
    parts: list[str] = []
    for node in nodes:
        number.setdefault(node, len(number))
        fake = node.meta.get("val")
        kind = f"{fake.dtype}{tuple(map(str, fake.shape))}" if isinstance(fake, torch.Tensor) else str(fake)
        args = fx.map_arg((node.args, node.kwargs), lambda n: number.get(n, -1)) if node.op == "call_function" else ()
        parts.append(f"{node.op if node not in leaves else 'leaf'} {node.target if args else ''} {args} {kind}")
    return tuple(parts)


def _require(aten: fx.GraphModule, node: ir.Attention) -> None:
    """Make the sizes that the spec fixes part of what Dynamo guards on."""
    for size, number in node.static:
        for fake in (n.meta.get("val") for n in aten.graph.nodes):
            symbolic = [
                s for s in (fake.shape if isinstance(fake, torch.Tensor) else ()) if isinstance(s, torch.SymInt)
            ]
            if symbolic:
                symbolic[0].node.shape_env.evaluate_expr(sympy.Eq(size, number), hint=sympy.true)
                break
