"""Which keys a tile of decode visits: the range between the first and the last key that any of its rows sees.

Three things narrow it, each where the spec has it: the mask's form, with the first and last query row in it; its form
with tensors read by query row (`j <= position[i]`), row by row; and what tensors say key by key, with keys in vector
lanes. The last costs a few bytes a key, where reading the key itself costs hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attncc import expr as ex
from attncc._tvm import T, tirx
from attncc.algorithm.blocks import let, scope, stage, store, tile
from attncc.algorithm.bounds import Bounds, key_bounds
from attncc.algorithm.decode_parts import Kernel
from attncc.algorithm.lower_expr import lower
from attncc.algorithm.visibility import row_bounds, visible

_NONE = -(2**31) + 1
"""Below every position."""


@dataclass(frozen=True)
class _Place:
    """A batch and key head, whose query rows are those of a tile."""

    kernel: Kernel
    batch: Any
    kv_head: Any


def key_range(kernel: Kernel, batch: Any, kv_head: Any) -> tuple[Any, Any]:
    """First key and end: outside of them no row sees a key. Emits what it takes to find them."""
    place, spec = _Place(kernel, batch, kv_head), kernel.spec
    by_row, condition = row_bounds(spec), visible(spec)
    lo, hi = _of_all_rows(place, key_bounds(spec.mask)) if by_row is None else _of_each_row(place, by_row)
    lo, hi = let("lo", lo), let("hi", hi)
    if condition is None:
        return lo, hi
    lo, hi = _seen(place, condition, lo, hi)
    return let("first_seen", lo), let("end_seen", hi)


def _of_all_rows(place: _Place, bounds: Bounds) -> tuple[Any, Any]:
    """The mask's bounds for the first to the last row; those of each head of the group where they differ by head."""
    kernel = place.kernel
    ranges = []
    for member in range(kernel.spec.group if _uses((bounds.lo, bounds.hi), "h") else 1):
        head = place.kv_head * kernel.spec.group + member
        last = kernel.signature.sizes["Sq"] - 1
        env = kernel.env(b=place.batch, h=head, first=T.int64(0), last=last)
        ranges.append((lower(bounds.lo, env), lower(bounds.hi, env)))
    lo, hi = ranges[0]
    for other_lo, other_hi in ranges[1:]:
        lo, hi = T.min(lo, other_lo), T.max(hi, other_hi)
    return lo, hi


def _of_each_row(place: _Place, bounds: Bounds) -> tuple[Any, Any]:
    """What the bounds of the rows, one by one, have between them; rows that see nothing are left out."""
    kernel, trees = place.kernel, (bounds.lo, bounds.hi)
    kv_len = kernel.signature.sizes["Skv"]
    first, end = tile("row_first", (1,), "int64"), tile("row_end", (1,), "int64")

    def ends(row: Any) -> tuple[Any, Any]:
        env = kernel.env(b=place.batch, **_row(place, trees, row))
        return lower(bounds.lo, env), lower(bounds.hi, env)

    rows = _rows(place, trees)
    with scope("bounds_by_row"):
        with stage("row_first", "SR", u=1, r=rows) as (u, row):
            with T.init():
                store(first, [u], kv_len)
            lo, hi = ends(row)
            store(first, [u], T.min(first[u], T.Select(lo < hi, lo, kv_len)))
        with stage("row_end", "SR", u=1, r=rows) as (u, row):
            with T.init():
                store(end, [u], T.int64(0))
            lo, hi = ends(row)
            store(end, [u], T.max(end[u], T.Select(lo < hi, hi, T.int64(0))))
    return first[0], T.max(first[0], end[0])


def _seen(place: _Place, condition: ex.Expr, lo: Any, hi: Any) -> tuple[Any, Any]:
    """The first key of lo … hi for which the condition holds in any row, and the end of them."""
    kernel, ends = place.kernel, tile("seen_ends", (2,), "int32")
    nothing = tirx.const(_NONE, "int32")
    # a maximum for either end, of -j and of j
    with scope("search"), stage("seek", "SRR", c=2, r=_rows(place, (condition,)), n=hi - lo) as (end, row, n):
        with T.init():
            store(ends, [end], nothing)
        env = kernel.env(b=place.batch, j=lo + n, **_row(place, (condition,), row))
        at = tirx.Cast("int32", lo + n)
        found = T.Select(lower(condition, env), T.Select(end == 0, 0 - at, at), nothing)
        store(ends, [end], T.max(ends[end], found))
    first, last = (tirx.Cast("int64", ends[end]) for end in (0, 1))
    return T.Select(last >= 0, 0 - first, lo), T.Select(last >= 0, last + 1, lo)


def _uses(trees: Iterable[ex.Expr], axis: str) -> bool:
    return any(node == ex.Index(axis) for tree in trees for node in tree.walk())


def _rows(place: _Place, trees: Iterable[ex.Expr]) -> Any:
    """How many rows of the tile differ in what `trees` say of them."""
    heads = place.kernel.spec.group if _uses(trees, "h") else 1
    return place.kernel.signature.sizes["Sq"] * heads if _uses(trees, "i") else heads


def _row(place: _Place, trees: Iterable[ex.Expr], row: Any) -> dict[str, Any]:
    """Head and query position of one of those rows."""
    group = place.kernel.spec.group if _uses(trees, "h") else 1
    head = place.kv_head * place.kernel.spec.group
    if group == 1:
        return {"h": head, "i": row}
    return {"h": head + row % group, "i": row // group}
