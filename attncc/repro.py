"""One attention site as a script of its own: the operators around it on random tensors, through PyTorch and attncc.

What goes into the script are the operators from the operands of the score product to the product with V, whatever is
computed from positions (masks) included; what comes before (projections, embeddings, norms) becomes random inputs with
the shapes, strides and dtypes that were recorded. Numbers stand where sizes were symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from attncc.bodies import bodies
from attncc.expand.splice import duplicate
from attncc.replay import cone

_PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "mm", "scaled_dot_product_attention")
_BEFORE = ("linear", "addmm", "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "batch_norm", "embedding",
           "convolution", "conv1d", "conv2d")  # fmt: skip
"""Operators that prepare the operands of an attention: their results are inputs of the script."""

_VALUES = (torch.Tensor, int, float, torch.SymInt, torch.SymFloat)

_SCRIPT = '''"""{title}"""

import torch
from torch import device, inf, nan  # noqa: F401

import attncc


class Site(torch.nn.Module):
{forward}


def tensor(shape, strides, dtype):
    """Random numbers that lie in memory as the recorded tensor did; zeros and ones where they are integers."""
    lowest = torch.empty_strided(shape, strides, dtype=dtype)
    values = torch.randn(shape) if dtype.is_floating_point else torch.randint(0, 2, shape)
    return lowest.copy_(values)


torch.manual_seed(0)
inputs = [
{inputs}
]
site = Site()
with torch.no_grad():
    print(attncc.explain(site, *inputs))
    eager = site(*inputs)
    compiled = attncc.compile(site)(*inputs)
    exact = site(*(x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs))
for name, result in (("PyTorch", eager), ("attncc", compiled)):
    print(f"{{name}}: largest difference from float64 {{(result - exact).abs().nan_to_num(0).max().item():.3g}}")
'''


@dataclass(frozen=True)
class Program:
    """A graph before anything was fused, and the node in it that is the result of a site."""

    graph: fx.GraphModule
    body: str
    """The path to the graph that holds the site, where that is one inside of `graph`."""
    result: str

    def script(self, title: str) -> str:
        """The text of a script. Raises ValueError for a site whose operators cannot be cut out."""
        gm = self.graph.get_submodule(self.body)
        target = next((n for n in gm.graph.nodes if n.name == self.result), None)
        if target is None:
            raise ValueError(f"the graph has no node {self.result} any more")
        leaves = _leaves(target)
        code = _cut(gm, target, leaves).graph.python_code("self").src
        forward = "\n".join("    " + line if line else "" for line in code.strip().splitlines())
        inputs = "\n".join(f"    {_input(leaf.meta['val'])}," for leaf in leaves)
        return _SCRIPT.format(title=title, forward=forward, inputs=inputs)


def keep(aten: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph, and of the graphs inside of it, that the fusion will not touch."""
    copy = duplicate(aten)
    for _, name, body in bodies(copy):
        setattr(copy, name, keep(body))
    return copy


def _leaves(target: fx.Node) -> list[fx.Node]:
    """Where to cut: at arguments, and at what prepares the operands of the score product."""
    leaves: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    stack: list[tuple[fx.Node, int]] = [(target, 2)]
    while stack:
        node, products = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        products -= name in _PRODUCTS
        whole = name in _BEFORE or products < 0 or (node.op == "call_function" and not name and not _is_size(node))
        end = node.op in ("placeholder", "get_attr") or whole
        if node is not target and end and isinstance(node.meta.get("val"), _VALUES):
            leaves[node] = None
            continue
        stack += [(n, products) for n in node.all_input_nodes]
    order = {n: p for p, n in enumerate(target.graph.nodes)}
    return sorted(leaves, key=order.__getitem__)


def _is_size(node: fx.Node) -> bool:
    """Whether a node computes with sizes, or takes one of several results."""
    return not isinstance(node.target, torch._ops.OpOverload | torch._ops.HigherOrderOperator)


def _cut(gm: fx.GraphModule, target: fx.Node, leaves: Sequence[fx.Node]) -> fx.GraphModule:
    """The operators between the leaves and `target`, as a graph of their own."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {leaf: graph.placeholder(leaf.name) for leaf in leaves}
    for node in cone(target, leaves):
        if node in made:
            continue
        if node.op != "call_function":
            raise ValueError(f"{node.name} ({node.op}) cannot be put into a script")
        made[node] = graph.node_copy(node, made.__getitem__)
        made[node].meta = {}
    graph.output(made[target])
    return fx.GraphModule(gm, graph)


def _input(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        shape, strides = ([_number(n) for n in numbers] for numbers in (value.shape, value.stride()))
        return f"tensor({shape}, {strides}, {value.dtype})"
    return repr(_number(value))


def _number(value: Any) -> Any:
    if isinstance(value, torch.SymInt | torch.SymFloat):
        return value.node.hint if value.node.hint is not None else 1
    return value
