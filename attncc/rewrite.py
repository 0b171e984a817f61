"""The whole of capture: an ATen graph in, the same graph with its attention fused out, and what was found in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx

from attncc import ir
from attncc.bands.alike import prove_all
from attncc.bands.terms import Band
from attncc.bodies import bodies
from attncc.convert import Converted, convert, fix_divided_sizes
from attncc.convert.effects import storages, written
from attncc.emit import emit, make, same_strides
from attncc.emitter import Emitter
from attncc.locate import location
from attncc.passes import PASSES
from attncc.passes.near_misses import near_misses
from attncc.passes.refused import Refused
from attncc.prune import prune
from attncc.replay_gradient import cuts_gradients
from attncc.replayed import Unsound, check_gradients, check_values
from attncc.sites import Site, sites
from attncc.softmax_ops import has_softmax
from attncc.spec import AttentionSpec
from attncc.symbolic import Dim, product, value
from attncc.verify import verify as verify_graph

History = list[tuple[str, ir.Graph]]
"""The graph after the conversion and after every pass that changed it."""
Fused = tuple[set[str], list[fx.Node]]
"""What a fused site takes the place of, and what it reads."""


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
    moved: bool = False
    """Whether scores or weights are laid out anew on the way, in a layout that passes do not follow."""
    unsound: str = ""
    """What the replay saw, where it refused the site."""
    node: str = ""
    """The FX node that is the site's result, as it was before the fusion."""
    body: str = ""
    """The path to the graph with that node, where it is one inside of the graph."""


def rewrite(aten: fx.GraphModule, *, verify: bool = True) -> tuple[fx.GraphModule, list[Found], History]:
    """Fuse the attention of a pre-dispatch ATen graph, in place.

    Returns the graph, what was found in the order of the program, and the IR after every pass. `verify` says whether
    fused sites are replayed against the original; the IR is verified always. A graph without attention is unchanged.
    """
    order = {node.name: n for n, node in enumerate(aten.graph.nodes)}
    found, history = _attempt(aten, verify)
    missed = not all(f.fused for f in found.values()) or (not found and has_softmax(aten))
    if missed and fix_divided_sizes(aten):
        again, history = _attempt(aten, verify)
        found = {**{name: f for name, f in found.items() if f.fused}, **again}
    moved = {site.node for site in found.values() if site.moved}
    proofs = prove_all(node for node in aten.graph.nodes if node.name in moved) if moved else {}
    bands = {node: proof for node, proof in proofs.items() if isinstance(proof, Band)}
    if bands:
        again, history = _attempt(aten, verify, bands)
        found = {**{name: f for name, f in found.items() if f.fused}, **again}
    _say_why(found, proofs)
    for site in found.values():
        if site.unsound:
            warnings.warn(
                f"{site.location}: {site.unsound}; the fused attention is not used", UnsoundFusion, stacklevel=2
            )
    placed = [(order[_held(name, order)], site) for name, site in found.items()]
    for caller, name, body in bodies(aten):
        inside, more = _rewrite_body(aten, caller, body, verify)
        placed += [(order[caller.name], replace(site, body=f"{name}.{site.body}".rstrip("."))) for site in inside]
        history += [(f"{name}: {step}", graph) for step, graph in more]
    return aten, [site for _, site in sorted(placed, key=lambda p: p[0])], history


def _say_why(found: Mapping[str, Found], proofs: Mapping[fx.Node, Band | Refused]) -> None:
    """Add to the reasons of sites in another layout what it is that was not proved."""
    reasons = {node.name: proof.reason for node, proof in proofs.items() if isinstance(proof, Refused)}
    for site in found.values():
        if site.moved and site.node in reasons:
            site.reason += f": {reasons[site.node]}"


def _rewrite_body(
    aten: fx.GraphModule, caller: fx.Node, body: fx.GraphModule, verify: bool
) -> tuple[list[Found], History]:
    """Fuse the attention of a graph that an operator of `aten` runs."""
    if caller in _differentiable(aten):
        for node in body.graph.find_nodes(op="placeholder"):
            node.meta["requires_grad"] = True
    _, found, history = rewrite(body, verify=verify)
    return found, history


def _attempt(
    aten: fx.GraphModule, verify: bool, bands: Mapping[fx.Node, Band] | None = None
) -> tuple[dict[str, Found], History]:
    """One walk through all passes; what was found, by the name of the FX node. `bands` are known to be attention."""
    converted = convert(aten, bands)
    graph = converted.graph
    history: History = [("convert", graph)]
    verify_graph(graph)
    for run in PASSES:
        before, graph = graph, run(graph)
        if graph.nodes != before.nodes:
            verify_graph(graph)
            history.append((run.__name__, graph))
    found: dict[str, Found] = {}
    differentiable = _differentiable(aten)
    fused: list[Fused] = []
    missed = {miss.name: miss for miss in near_misses(before, graph, lambda name: _origin(converted, name))}
    for site in sites(graph, converted, missed):
        found |= _fuse(aten, converted, site, graph.hints, verify, differentiable, fused)
    for node in graph:  # after all of them: what becomes a number is still a symbol in the IR
        if isinstance(node, ir.Attention) and found[node.name].fused:
            _require(aten, node)
    for name, miss in missed.items():
        held = _held(name, converted.sources)
        for part in [n for n in found if n != held and _held(n, converted.sources) == held]:
            del found[part]  # of the same sum: it failed because this one did
        original = converted.sources[held].node
        found[held] = Found(False, *location(original), miss.reason, node=original.name, moved=miss.moved)
    if any(f.fused for f in found.values()):
        prune(aten)
        aten.graph.lint()
        aten.recompile()
    return found, history


def _origin(converted: Converted, name: str) -> tuple[str, str]:
    """The operator that makes a value (`aten.pad`) and the line of the program that it stands in."""
    node = converted.sources[_held(name, converted.sources)].node
    return str(node.target).rpartition(".")[0], location(node)[0]


def _held(name: str, known: Mapping[str, Any]) -> str:
    """The value that an FX node holds, of which `name` is a part that a pass made: `matmul` for `matmul.unscaled`."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name


def _differentiable(aten: fx.GraphModule) -> set[fx.Node]:
    """The nodes that depend on an argument to which a gradient is to flow."""
    reached: set[fx.Node] = set()
    for node in aten.graph.nodes:
        if node.meta.get("requires_grad") or any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return reached


def _fuse(
    aten: fx.GraphModule,
    converted: Converted,
    site: Site,
    hints: Mapping[str, int],
    verify: bool,
    differentiable: set[fx.Node],
    fused: list[Fused],
) -> dict[str, Found]:
    """Put the attentions of a site into the graph, if they stand the replay; `fused` are those that did."""
    originals = [converted.sources[name].node for name in site.roots]
    found = {n.name: _found(n, originals[0], hints) for n in site.attentions}
    first, *_, last = sorted([*originals, originals[0]], key=converted.positions.__getitem__)
    emitter = Emitter(converted, first, site.new, make, _start(converted, site))
    try:
        _check_modes(converted, site, last)
        _check_unchanged(aten, originals[1:])
        results = {n: emit(emitter, name, n) for name, n in zip(site.roots, originals, strict=True)}
        leaves = emitter.leaves(site.leaves)
        covers = {name for node in site.attentions for name in node.covers}
        # Behind a site that shares weights with this one, the original reads what that one reads.
        shared = [leaf for other, leaves in fused if other & covers for leaf in leaves]
        reads = list(dict.fromkeys([*leaves, *shared]))
        for original, result in results.items():
            if verify:
                check_values(_lengths(site, converted), original, result, reads)
            if original in differentiable and cuts_gradients(original, reads):
                check_gradients(_lengths(site, converted), original, result, reads)
        fused.append((covers, leaves))
    except Refused as refused:
        emitter.undo()
        for one in found.values():
            one.fused, one.reason = False, refused.reason
            one.unsound = refused.reason if isinstance(refused, Unsound) else ""
        return found
    for name, original in zip(site.roots, originals, strict=True):
        result = results[original]
        original.replace_all_uses_with(result)
        if same_strides(result.meta["val"], original.meta["val"]):
            result.meta["val"] = original.meta["val"]  # views of it are known by the memory that they share
        converted.sources[name].node = result  # what reads the output reads it here from now on
    for one in found.values():
        one.requires_grad = any(o in differentiable for o in originals)
    return found


def _found(node: ir.Attention, original: fx.Node, hints: Mapping[str, int]) -> Found:
    """What there is to say of an attention, for as long as it is fused."""
    found = Found(True, *location(original), spec=node.spec, device=original.meta["val"].device.type)
    found.node = original.name
    for name, role in {"B": "b", "H": "h", "Sq": "i", "Skv": "j"}.items():
        size: Dim = product(node.sizes[a] for a in dict(node.roles)[role])
        found.sizes[name] = size if isinstance(size, int) else str(size)
        found.size_hints[name] = value(size, hints) or 1
    return found


def _check_modes(converted: Converted, site: Site, last: fx.Node) -> None:
    """Raises Refused where gradients or autocast are switched between the score and the output."""
    start = _start(converted, site)
    if any(start < fence < converted.positions[last] for fence in converted.fences):
        raise Refused("a mode of PyTorch (gradients or autocast) changes between the score and the output")


def _start(converted: Converted, site: Site) -> int:
    """Where the first of the nodes stands that a site takes the place of: a score product."""
    names = {name.partition(".")[0] for node in site.attentions for name in node.covers}
    return min((p for n, p in converted.positions.items() if n.name in names), default=0)


def _check_unchanged(aten: fx.GraphModule, further: list[fx.Node]) -> None:
    """Raises Refused where further results of an attention are changed in place."""
    own = {key for node in further for key in storages(node.meta["val"])}
    for node in aten.graph.nodes if own else ():
        if any(key in own for target in written(node) for key in storages(target.meta.get("val"))):
            raise Refused("the attention weights are changed in place after the softmax")


def _lengths(site: Site, converted: Converted) -> list[int]:
    """The sequence lengths of a site that are fixed numbers, and may be others: not where they are cut into chunks."""
    if any(converted.sources[name].node in converted.bands for name in site.roots):
        return []
    sizes = [product(n.sizes[a] for a in dict(n.roles)[role]) for n in site.attentions for role in "ij"]
    return [n for n in sizes if isinstance(n, int)]


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
