"""The functions of `amx_intrinsics` for AArch64's matrix products of bfloat16, in LLVM IR.

`bfmmla` multiplies two rows of four terms by two others: c[i, l] += sum over t < 4 of a[i, t] b[l, t], in a vector of
four float32. That is twice the products of `bfdot`. A register tile of 8 rows by 8 lanes is 16 vectors of sums. Rows of
a lie in memory as they are wanted. Of b, pairs of terms lie beside each other, lane by lane: two vectors of them,
zipped, are two lanes of four terms each.
"""

from __future__ import annotations

from attncc.schedules.cpu.amx_intrinsics import BEGIN, END, LANES, ROWS, STEP, mask, turn_text

SIDE = 8
"""Rows and lanes of a register tile."""
_TERMS = 4
_HALVES = range(SIDE // 2)
_STATE = f"""
define i32 @{BEGIN}() alwaysinline {{
  ret i32 0
}}
define i32 @{END}() alwaysinline {{
  ret i32 0
}}
"""
"""There is no state to bring a core into."""
_PRODUCT = """
declare <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float>, <8 x bfloat>, <8 x bfloat>)
define i32 @attncc_amx_product(ptr %c, i64 %c.row, ptr %a, i64 %a.row, ptr %b, i64 %b.row, i64 %steps) alwaysinline {
entry:
  %steps.all = mul i64 %steps, @STEPS@
  br label %tile
tile:
  %n = phi i64 [ 0, %entry ], [ %n.next, %end ]
  %i = and i64 %n, @LAST@
  %l = lshr i64 %n, @BITS@
  %a.side = mul i64 %a.row, 8
  %c.side = mul i64 %c.row, 8
  %a.offset = mul i64 %i, %a.side
  %c.offset = mul i64 %i, %c.side
  %l.offset = mul i64 %l, 32
  %a.tile = getelementptr i8, ptr %a, i64 %a.offset
  %b.tile = getelementptr i8, ptr %b, i64 %l.offset
  %c.rows = getelementptr i8, ptr %c, i64 %c.offset
  %c.tile = getelementptr i8, ptr %c.rows, i64 %l.offset
  %b.step = shl i64 %b.row, 1
  br label %step
step:
  %s = phi i64 [ 0, %tile ], [ %s.next, %step ]
  %a.at = phi ptr [ %a.tile, %tile ], [ %a.next, %step ]
  %b.at = phi ptr [ %b.tile, %tile ], [ %b.next, %step ]
@SUMS@
@TERMS@
  %a.next = getelementptr i8, ptr %a.at, i64 8
  %b.next = getelementptr i8, ptr %b.at, i64 %b.step
  %s.next = add i64 %s, 1
  %more = icmp ult i64 %s.next, %steps.all
  br i1 %more, label %step, label %end, !llvm.loop !0
end:
@STORES@
  %n.next = add i64 %n, 1
  %again = icmp ult i64 %n.next, @TILES@
  br i1 %again, label %tile, label %done
done:
  ret i32 0
}
!0 = distinct !{!0, !1}
!1 = !{!"llvm.loop.unroll.disable"}
"""
"""Short sums are not unrolled whole: LLVM would then mix their steps, and run out of registers."""


def llvm_text() -> str:
    """The functions that the intrinsics call."""
    across = ROWS // SIDE
    values = {
        "STEPS": STEP // _TERMS, "LAST": across - 1, "BITS": across.bit_length() - 1, "TILES": across * LANES // SIDE,
        "SUMS": "\n".join(_sums()), "TERMS": "\n".join(_terms()), "STORES": "\n".join(_stores()),
    }  # fmt: skip
    text = _PRODUCT
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return _STATE + turn_text() + text


def _sums() -> list[str]:
    """Two rows by two lanes in each."""
    zero = "zeroinitializer"
    return [f"  %r{i}.{n} = phi <4 x float> [ {zero}, %tile ], [ %x{i}.{n}, %step ]" for i in _HALVES for n in _HALVES]


def _terms() -> list[str]:
    """Four terms of all rows and lanes of a register tile."""
    lines = []
    for i in range(SIDE):
        lines += [
            f"  %a{i}.offset = mul i64 %a.row, {i}",
            f"  %a{i}.at = getelementptr i8, ptr %a.at, i64 %a{i}.offset",
            f"  %a{i} = load <4 x i16>, ptr %a{i}.at, align 2",
        ]
    for i in _HALVES:
        both = mask(range(2 * _TERMS))
        lines.append(f"  %rows{i}.bits = shufflevector <4 x i16> %a{2 * i}, <4 x i16> %a{2 * i + 1}, <8 x i32> {both}")
        lines.append(f"  %rows{i} = bitcast <8 x i16> %rows{i}.bits to <8 x bfloat>")
    lines.append("  %b.second = getelementptr i8, ptr %b.at, i64 %b.row")
    for half in range(2):  # four lanes each, of two pairs of terms
        for pair, base in enumerate(("%b.at", "%b.second")):
            lines.append(f"  %b{half}.{pair}.at = getelementptr i8, ptr {base}, i64 {16 * half}")
            lines.append(f"  %b{half}.{pair} = load <4 x i32>, ptr %b{half}.{pair}.at, align 2")
        for n in range(2):
            name = f"%lanes{2 * half + n}"
            zipped = mask((2 * n, 2 * n + 4, 2 * n + 1, 2 * n + 5))
            lines.append(
                f"  {name}.bits = shufflevector <4 x i32> %b{half}.0, <4 x i32> %b{half}.1, <4 x i32> {zipped}"
            )
            lines.append(f"  {name} = bitcast <4 x i32> {name}.bits to <8 x bfloat>")
    call = "call <4 x float> @llvm.aarch64.neon.bfmmla"
    for i in _HALVES:
        for n in _HALVES:
            operands = f"<4 x float> %r{i}.{n}, <8 x bfloat> %rows{i}, <8 x bfloat> %lanes{n}"
            lines.append(f"  %x{i}.{n} = {call}({operands})")
    return lines


def _stores() -> list[str]:
    """Sums row by row, four lanes at a time."""
    lines = []
    for i in range(SIDE):
        lines.append(f"  %c{i}.offset = mul i64 %c.row, {i}")
        lines.append(f"  %c{i} = getelementptr i8, ptr %c.tile, i64 %c{i}.offset")
        first = 2 * (i % 2)
        for half in range(2):
            sums = [f"<4 x float> %x{i // 2}.{2 * half + n}" for n in range(2)]
            chosen = mask((first, first + 1, first + 4, first + 5))
            lines.append(f"  %c{i}.{half} = shufflevector {sums[0]}, {sums[1]}, <4 x i32> {chosen}")
            lines.append(f"  %c{i}.{half}.at = getelementptr i8, ptr %c{i}, i64 {16 * half}")
            lines.append(f"  store <4 x float> %c{i}.{half}, ptr %c{i}.{half}.at, align 4")
    return lines
