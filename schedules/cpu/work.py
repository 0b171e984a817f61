"""How a prefill call is cut into tiles, and in which order threads take them.

TVM gives each thread a contiguous run of the work table, equal in the number of rows. So heads follow each other (a
head's k and v stay in the cache while its tiles run), and within a head heavy and light tiles alternate: wherever the
table is cut, both parts are about as heavy as they are long, also when a single head is shared by all threads.

That suits caches of their own. Where threads share one that does not hold the keys and values of as many heads, tiles
are dealt out instead, so that all threads are at about the same head.

What a tensor hides is not known here. Where it may differ by batch (padding), each thread gets heads of all batches;
where it may differ by row, it is taken to grow as under a causal mask, the most uneven of the common ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from attncc import expr as ex
from attncc.algorithm.bounds import FIRST, LAST, key_bounds
from attncc.algorithm.visibility import biases
from attncc.schedules.family import Launch, Problem
from attncc.spec import AttentionSpec


def prefill_launch(spec: AttentionSpec, query_block: int, problem: Problem, deal: bool = False) -> Launch:
    """The work table of `attncc.algorithm.prefill`: batch, kv head, head, block of query rows.

    With `deal` a head's tiles are dealt out to the threads, heavy ones first.
    """
    costs = tile_costs(spec, query_block, problem)
    order = np.argsort(-costs, kind="stable") if deal else alternate(costs)
    blocks, heads = order.size, problem.heads
    work = np.empty((problem.batch, heads, blocks, 4), np.int32)
    work[..., 0] = np.arange(problem.batch)[:, None, None]
    work[..., 1] = (np.arange(heads) // spec.group)[:, None]
    work[..., 2] = np.arange(heads)[:, None]
    work[..., 3] = order
    if "b" in _hidden_by(spec):  # a key head's batches follow each other
        groups = work.reshape(problem.batch, -1, spec.group, blocks, 4)
        work = np.ascontiguousarray(groups.swapaxes(0, 1))
    tiles = work.reshape(-1, 4)
    return Launch(np.ascontiguousarray(tiles[dealt(len(tiles), problem.threads)]) if deal else tiles)


def dealt(tiles: int, threads: int) -> npt.NDArray[np.int64]:
    """The order in which `tiles`, dealt out in turns that go back and forth, stand in the runs of the threads.

    As TVM cuts them: all runs are as long as the first, but for the last ones.
    """
    length = -(-tiles // threads)
    place = np.arange(tiles)
    thread, turn = place // length, place % length
    order = np.empty(tiles, np.int64)
    order[np.lexsort((np.where(turn % 2, -thread, thread), turn))] = place
    return order


def alternate(costs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions in the order heaviest, lightest, second heaviest, second lightest, …; equal costs keep their order."""
    if np.all(costs == costs[0]):
        return np.arange(costs.size)
    falling = np.argsort(-costs, kind="stable")
    order = np.empty_like(falling)
    half = (costs.size + 1) // 2
    order[0::2] = falling[:half]
    order[1::2] = falling[half:][::-1]
    return order


def tile_costs(spec: AttentionSpec, query_block: int, problem: Problem) -> npt.NDArray[np.int64]:
    """The number of keys that each block of query rows visits, as far as its form and the module's guesses tell."""
    first = np.arange(0, problem.q_len, query_block, dtype=np.int64)
    last = np.minimum(first + query_block, problem.q_len) - 1
    sizes = {"B": problem.batch, "H": problem.heads, "Sq": problem.q_len, "Skv": problem.kv_len}
    lo, hi = _visible(spec.mask)
    try:
        seen = [_evaluate(bound, {"first": first, "last": last, **sizes}) for bound in (lo, hi)]
    except KeyError:
        seen = [np.asarray(0), np.asarray(problem.kv_len)]
    costs = np.maximum(np.broadcast_to(seen[1] - seen[0], first.shape), 0)
    if "i" in _hidden_by(spec) and np.all(costs == costs[0]):
        return first
    return costs


@lru_cache(256)
def is_window(mask: ex.Expr | None) -> bool:
    """Whether, by its form, a mask hides keys before and after those that a tile sees, and both ends move with it."""
    return all(any(node in (FIRST, LAST) for node in bound.walk()) for bound in _visible(mask))


@lru_cache(256)
def _hidden_by(spec: AttentionSpec) -> frozenset[str]:
    """The axes that what tensors hide may differ by."""
    trees = [spec.mask] if spec.mask is not None else []
    loads = [node for tree in (*trees, *biases(spec)) for node in tree.walk() if isinstance(node, ex.Load)]
    return frozenset(node.axis for load in loads for node in load.walk() if isinstance(node, ex.Index))


@lru_cache(256)
def _visible(mask: ex.Expr | None) -> tuple[ex.Expr, ex.Expr]:
    bounds = key_bounds(mask)
    return bounds.lo, bounds.hi


_OPERATORS: Mapping[str, Callable[..., npt.NDArray[np.int64]]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
    "floordiv": np.floor_divide, "mod": np.mod, "neg": np.negative, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "and": np.logical_and,
    "or": np.logical_or, "not": np.logical_not, "where": np.where,
}  # fmt: skip


def _evaluate(bound: ex.Expr, values: dict[str, npt.NDArray[np.int64] | int]) -> npt.NDArray[np.int64]:
    """A bound in numpy. Raises KeyError for what is known only to the kernel: scalars, tensors, batch and head."""

    def visit(node: ex.Expr, args: tuple[npt.NDArray[np.int64], ...]) -> npt.NDArray[np.int64]:
        match node:
            case ex.Const(value):
                return np.asarray(value)
            case ex.Index(name) | ex.Size(name):
                return np.asarray(values[name])
            case ex.Op("cast"):
                return args[0]
            case ex.Op(name):
                return np.asarray(_OPERATORS[name](*args))
        raise KeyError(str(node))

    result: npt.NDArray[np.int64] = ex.fold(bound, visit)
    return result
