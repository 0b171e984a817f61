"""Whether a product is one attention over a band of keys, written in another layout.

out[s] = sum over t of softmax(x[s, t] where s - before <= t <= s + after) v[t]. Every element of the two operands of
the product is followed to what it is. Each weight that is not 0 has to be the softmax of a score of that query's row
and a key's row, and to be multiplied with the value of the same row; every score that the softmax sums has to be used
so once; and the scores have to be one expression of the two rows. A score of -inf has the weight 0, and that, as a
weight that was set to 0, counts nothing beside a value that is finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from attncc.bands import operators as _registers_operators  # noqa: F401
from attncc.bands.axes import Dims
from attncc.bands.cells import Block, Computed, Product, Softmax
from attncc.bands.terms import KEY, Band, Pairs, axes_of, leaves, local, surely
from attncc.bands.walk import Walk, walked
from attncc.convert.effects import modes, storages, written
from attncc.passes.refused import Refused

OTHERS = "weights and values meet that are not of one key"


def prove(node: fx.Node) -> Band:
    """The attention whose product of weights and values `node` is. Raises Refused, and never guesses.

    What it reads has to be as it was when scores and weights were made of it: see `check_unchanged`.
    """
    walk = walked(node)
    block = walk.cells.blocks[-1] if walk.cells.blocks else None
    if block is None or block.node is not node or not isinstance(block.made, Product) or block.made.summed:
        raise Refused("the product with V is none that is followed")
    left, right = (_flat(block, o) for o in (block.made.left, block.made.right))
    try:
        return _band(walk, block, left, right)
    except _NoWeights:
        try:
            return _band(walk, block, right, left)
        except _NoWeights as error:
            raise Refused("the weights are changed between the softmax and the product with V") from error


class _NoWeights(Exception):
    """The operand is not made of weights."""


def _flat(block: Block, operand: Tensor) -> Tensor:
    """The cells of an operand as [positions of the result, positions that are summed]."""
    made = block.made
    rank = made.rank if isinstance(made, Product) else 0
    return operand.expand([*block.shape, *operand.shape[rank:]]).reshape(math.prod(block.shape), -1)


@dataclass
class _Weights:
    """Weights followed to the softmax that makes them."""

    block: Block
    softmax: Softmax
    at: Tensor
    """Which element of the softmax each is."""
    casts: tuple[fx.Node, ...]
    zeroed: tuple[tuple[Tensor, bool], ...]

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """The row and the column of the softmax that each weight is of."""
        return self.split(self.at)

    @property
    def columns(self) -> int:
        return self.block.shape[self.softmax.along]

    def split(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of elements of the softmax."""
        inner = math.prod(self.block.shape[self.softmax.along + 1 :])
        return at // (self.columns * inner) * inner + at % inner, at // inner % self.columns


def _weights(walk: Walk, given: Tensor) -> _Weights:
    """What the given cells are weights of. Raises _NoWeights."""
    casts: list[fx.Node] = []
    zeroed: list[tuple[Tensor, bool]] = []
    while True:
        block = walk.cells.one_block(given)
        if block is None:
            raise _NoWeights
        match block.made:
            case Softmax():
                return _Weights(block, block.made, given - block.start, tuple(reversed(casts)), tuple(zeroed))
            case Computed("cast", (inner,)) if block.node.meta["val"].is_floating_point():
                casts.append(block.node)
                given = local(block, inner, given)
            case Computed("where", operands):
                condition, yes, no = (local(block, o, given) for o in operands)
                zeros = [bool(surely(walk.cells, side, 0.0).all()) for side in (yes, no)]
                if zeros[0] == zeros[1]:
                    raise _NoWeights
                zeroed.append((condition, zeros[0]))
                given = no if zeros[0] else yes
            case _:
                raise _NoWeights


def _band(walk: Walk, block: Block, a: Tensor, v: Tensor) -> Band:
    """The attention that the sum of a times v is. Raises Refused, and _NoWeights where `a` is no weights."""
    used = ~surely(walk.cells, a.reshape(-1), 0.0).reshape(a.shape)
    if not bool(used.any()):
        raise _NoWeights
    weights = _weights(walk, a[used])
    scores = weights.softmax.scores.reshape(-1)
    hidden = surely(walk.cells, scores, -math.inf)
    row_of = _rows(weights, used)
    count = len(scores) // weights.columns
    if not torch.equal(row_of.sort().values, torch.arange(count)):
        raise Refused("not every row of the weights makes one row of the result")
    seen = ~hidden[weights.at]
    at = weights.at[seen]
    if len(at) != int((~hidden).sum()) or len(at.unique()) != len(at):
        raise Refused("not every weight is used once in the product with V")
    rows, _ = weights.split(at)
    _check_finite(walk, v)
    keys, length = _keys(walk, v[used][seen])
    before, after = _bounds(rows, keys, (count, length))
    pairs = Pairs(walk.cells, walk.axes, rows, keys, (count, length))
    value, score = pairs.read(v[used][seen]), pairs.term(scores[at])
    if value is None:
        raise Refused(OTHERS)
    zeroed = tuple((pairs.term(cells[seen]), where) for cells, where in weights.zeroed)
    if any(KEY in axes_of(condition) for condition, _ in zeroed):
        raise Refused("the weights are changed between the softmax and the product with V")
    dims, strides = _result(walk, block, row_of)
    return Band(
        block.node, weights.block.node, score, value, count, length, before, after, weights.casts, zeroed, dims, strides
    )


def _rows(weights: _Weights, used: Tensor) -> Tensor:
    """The row of the softmax whose weights make each row of the result. Raises Refused where that is not one."""
    rows = torch.full(used.shape, -1)
    rows[used] = weights.places[0]
    top = rows.amax(1, keepdim=True)
    if bool((rows[used] != top.expand(rows.shape)[used]).any()) or bool((top < 0).any()):
        raise Refused("a row of the result is made of the weights of several rows, or of none")
    return top[:, 0]


def _check_finite(walk: Walk, v: Tensor) -> None:
    """Raises Refused where a weight of 0 may stand beside a number that is not finite."""
    numbers = v[v < walk.cells.blocks[0].start].unique()
    if not all(math.isfinite(walk.cells.numbers[n]) for n in numbers.tolist()):
        raise Refused("values are padded with infinity")


def _keys(walk: Walk, v: Tensor) -> tuple[Tensor, int]:
    """The row of V that each visible weight is multiplied with, and how many V has. Raises Refused."""
    block = walk.cells.one_block(v)
    if block is None:
        raise Refused(OTHERS)
    if len(block.concrete) != 1:
        raise Refused("the rows of V are not one axis of one tensor")
    return v - block.start, block.concrete[0]


def _bounds(rows: Tensor, keys: Tensor, counts: tuple[int, int]) -> tuple[int | None, int | None]:
    """How far before its own row a query sees, and how far after. Raises Refused where that is no band."""
    if len((rows * counts[1] + keys).unique()) != len(rows):
        raise Refused("a query sees a key twice")
    before, after = int((rows - keys).max()), int((keys - rows).max())
    every = torch.arange(counts[0])
    first, last = (every - before).clamp(min=0), (every + after).clamp(max=counts[1] - 1)
    if int((last - first + 1).clamp(min=0).sum()) != len(rows):
        raise Refused("the keys that a query sees are no band around its own row")
    return (None if before >= counts[0] - 1 else before), (None if after >= counts[1] - 1 else after)


def _result(walk: Walk, block: Block, row_of: Tensor) -> tuple[Dims, tuple[tuple[str, int], ...]]:
    """The dimensions of the result, its concrete axes with names, and how far each moves the row. Raises Refused."""
    rows = row_of.reshape(block.concrete)
    names = iter(f"part{n}" for n in range(rows.ndim))
    dims = tuple(
        tuple(replace(a, name=walk.axes.root(a.name) if a.name else next(names)) for a in part) for part in block.dims
    )
    strides: list[tuple[str, int]] = []
    expected = torch.zeros((), dtype=torch.int64)
    for p, size in enumerate(block.concrete):
        stride = int(rows[(0,) * p + (1,) + (0,) * (rows.ndim - p - 1)]) - int(rows.flatten()[0])
        strides.append((f"part{p}", stride))
        expected = expected.unsqueeze(-1) + torch.arange(size) * stride
    if not torch.equal(expected.expand(rows.shape), rows):
        raise Refused("the rows of the result are not in order")
    return dims, tuple(strides)


def check_unchanged(nodes: Sequence[fx.Node], band: Band) -> None:
    """Raises Refused where what is read has been changed since, or a mode of PyTorch changes on the way."""
    order = {node: n for n, node in enumerate(band.node.graph.nodes)}
    last = order[band.node]
    terms = (band.score, band.value, *(condition for condition, _ in band.zeroed))
    read = {leaf.node for term in terms for leaf in leaves(term)}
    for node, at in order.items():
        if at >= last:
            break
        for leaf in _changed(node, read, order):
            raise Refused(f"{leaf.target} is changed in place before the attention's end")
    first = min(order[n] for n in nodes if n.op == "call_function" and n not in read)
    if any(first < order[n] < last for n in order if modes(n)):
        raise Refused("a mode of PyTorch (gradients or autocast) changes between the score and the output")


def _changed(node: fx.Node, read: set[fx.Node], order: dict[fx.Node, int]) -> Iterator[fx.Node]:
    """The values read that `node` changes after they were made."""
    for target in written(node):
        keys = set(storages(target.meta["val"]))
        for leaf in read:
            if order[leaf] < order[node] and keys & set(storages(leaf.meta["val"])):
                yield leaf
