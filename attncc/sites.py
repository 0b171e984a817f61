"""The places of a graph at which attentions are put: each with the values that are made of them and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from attncc import expr as ex
from attncc import ir
from attncc.convert import Converted


@dataclass(frozen=True)
class Site:
    """Attentions that stand or fall together: the difference of two, or one with its weights."""

    attentions: tuple[ir.Attention, ...]
    roots: tuple[str, ...]
    """The values made here that FX nodes hold, the attentions' own results first."""
    new: Mapping[str, ir.Node]
    """All nodes that FX nodes have to be made for."""

    @property
    def leaves(self) -> tuple[str, ...]:
        """The values that are read here and made elsewhere."""
        found: dict[str, None] = {}
        stack, seen = list(self.roots), set(self.roots)
        while stack:
            for name in self.new[stack.pop()].reads:
                if name not in self.new:
                    found[name] = None
                elif name not in seen:
                    seen.add(name)
                    stack.append(name)
        return tuple(found)


def sites(graph: ir.Graph, converted: Converted, missed: Collection[str]) -> list[Site]:
    """Every attention of the graph in exactly one site. Products that were `missed` are not made anew beside one."""
    made = {
        n.name: n
        for n in graph
        if n.name not in converted.sources
        and n.name not in missed
        and isinstance(n, ir.Map | ir.View | ir.Concat | ir.Contract)
        and (n.name not in converted.graph.nodes or _is_part(n, converted))
    }
    found: list[Site] = []
    for node in graph:
        if not isinstance(node, ir.Attention):
            continue
        roots, path = _roots(node, graph, converted)
        attentions = [node]
        for other in [s for s in found if set(s.roots) & set(roots)]:
            found.remove(other)
            attentions = [*other.attentions, *attentions]
            roots, path = {**dict.fromkeys(other.roots), **roots}, {**other.new, **path}
        order = sorted(roots, key=lambda r: not isinstance(path[r], ir.Attention))
        found.append(Site(tuple(attentions), tuple(order), {**made, **path}))
    return found


def _is_part(node: ir.Node, converted: Converted) -> bool:
    """Whether a value is a projection before its bias is added, whose sum an attention may read in parts, or an
    operand of it that autocast casts.

    Where PyTorch's modes change, it might be made in another one than the program makes it in.
    """
    cast = isinstance(node, ir.Map) and isinstance(node.body, ex.Op) and node.body.name == "cast"
    return (cast or isinstance(node, ir.Contract)) and not converted.fences


def _roots(node: ir.Node, graph: ir.Graph, converted: Converted) -> tuple[dict[str, None], dict[str, ir.Node]]:
    """The nearest values behind an attention that FX nodes hold, and what lies between."""
    roots: dict[str, None] = {}
    path: dict[str, ir.Node] = {}
    stack = [node]
    while stack:
        current = stack.pop()
        path[current.name] = current
        held = current.name in converted.sources
        if held:
            roots[current.name] = None
        users = graph.users(current.name)
        stack += [u for u in users if u.name not in path and (not held or isinstance(u, ir.Output))]
    return roots, path
