"""What decode's kernels are made of: the tile sizes baked in, the parts of a row, the kernel being built.

Rows lie along head columns: a dot product is a sum over *strands*, columns equal modulo the number of strands, and the
sum of the strands comes last. A schedule puts strands in vector lanes. Columns past the last whole set of strands are a
part of their own, as narrow as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attncc._tvm import Buffer, T, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import stage, store, tile
from attncc.algorithm.lower_expr import Env
from attncc.algorithm.numeric import cast
from attncc.algorithm.signature import Signature, compute_dtype
from attncc.algorithm.storage import unit
from attncc.spec import AttentionSpec

if TYPE_CHECKING:
    from attncc.algorithm.decode_redo import Attempt


@dataclass(frozen=True)
class Tiling:
    """What the algorithm must know of a schedule: the tile sizes baked into it."""

    row_chunk: int
    """Rows of a register tile."""
    keys: int
    """Keys of a block: a multiple of `key_chunk` and of `strands`."""
    key_rows: int
    """Keys of a register tile of scores; divides `key_chunk`."""
    key_chunk: int
    """Keys whose strands are summed together."""
    strands: int
    """Strands of a dot product."""
    pairs: int
    """Neighbouring columns that a strand takes at once: more than 1 for bfloat16 and codes; q is then kept as it is."""
    column_sets: int
    """Most sets of `strands` columns in a register tile of the output."""
    value_rows: int
    """Keys whose values are read together, for all rows: an even number."""
    value_pairs: int
    """Neighbouring keys that a product of weights and values takes at once: 2 for bfloat16, in which weights are then
    rounded and values paired; else 1."""
    ahead: int
    """How many rows of k, and of v, come before those that memory is asked for; 0 asks for none (`prefetch`)."""
    copy_by_key: int
    """Whether what is read by key is copied before vectors of it are made (`decode_copies`)."""


@dataclass(frozen=True)
class Columns:
    """`sets` sets of `width` strands of `pairs` columns, from column `start` on."""

    start: int
    sets: int
    width: int
    pairs: int = 1


def columns(total: int, strands: int, most: int) -> Iterator[Columns]:
    """`total` columns in runs of at most `most` sets of `strands`, then what is left as one narrower set."""
    whole = total // strands
    for first in range(0, whole, most):
        yield Columns(first * strands, min(most, whole - first), strands)
    if total % strands:
        yield Columns(whole * strands, 1, total % strands)


def head_columns(head_dim: int, tiling: Tiling) -> list[Columns]:
    """The parts of a dot product: whole sets of strands of pairs, then what is left, without pairs."""
    whole = head_dim // (tiling.strands * tiling.pairs)
    end = whole * tiling.strands * tiling.pairs
    paired = [Columns(0, whole, tiling.strands, tiling.pairs)] if whole else []
    rest = columns(head_dim - end, tiling.strands, max(head_dim, 1))
    return paired + [Columns(end + part.start, part.sets, part.width) for part in rest]


def paired_columns(spec: AttentionSpec, tiling: Tiling) -> int:
    """How many columns of v are multiplied in pairs of keys: whole sets of strands."""
    return spec.value_dim // tiling.strands * tiling.strands if tiling.value_pairs > 1 else 0


def value_columns(spec: AttentionSpec, tiling: Tiling) -> list[Columns]:
    """The parts of a weighted sum: those of pairs of keys, then what is left, a key at a time."""
    end, width, most = paired_columns(spec, tiling), tiling.strands, tiling.column_sets
    paired = [Columns(part.start, part.sets, width, tiling.value_pairs) for part in columns(end, width, most)]
    rest = columns(spec.value_dim - end, width, most)
    return paired + [Columns(end + part.start, part.sets, part.width) for part in rest]


def value_unit(spec: AttentionSpec) -> float:
    """What the elements of v are read in multiples of; weights without a bound are not multiplied with it."""
    return unit(spec.value_dtype or spec.dtype) if spec.normalizer == "softmax" else 1.0


def weighs_values(spec: AttentionSpec) -> bool:
    """Whether the weights of v are not the probabilities."""
    return spec.value_scale is not None or value_unit(spec) != 1.0


@dataclass(frozen=True)
class Prefetched:
    """What a chunk of rows asks memory for, such that all chunks together ask for everything once."""

    key_lines: Any
    """Of a row of k."""
    value_rows: Any
    """Of those that are read together, before each part of the columns."""


@dataclass(frozen=True)
class Kernel:
    """The kernel under construction."""

    spec: AttentionSpec
    tiling: Tiling
    signature: Signature
    scalars: Mapping[str, Any]
    rows: Any
    """Query rows of a tile: query length times group."""
    row_chunks: Any
    """Chunks of rows; the last may hold rows that repeat."""
    splits: Any
    """Tiles of a key head."""
    prefetched: Prefetched | None
    attempt: Attempt | None
    """Where hidden keys may have to be visited after all: which attempt this is."""

    @property
    def dtype(self) -> str:
        """The compute dtype."""
        return compute_dtype(self.spec)

    @property
    def padded_rows(self) -> Any:
        """Rows of all chunks."""
        return self.row_chunks * self.tiling.row_chunk

    def place(self, kv_head: Any, row: Any) -> tuple[Any, Any]:
        """Head and query position of a row; rows past the end repeat the last one."""
        row = T.min(row, self.rows - 1)
        if self.spec.group == 1:
            return kv_head, row
        return kv_head * self.spec.group + row % self.spec.group, row // self.spec.group

    def zero(self) -> Any:
        return tirx.const(0.0, self.dtype)

    @property
    def normalizes(self) -> bool:
        """Whether there are a maximum and a sum to keep."""
        return self.spec.normalizer == "softmax"

    @property
    def kept(self) -> Buffer | None:
        """[n, rows, Skv]: x of every key, -inf (0 without a normalizer) for those not visited; for weights alone."""
        return self.signature.workspaces[-1] if "weights" in self.signature.more else None

    def highest(self, name: str, at: Any, row: Any) -> Buffer:
        """[1]: the maximum of a row of key head `at`, of those of all its splits."""
        found, maximum = tile("highest", (1,), self.dtype), self.signature.workspaces[1]
        with stage(f"highest{name}", "SR", u=1, s=self.splits) as (u, s):
            with T.init():
                store(found, [u], tirx.const(-math.inf, self.dtype))
            store(found, [u], T.max(found[u], maximum[at, s, row]))
        return found

    def inverse(self, name: str, total: Any) -> Buffer:
        """[1]: what the sum of p v, or p, is multiplied with: 1 / total, by the spec's rule where no key was seen."""
        found = tile("inverse", (1,), self.dtype)
        with stage(f"invert.{name}", "S", u=1) as (u,):
            empty = tirx.const(0.0 if self.spec.empty_row == "zero" else math.nan, self.dtype)
            store(found, [u], T.Select(total == self.zero(), empty, tirx.const(1.0, self.dtype) / total))
        return found

    @property
    def unseen(self) -> Any:
        """x of a key that is not there."""
        return tirx.const(-math.inf if self.normalizes else 0.0, self.dtype)

    def env(self, score: Any = None, **index: Any) -> Env:
        """What the leaves of the spec's expressions are at a place."""
        return Env(self.dtype, index, self.signature.sizes, self.scalars, self.signature.extras, score)

    def write_row(self, name: str, batch: Any, kv_head: Any, row: Any, state: RowState) -> None:
        """out = value / total for a row, by the rule of the spec where no key was seen; and its other outputs.

        Without a normalizer the value is the result.
        """
        spec, out, more = self.spec, self.signature.out, self.signature.more
        head, query = self.place(kv_head, row)
        if not self.normalizes:
            with stage(f"write.{name}", "S", e=spec.value_dim) as (column,):
                store(out, [batch, head, query, column], cast(spec.dtype, state.output(column)))
            return
        inverse = self.inverse(name, state.total)
        with stage(f"write.{name}", "S", e=spec.value_dim) as (column,):
            store(out, [batch, head, query, column], cast(spec.dtype, state.output(column) * inverse[0]))
        maximum = numeric.true_maximum(state.maximum, state.total)
        for asked, value in (("max", maximum), ("sum", state.total)):
            if asked in more:
                with stage(f"write_{asked}.{name}", "S", u=1) as (u,):
                    store(more[asked], [batch, head, query + u], value)


@dataclass(frozen=True)
class RowState:
    """What came out of a row, over all keys."""

    maximum: Any
    total: Any
    output: Callable[[Any], Any]
    """By column: the sum of p v."""


def exp(x: Any) -> Any:
    """e**x for a softmax, where no x is above 0 (rounding aside)."""
    return numeric.exp2(x * numeric.const(numeric.LOG2E, x), at_most_zero=True)


def finite(maximum: Any) -> Any:
    """The maximum, but 0 for -inf: with nothing seen so far, x - m must not become -inf + inf."""
    return T.Select(maximum == numeric.const(-math.inf, maximum), numeric.const(0.0, maximum), maximum)
