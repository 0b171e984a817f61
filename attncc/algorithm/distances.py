"""Terms of a score that depend on how far a key is from a query, and on nothing else of both: position biases.

ALiBi, tables of relative positions and buckets of distances are the same along a diagonal of a tile. A step therefore
evaluates such a term once a diagonal, keys + queries times instead of keys x queries; and queries that follow each
other find theirs next to each other, so that a table costs a load a vector, not one a lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer
from attncc.algorithm.blocks import scope, stage, store, tile
from attncc.algorithm.lower_expr import Env, lower

_Slopes = tuple[int, int] | None
"""How an integer grows with i and with j; (0, 0) for what depends on neither."""
_DISTANCE = (-1, 1)
_NOTHING = (0, 0)


def distance_terms(tree: ex.Expr) -> tuple[ex.Expr, ...]:
    """The largest float terms of `tree` that are functions of j - i (and of b, h, sizes and scalars)."""
    kinds: dict[ex.Expr, _Slopes] = {}

    def visit(node: ex.Expr, args: tuple[_Slopes, ...]) -> _Slopes:
        kinds[node] = _slopes(node, args)
        return kinds[node]

    ex.fold(tree, visit)

    def largest(node: ex.Expr) -> Iterator[ex.Expr]:
        slopes = kinds[node]
        if node.dtype in ex.FLOATS and slopes is not None and slopes != _NOTHING:
            yield node
        elif slopes is None:
            for arg in node.args:
                yield from largest(arg)

    return tuple(dict.fromkeys(largest(tree)))


def _slopes(node: ex.Expr, args: tuple[_Slopes, ...]) -> _Slopes:
    """The slopes of a node; those of j - i for any function of it, None for what is no function of it."""
    match node:
        case ex.Index("i"):
            return 1, 0
        case ex.Index("j"):
            return 0, 1
        case ex.Score() | ex.Elem():
            return None
    known = [slopes for slopes in args if slopes is not None]
    if len(known) < len(args):
        return None
    linear = _linear(node, known)
    if linear is not None:
        return linear if any(linear) else _NOTHING
    if all(slopes == _NOTHING for slopes in known):
        return _NOTHING
    return _DISTANCE if all(sum(slopes) == 0 for slopes in known) else None


def _linear(node: ex.Expr, slopes: list[tuple[int, int]]) -> _Slopes:
    """The slopes of a sum, difference or multiple of integers; None for other nodes."""
    if not isinstance(node, ex.Op) or any(each.dtype not in ("int64", "int32") for each in (node, *node.operands)):
        return None
    match node.name, node.operands, slopes:
        case "add", _, ((a, b), (c, d)):
            return a + c, b + d
        case "sub", _, ((a, b), (c, d)):
            return a - c, b - d
        case "neg", _, ((a, b),):
            return -a, -b
        case "cast", _, ((a, b),):
            return a, b
        case "mul", (ex.Const(factor), _), (_, (a, b)):
            return int(factor) * a, int(factor) * b
        case "mul", (_, ex.Const(factor)), ((a, b), _):
            return a * int(factor), b * int(factor)
    return None


def diagonals(name: str, terms: tuple[ex.Expr, ...], env: Env, size: tuple[int, int]) -> tuple[Buffer, ...]:
    """A buffer for each term: its values along the diagonals of a tile of `size` (queries, keys). Emits what fills it.

    `env` stands at the tile's first row and key. Values for positions past the ends are there, and not used.
    """
    queries, keys = size
    buffers = []
    for number, term in enumerate(terms):
        buffer = tile(f"distance{number}_{name}", (queries + keys,), env.compute)
        with scope(f"diagonals{number}{name}"), stage(f"diagonal{number}{name}", "S", u=queries + keys) as (u,):
            index = {**env.index, "i": env.index["i"] + u, "j": env.index["j"] + (keys - 1)}
            store(buffer, [u], lower(term, replace(env, index=index)))
        buffers.append(buffer)
    return tuple(buffers)


def from_diagonals(tree: ex.Expr) -> ex.Expr:
    """`tree` with its terms read from those buffers, as `Elem` distance0, distance1, …"""
    named = {term: ex.Elem(f"distance{number}") for number, term in enumerate(distance_terms(tree))}
    return ex.substitute(tree, named.get)


def distance_elements(buffers: tuple[Buffer, ...], keys: int, key: Any, query: Any) -> dict[str, Any]:
    """The values of those `Elem`s for a key and a query of the tile."""
    return {f"distance{number}": buffer[query - key + (keys - 1)] for number, buffer in enumerate(buffers)}
