"""Tensors that are read at each pair of a query row and a key: biases and masks that are data.

Queries lie in vector lanes, but in such a tensor it is keys that follow each other: read where it lies, every lane is a
load of its own. A step therefore turns its part of the tensor over first, into a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer, T, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import accesses, repeat, tile
from attncc.algorithm.lower_expr import Env, element
from attncc.algorithm.storage import storage_dtype, unpack
from attncc.algorithm.transpose import Source, transpose

_ROW, _KEY = ex.Index("i"), ex.Index("j")


def pair_loads(*trees: ex.Expr | None) -> tuple[ex.Load, ...]:
    """What `trees` read by row i and key j, each in a dimension of its own, in order of appearance."""
    nodes = [node for tree in trees if tree is not None for node in tree.walk()]
    return tuple(dict.fromkeys(node for node in nodes if isinstance(node, ex.Load) and is_pair_load(node)))


def is_pair_load(load: ex.Load) -> bool:
    """Whether one index is i, one is j, and the others depend on neither."""
    varying = [at for at in load.index if any(node in (_ROW, _KEY) for node in at.walk())]
    return sorted(map(str, varying)) == ["i", "j"]


def strides(load: ex.Load, buffer: Buffer) -> tuple[Any, Any]:
    """The strides of the tensor along i and along j."""
    by_row, by_key = (buffer.strides[load.index.index(axis)] for axis in (_ROW, _KEY))
    return by_row, by_key


def turned(
    name: str, loads: tuple[ex.Load, ...], env: Env, size: tuple[int, int], existing: tuple[Any, Any]
) -> dict[ex.Load, Buffer]:
    """A tile [keys, queries] for each of the tensors, from the row and key of `env` on; emits what fills them.

    `size` is the queries and keys of a tile, `existing` how many of them there are; others repeat the last one.
    """
    tiles = {}
    for number, load in enumerate(loads):
        tensor = env.buffer[load.tensor]
        buffer = tile(f"pairs{number}_{name}", (size[1], size[0]), _storage(load.dtype))
        with repeat(f"turn{number}_{name}", 1):
            accesses([tensor], [buffer])
            source = Source(element(load, env), *strides(load, tensor), *existing)
            transpose(load.dtype, source, buffer[0, 0], T.int64(size[0]), size)
        tiles[load] = buffer
    return tiles


def from_tiles(tree: ex.Expr, tiles: Mapping[ex.Load, Buffer]) -> ex.Expr:
    """`tree` with what was turned read from its tile, as `Elem` pair0, pair1, …"""
    named = {load: ex.Elem(f"pair{number}", load.dtype) for number, load in enumerate(tiles)}
    return ex.substitute(tree, lambda node: named.get(node) if isinstance(node, ex.Load) else None)


def elements(tiles: Mapping[ex.Load, Buffer], compute: str, key: Any, query: Any) -> dict[str, Any]:
    """The values of those `Elem`s for a key and a query of the step."""
    values = enumerate(tiles.items())
    return {f"pair{number}": _value(load.dtype, compute, buffer[key, query]) for number, (load, buffer) in values}


def _storage(dtype: str) -> str:
    return "int8" if dtype == "bool" else storage_dtype(dtype)


def _value(dtype: str, compute: str, stored: Any) -> Any:
    if dtype == "bool":
        return tirx.NE(stored, tirx.const(0, "int8"))
    return unpack(dtype, compute, stored) if dtype in ex.FLOATS else numeric.cast(dtype, stored)
