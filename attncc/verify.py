"""What holds of every IR graph, as one table of rules; `verify` runs them all, after every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import networkx as nx

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.symbolic import at_least, equal, reduce


class InvalidGraph(ValueError):
    """A pass made a graph that breaks a rule: a bug of the pass. The message names the rule, the node and the pass."""


def _order(graph: ir.Graph) -> Iterator[str]:
    seen: set[str] = set()
    for name, node in graph.nodes.items():
        if name != node.name:
            yield f"%{name} is listed for %{node.name}"
        missing = [r for r in node.reads if r not in seen]
        if missing:
            yield f"%{name} reads %{missing[0]}, which is not before it"
        seen.add(name)


def _acyclic(graph: ir.Graph) -> Iterator[str]:
    if not nx.is_directed_acyclic_graph(graph.edges):
        yield "the data flow has a cycle"


def _outputs(graph: ir.Graph) -> Iterator[str]:
    yield from (f"output %{o} is no node" for o in graph.outputs if o not in graph.nodes)


def _dims(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        names = [a for a, _ in node.axes]
        used = [a for d in node.dims for a in d]
        if len(set(names)) != len(names):
            yield f"%{node.name} names an axis twice"
        if len(set(used)) != len(used):
            yield f"%{node.name} uses an axis in two dimensions"
        if not set(used) <= set(names):
            yield f"%{node.name} has a dimension over an unknown axis"
        if node.reduced and not isinstance(node, ir.Contract | ir.Reduce | ir.Attention):
            yield f"%{node.name} sums over {node.reduced}, which only Contract, Reduce and Attention do"


def _ranks(graph: ir.Graph) -> Iterator[str]:
    for node, access in _accesses(graph):
        rank = len(graph.nodes[access.value].dims)
        if len(access.index) != rank:
            yield f"%{node.name} reads %{access.value} of rank {rank} with {len(access.index)} indices"


def _axes(graph: ir.Graph) -> Iterator[str]:
    for node, access in _accesses(graph):
        unknown = {a for i in access.index for a in i.axes} - set(node.sizes)
        if unknown:
            yield f"%{node.name} reads %{access.value} along unknown axes {sorted(unknown)}"


def _bounds(graph: ir.Graph) -> Iterator[str]:
    """Only what is certainly outside is wrong: symbolic sizes often cannot be compared."""
    for node, access in _accesses(graph):
        for size, index in zip(graph.nodes[access.value].shape, access.index, strict=False):
            if not set(index.axes) <= set(node.sizes):
                continue
            if index.is_axis(index.axes[0] if index.terms else "") and node.sizes[index.axes[0]] == size:
                continue  # all of the dimension, in order: nearly every access
            reach = ix.bounds(index, node.sizes)
            outside = reach is not None and (at_least(reach[1], size) or at_least(reduce(-1 - reach[0]), 0))
            if outside and not any(equal(s, 0) for s in node.sizes.values()):
                yield f"%{node.name} reads %{access.value} at {index}, outside its size {size}"


def _arguments(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        if not isinstance(node, ir.Map):
            continue
        if node.body.dtype != node.dtype:
            yield f"%{node.name} is {node.dtype}, its body {node.body.dtype}"
        for leaf in _leaves(node.body):
            if isinstance(leaf, ex.Arg):
                if leaf.number >= len(node.operands):
                    yield f"%{node.name} has no operand {leaf.number}"
                elif graph.nodes[node.operands[leaf.number].value].dtype != leaf.dtype:
                    yield f"%{node.name} takes %{node.operands[leaf.number].value} for {leaf.dtype}"
            elif isinstance(leaf, ex.Index) and leaf.axis not in node.sizes:
                yield f"%{node.name} uses the position on the unknown axis {leaf.axis}"
            elif not isinstance(leaf, ex.Const | ex.Index | ex.Size | ex.Op):
                yield f"%{node.name} contains {leaf}, which only a spec may"


def _products(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        if isinstance(node, ir.Contract):
            dtypes = {graph.nodes[a.value].dtype for a in node.operands}
            if not node.operands or dtypes != {node.dtype}:
                yield f"%{node.name} is a product in {node.dtype} of {sorted(dtypes)}"
        if isinstance(node, ir.Reduce) and (node.kind not in ("max", "sum")):
            yield f"%{node.name} reduces by {node.kind!r}"


def _attentions(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        if not isinstance(node, ir.Attention):
            continue
        if node.spec is None:
            yield f"%{node.name} has no spec"
            continue
        counts = {
            "extras": (len(node.spec.extras), len(node.extras) + (node.weight is not None)),
            "scalars": (len(node.spec.scalars), len(node.scalars)),
            "integers": (len(node.spec.integers), len(node.integers)),
        }
        for what, (expected, given) in counts.items():
            if expected != given:
                yield f"%{node.name} has {given} {what}, its spec {expected}"


RULES: tuple[tuple[str, Callable[[ir.Graph], Iterator[str]]], ...] = (
    ("every value is made before it is read", _order),
    ("the data flow is acyclic", _acyclic),
    ("outputs exist", _outputs),
    ("dimensions are made of the node's own axes", _dims),
    ("an access has one index a dimension", _ranks),
    ("an access uses the node's own axes", _axes),
    ("an access stays inside the value", _bounds),
    ("the body of a Map fits its operands", _arguments),
    ("products and reductions are of one dtype", _products),
    ("an Attention fits its spec", _attentions),
)


def verify(graph: ir.Graph) -> None:
    """Raises InvalidGraph where a rule does not hold."""
    for rule, check in RULES:
        for problem in check(graph):
            raise InvalidGraph(f"after {graph.after or 'construction'}: {problem} (rule: {rule})")


def _accesses(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Access]]:
    for node in graph:
        for access in node.accesses:
            if access.value in graph.nodes:
                yield node, access


def _leaves(expr: ex.Expr) -> Iterator[ex.Expr]:
    """Every node of an expression once."""
    seen: dict[ex.Expr, None] = {}
    ex.fold(expr, lambda node, _: seen.setdefault(node))
    yield from seen
