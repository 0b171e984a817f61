"""Tiles turned over: queries lie in lanes, while what a tensor holds of a query follows each other in its row.

Squares of 16 elements are turned in registers by shuffles, in LLVM IR, which has them where TIR has none; what is left
over at the borders goes element by element. Where LLVM shuffles some vectors better than others, `Turning` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attncc._tvm import T, tirx

SIDE = 16
"""Most rows and columns of a square that is turned in registers."""

_BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "int64": 64, "int32": 32, "int16": 16, "uint16": 16,
    "int8": 8, "uint8": 8, "bool": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Turning:
    """How vectors are shuffled well."""

    rows: tuple[int, ...] = ()
    """Bits that the row of a square may have, where not all are alike: those of registers, or of what is in them."""
    lane: int = 0
    """Bits inside which one instruction zips two vectors, where it does not zip them whole."""


ANY = Turning()
"""Vectors of any length are shuffled well."""


# One copy a kernel, however often it is called; element (r, c) of the source becomes element (c, r) of the target.
_FUNCTION = """
define linkonce_odr hidden i32 @attncc_transpose_i@BITS@(
    ptr noalias %source, i64 %row_stride, i64 %column_stride, i64 %rows, i64 %columns,
    ptr noalias %target, i64 %target_stride, i64 %all_rows, i64 %all_columns) noinline {
entry:
  %last_row = sub i64 %rows, 1
  %last_column = sub i64 %columns, 1
  %square_rows = call i64 @llvm.smin.i64(i64 %rows, i64 %all_rows)
  %square_columns = call i64 @llvm.smin.i64(i64 %columns, i64 %all_columns)
  %by_row = icmp eq i64 %column_stride, 1
  %by_column = icmp eq i64 %row_stride, 1
  br label %row_head
row_head:
  %r0 = phi i64 [ 0, %entry ], [ %r_end, %row_next ]
  %r_end = add i64 %r0, @SIDE@
  %r_more = icmp slt i64 %r0, %all_rows
  br i1 %r_more, label %column_head, label %done
column_head:
  %c0 = phi i64 [ 0, %row_head ], [ %c_end, %column_next ]
  %c_end = add i64 %c0, @SIDE@
  %c_more = icmp slt i64 %c0, %all_columns
  br i1 %c_more, label %square, label %row_next
square:
  %r_whole = icmp sle i64 %r_end, %square_rows
  %c_whole = icmp sle i64 %c_end, %square_columns
  %whole = and i1 %r_whole, %c_whole
  %shuffled = and i1 %whole, %by_row
  br i1 %shuffled, label %shuffles, label %no_shuffles
shuffles:
@SHUFFLES@
  br label %column_next
no_shuffles:
  %copied = and i1 %whole, %by_column
  br i1 %copied, label %copies, label %elements
copies:
@COPIES@
  br label %column_next
elements:
  %r_stop = call i64 @llvm.smin.i64(i64 %r_end, i64 %all_rows)
  %c_stop = call i64 @llvm.smin.i64(i64 %c_end, i64 %all_columns)
  br label %r_loop
r_loop:
  %r = phi i64 [ %r0, %elements ], [ %r_next, %r_step ]
  %r_from = call i64 @llvm.smin.i64(i64 %r, i64 %last_row)
  %from_row = mul i64 %r_from, %row_stride
  br label %c_loop
c_loop:
  %c = phi i64 [ %c0, %r_loop ], [ %c_next, %c_loop ]
  %c_from = call i64 @llvm.smin.i64(i64 %c, i64 %last_column)
  %from_column = mul i64 %c_from, %column_stride
  %from = add i64 %from_row, %from_column
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
"""

_DECLARATION = """
declare i64 @llvm.smin.i64(i64, i64)
"""


@dataclass(frozen=True)
class Source:
    """A matrix to be turned: its first element (in a buffer), its strides, and how many rows and columns exist."""

    first: Any
    row_stride: Any
    column_stride: Any
    rows: Any
    columns: Any


def transpose(dtype: str, source: Source, target: Any, target_stride: Any, size: tuple[Any, Any] | None = None) -> None:
    """target[c, r] = source[r, c], for a target that starts at the element `target` and whose rows are dense.

    `size` is that of the source (rows, columns) as the target wants it, by default what exists; what does not exist
    repeats the last that does. Numbers are int64, elements of `dtype`. The kernel has imported `llvm_text` of it, and
    the open block states what it accesses.
    """
    size = size or (source.rows, source.columns)
    extents = [T.int64(n) if isinstance(n, int) else n for n in (source.rows, source.columns, target_stride, *size)]
    strides = [T.int64(n) if isinstance(n, int) else n for n in (source.row_stride, source.column_stride)]
    arguments = [tirx.address_of(source.first), *strides, *extents[:2], tirx.address_of(target), *extents[2:]]
    T.evaluate(T.call_extern("int32", f"attncc_transpose_i{_BITS[dtype]}", *arguments))


def llvm_text(dtypes: set[str], turning: Turning) -> str:
    """The functions that `transpose` calls for elements of these dtypes."""
    functions = [_function(bits, turning) for bits in sorted({_BITS[dtype] for dtype in dtypes})]
    return "".join([*functions, _DECLARATION]) if functions else ""


def _function(bits: int, turning: Turning) -> str:
    side = max((row // bits for row in turning.rows if row // bits <= SIDE), default=SIDE)
    shuffles, copies = ("\n".join(lines) for lines in (_shuffles(bits, side, turning.lane), _copies(bits, side)))
    text = _FUNCTION.replace("@SHUFFLES@", shuffles).replace("@COPIES@", copies)
    return text.replace("@BITS@", str(bits)).replace("@BYTES@", str(bits // 8)).replace("@SIDE@", str(side))


def _shuffles(bits: int, side: int, lane: int) -> list[str]:
    """Loads of the rows of a square, shuffles and stores of its columns."""
    vector, lines = f"<{side} x i{bits}>", []
    for n in range(side):
        lines += _address(f"s{n}", "source", ("r0", "row_stride"), "c0", n, bits)
        lines.append(f"  %v0_{n} = load {vector}, ptr %s{n}, align {bits // 8}")
    shuffles, turned = turned_square("v", f"i{bits}", side, lane // bits)
    lines += shuffles
    for n in range(side):
        lines += _address(f"t{n}", "target", ("c0", "target_stride"), "r0", n, bits)
        lines.append(f"  store {vector} {turned}{n}, ptr %t{n}, align {bits // 8}")
    return lines


def turned_square(name: str, kind: str, side: int, lane: int = 0) -> tuple[list[str], str]:
    """LLVM IR that turns the square whose row n is %{name}0_{n}, and how its columns are called but for their numbers.

    `kind` is the type of its elements, of which `lane` (0 for all) are zipped by one instruction.
    """
    vector, zipped = f"<{side} x {kind}>", min(lane, side) or side
    rounds = [_zips(side, zipped)] * (zipped.bit_length() - 1)
    rounds += [_exchanges(side, width) for width in _doubled(zipped, side)]
    lines = []
    for step, shuffles in enumerate(rounds):
        for n, (first, second, lanes) in enumerate(shuffles):
            mask = ", ".join(f"i32 {number}" for number in lanes)
            operands = f"{vector} %{name}{step}_{first}, {vector} %{name}{step}_{second}"
            lines.append(f"  %{name}{step + 1}_{n} = shufflevector {operands}, <{side} x i32> <{mask}>")
    return lines, f"%{name}{len(rounds)}_"


Shuffle = tuple[int, int, list[int]]
"""Two vectors, and the elements of both that make a new one; those of the second are counted on from the first's."""


def _zips(side: int, width: int) -> list[Shuffle]:
    """A round that zips each vector of the first half of `width` with its partner in the second half, in parts of that
    width. After log2(width) of them squares of that width are turned."""
    half = width // 2
    lanes = [
        [part + upper * half + n // 2 + n % 2 * side for part in range(0, side, width) for n in range(width)]
        for upper in range(2)
    ]
    return [(n - n % width + n % width // 2, n - n % width + n % width // 2 + half, lanes[n % 2]) for n in range(side)]


def _exchanges(side: int, width: int) -> list[Shuffle]:
    """A round that turns squares of twice the `width` whose four quarters are turned: two quarters change places."""
    lanes = [
        [lane - width + side if lane & width else lane for lane in range(side)],
        [lane + side if lane & width else lane + width for lane in range(side)],
    ]
    return [(n & ~width, n | width, lanes[bool(n & width)]) for n in range(side)]


def _doubled(width: int, side: int) -> list[int]:
    """`width`, twice that, and so on below `side`."""
    return [width << n for n in range((side // width).bit_length() - 1)]


def _copies(bits: int, side: int) -> list[str]:
    """The columns of a square whose columns are dense already."""
    vector, lines = f"<{side} x i{bits}>", []
    for n in range(side):
        lines += _address(f"from{n}", "source", ("c0", "column_stride"), "r0", n, bits)
        lines.append(f"  %w{n} = load {vector}, ptr %from{n}, align {bits // 8}")
        lines += _address(f"to{n}", "target", ("c0", "target_stride"), "r0", n, bits)
        lines.append(f"  store {vector} %w{n}, ptr %to{n}, align {bits // 8}")
    return lines


def _address(name: str, base: str, line: tuple[str, str], offset: str, number: int, bits: int) -> list[str]:
    """%name = address of element `offset` of line `line[0] + number`, which are `line[1]` apart."""
    return [
        f"  %{name}_line = add i64 %{line[0]}, {number}",
        f"  %{name}_first = mul i64 %{name}_line, %{line[1]}",
        f"  %{name}_at = add i64 %{name}_first, %{offset}",
        f"  %{name} = getelementptr i{bits}, ptr %{base}, i64 %{name}_at",
    ]
