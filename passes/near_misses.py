"""The softmaxes that stand between two products and are not fused, and why: what `attncc.explain` tells the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from attncc import expr as ex
from attncc import ir
from attncc.passes.fuse_attention import examine
from attncc.passes.moved import moved
from attncc.passes.read import is_parameter
from attncc.passes.score_product import NO_PRODUCT
from attncc.symbolic import Dim

_CALLS = ("scaled_dot_product_attention", "flex_attention")


@dataclass(frozen=True)
class NearMiss:
    """The product with V of a softmax, or the name of a call, that is not fused, and why."""

    name: str
    reason: str
    moved: bool = False
    """Whether the scores or weights are laid out anew on the way, which no pass follows."""


def near_misses(before: ir.Graph, after: ir.Graph, origin: Callable[[str], tuple[str, str]]) -> Iterator[NearMiss]:
    """All of a graph. `before` is the graph that `fuse_attention` saw, `after` what it made.

    `origin` gives the operator that makes a value (`aten.pad`), and the line of the program that it stands in.
    """
    fused = {n.name for n in after if isinstance(n, ir.Attention)}
    _, refused = examine(before)
    reasons = {name: reason.reason for name, reason in refused.items()}
    yield from (NearMiss(name, reason) for name, reason in reasons.items())
    known = fused | set(reasons)
    for node in before:
        if isinstance(node, ir.Opaque) and node.op.removeprefix("aten.").partition(".")[0] in _CALLS:
            yield NearMiss(node.name, node.note or "this form of the call is not known")
        weights = _activation(before, node)
        if weights is None:
            continue
        products, notes, others = _followed(before, node)
        unexplained = {p for p in products if reasons.get(p) == NO_PRODUCT}
        if products & known and not unexplained:
            continue
        skipped = None if notes else moved(before, node, known - unexplained)
        if skipped is not None:
            yield NearMiss(skipped.product, skipped.reason(*origin(skipped.step)), True)
        elif products and not unexplained and _follows_product(before, node):
            yield NearMiss(min(products), (*notes, *others, weights)[0])


def _activation(graph: ir.Graph, node: ir.Node) -> str | None:
    """The reason to give for a Map that makes weights, the numerator of a softmax; None for others."""
    if not isinstance(node, ir.Map) or not isinstance(node.body, ex.Op):
        return None
    sums = [u for u in graph.users(node.name) if isinstance(u, ir.Reduce) and u.kind == "sum"]
    if node.body.name == "exp" and any(u.reduced for u in sums):  # over a single key the weight is 1
        return "the weights are changed between the softmax and the product with V"
    return None


def _followed(graph: ir.Graph, node: ir.Node) -> tuple[set[str], list[str], list[str]]:
    """The products that read weights of the shape of `node`; of opaque nodes on the way, the notes, or what to say."""
    shape, seen, stack = _form(node), {node.name}, [node]
    products: set[str] = set()
    notes: list[str] = []
    others: list[str] = []
    while stack:
        for user in graph.users(stack.pop().name):
            if user.name in seen:
                continue
            seen.add(user.name)
            if isinstance(user, ir.Contract):
                if _batched(graph, user):
                    products.add(user.name)
            elif isinstance(user, ir.Map | ir.View | ir.Opaque) and _form(user) == shape and user.dtype in ex.FLOATS:
                if isinstance(user, ir.Opaque) and user.note:
                    notes.append(user.note)
                elif isinstance(user, ir.Opaque):
                    others.append(f"{user.op} stands between the softmax and the product with V")
                stack.append(user)
    return products, notes, others


def _follows_product(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether a score product of that shape comes before."""
    shape, seen, stack = _form(node), {node.name}, [node]
    while stack:
        for name in stack.pop().reads:
            read = graph.nodes[name]
            if isinstance(read, ir.Contract) and _batched(graph, read):
                return True
            if name not in seen and isinstance(read, ir.Map | ir.View | ir.Opaque) and _form(read) == shape:
                seen.add(name)
                stack.append(read)
    return False


def _batched(graph: ir.Graph, node: ir.Contract) -> bool:
    """Whether a product is of two activations rather than of one and a weight: no operand is an argument of rank 2
    where the other has more dimensions."""
    ranks = [_rank(graph, a) for a in node.operands]
    return len({r > 2 for r in ranks}) == 1 or min(ranks) > 2


def _rank(graph: ir.Graph, access: ir.Access) -> int:
    """Dimensions of a value; of a parameter, without those of the one position that a convolution's kernel has."""
    dims = list(graph.nodes[access.value].dims)
    while is_parameter(graph, access) and dims and not dims[-1]:
        dims.pop()
    return len(dims)


def _form(node: ir.Node) -> tuple[str, ...]:
    """The sizes of a value in any order, without those that are 1."""
    sizes: list[Dim] = [s for a, s in node.axes if a not in node.reduced]
    return tuple(sorted(map(str, sizes)))
