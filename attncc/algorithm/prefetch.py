"""Rows of keys and values that are asked for while others are computed on.

Where several query rows share a key head, a core multiplies what it has read for a while, and hardware's prefetching,
which follows the reads, stops meanwhile: memory and multiplication take turns. So each step asks for a few lines of
what comes some rows later. Into L2 only: as many requests as L1 can hold would make the reads between them wait. All at
once, they do: a block of keys asked for in one place won nothing, in prefill and in decode.

Addresses past the end of a tensor are harmless: a prefetch of what is not there does nothing.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import Buffer, T, tirx
from attncc.algorithm.blocks import accesses, repeat
from attncc.algorithm.signature import BYTES

LINE = 64
"""Bytes of a cache line, of x86 and of most AArch64; where lines are longer, some are asked for twice."""

LLVM = """
define linkonce_odr hidden i32 @attncc_prefetch(ptr %first, i64 %stride, i64 %rows, i64 %bytes) alwaysinline {
entry:
  %any_row = icmp sgt i64 %rows, 0
  %any_byte = icmp sgt i64 %bytes, 0
  %any = and i1 %any_row, %any_byte
  br i1 %any, label %row, label %done
row:
  %r = phi i64 [ 0, %entry ], [ %r_next, %row_end ]
  %offset = mul i64 %r, %stride
  %start = getelementptr i8, ptr %first, i64 %offset
  br label %line
line:
  %at = phi i64 [ 0, %row ], [ %at_next, %line ]
  %address = getelementptr i8, ptr %start, i64 %at
  call void @llvm.prefetch.p0(ptr %address, i32 0, i32 2, i32 1)
  %at_next = add i64 %at, @LINE@
  %more = icmp slt i64 %at_next, %bytes
  br i1 %more, label %line, label %row_end
row_end:
  %r_next = add i64 %r, 1
  %again = icmp slt i64 %r_next, %rows
  br i1 %again, label %row, label %done
done:
  ret i32 0
}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
""".replace("@LINE@", str(LINE))
"""A function that asks for `rows` times `bytes`, `stride` bytes apart, to be brought into L2."""


def row_lines(buffer: Buffer) -> int:
    """Lines that a row of a cache [batch, key heads, keys, columns] fills, at least."""
    return -(-int(buffer.shape[3]) * _itemsize(buffer) // LINE)


def prefetch_lines(buffer: Buffer, row: tuple[Any, Any, Any], first: Any, count: Any) -> None:
    """Ask for `count` lines of a row (batch, key head, key) from its line `first` on, as far as it has so many."""
    lines = T.min(count, row_lines(buffer) - first)
    _prefetch(buffer, (*row, first * (LINE // _itemsize(buffer))), T.int64(1), lines * LINE)


def prefetch_rows(buffer: Buffer, row: tuple[Any, Any, Any], count: Any) -> None:
    """Ask for `count` rows from this one on."""
    _prefetch(buffer, (*row, 0), count, T.int64(row_lines(buffer) * LINE))


def prefetched_row(buffer: Buffer, row: tuple[Any, Any, Any]) -> Any:
    """A number without meaning, whose computation asks for a row."""
    return _call(buffer, (*row, 0), T.int64(1), T.int64(row_lines(buffer) * LINE))


def _prefetch(buffer: Buffer, first: tuple[Any, ...], rows: Any, size: Any) -> None:
    with repeat("prefetch", 1):
        accesses([buffer], [])
        T.evaluate(_call(buffer, first, rows, size))


def _call(buffer: Buffer, first: tuple[Any, ...], rows: Any, size: Any) -> Any:
    stride = buffer.strides[2] * _itemsize(buffer)
    return T.call_extern("int32", "attncc_prefetch", tirx.address_of(buffer[first]), stride, rows, size)


def _itemsize(buffer: Buffer) -> int:
    return BYTES[str(buffer.dtype)]
