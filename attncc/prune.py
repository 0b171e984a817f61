"""Take out of an FX graph what nothing uses any more, in-place operators on dead memory included."""

from __future__ import annotations

from torch import fx

from attncc.convert.attention import is_attention
from attncc.convert.effects import storages, written


def prune(gm: fx.GraphModule) -> None:
    """Remove dead nodes. Nodes with effects stay, unless all they change is memory that only dead nodes see."""
    live = _live(gm.graph)
    for node in reversed(list(gm.graph.nodes)):
        if node not in live and node.op in ("call_function", "get_attr"):
            gm.graph.erase_node(node)


def _live(graph: fx.Graph) -> set[fx.Node]:
    """What the output needs, what has effects, and what writes to memory that such nodes, or others outside, see."""
    writers: dict[int, list[fx.Node]] = {}
    outside: set[int] = set()
    for node in graph.nodes:
        keys = [key for target in written(node) for key in storages(target.meta.get("val"))]
        for key in keys:
            writers.setdefault(key, []).append(node)
        if node.op != "call_function":
            outside.update(storages(node.meta.get("val")))
    live = {n for n in graph.nodes if n.op in ("output", "call_module") or (_has_effect(n) and not written(n))}
    live |= {n for key in outside for n in writers.get(key, ())}
    live |= {n for n in graph.nodes if written(n) and not any(storages(t.meta.get("val")) for t in written(n))}
    stack = list(live)
    while stack:
        node = stack.pop()
        seen = [w for key in storages(node.meta.get("val")) for w in writers.get(key, ())]
        fresh = {*node.all_input_nodes, *seen} - live
        live |= fresh
        stack += fresh
    return live


def _has_effect(node: fx.Node) -> bool:
    """Whether a node matters though nothing reads it. A random operator does, for the numbers that come after it."""
    if node.op != "call_function":
        return False
    if str(node.target) == "aten.dropout.default" and (node.args[1] == 0 or not node.args[2]):
        return False
    if is_attention(node.target) and not (node.kwargs.get("dropout_p") or any(node.args[4:5])):
        return False
    return bool(node.is_impure()) or bool(written(node))
