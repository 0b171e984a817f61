"""Tiles turned over: queries lie in lanes, while a row of a tensor belongs to one query.

Squares of 16 elements are turned in registers by shuffles, in LLVM IR, which has them where TIR has none; what is left
over at the borders goes element by element. The same text serves every target.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import Buffer, T, tirx

SIDE = 16
"""Rows and columns of a square that is turned in registers."""

_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "uint16": 16}

_FUNCTION = """
define i32 @attncc_transpose_i@BITS@(ptr %source, i64 %source_stride, ptr %target, i64 %target_stride,
                                     i64 %rows, i64 %columns) alwaysinline {
entry:
  br label %row_head
row_head:
  %r0 = phi i64 [ 0, %entry ], [ %r_end, %row_next ]
  %r_end = add i64 %r0, 16
  %r_more = icmp slt i64 %r0, %rows
  br i1 %r_more, label %column_head, label %done
column_head:
  %c0 = phi i64 [ 0, %row_head ], [ %c_end, %column_next ]
  %c_end = add i64 %c0, 16
  %c_more = icmp slt i64 %c0, %columns
  br i1 %c_more, label %square, label %row_next
square:
  %r_whole = icmp sle i64 %r_end, %rows
  %c_whole = icmp sle i64 %c_end, %columns
  %whole = and i1 %r_whole, %c_whole
  br i1 %whole, label %shuffles, label %elements
shuffles:
@SHUFFLES@
  br label %column_next
elements:
  %r_stop = call i64 @llvm.smin.i64(i64 %r_end, i64 %rows)
  %c_stop = call i64 @llvm.smin.i64(i64 %c_end, i64 %columns)
  br label %r_loop
r_loop:
  %r = phi i64 [ %r0, %elements ], [ %r_next, %r_step ]
  br label %c_loop
c_loop:
  %c = phi i64 [ %c0, %r_loop ], [ %c_next, %c_loop ]
  %from_row = mul i64 %r, %source_stride
  %from = add i64 %from_row, %c
  %to_row = mul i64 %c, %target_stride
  %to = add i64 %to_row, %r
  %from_address = getelementptr i@BITS@, ptr %source, i64 %from
  %to_address = getelementptr i@BITS@, ptr %target, i64 %to
  %value = load i@BITS@, ptr %from_address, align @BYTES@
  store i@BITS@ %value, ptr %to_address, align @BYTES@
  %c_next = add i64 %c, 1
  %c_again = icmp slt i64 %c_next, %c_stop
  br i1 %c_again, label %c_loop, label %r_step
r_step:
  %r_next = add i64 %r, 1
  %r_again = icmp slt i64 %r_next, %r_stop
  br i1 %r_again, label %r_loop, label %column_next
column_next:
  br label %column_head
row_next:
  br label %row_head
done:
  ret i32 0
}

declare i64 @llvm.smin.i64(i64, i64)
"""


def transpose(source: Buffer, target: Buffer, first: list[Any], rows: Any, columns: Any) -> None:
    """target[*first[:-2], first[-2] + c, first[-1] + r] = source[r, c] for r < rows and c < columns, both int64.

    `source` is a tile [rows, columns]; `target` is contiguous, of elements as wide. The kernel has imported `llvm_text`
    of their dtype, and the open block states what it accesses.
    """
    name = f"attncc_transpose_i{_BITS[str(source.ty.dtype)]}"
    strides = tirx.const(int(source.shape[1]), "int64"), target.shape[-1]
    addresses = tirx.address_of(source[0, 0]), tirx.address_of(target[tuple(first)])
    T.evaluate(T.call_extern("int32", name, addresses[0], strides[0], addresses[1], strides[1], rows, columns))


def llvm_text(dtype: str) -> str:
    """The function that `transpose` calls for tiles of `dtype`."""
    bits = _BITS[dtype]
    text = _FUNCTION.replace("@SHUFFLES@", "\n".join(_shuffles(bits)))
    return text.replace("@BITS@", str(bits)).replace("@BYTES@", str(bits // 8))


def _shuffles(bits: int) -> list[str]:
    """Loads of the rows of a square, shuffles and stores of its columns.

    A round zips each vector of the first half with its partner in the second; after log2(16) of them lane and number of
    a vector have changed places.
    """
    vector = f"<{SIDE} x i{bits}>"
    half = SIDE // 2
    zipped = [
        ", ".join(f"i32 {part * half + lane // 2 + lane % 2 * SIDE}" for lane in range(SIDE)) for part in range(2)
    ]
    lines = []
    for n in range(SIDE):
        lines += _address(f"s{n}", "source", "r0", "c0", n, bits)
        lines.append(f"  %v0_{n} = load {vector}, ptr %s{n}, align {bits // 8}")
    rounds = SIDE.bit_length() - 1
    for step in range(rounds):
        for n in range(SIDE):
            a, b = (f"{vector} %v{step}_{n // 2 + offset}" for offset in (0, half))
            mask = f"<{SIDE} x i32> <{zipped[n % 2]}>"
            lines.append(f"  %v{step + 1}_{n} = shufflevector {a}, {b}, {mask}")
    for n in range(SIDE):
        lines += _address(f"t{n}", "target", "c0", "r0", n, bits)
        lines.append(f"  store {vector} %v{rounds}_{n}, ptr %t{n}, align {bits // 8}")
    return lines


def _address(name: str, base: str, row: str, column: str, offset: int, bits: int) -> list[str]:
    """%name = address of base[row + offset, column]."""
    return [
        f"  %{name}_row = add i64 %{row}, {offset}",
        f"  %{name}_first = mul i64 %{name}_row, %{base}_stride",
        f"  %{name}_at = add i64 %{name}_first, %{column}",
        f"  %{name} = getelementptr i{bits}, ptr %{base}, i64 %{name}_at",
    ]
