"""Take out of an FX graph what nothing uses any more, in-place operators on dead memory included."""

from __future__ import annotations

from torch import fx

from attncc.convert.attention import is_attention
from attncc.convert.driver import storages, written


def prune(gm: fx.GraphModule) -> None:
    """Remove dead nodes. Nodes with effects stay, unless all they change is memory that only dead nodes see."""
    while _sweep(gm.graph) or _drop_dead_memory(gm.graph):
        pass


def _sweep(graph: fx.Graph) -> bool:
    removed = False
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr") and not _has_effect(node):
            graph.erase_node(node)
            removed = True
    return removed


def _has_effect(node: fx.Node) -> bool:
    """Whether a node matters though nothing reads it. A random operator does, for the numbers that come after it."""
    if node.op != "call_function":
        return False
    if str(node.target) == "aten.dropout.default" and (node.args[1] == 0 or not node.args[2]):
        return False
    if is_attention(node.target) and not (node.kwargs.get("dropout_p") or any(node.args[4:5])):
        return False
    return bool(node.is_impure()) or bool(written(node))


def _drop_dead_memory(graph: fx.Graph) -> bool:
    """Remove the nodes of one storage that is made here, written to, and read by none but its own nodes."""
    sharing: dict[int, set[fx.Node]] = {}
    for node in graph.nodes:
        for key in storages(node.meta.get("val")):
            sharing.setdefault(key, set()).add(node)
    for nodes in sharing.values():
        writers = {n for n in nodes if written(n)}
        made_here = all(n.op == "call_function" and (n in writers or not _has_effect(n)) for n in nodes)
        if writers and made_here and all(u in nodes for n in nodes for u in n.users):
            for node in sorted(nodes, key=list(graph.nodes).index, reverse=True):
                graph.erase_node(node)
            return True
    return False
