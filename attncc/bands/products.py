"""Products that are summed up, by whatever name, and softmaxes."""

from __future__ import annotations

from torch import Tensor, fx

from attncc.bands.axes import MustBeConcrete, Part, lengths
from attncc.bands.cells import Product, Softmax
from attncc.bands.walk import Unknown, Value, Walk, follows


@follows("aten.einsum.default")
def einsum(walk: Walk, node: fx.Node) -> Value:
    """An equation of two operands in which every letter stands in both or in the result."""
    equation, given = str(node.args[0]).replace(" ", ""), node.args[1]
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or len(terms) != 2 or "." in equation or not isinstance(given, list | tuple):
        raise Unknown
    return _product(walk, node, [walk.value(v) for v in given], terms, output)


@follows("aten.matmul.default", "aten.bmm.default", "aten.mm.default")
def matmul(walk: Walk, node: fx.Node) -> Value:
    """a @ b of at least two dimensions each."""
    values = [walk.value(v) for v in node.args[:2]]
    batch = "".join(chr(ord("A") + n) for n in range(max(len(v.dims) for v in values) - 2))
    if any(len(v.dims) < 2 for v in values):
        raise Unknown
    terms = [batch[len(batch) - len(v.dims) + 2 :] + last for v, last in zip(values, ("mk", "kn"), strict=True)]
    return _product(walk, node, values, terms, f"{batch}mn")


def _product(walk: Walk, node: fx.Node, values: list[Value], terms: list[str], output: str) -> Value:
    if any(len(set(t)) != len(t) for t in (*terms, output)) or not set(output) <= set("".join(terms)):
        raise Unknown
    parts: dict[str, Part] = {}
    for value, term in zip(values, terms, strict=True):
        for letter, part in zip(term, value.dims, strict=True):
            parts[letter] = walk.meet(parts.get(letter, ()), part)
    summed = [x for x in parts if x not in output]
    if not all(x in term for x in summed for term in terms):
        raise Unknown
    carried = tuple(axis for x in summed for axis in parts[x] if axis.name)
    if carried and any(not axis.name for x in summed for axis in parts[x]):
        raise MustBeConcrete([axis.name for axis in carried])
    left, right = (_arranged(v, t, [*output, *summed]) for v, t in zip(values, terms, strict=True))
    dims = tuple(parts[x] for x in output)
    walk.axes.check_distinct((*dims, carried))
    return Value(walk.cells.block(node, dims, Product(left, right, len(output), carried)), dims)


def _arranged(value: Value, term: str, order: list[str]) -> Tensor:
    """A copy of the cells of an operand with a dimension for every letter of `order`."""
    known = [x for x in order if x in term]
    cells = value.cells.permute([term.index(x) for x in known])
    for place, letter in enumerate(order):
        if letter not in known:
            cells = cells.unsqueeze(place)
    return cells.clone()


@follows("aten.softmax.int", "aten._softmax.default")
def softmax(walk: Walk, node: fx.Node) -> Value:
    """Over a dimension each of whose positions is told apart."""
    source = walk.value(node.args[0])
    along = int(node.args[1]) % len(source.dims)
    if any(axis.name for axis in source.dims[along]):
        raise MustBeConcrete([axis.name for axis in source.dims[along]])
    cells = source.cells.clone().reshape(lengths(source.dims))
    return Value(walk.cells.block(node, source.dims, Softmax(cells, along)), source.dims)
