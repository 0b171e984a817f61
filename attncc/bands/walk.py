"""The operators before a product run on cells in the place of numbers, in the order of the program.

Views of cells are views, and what is written to one is seen in all: PyTorch does that. Where an operator's result is a
view on the original only (`as_strided`, whose strides mean nothing here), writing to its memory later is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from attncc.bands.axes import Axes, Dims, MustBeConcrete, MustSplit, Part, lengths
from attncc.bands.cells import Cells, Product
from attncc.convert.context import shape_of
from attncc.convert.effects import functional, storages, written
from attncc.passes.refused import Refused
from attncc.replay import elements_read

_TRIES = 256
"""Walks over the axes; every one teaches the next that an axis has to be concrete or split."""


@dataclass
class Value:
    """The cells of a value and what its dimensions are made of."""

    cells: Tensor
    dims: Dims


class Unknown(Exception):
    """An operator, or a use of it, that is not followed: what it makes is a value of its own."""


Rule = Callable[["Walk", fx.Node], "Value | list[Value]"]
RULES: dict[str, Rule] = {}
"""By the operator's full name without its in-place underscore."""


def follows(*names: str) -> Callable[[Rule], Rule]:
    """Register what the operators `names` do to cells."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


@dataclass
class Walk:
    """One walk over `nodes`, an operator after the other."""

    nodes: Sequence[fx.Node]
    axes: Axes
    cells: Cells
    values: dict[fx.Node, Value | list[Value]] = field(default_factory=dict)
    unseen: set[int] = field(default_factory=set)
    """Memory of which there is a view that the cells do not know as one."""

    def run(self) -> None:
        """Raises Refused, and what an axis has to be for another walk."""
        for node in self.nodes:
            if isinstance(node.meta.get("val"), Tensor | list | tuple):
                self._step(node)
        for block in self.cells.blocks:
            summed = block.made.summed if isinstance(block.made, Product) else ()
            self.axes.check_distinct((*block.dims, summed))
        for value in self.values.values():
            if isinstance(value, Value):
                self.axes.check_distinct(value.dims)

    def value(self, argument: Any) -> Value:
        """The cells of a tensor argument, or of a number. Raises Unknown."""
        if isinstance(argument, bool | int | float):
            return Value(self.cells.filled((), argument), ())
        found = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if not isinstance(found, Value):
            raise Unknown
        return found

    def meet(self, *parts: Part) -> Part:
        """The dimension in which those of several values meet."""
        result: Part = ()
        for part in parts:
            result = self.axes.join(result, part)
        return result

    def fresh(self, node: fx.Node, shape: Sequence[Any] | None = None) -> Dims:
        """Axes for every dimension of what a node makes."""
        sizes = shape_of(node.meta["val"]) if shape is None else shape
        return tuple(self.axes.fresh(f"{node.name}:{p}", size) for p, size in enumerate(sizes))

    def _step(self, node: fx.Node) -> None:
        rule = RULES.get(functional(str(node.target)))
        targets = written(node)
        try:
            if rule is None or len(targets) > 1:
                raise Unknown
            made = rule(self, node)
        except Unknown:
            made = self._unknown(node)
        for target in targets:
            self._write(node, target, made)
        if targets:
            if len(targets) == 1 and targets[0] in self.values and node.meta["val"] is not None:
                self.values[node] = self.values[targets[0]]
            return
        self.values[node] = self._kept_apart(node, made)

    def _unknown(self, node: fx.Node) -> Value | list[Value]:
        """A value, or several, of which nothing is known but the name."""
        fake = node.meta["val"]
        if isinstance(fake, Tensor):
            dims = self.fresh(node)
            return Value(self.cells.block(node, dims, None), dims)
        return []

    def _write(self, node: fx.Node, target: fx.Node, made: Value | list[Value]) -> None:
        """`made` is written to the elements of `target`."""
        known = self.values.get(target)
        if not isinstance(known, Value) or not isinstance(made, Value):
            raise Refused(f"{node.target} writes to a tensor that is not followed")
        keys = set(storages(target.meta["val"]))
        if keys & self.unseen:
            raise Refused(f"{node.target} writes to memory that overlapping views show, too")
        for other, value in self.values.items():
            if keys & set(storages(other.meta["val"])) and not _alike(value, known):
                raise Refused(f"{node.target} writes to a tensor that is not followed")
        offset = len(known.dims) - len(made.dims)
        for p, part in enumerate(made.dims):
            if lengths((self.meet(known.dims[offset + p], part),)) != lengths((known.dims[offset + p],)):
                raise Refused(f"{node.target} writes a larger tensor to a smaller one")
        known.cells.copy_(made.cells)

    def _kept_apart(self, node: fx.Node, made: Value | list[Value]) -> Value | list[Value]:
        """What a node makes, as a view of what it is made of where it is one on the original, and else by itself."""
        if not isinstance(made, Value):
            return made
        keys = set(storages(node.meta["val"]))
        for read in node.all_input_nodes:
            known = self.values.get(read)
            for value in known if isinstance(known, list) else [known] if known is not None else []:
                shared, alias = bool(keys & set(storages(read.meta["val"]))), _alias(made.cells, value.cells)
                if shared and not alias:
                    self.unseen |= keys
                elif alias and not shared:
                    made = Value(made.cells.clone(), made.dims)
        return made


def _alike(value: Value | list[Value], known: Value) -> bool:
    return all(_alias(v.cells, known.cells) for v in (value if isinstance(value, list) else [value]))


def _alias(a: Tensor, b: Tensor) -> bool:
    return bool(torch._C._is_alias_of(a, b))


def before(target: fx.Node) -> list[fx.Node]:
    """The nodes that `target` is made of as far as they are followed, in order, with all that is written to them."""
    order: list[fx.Node] = list(target.graph.nodes)
    earlier = order[: order.index(target)]
    needed, stack = {target}, [target]
    while stack:
        while stack:
            node = stack.pop()
            if functional(str(node.target)) in RULES:
                fresh = {n for n in elements_read(node) if isinstance(n.meta.get("val"), Tensor | list | tuple)}
                stack += fresh - needed
                needed |= fresh
        memory = {key for n in needed for key in storages(n.meta.get("val"))}
        writers = [
            n
            for n in earlier
            if n not in needed and any(key in memory for w in written(n) for key in storages(w.meta.get("val")))
        ]
        needed |= {*writers, *(w for n in writers for w in written(n))}
        stack += writers + [w for n in writers for w in written(n)]
    return [n for n in order if n in needed]


def walked(target: fx.Node) -> Walk:
    """The cells of everything that `target` is made of. Raises Refused."""
    nodes, axes = before(target), Axes()
    for _ in range(_TRIES):
        try:
            Walk(nodes, axes, Cells("meta")).run()
            walk = Walk(nodes, axes.again(MustBeConcrete(())), Cells("cpu"))
            walk.run()
            return walk
        except (MustBeConcrete, MustSplit) as problem:
            axes = axes.again(problem)
    raise Refused("the axes of scores and weights are cut in too many ways")
