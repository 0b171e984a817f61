"""What decode's kernels are made of: the tile sizes baked in, the parts of a row, the kernel and tile being built.

Rows lie along head columns: a dot product is a sum over *strands*, columns equal modulo the number of strands, and the
sum of the strands comes last. A schedule puts strands in vector lanes. Columns past the last whole set of strands are a
part of their own, as narrow as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from attncc import expr as ex
from attncc._tvm import Buffer, T, Var, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import let, stage, store, tile
from attncc.algorithm.bounds import key_bounds
from attncc.algorithm.lower_expr import Env, lower
from attncc.algorithm.numeric import cast, widened
from attncc.algorithm.signature import Signature, compute_dtype
from attncc.spec import AttentionSpec

FRACTION_BITS = 20
"""Keys of a tile are given in units of 2^-FRACTION_BITS of all keys that the mask leaves."""


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
    """Neighbouring columns that a strand takes at once: 1, or 2 for bfloat16, of which q is then kept as it is."""
    column_sets: int
    """Most sets of `strands` columns in a register tile of the output."""


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

    def write_row(self, name: str, batch: Any, kv_head: Any, row: Any, total: Any, value: Any) -> None:
        """out = value / total for each column of a row, by the spec's rule where no key was seen."""
        spec, out = self.spec, self.signature.out
        inverse = tile("inverse", (1,), self.dtype)
        head, query = self.place(kv_head, row)
        with stage(f"invert.{name}", "S", u=1) as (u,):
            empty = tirx.const(0.0 if spec.empty_row == "zero" else math.nan, self.dtype)
            quotient = tirx.const(1.0, self.dtype) / total
            store(inverse, [u], T.Select(total == self.zero(), empty, quotient))
        with stage(f"write.{name}", "S", e=spec.value_dim) as (column,):
            store(out, [batch, head, query, column], cast(spec.dtype, value(column) * inverse[0]))


@dataclass(frozen=True)
class Tile:
    """A tile under construction: where it is, and the buffers that live as long as it does."""

    kernel: Kernel
    batch: Any
    kv_head: Any
    split: Any
    first: Any
    end: Any
    query: Buffer
    """[rows, head_dim]: in the compute dtype, or as the bits of bfloat16 where the dot product takes pairs"""
    raw: Buffer
    """[rows, keys]: s"""
    scores: Buffer
    """[rows, keys]: x"""
    probabilities: Buffer
    """[rows, keys]"""
    output: Buffer
    """[rows, value_dim]: the sum of p v so far"""
    maximum: Buffer
    """[rows]: the largest x so far"""
    new_maximum: Buffer
    base: Buffer
    """[rows]: what is subtracted from x; the maximum, or 0 where that is -inf"""
    decay: Buffer
    """[rows]: what a block multiplies earlier sums with"""
    total: Buffer
    """[rows, strands]: the sum of p so far, a strand a lane"""
    new_total: Buffer

    @property
    def spec(self) -> AttentionSpec:
        return self.kernel.spec

    def number(self, value: Any) -> Any:
        """An element of `query` in the compute dtype."""
        return widened(value) if self.tiling.pairs > 1 else value

    @property
    def tiling(self) -> Tiling:
        return self.kernel.tiling

    @property
    def dtype(self) -> str:
        return self.kernel.dtype


def exp(x: Any) -> Any:
    """e**x for a softmax, where no x is above 0 (rounding aside)."""
    return numeric.exp2(x * numeric.const(numeric.LOG2E, x), at_most_zero=True)


def finite(maximum: Any) -> Any:
    """The maximum, but 0 for -inf: with nothing seen so far, x - m must not become -inf + inf."""
    return T.Select(maximum == numeric.const(-math.inf, maximum), numeric.const(0.0, maximum), maximum)


def open_tile(kernel: Kernel, number: Var) -> Tile:
    """Where tile `number` is, and its buffers."""
    spec, tiling, dtype, signature = kernel.spec, kernel.tiling, kernel.dtype, kernel.signature
    batch, kv_head, first, end = (
        let(name, tirx.Cast("int64", signature.work[number, column]))
        for column, name in enumerate(("batch", "kv_head", "first_part", "end_part"))
    )
    lo, hi = (let(name, value) for name, value in zip(("lo", "hi"), _visible(kernel, batch, kv_head), strict=True))
    first, end = (lo + (((hi - lo) * part) >> FRACTION_BITS) for part in (first, end))
    rows, keys = kernel.padded_rows, tiling.keys
    return Tile(
        kernel, batch, kv_head,
        split=let("split", number - (batch * signature.sizes["G"] + kv_head) * kernel.splits),
        first=let("first", first),
        end=let("end", end),
        query=tile("query", (rows, spec.head_dim), dtype if tiling.pairs == 1 else "uint16"),
        raw=tile("raw", (rows, keys), dtype),
        scores=tile("scores", (rows, keys), dtype),
        probabilities=tile("probabilities", (rows, keys), dtype),
        output=tile("output", (rows, spec.value_dim), dtype),
        **{name: tile(name, (rows,), dtype) for name in ("maximum", "new_maximum", "base", "decay")},
        **{name: tile(name, (rows, tiling.strands), dtype) for name in ("total", "new_total")},
    )  # fmt: skip


def _visible(kernel: Kernel, batch: Any, kv_head: Any) -> tuple[Any, Any]:
    """The keys that any row of a tile may see. Under a finite fill hidden keys may count, and all are visited."""
    spec, sizes = kernel.spec, kernel.signature.sizes
    if spec.mask is None or math.isfinite(spec.fill):
        return T.int64(0), sizes["Skv"]
    bounds = key_bounds(spec.mask)
    by_head = any(node == ex.Index("h") for end in (bounds.lo, bounds.hi) for node in end.walk())
    ranges = []
    for member in range(spec.group if by_head else 1):
        index = {"b": batch, "h": kv_head * spec.group + member, "first": T.int64(0), "last": sizes["Sq"] - 1}
        env = Env(kernel.dtype, index, sizes, kernel.scalars, kernel.signature.extras)
        ranges.append((lower(bounds.lo, env), lower(bounds.hi, env)))
    lo, hi = ranges[0]
    for other_lo, other_hi in ranges[1:]:
        lo, hi = T.min(lo, other_lo), T.max(hi, other_hi)
    return lo, hi
