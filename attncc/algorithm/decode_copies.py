"""Copies of what scores and values' scales read by key: scales of a quantised cache, a bias.

Tensors come with any strides, so a vector of their elements is gathered: where there is no instruction for that, with
an address computed for each, some eight instructions an element. A loop over single elements does nothing else, and
LLVM makes it one over vectors for the stride that they mostly have, 1:

    for n < count: copy[n] = t[b, h, start + n]

Vectors then come from the copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attncc import expr as ex
from attncc._tvm import Buffer
from attncc.algorithm.blocks import scope, stage, store, tile
from attncc.algorithm.lower_expr import Env, lower
from attncc.spec import AttentionSpec

if TYPE_CHECKING:
    from attncc.algorithm.decode_tile import Tile

KEY, PLACE = ex.Index("j"), ex.Index("at")
"""A key, and its place among those of a block."""

Copies = Mapping[ex.Expr, tuple[str, Buffer]]
"""By load: the name and the copy, [keys], of the elements that it reads for the keys of a block."""


def copy_by_key(t: Tile, start: Any, count: Any, row: Any) -> Copies:
    """Copy what a row reads for the `count` keys from `start` on. The copies end with what happens to be there."""
    head, query = t.kernel.place(t.kv_head, row)
    copies: dict[ex.Expr, tuple[str, Buffer]] = {}
    for number, load in enumerate(by_key(t.spec)):
        name = f"by_key{number}"
        copy = tile(name, (t.tiling.keys,), t.dtype)
        copies[load] = name, copy
        with scope(f"copy.{number}"), stage(f"copy_by_key.{number}", "S", n=count) as (n,):
            env = t.kernel.env(b=t.batch, h=head, i=query, j=start + n)
            store(copy, [n], lower(load, env))
    return copies


def by_key(spec: AttentionSpec) -> list[ex.Load]:
    """The loads of floats along keys alone: whose last position is the key, and no other depends on it."""
    found: dict[ex.Load, None] = {}

    def visit(node: ex.Expr, args: tuple[bool, ...]) -> bool:
        if isinstance(node, ex.Load) and node.dtype in ex.FLOATS and node.index[-1:] == (KEY,) and not any(args[:-1]):
            found[node] = None
        return node == KEY or any(args)

    for expression in (spec.score_mod, spec.mask, spec.value_scale):
        if expression is not None:
            ex.fold(expression, visit)
    return list(found)


def from_copies(expr: ex.Expr, env: Env, copies: Copies, at: Any) -> tuple[ex.Expr, Env]:
    """`expr` and `env` with what was copied read from there, at a place."""
    if not copies:
        return expr, env

    def copied(node: ex.Expr) -> ex.Expr | None:
        # any float: all of them are computed in the kernel's dtype, which the copies have
        return ex.Load(copies[node][0], (PLACE,), "float32") if node in copies else None

    buffers = {**env.buffer, **dict(copies.values())}
    return ex.substitute(expr, copied), replace(env, buffer=buffers, index={**env.index, PLACE.axis: at})
