"""What the tiles of a thread block take of a GPU: shared memory, registers, threads. Needs no TVM.

Registers are counted by the tiles that a kernel keeps in them; addresses, maxima and loop counters get `_SPARE` more.
The count decides what is worth trying, not what is right: the compiler spills what finds no room.
"""

from __future__ import annotations

from dataclasses import dataclass

from attncc import expr as ex
from attncc.schedules.cuda.simt_tile import THREADS, Tile
from attncc.schedules.family import Decisions
from attncc.spec import AttentionSpec

COLUMNS = 64
"""16-bit columns of the widest swizzled row, 128 bytes. Wider rows lie in panels of this width, one after another."""
STORE_ROWS = 16
"""Query rows of a warp of `wgmma`: what one TMA store writes."""
DECODE_ROWS = 16
"""Rows that query heads and positions of decode are packed into."""
CONSUMER_REGISTERS = {2: 240, 3: 160}
"""Of a thread, by how many warpgroups compute: the copying one gives its own away."""
CODES = 16
"""Codes of one byte in a chunk."""
_LONG = ("erf", "log1p", "sin", "cos", "pow", "floordiv", "mod")
"""Operators that become long runs of instructions."""
_BUSY = 84
"""Registers of a thread that no tile may take where a score function or mask wants many: measured."""
_KEPT = 160
"""Registers that query rows and results of decode may take together."""
_FILE, _MOST, _SPARE = 1 << 16, 255, 24
"""Registers of a multiprocessor, of a thread at most, and those that no tile may take."""


@dataclass(frozen=True)
class Room:
    """What a thread block takes."""

    shared: int
    """Bytes of shared memory."""
    registers: int
    """That tiles take of each thread."""
    most: int
    """Registers that a thread may have."""

    @property
    def crowded(self) -> bool:
        """Whether a score function or mask that is `busy` makes the compiler spill."""
        return self.registers + _BUSY > self.most

    def lacks(self, limit: int) -> str | None:
        """What it has not enough of where a thread block may have `limit` bytes of shared memory; None: nothing."""
        if self.shared > limit:
            return f"it takes {self.shared} bytes of shared memory, of {limit}"
        if self.registers + _SPARE > self.most:
            return f"its tiles take {self.registers} registers of a thread, which has {self.most}"
        return None


def mma(spec: AttentionSpec, decisions: Decisions) -> Room:
    """Of `PrefillMma`: queries, one tile of keys and one of values."""
    rows, keys, warps = decisions["rows"], decisions["keys"], decisions["warps"]
    wide_k, wide_v = panels(spec.head_dim), panels(spec.value_dim)
    strips = max(1, rows // (16 * warps))
    kept = _sixteens(spec.head_dim) if decisions["keep_q"] else 1
    registers = strips * (keys // 2 + _sixteens(spec.value_dim) * 8 + 4 * kept + 4) + 4
    shared = ((rows + keys) * wide_k + keys * wide_v) * COLUMNS * 2
    return Room(shared, registers, _share(warps * 32 * decisions["blocks"]))


def wgmma(spec: AttentionSpec, decisions: Decisions) -> Room:
    """Of `PrefillWgmma`: query stages, the rings of keys and values, barriers."""
    rows, keys = decisions["rows"], decisions["keys"]
    wide_k, wide_v = panels(spec.head_dim), panels(spec.value_dim)
    queries = decisions["query_stages"] * max(wide_k, wide_v) * rows
    ring = decisions["stages"] * (wide_k + wide_v) * keys
    registers = keys // 2 + keys // 4 + -(-spec.value_dim // 8) * 4
    return Room((queries + ring) * COLUMNS * 2 + 1024, registers, CONSUMER_REGISTERS[rows // 64])


def decode(spec: AttentionSpec, decisions: Decisions) -> Room:
    """Of `Decode`: the warps' rings, and their results with maxima and sums."""
    warps, keys = decisions["warps"], decisions["keys"]
    row = _line(spec.key_dtype, spec.head_dim) + _line(spec.value_dtype, spec.value_dim)
    shared = warps * decisions["stages"] * keys * row
    shared += warps * DECODE_ROWS * spec.value_dim * 4 + (warps + 1) * DECODE_ROWS * 8
    kept = 4
    if shares_queries(spec):
        shared += _sixteens(spec.head_dim) * 4 * 32 * 4
    else:
        kept *= _sixteens(spec.head_dim)
    registers = kept + keys // 2 + _sixteens(spec.value_dim) * 8 + 8
    return Room(shared, registers, _share(warps * 32 * decisions["blocks"]))


def shares_queries(spec: AttentionSpec) -> bool:
    """Whether decode keeps query rows in shared memory: beside a result this wide, registers have no room for them."""
    return _sixteens(spec.head_dim) * 4 + _sixteens(spec.value_dim) * 8 > _KEPT


def simt(spec: AttentionSpec, decisions: Decisions) -> Room:
    """Of `Simt`: queries, keys or values, and weights."""
    tile = Tile(spec, decisions)
    rows = tile.thread_rows * (tile.thread_keys + tile.columns + 4 + 3)
    registers = rows + max(tile.thread_keys, tile.columns) * 4
    return Room(tile.shared_bytes, registers * (2 if tile.dtype == "float64" else 1), _share(THREADS))


def busy(spec: AttentionSpec) -> bool:
    """Whether score function or mask read tensors key by key, or take long to compute.

    Addresses, numbers under way and intermediate results then want registers of their own.
    """
    trees = [tree for tree in (spec.score_mod, spec.mask) if tree is not None]
    return any(
        (isinstance(node, ex.Op) and node.name in _LONG)
        or (isinstance(node, ex.Load) and any(ex.Index("j") in index.walk() for index in node.index))
        for tree in trees
        for node in tree.walk()
    )


def chunks(width: int, elements: int) -> int:
    """Chunks of 16 bytes, `elements` each, that a row takes in shared memory: whole eights, or four."""
    needed = -(-width // elements)
    return 4 if elements == CODES and needed <= 4 else -(-needed // 8) * 8


def _line(kept: str | None, width: int) -> int:
    """Bytes of a row of keys or values in shared memory."""
    return 16 * chunks(width, 8 if kept is None else CODES)


def panels(width: int) -> int:
    """Panels of `COLUMNS` columns that rows of `width` take."""
    return -(-width // COLUMNS)


def _sixteens(width: int) -> int:
    return -(-width // 16)


def _share(threads: int) -> int:
    """Registers of each of that many threads on one multiprocessor, which come in eights."""
    return min(_MOST, _FILE // threads // 8 * 8)
