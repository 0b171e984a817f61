"""float8 as bfloat16, by table: every number of the one is a number of the other.

AVX512-VBMI looks 64 bytes up in a table of 128, by the lower seven bits of each: one table for the lower half of the
result, one for the upper. The eighth bit is the sign of both.
"""

from __future__ import annotations

import struct
from functools import cache

from attncc.expr import FLOAT8

WIDTH = 64
"""Codes that are looked up together."""

_DECLARATION = """
declare <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512(<64 x i8>, <64 x i8>, <64 x i8>)
"""

_FUNCTION = """
define <32 x bfloat> @attncc_codes_@HALF@_@KIND@(<64 x i8> %codes) alwaysinline {
@LOOKUPS@
  %pairs = shufflevector <64 x i8> %low, <64 x i8> %high, <64 x i32> <@MASK@>
  %numbers = bitcast <64 x i8> %pairs to <32 x bfloat>
  ret <32 x bfloat> %numbers
}
"""


def llvm_text(kinds: set[str]) -> str:
    """Functions `attncc_codes_0_<kind>` and `attncc_codes_1_<kind>`: the first and second 32 of 64 codes, in order."""
    functions = [_function(kind, half) for kind in sorted(kinds) for half in (0, 1)]
    return "".join([_DECLARATION, *functions]) if functions else ""


@cache
def bits(kind: str, code: int) -> int:
    """The bits of the bfloat16 that `code` (0 … 255) stands for. Raises ValueError for a kind that has none."""
    if kind not in FLOAT8:
        raise ValueError(f"{kind!r} is not one of {', '.join(FLOAT8)}")
    mantissa, bias = (2, 15) if kind == "float8_e5m2" else (3, 7)
    sign, rest = code >> 7 << 15, code & 0x7F
    exponent, fraction = rest >> mantissa, rest & ((1 << mantissa) - 1)
    if kind == "float8_e5m2" and exponent == 31:
        return sign | (0x7FC0 if fraction else 0x7F80)
    if kind == "float8_e4m3fn" and rest == 0x7F:
        return sign | 0x7FC0
    scale = 2.0 ** (max(exponent, 1) - bias - mantissa)
    value = (fraction + ((1 << mantissa) if exponent else 0)) * scale
    return sign | int(struct.unpack("<I", struct.pack("<f", value))[0]) >> 16


def _function(kind: str, half: int) -> str:
    lines = [
        _lookup(kind, "low", 0),
        _lookup(kind, "size", 8),
        f"  %sign = and <64 x i8> %codes, {_vector([0x80] * WIDTH)}",
        "  %high = or <64 x i8> %size, %sign",
    ]
    mask = ", ".join(f"i32 {n}, i32 {WIDTH + n}" for n in range(32 * half, 32 * half + 32))
    text = _FUNCTION.replace("@LOOKUPS@", "\n".join(lines)).replace("@MASK@", mask)
    return text.replace("@HALF@", str(half)).replace("@KIND@", kind)


def _lookup(kind: str, name: str, shift: int) -> str:
    """%name = the byte from bit `shift` on of what each code stands for, without the sign."""
    table = [bits(kind, code) >> shift & 0xFF for code in range(128)]
    low, high = (_vector(table[part : part + WIDTH]) for part in (0, WIDTH))
    return (
        f"  %{name} = call <64 x i8> @llvm.x86.avx512.vpermi2var.qi.512("
        f"<64 x i8> {low}, <64 x i8> %codes, <64 x i8> {high})"
    )


def _vector(values: list[int]) -> str:
    return f"<{', '.join(f'i8 {value - 256 if value > 127 else value}' for value in values)}>"
