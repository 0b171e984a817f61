"""16-bit tiles in shared memory and in registers, for `cp.async`, `ldmatrix` and `mma.sync` (sm_80 and up).

Rows in shared memory are swizzled: 16-byte chunk c of row r lies at c ^ (r % 8), so that neither copies nor `ldmatrix`
meet bank conflicts. Rows are `pitch` elements apart, whole groups of the eight chunks that the swizzle permutes.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import Buffer, T, tirx
from attncc.schedules.cuda.device import SHORT, Registers, choose, do, mod, ptx, whole

CHUNK = 8
"""Elements that one `cp.async` copies: 16 bytes."""
_LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
_LOAD_TRANSPOSED = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
_COPY = "cp.async.cg.shared.global.L2::128B"


def pitch(width: int) -> int:
    """Elements between rows of `width` elements in shared memory."""
    return -(-width // 64) * 64


def copy(
    source: Buffer, at: tuple[Any, ...], chunk: Any, exists: Any, to: Buffer, place: Any, elements: int = CHUNK
) -> None:
    """Start copying a chunk of row `at` (batch, head, row) of a tensor; zeros where it does not exist.

    A chunk has 16 bytes, which are `elements`.

    `place` is an index of `to`, which may have leading dimensions: a tuple.
    """
    width = int(source.shape[3])
    column = chunk * elements
    if width % (8 * elements):
        exists, column = tirx.all(exists, chunk < width // elements), tirx.min(column, width - elements)
    size = tirx.Cast("uint32", choose(exists, whole(16), whole(0)))
    ptx(_COPY, address(to, place), address(source, (*at, column)), 16, size)


def commit() -> None:
    """Close the group of the copies started since the last one."""
    do(T.ptx.cp.async_.commit_group())


def wait(groups: int) -> None:
    """Until at most that many of this thread's groups are still under way."""
    do(T.ptx.cp.async_.wait_group(groups))


def load(to: Registers, first: int, source: Buffer, place: Any, *, transposed: bool = False) -> None:
    """Four 8x8 matrices into four registers; lane 8 m + r gives the place of row r of matrix m."""
    registers = [to[first + n] for n in range(4)]
    ptx(_LOAD_TRANSPOSED if transposed else _LOAD, *registers, address(source, place))


def multiply(dtype: str, to: Registers, at: int, a: Registers, a_at: int, b: Registers, b_at: int) -> None:
    """A 16x8 tile of sums += a 16x16 tile by a 16x8 tile."""
    kind = SHORT[dtype]
    sums = [to[at + n] for n in range(4)]
    left, right = [a[a_at + n] for n in range(4)], [b[b_at + n] for n in range(2)]
    ptx(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32", *sums, *left, *right, *sums)


def swizzled(row: Any, chunk: Any, width: int) -> Any:
    """Where chunk `chunk` of row `row` lies, in rows `width` apart."""
    return row * width + tirx.bitwise_xor(chunk, mod(row, 8)) * CHUNK


def flipped(chunk: Any, by: int) -> Any:
    """chunk + by under the swizzle, for even `by` and a swizzled chunk of 0 or 1: one of four values and a constant."""
    return tirx.bitwise_xor(chunk, whole(by % 8)) + by // 8 * 8


def address(buffer: Buffer, place: Any) -> Any:
    """Address of an element."""
    return tirx.address_of(tirx.BufferLoad(buffer, list(place) if isinstance(place, tuple) else [place]))
