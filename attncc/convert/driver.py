"""The walk over an FX graph: every node converted in order, with in-place changes made into new values.

A pre-dispatch graph mutates. A tensor that an operator writes to gets a new IR value from there on: the operator's own
functional form where the whole tensor is written (`scores.masked_fill_(…)`), else an Opaque one; so do all tensors that
share its storage. The IR itself is free of effects; `Source.expires` says until where in the program an FX node still
holds the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from attncc import ir
from attncc.bands.terms import Band
from attncc.convert.attention import is_attention
from attncc.convert.bands import plain
from attncc.convert.context import (
    LOWERINGS,
    Context,
    Unsupported,
    as_dtype,
    dtype_name,
    kept_dtype_name,
    map_node,
    shape_of,
    space,
)
from attncc.convert.effects import functional, modes, storages, written
from attncc.convert.sizes import fix_attention_sizes, hints, sizes_at_hand
from attncc.symbolic import Dim, dim, equal


@dataclass
class Source:
    """Where an IR value is in the FX graph: as `node`, before the node number `expires` (None: for ever)."""

    node: fx.Node
    position: int
    expires: int | None = None


@dataclass(frozen=True)
class Converted:
    """An IR graph and, by the name of a value, the FX node that holds it."""

    graph: ir.Graph
    sources: Mapping[str, Source]
    positions: Mapping[fx.Node, int]
    sizes: Mapping[Dim, list[tuple[fx.Node, int | None]]]
    """Where a symbolic size is at hand: as a node that is a SymInt, and as a dimension of an input."""
    fences: tuple[int, ...]
    """Positions at which a mode of PyTorch (gradients, autocast) changes."""
    bands: Mapping[fx.Node, Band]
    """The nodes that are attention in another layout than the one they stand in the graph for."""


@dataclass
class _Driver:
    bands: Mapping[fx.Node, Band]
    context: Context = field(init=False)
    current: dict[fx.Node, str] = field(default_factory=dict)
    stale: dict[fx.Node, tuple[str, str, str]] = field(default_factory=dict)
    sharing: dict[int, list[fx.Node]] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    positions: dict[fx.Node, int] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    fences: list[int] = field(default_factory=list)
    here: int = 0

    def __post_init__(self) -> None:
        self.context = Context(self.value_of)

    def value_of(self, node: fx.Node) -> ir.Node:
        """The value that reading `node` gives now."""
        if node in self.stale:
            before, changer, change = self.stale.pop(node)
            name = f"{node.name}.{self.here}"
            old = self.context.nodes[before]
            axes, dims = space(old.shape)
            note = f"changed in place by {changer}"
            self.context.add(ir.Opaque(name, old.dtype, axes, dims, "changed", (before, change), note))
            self.current[node] = name
            self.sources[name] = Source(node, self.here - 1)
        return self.context.nodes[self.current[node]]

    def run(self, gm: fx.GraphModule) -> Converted:
        for number, node in enumerate(gm.graph.nodes):
            self.here = self.positions[node] = number
            self.convert(gm, node)
        gone = frozenset(name for name, source in self.sources.items() if source.expires is not None)
        graph = ir.Graph(self.context.nodes, tuple(dict.fromkeys(self.roots)), "convert", hints(gm), gone)
        return Converted(
            graph.without_dead(), self.sources, self.positions, sizes_at_hand(gm), tuple(self.fences), self.bands
        )

    def convert(self, gm: fx.GraphModule, node: fx.Node) -> None:
        """Convert one node and note what it does to memory."""
        value = node.meta.get("val")
        if node.op == "output":
            self.roots += [self.value_of(n).name for n in node.all_input_nodes if n in self.current]
            return
        if isinstance(value, torch.SymInt):
            return  # sizes are expressions, not values
        if node.op in ("placeholder", "get_attr"):
            made: ir.Node = self.input(gm, node, value)
        else:
            made = self.operator(node, value)
        self.context.add(made)
        self.bind(node, made.name)
        for target in written(node):
            self.write(node, target, made)
        if modes(node):
            self.fences.append(self.here)
        if self.is_effect(node):
            self.roots.append(made.name)

    def bind(self, node: fx.Node, name: str) -> None:
        """Let `node` stand for an IR value, and remember what shares its storage."""
        self.current[node] = name
        self.sources.setdefault(name, Source(node, self.here))
        for key in storages(node.meta.get("val")):
            self.sharing.setdefault(key, []).append(node)

    def input(self, gm: fx.GraphModule, node: fx.Node, value: Any) -> ir.Node:
        """An argument or attribute of the graph."""
        if node.op == "get_attr" and not isinstance(value, torch.Tensor):
            value = getattr(gm, str(node.target), None)
            if isinstance(value, torch.Tensor):
                node.meta["val"] = value
        if node.op == "get_attr":
            number = literal(gm, node)
            if number is not None:
                return ir.Const(node.name, dtype_name(value.dtype), value=number)
        parameter = bool(node.meta.get("parameter")) or isinstance(value, torch.nn.Parameter)
        return self.typed(ir.Input, node, value, parameter=parameter)

    def typed(self, kind: type[ir.Node], node: fx.Node, value: Any, **fields: Any) -> ir.Node:
        """A node of `kind` with the type of a fake value; what is no tensor of known dtype has dtype "none"."""
        if isinstance(value, torch.SymFloat | float):
            return ir.Input(node.name, "float64", number=True)
        if not isinstance(value, torch.Tensor):
            return kind(node.name, "none", **fields)
        axes, dims = space(shape_of(value))
        try:
            return kind(node.name, kept_dtype_name(value.dtype), axes, dims, **fields)
        except Unsupported:
            return kind(node.name, "none", axes, dims, **fields)

    def operator(self, node: fx.Node, value: Any) -> ir.Node:
        """The node's own form, or an Opaque one."""
        if isinstance(value, torch.SymFloat):
            return self.typed(ir.Input, node, value)
        name = str(node.target)
        before = set(self.context.nodes)
        try:
            lowering = LOWERINGS.get(functional(name))
            if lowering is None:
                raise Unsupported("")
            made = plain(self.context, self.bands[node]) if node in self.bands else lowering(self.context, node)
            self.check(node, made, value)
            return made
        except Unsupported as reason:
            for extra in set(self.context.nodes) - before:
                if not extra.rsplit(".", 1)[-1].isdigit():  # values that reading made stay
                    del self.context.nodes[extra]
            return self.opaque(node, value, str(reason))

    def opaque(self, node: fx.Node, value: Any, note: str) -> ir.Node:
        """Whatever the node does, on values."""
        reads = tuple(self.value_of(n).name for n in node.all_input_nodes if n in self.current)
        if note and not is_attention(node.target) and "dropout" not in note and "dropout" not in str(node.target):
            note = note[:80]
        return self.typed(ir.Opaque, node, value, op=str(node.target).replace("(", "[").replace(")", "]"),
                          operands=reads, note=note.replace("\n", " "))  # fmt: skip

    @staticmethod
    def check(node: fx.Node, made: ir.Node, value: Any) -> None:
        """The converted value has the shape and dtype that PyTorch says. A lowering that is wrong is not used."""
        shape = shape_of(value)
        right = len(shape) == len(made.shape) and all(map(equal, shape, made.shape))
        if not right or made.dtype != kept_dtype_name(value.dtype):
            raise Unsupported(f"conversion gave {made.dtype}{list(made.shape)} for {value.dtype}{list(shape)}")

    def is_effect(self, node: fx.Node) -> bool:
        """Whether running the node matters beyond its value: a write to memory from outside, a change of modes."""
        if node.op != "call_function":
            return bool(node.op == "call_module")
        targets = written(node)
        if not targets:
            return bool(node.is_impure(impure_random=False))
        shared = [n for t in targets for key in storages(t.meta.get("val")) for n in self.sharing.get(key, [])]
        return not shared or any(n.op != "call_function" for n in shared)

    def write(self, node: fx.Node, target: fx.Node, made: ir.Node) -> None:
        """`node` has written to `target`: every tensor of that storage has a new value."""
        for key in storages(target.meta.get("val")):
            for other in self.sharing.get(key, []):
                if other is node:
                    continue
                name = self.current[other]
                if other not in self.stale:
                    for known in self.sources.values():
                        if known.node is other and known.expires is None and known.position < self.here:
                            known.expires = self.here
                    self.stale[other] = (name, str(node.target), made.name)
                known_shape = self.context.nodes[name].shape
                if _is_alias(other, target) and not isinstance(made, ir.Opaque) and made.shape == known_shape:
                    self.stale.pop(other)
                    self.current[other] = made.name


def _is_alias(other: fx.Node, target: fx.Node) -> bool:
    """Whether two tensors of one storage are the same elements in the same order, as x[:] and x are."""
    if other is target:
        return True
    a, b = other.meta["val"], target.meta["val"]
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)) or a.dtype != b.dtype or a.ndim != b.ndim:
        return False  # an operator with several results shares memory with each of them
    left, right = ((*t.shape, *t.stride(), t.storage_offset()) for t in (a, b))
    return all(equal(dim(x), dim(y)) for x, y in zip(left, right, strict=True))


def literal(gm: fx.GraphModule | None, node: fx.Node) -> float | int | bool | None:
    """The number in a tensor that the traced code wrote out, `torch.tensor(-1e9)`; None for every other attribute.

    The graph copies those before it uses them, so that what it writes to the copy leaves them as they are.
    """
    tensor: Any = getattr(gm, str(node.target), None)
    if tensor is None or type(tensor) is not torch.Tensor or tensor.ndim or tensor.device.type != "cpu":
        return None
    if any(str(user.target) != "aten.lift_fresh_copy.default" for user in node.users):
        return None
    number: float | int | bool = tensor.item()
    return number if isinstance(number, float | int) else None


def convert(gm: fx.GraphModule, bands: Mapping[fx.Node, Band] | None = None) -> Converted:
    """The IR of a pre-dispatch ATen graph whose nodes carry fake values. Never refuses: what is unknown is Opaque.

    Nodes that were proved to be attention over `bands` of keys are that attention, whatever they are made of.
    """
    fix_attention_sizes(gm)
    return _Driver(bands or {}).run(gm)


def _copy(c: Context, node: fx.Node) -> ir.Node:
    """`copy_`: the target becomes the source, broadcast and cast."""
    target = node.meta["val"]
    dtype = dtype_name(target.dtype)
    return map_node(c, node.name, target, [c.value(node.args[1])], lambda x: as_dtype(x, dtype))


LOWERINGS["attncc.copy"] = _copy
