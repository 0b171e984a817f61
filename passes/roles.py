"""Which axes of a weighted sum are batch, heads, queries, keys.

The axes of P·V, besides those summed (j) and those of V alone (e), in the order in which the weights have them: the
last that K and V lack is the query row (i); others at the end that they lack share a key head (r, the group); of the
rest, the last dimension is the head and all before it the batch. What K or V lack of those, they are broadcast over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attncc import ir
from attncc.passes.refused import Refused


@dataclass(frozen=True)
class Roles:
    """Axes by role, outermost first. `h` is key heads, then `r`."""

    b: tuple[str, ...]
    h: tuple[str, ...]
    r: tuple[str, ...]
    i: tuple[str, ...]
    j: tuple[str, ...]
    e: tuple[str, ...]


def axes_of(access: ir.Access) -> set[str]:
    """The axes along which an access moves."""
    return {a for i in access.index for a in i.axes}


def assign(
    contract: ir.Contract,
    weights: ir.Access,
    q: ir.Access,
    k: ir.Access,
    v: ir.Access,
    positions: frozenset[str] = frozenset(),
) -> Roles:
    """The roles of the axes of `contract`, the product of `weights` and `v`. Raises Refused.

    `positions` are the axes that masks and biases depend on: of two that K and V lack, such a one is the row.
    """
    summed = set(contract.reduced)
    in_q, in_k, in_v = axes_of(q), axes_of(k), axes_of(v)
    if not summed <= in_k or not summed <= in_v:
        raise Refused("keys or values do not have the axis that the softmax runs over", contract.name)
    if summed & in_q:
        raise Refused("the queries depend on the axis that the softmax runs over", contract.name)
    kept = [a for d in contract.dims for a in d]
    columns = tuple(a for a in kept if a not in axes_of(weights))
    if set(columns) & (in_q | in_k) or not set(columns) <= in_v:
        raise Refused("queries or keys depend on the columns of the values", contract.name)
    dims = _dims_of_weights(weights, summed)
    only_q = {a for d in dims for a in d} - in_k - in_v
    _row_last(dims, only_q, positions, contract)
    rows = _trailing(dims.pop(), only_q) if dims else ((), ())
    if rows[0]:
        dims.append(rows[0])
    group: tuple[str, ...] = ()
    if dims:
        rest, group = _trailing(dims[-1], only_q)
        dims[-1:] = [rest] if rest else []
    # A group dimension of its own belongs to the key heads before it; a lone batch dimension before it is no head.
    alone = bool(group) and not rest
    heads: tuple[str, ...] = ()
    if dims and (len(dims) > 1 or not alone):
        heads = dims.pop()
        if not dims and not group:  # one dimension for both: its last axis, if it has several
            dims, heads = ([heads[:-1]], heads[-1:]) if len(heads) > 1 else ([heads], ())
    if not rows[1] and (in_q & in_v) - in_k:
        # As in deformable attention. One product of all queries and the keys they share is faster by itself.
        raise Refused("every query has values of its own, and the keys are shared", contract.name)
    batch = tuple(a for d in dims for a in d)
    return Roles(batch, heads + group, group, rows[1], contract.reduced, columns)


def _row_last(dims: list[tuple[str, ...]], only_q: set[str], positions: frozenset[str], contract: ir.Contract) -> None:
    """Where all heads share one key head and come after the rows, [b, s, h, t], put the rows last."""
    if not dims or not dims[-1] or not set(dims[-1]) <= only_q:
        return

    def is_row(dim: tuple[str, ...]) -> tuple[bool, bool]:
        return not all(isinstance(contract.sizes[a], int) for a in dim), bool(set(dim) & positions)

    for place, dim in enumerate(dims[:-1]):
        if dim and set(dim) <= only_q and is_row(dim) > is_row(dims[-1]):
            dims.append(dims.pop(place))
            return


def _dims_of_weights(weights: ir.Access, summed: set[str]) -> list[tuple[str, ...]]:
    """The axes of each dimension of the weights, without the summed one; `()` for dimensions of size 1."""
    dims: list[tuple[str, ...]] = []
    for index in weights.index:
        if set(index.axes) <= summed and index.axes:
            continue
        strides = dict(index.terms)
        ordered: Sequence[str] = sorted(strides, key=lambda a: _magnitude(strides[a]), reverse=True)
        dims.append(tuple(a for a in ordered if a not in summed))
    return dims


def _magnitude(stride: object) -> tuple[int, str]:
    """A sort key for strides; symbolic ones, products of sizes, are longer than the sizes they are made of."""
    if isinstance(stride, int):
        return (stride, "")
    return (10**6 + len(str(stride)), str(stride))


def _trailing(dim: tuple[str, ...], among: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The dimension cut before its last axes that are all in `among`."""
    cut = len(dim)
    while cut and dim[cut - 1] in among:
        cut -= 1
    return dim[:cut], dim[cut:]
