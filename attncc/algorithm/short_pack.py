"""Keys and values of a head, packed for `short`: keys turned over, a vector of keys for each head column.

    keys    [blocks, head_dim / pairs, lanes, pairs]    element (block * lanes + lane, column * pairs + pair) of k
    values  [keys / 2, value_dim, 2]                    element (n * 2 + pair, column) of v, 0 past the last key

LLVM IR, which has shuffles where TIR has none; the same text serves every target. Keys past the last repeat it.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import T, tirx
from attncc.algorithm.transpose import turned_square

_INTEGER = {"float64": "i64", "float32": "i32", "float16": "i16", "bfloat16": "i16"}
_BYTES = {"i64": 8, "i32": 4, "i16": 2}
_VALUE_COLUMNS = 16

_KEYS = """
define linkonce_odr hidden i32 @attncc_pack_keys(
    ptr noalias %source, i64 %stride, i64 %rows, ptr noalias %target) noinline {
entry:
  %last = sub i64 %rows, 1
  %row_bytes = mul i64 %stride, @ROW_BYTES@
  %any = icmp sgt i64 %rows, 0
  br i1 %any, label %block, label %done
block:
  %first = phi i64 [ 0, %entry ], [ %next, %block_end ]
  %to = phi ptr [ %target, %entry ], [ %to_next, %block_end ]
@ROWS@
@SQUARES@
  br label %block_end
block_end:
  %next = add i64 %first, @LANES@
  %to_next = getelementptr i8, ptr %to, i64 @BLOCK_BYTES@
  %more = icmp slt i64 %next, %rows
  br i1 %more, label %block, label %done
done:
  ret i32 0
}
declare i64 @llvm.smin.i64(i64, i64)
"""

_SQUARE_LOOP = """
  br label %square
square:
  %at = phi i64 [ 0, %block ], [ %at_next, %square ]
  %from_offset = mul i64 %at, @FROM_BYTES@
  %to_offset = mul i64 %at, @TO_BYTES@
@SQUARE@
  %at_next = add i64 %at, 1
  %again = icmp slt i64 %at_next, @COUNT@
  br i1 %again, label %square, label %rest
rest:
"""

_VALUES = """
define linkonce_odr hidden i32 @attncc_pack_values(
    ptr noalias %source, i64 %stride, i64 %rows, ptr noalias %target) noinline {
entry:
  %any = icmp sgt i64 %rows, 0
  br i1 %any, label %pair, label %done
pair:
  %a_row = phi i64 [ 0, %entry ], [ %next, %pair ]
  %to = phi ptr [ %target, %entry ], [ %to_next, %pair ]
  %after = add i64 %a_row, 1
  %both = icmp slt i64 %after, %rows
  %b_row = select i1 %both, i64 %after, i64 %a_row
  %a_offset = mul i64 %a_row, %stride
  %b_offset = mul i64 %b_row, %stride
  %a = getelementptr i16, ptr %source, i64 %a_offset
  %b = getelementptr i16, ptr %source, i64 %b_offset
@COLUMNS@
  %to_next = getelementptr i8, ptr %to, i64 @PAIR_BYTES@
  %next = add i64 %a_row, 2
  %more = icmp slt i64 %next, %rows
  br i1 %more, label %pair, label %done
done:
  ret i32 0
}
"""


def pack_keys(first: Any, stride: Any, rows: Any, target: Any) -> None:
    """Pack the `rows` rows from the element `first` on, `stride` elements apart, to the element `target`."""
    T.evaluate(
        T.call_extern("int32", "attncc_pack_keys", tirx.address_of(first), stride, rows, tirx.address_of(target))
    )


def pack_values(first: Any, stride: Any, rows: Any, target: Any) -> None:
    """The same for values of bfloat16, in pairs."""
    T.evaluate(
        T.call_extern("int32", "attncc_pack_values", tirx.address_of(first), stride, rows, tirx.address_of(target))
    )


def keys_text(dtype: str, compute: str, pairs: int, lanes: int, head_dim: int) -> str:
    """The function that `pack_keys` calls; keys become `compute`, or stay as they are where they go in pairs."""
    writer = _Squares(dtype, compute if pairs == 1 else dtype, pairs, lanes)
    whole, left = divmod(head_dim // pairs, lanes)
    loop = ""
    if whole:
        loop = (
            _SQUARE_LOOP.replace("@SQUARE@", "\n".join(writer.square("w", "%from_offset", "%to_offset", lanes)))
            .replace("@FROM_BYTES@", str(lanes * writer.from_bytes))
            .replace("@TO_BYTES@", str(lanes * lanes * writer.to_bytes))
            .replace("@COUNT@", str(whole))
        )
    offsets = str(whole * lanes * writer.from_bytes), str(whole * lanes * lanes * writer.to_bytes)
    tail = "\n".join(writer.square("t", *offsets, left)) if left else ""
    return (
        _KEYS.replace("@ROW_BYTES@", str(_BYTES[_INTEGER[dtype]]))
        .replace("@ROWS@", "\n".join(_rows(lanes)))
        .replace("@SQUARES@", loop + tail)
        .replace("@LANES@", str(lanes))
        .replace("@BLOCK_BYTES@", str(head_dim // pairs * lanes * writer.to_bytes))
    )


def values_text(value_dim: int) -> str:
    """The function that `pack_values` calls; `value_dim` is a multiple of 16."""
    width, lines = _VALUE_COLUMNS, []
    kind, twice = f"<{width} x i16>", f"<{2 * width} x i16>"
    mask = ", ".join(f"i32 {lane}, i32 {width + lane}" for lane in range(width))
    for n in range(0, value_dim, width):
        lines += [
            f"  %a{n}_at = getelementptr i16, ptr %a, i64 {n}",
            f"  %b{n}_at = getelementptr i16, ptr %b, i64 {n}",
            f"  %a{n} = load {kind}, ptr %a{n}_at, align 2",
            f"  %b{n}_read = load {kind}, ptr %b{n}_at, align 2",
            f"  %b{n} = select i1 %both, {kind} %b{n}_read, {kind} zeroinitializer",
            f"  %p{n} = shufflevector {kind} %a{n}, {kind} %b{n}, <{2 * width} x i32> <{mask}>",
            f"  %to{n} = getelementptr i16, ptr %to, i64 {2 * n}",
            f"  store {twice} %p{n}, ptr %to{n}, align 2",
        ]
    return _VALUES.replace("@COLUMNS@", "\n".join(lines)).replace("@PAIR_BYTES@", str(4 * value_dim))


def _rows(lanes: int) -> list[str]:
    """%p0, %p1, …: where the rows of a block lie."""
    lines = []
    for n in range(lanes):
        lines += [
            f"  %r{n} = add i64 %first, {n}",
            f"  %m{n} = call i64 @llvm.smin.i64(i64 %r{n}, i64 %last)",
            f"  %o{n} = mul i64 %m{n}, %row_bytes",
            f"  %p{n} = getelementptr i8, ptr %source, i64 %o{n}",
        ]
    return lines


class _Squares:
    """Writes what turns a square of `lanes` rows and as many columns (or pairs of columns) over."""

    def __init__(self, dtype: str, target: str, pairs: int, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        self.widened = dtype != target
        self.read = "i32" if pairs == 2 else _INTEGER[dtype]
        self.kept = "i32" if pairs == 2 else _INTEGER[target]
        self.from_bytes, self.to_bytes = _BYTES[self.read], _BYTES[self.kept]
        self.align = _BYTES[_INTEGER[dtype]]

    def square(self, name: str, from_offset: str, to_offset: str, columns: int) -> list[str]:
        """Loads of the rows, shuffles, stores of the first `columns` columns."""
        lanes, vector = self.lanes, f"<{self.lanes} x {self.kept}>"
        lines = [line for n in range(lanes) for line in self.load(name, n, from_offset, columns)]
        shuffles, turned = turned_square(name, self.kept, lanes)
        lines += shuffles
        for n in range(columns):
            lines += [
                f"  %{name}_to{n}_line = add i64 {to_offset}, {n * lanes * self.to_bytes}",
                f"  %{name}_to{n} = getelementptr i8, ptr %to, i64 %{name}_to{n}_line",
                f"  store {vector} {turned}{n}, ptr %{name}_to{n}, align {self.align}",
            ]
        return lines

    def load(self, name: str, n: int, offset: str, columns: int) -> list[str]:
        """%{name}0_{n}: row n of the square, widened, in the first `columns` lanes."""
        kind, found = f"<{columns} x {self.read}>", f"%{name}_read{n}"
        lines = [
            f"  %{name}_from{n} = getelementptr i8, ptr %p{n}, i64 {offset}",
            f"  {found} = load {kind}, ptr %{name}_from{n}, align {self.align}",
        ]
        if columns < self.lanes:
            mask = ", ".join(f"i32 {lane if lane < columns else 0}" for lane in range(self.lanes))
            more = f"<{self.lanes} x {self.read}>"
            lines.append(
                f"  %{name}_wide{n} = shufflevector {kind} {found}, {kind} poison, <{self.lanes} x i32> <{mask}>"
            )
            kind, found = more, f"%{name}_wide{n}"
        result, vector = f"%{name}0_{n}", f"<{self.lanes} x {self.kept}>"
        if not self.widened:
            return [*lines, f"  {result} = or {kind} {found}, zeroinitializer"]
        if self.dtype == "bfloat16":
            shift = ", ".join(["i32 16"] * self.lanes)
            return [
                *lines,
                f"  %{name}_bits{n} = zext {kind} {found} to {vector}",
                f"  {result} = shl {vector} %{name}_bits{n}, <{shift}>",
            ]
        return [
            *lines,
            f"  %{name}_half{n} = bitcast {kind} {found} to <{self.lanes} x half>",
            f"  %{name}_float{n} = fpext <{self.lanes} x half> %{name}_half{n} to <{self.lanes} x float>",
            f"  {result} = bitcast <{self.lanes} x float> %{name}_float{n} to {vector}",
        ]
