"""Softmaxes whose scores or weights are laid out anew between the two products: bands in chunks, skewed rows.

    %s = contract … %q * %k;  %t = opaque aten.as_strided(%s);  %z = opaque changed(%zeros, %t);  %p = softmax of %z
    %w = concat %p, %border;  %o = contract … %w * %v

No pass follows such steps, so `fuse_attention` sees no attention in them. It is found here, to be proved element by
element (`attncc.bands`), or else to be told of. What computes with the weights is never gone through: so experts are
chosen, and gates applied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import networkx as nx

from attncc import expr as ex
from attncc import ir
from attncc.passes.read import is_parameter
from attncc.passes.roles import axes_of

_MOVES = {
    "as_strided": "overlapping views", "as_strided_copy": "overlapping windows", "unfold": "overlapping windows",
    "unfold_copy": "overlapping windows", "view": "a reshape that keeps no dimension whole",
    "reshape": "a reshape that keeps no dimension whole", "_unsafe_view": "a reshape that keeps no dimension whole",
    "flatten": "a reshape that keeps no dimension whole", "pad": "padding", "constant_pad_nd": "padding",
    "copy": "a write into a part of a tensor", "fill": "a write into a part of a tensor",
    "zero": "a write into a part of a tensor", "masked_fill": "a write into a part of a tensor",
    "slice_scatter": "a write into a part of a tensor", "select_scatter": "a write into a part of a tensor",
    "as_strided_scatter": "a write into a part of a tensor", "diagonal_scatter": "a write into a part of a tensor",
    "cat": "a concatenation", "concat": "a concatenation", "concatenate": "a concatenation", "stack": "a concatenation",
    "flip": "the reverse order", "roll": "a rotation", "diagonal": "diagonals", "diag_embed": "diagonals",
}  # fmt: skip
"""Operators that move elements and compute nothing, and what they do to an attention, in a user's words."""


@dataclass(frozen=True)
class Moved:
    """An attention that no pass follows: its product with V, and the nearest value to the softmax that is why."""

    product: str
    step: str
    after: bool
    """Whether the step lies between the softmax and the product with V, rather than before the softmax."""

    def reason(self, operator: str, line: str) -> str:
        """Why it is not fused, said with the step's operator (`aten.pad`) and the line of the program it stands in."""
        after, before = "the softmax and the product with V", "the product of queries and keys and the softmax"
        what = _MOVES.get(operator.removeprefix("aten.").rstrip("_"))
        details = f"{f' ({what})' if what else ''}{f' at {line}' if line else ''}"
        return f"between {after if self.after else before} stands {operator}{details}, which attncc does not follow"


def moved(graph: ir.Graph, exponentials: ir.Node, known: Collection[str]) -> Moved | None:
    """The attention of a softmax with these numerators; None where none is seen or its product is among the `known`."""
    before = _step_before(graph, exponentials)
    if before is None:
        return None
    products = [(p, s) for p, s in _products_after(graph, exponentials) if p not in known]
    for product, step in products:
        if step:
            return Moved(product, step, True)
    return Moved(products[0][0], before, False) if products and before else None


def _step_before(graph: ir.Graph, exponentials: ir.Node) -> str | None:
    """The nearest step between a product of data and the softmax: "" where there is none, None without a product."""
    queue, seen = deque([(exponentials.name, "")]), {exponentials.name}
    while queue:
        name, step = queue.popleft()
        for read in _moved_from(graph.nodes[name]):
            node = graph.nodes[read]
            if isinstance(node, ir.Contract):
                if _is_of_data(graph, node):
                    return step
            elif read not in seen and len(graph.products[read]) < ir.MANY and _is_on_the_way(node):
                seen.add(read)
                queue.append((read, step or _step(node)))
    return None


def _moved_from(node: ir.Node) -> tuple[str, ...]:
    """What holds the elements of a node before it: of a Map, operands that are as large as it is."""
    if not isinstance(node, ir.Map):
        return node.reads
    return tuple(a.value for a in node.operands if axes_of(a) == set(node.sizes))


def _is_on_the_way(node: ir.Node) -> bool:
    """Whether scores may come from a product through a node: scaled, masked, moved."""
    return isinstance(node, ir.Map | ir.View | ir.Concat) or (
        isinstance(node, ir.Opaque) and (node.op == "changed" or _operator(node) in _MOVES)
    )


def _products_after(graph: ir.Graph, exponentials: ir.Node) -> Iterator[tuple[str, str]]:
    """The products of the weights with data, each with the nearest step behind the softmax ("" where there is none)."""
    queue, weights = deque([(exponentials.name, "")]), {exponentials.name}
    while queue:
        name, step = queue.popleft()
        for user in graph.users(name):
            if isinstance(user, ir.Contract):
                if _is_weighted_sum(graph, user, weights):
                    yield user.name, step
            elif user.name not in weights and _moves(graph, user, weights, exponentials.name):
                weights.add(user.name)
                queue.append((user.name, step or _step(user)))


def _moves(graph: ir.Graph, node: ir.Node, weights: Collection[str], softmax: str) -> bool:
    """Whether a node only moves the weights among its operands, or divides them by their sum."""
    if node.dtype not in ex.FLOATS:
        return False
    match node:
        case ir.View() | ir.Concat():
            return True
        case ir.Map(body=body):
            return _is_weight(graph, node, body, weights, softmax)
        case ir.Opaque(op="changed", operands=(_, change)):
            written = graph.nodes[change]
            if isinstance(written, ir.Map) and _is_weight(graph, written, written.body, weights, softmax):
                return True
            return isinstance(written, ir.Map | ir.Const) and not _depends(graph, written.reads, softmax)
        case ir.Opaque():
            return _operator(node) in _MOVES
    return False


def _is_weight(graph: ir.Graph, node: ir.Map, part: ex.Expr, weights: Collection[str], softmax: str) -> bool:
    """Whether a part of a Map's body is a weight as it was: cast, divided by the sum, or replaced by a constant."""
    match part:
        case ex.Arg(number):
            return node.operands[number].value in weights
        case ex.Op("cast", (inner,)):
            return _is_weight(graph, node, inner, weights, softmax)
        case ex.Op("div", (inner, ex.Arg(number))):
            total = graph.nodes[node.operands[number].value]
            sums = isinstance(total, ir.Reduce) and total.kind == "sum" and total.operand.value in weights
            return sums and _is_weight(graph, node, inner, weights, softmax)
        case ex.Op("where", (condition, a, b)):
            reads = [node.operands[leaf.number].value for leaf in condition.walk() if isinstance(leaf, ex.Arg)]
            sides = [s for s in (a, b) if not _is_constant(graph, node, s)]
            plain = len(sides) > 0 and all(_is_weight(graph, node, s, weights, softmax) for s in sides)
            return plain and not _depends(graph, reads, softmax)
    return False


def _is_constant(graph: ir.Graph, node: ir.Map, part: ex.Expr) -> bool:
    if isinstance(part, ex.Arg):
        return isinstance(graph.nodes[node.operands[part.number].value], ir.Const)
    return isinstance(part, ex.Const)


def _depends(graph: ir.Graph, values: Collection[str], softmax: str) -> bool:
    return any(nx.has_path(graph.edges, softmax, value) for value in values)


def _is_weighted_sum(graph: ir.Graph, node: ir.Contract, weights: Collection[str]) -> bool:
    """Whether a product sums data over an axis of the weights."""
    own = [a for a in node.operands if a.value in weights]
    return len(own) == 1 and bool(axes_of(own[0]) & set(node.reduced)) and _is_of_data(graph, node)


def _is_of_data(graph: ir.Graph, node: ir.Contract) -> bool:
    """Whether a product is of two values that depend on the model's inputs: those of routers and heads are not."""
    if len(node.operands) != 2 or not node.reduced or any(is_parameter(graph, a) for a in node.operands):
        return False
    return all(_is_data(graph, a.value) for a in node.operands)


def _is_data(graph: ir.Graph, name: str) -> bool:
    stack, seen = [name], {name}
    while stack:
        node = graph.nodes[stack.pop()]
        if isinstance(node, ir.Input) and node.dims and not node.parameter:
            return True
        fresh = set(node.reads) - seen
        seen |= fresh
        stack += sorted(fresh)
    return False


def _step(node: ir.Node) -> str:
    """The value that says what a node does: what was written, for a change in place; "" for what is followed."""
    if isinstance(node, ir.Opaque) and node.op == "changed":
        return node.operands[1]
    return node.name if isinstance(node, ir.Opaque | ir.Concat) else ""


def _operator(node: ir.Opaque) -> str:
    return node.op.removeprefix("aten.").partition(".")[0]
