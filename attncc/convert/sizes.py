"""Size symbols of an FX graph: their example values, and turning into numbers those that have to be numbers.

A number for a symbol is a guard: with other sizes PyTorch compiles anew.
"""

from __future__ import annotations

from collections.abc import Iterator

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod

from attncc.convert.attention import is_attention
from attncc.symbolic import Dim, dim


def sizes(gm: fx.GraphModule) -> Iterator[torch.SymInt]:
    """Every symbolic size and stride in a graph."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        for size in (*value.shape, *value.stride()) if isinstance(value, torch.Tensor) else (value,):
            if isinstance(size, torch.SymInt):
                yield size


def example(symbol: sympy.Symbol, environment: object) -> int | None:
    """The value that a symbol had when the graph was traced; None for one that only a run can tell."""
    known = getattr(environment, "backed_var_to_val", None) or getattr(environment, "var_to_val", {})
    return int(known[symbol]) if symbol in known else None


def hints(gm: fx.GraphModule) -> dict[str, int]:
    """An example value of every size symbol that has one."""
    found: dict[str, int] = {}
    for size in sizes(gm):
        for symbol in size.node.expr.free_symbols:
            if str(symbol) not in found:
                number = example(symbol, size.node.shape_env)
                if number is not None:
                    found[str(symbol)] = number
    return found


def sizes_at_hand(gm: fx.GraphModule) -> dict[Dim, list[tuple[fx.Node, int | None]]]:
    """For every symbolic size, the first node that is it, and the first input and the dimension that has it."""
    nodes: dict[Dim, tuple[fx.Node, int | None]] = {}
    dimensions: dict[Dim, tuple[fx.Node, int | None]] = {}
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            nodes.setdefault(dim(value), (node, None))
        elif node.op == "placeholder" and isinstance(value, torch.Tensor):
            for p, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt):
                    dimensions.setdefault(dim(size), (node, p))
    return {size: [x[size] for x in (nodes, dimensions) if size in x] for size in {**nodes, **dimensions}}


def fix_attention_sizes(gm: fx.GraphModule) -> None:
    """Make numbers of the sizes that a whole attention call needs as numbers: head sizes and, for groups, heads."""
    for node in gm.graph.nodes:
        if is_attention(node.target):
            shapes = [n.meta["val"].shape for n in node.args[:3] if isinstance(n, fx.Node)]
            for shape in shapes:
                int(shape[-1])
                if node.kwargs.get("enable_gqa") and len(shape) > 2:
                    int(shape[-3])


def fix_divided_sizes(gm: fx.GraphModule) -> bool:
    """Make numbers of the symbols that sizes divide, such as the heads in `heads // 2`; says whether there were any.

    Nothing is known of how a quotient relates to the size it came from, so that axes split by it cannot be followed.
    """
    found = False
    for size in list(sizes(gm)):
        for part in sympy.preorder_traversal(size.node.expr):
            if isinstance(part, FloorDiv | Mod):
                for symbol in part.free_symbols:
                    number = example(symbol, size.node.shape_env)
                    if number is not None:
                        size.node.shape_env.evaluate_expr(sympy.Eq(symbol, number), hint=sympy.true)
                        found = True
    return found
