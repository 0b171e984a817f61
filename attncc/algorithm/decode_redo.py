"""Decode under a finite fill: without the hidden keys first, and with them where a row turns out to need them.

A key with x = -1e9 has no weight beside one with x = 0, and all the weight where a row sees no other. Which of the two
holds is known when all splits of a key head are done: the kernel then runs a second time for the heads that need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from attncc._tvm import Buffer, T, tirx
from attncc.algorithm.blocks import accesses, let, repeat, scope, stage, store, tile
from attncc.algorithm.decode_parts import Kernel


@dataclass(frozen=True)
class Attempt:
    """The second workspaces of such a kernel, and which attempt is being built."""

    number: Any
    """0, or 1 when all keys are visited."""
    hidden: Buffer
    """[n]: 1 where the first attempt left keys out."""
    again: Buffer
    """[n]: 1 where there has to be a second one."""
    safe: float
    """What the maximum of each row must be above."""

    def active(self, at: Any) -> Any:
        """How often, 0 or 1, key head `at` is computed in this attempt."""
        return T.Select(tirx.Or(self.number == 0, self.again[at] > 0), T.int64(1), T.int64(0))

    def widened(self, lo: Any, hi: Any, kv_len: Any) -> tuple[Any, Any]:
        """The range of keys of this attempt, where the first one takes lo … hi."""
        return T.Select(self.number == 0, lo, T.int64(0)), T.Select(self.number == 0, hi, kv_len)


def attempts(kernel: Kernel, attempt: Attempt, emit: Callable[[Kernel], None]) -> None:
    """Emit the kernel, by `emit`, in a loop of two attempts."""
    signature = kernel.signature
    written = (*signature.outputs, *signature.workspaces)
    with scope("attempts"):
        accesses((*signature.inputs, *signature.workspaces), written)
        needed = tile("needed", (1,), "int32")
        touched = (*signature.inputs, *signature.workspaces, needed), (*written, needed)
        with stage("hope", "S", u=1) as (u,):
            store(needed, [u], 1)
        with repeat("attempt", 2) as number:
            accesses(*touched)
            with repeat("work", let("active", needed[0])):
                accesses(*touched)
                emit(replace(kernel, attempt=replace(attempt, number=number)))
                with scope("judge"):
                    _judge(kernel, attempt, needed)


def note(kernel: Kernel, attempt: Attempt, at: Any, split: Any, maximum: Buffer, hides: Any) -> None:
    """Keep what the verdict on key head `at` needs of one of its tiles: the maxima, and whether keys were left out."""
    with stage("note_max", "S", r=kernel.rows) as (row,):
        store(kernel.signature.workspaces[1], [at, split, row], maximum[row])
    with repeat("note_hidden", T.Select(split == 0, T.int64(1), T.int64(0))), stage("note", "S", u=1) as (u,):
        one, zero = tirx.const(1.0, kernel.dtype), kernel.zero()
        store(attempt.hidden, [at + u], T.Select(hides, one, zero))


def _judge(kernel: Kernel, attempt: Attempt, needed: Buffer) -> None:
    """Which key heads need a second attempt, and whether any does."""
    sizes, maximum = kernel.signature.sizes, kernel.signature.workspaces[1]
    heads = sizes["B"] * sizes["G"]
    with repeat("verdict", heads) as at:
        tops, lowest = tile("tops", (kernel.rows,), kernel.dtype), tile("lowest", (1,), kernel.dtype)
        with stage("row_top", "SR", r=kernel.rows, s=kernel.splits) as (row, split):
            with T.init():
                store(tops, [row], tirx.const(-math.inf, kernel.dtype))
            store(tops, [row], T.max(tops[row], maximum[at, split, row]))
        with stage("lowest", "SR", u=1, r=kernel.rows) as (u, row):
            with T.init():
                store(lowest, [u], tirx.const(math.inf, kernel.dtype))
            store(lowest, [u], T.min(lowest[u], tops[row]))
        with stage("decide", "S", u=1) as (u,):
            safe = lowest[u] > tirx.const(attempt.safe, kernel.dtype)
            unsafe = tirx.And(attempt.hidden[at + u] > 0, tirx.Not(safe))
            store(attempt.again, [at + u], T.Select(unsafe, tirx.const(1.0, kernel.dtype), kernel.zero()))
    with stage("any", "SR", u=1, n=heads) as (u, n):
        with T.init():
            store(needed, [u], 0)
        store(needed, [u], T.max(needed[u], tirx.Cast("int32", attempt.again[n] > 0)))
