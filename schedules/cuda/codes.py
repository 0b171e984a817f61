"""Codes of int8 and float8 to 16-bit floats, in registers: a few operations for two of them, exact, NaN included.

Only float8 has an instruction for it, and only from sm_89 on. Integer arithmetic makes floats of the bits instead:

    int8      its bits, as the last of a number whose neighbours are 1 apart (1024 in float16, 128 in bfloat16), less it
    float8    its bits where the other format has them: a power of two too small, by which it is then multiplied. As
              the exponents are of other sizes, those that mean infinity or NaN are told first
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attncc._tvm import tirx
from attncc.schedules.cuda.device import instruction

_SIGNS = 0x80008000


@dataclass(frozen=True)
class _Format:
    """How the seven bits beside a float8's sign become a 16-bit float's."""

    shift: int
    """To the right, from the upper seven of fifteen bits."""
    special: int
    """The least of these bits, after the shift, that mean infinity or NaN."""
    factor: int
    """The power of two that is missing, as a 16-bit float; 0 where none is."""


_FORMATS = {
    ("float8_e4m3fn", "float16"): _Format(1, 0x3F80, 0x5C00),
    ("float8_e4m3fn", "bfloat16"): _Format(4, 0x07F0, 0x7B80),
    ("float8_e5m2", "float16"): _Format(0, 0, 0),
    ("float8_e5m2", "bfloat16"): _Format(3, 0x0F80, 0x7780),
}
_INFINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}


def pair(kind: str, to: str, word: Any, odd: int) -> Any:
    """Two 16-bit floats of dtype `to`: the even bytes of a uint32, or the odd ones, codes of dtype `kind`."""
    if kind == "int8":
        return _int8(to, tirx.shift_right(word, _word(8)) if odd else word)
    return _float8(_FORMATS[kind, to], to, word if odd else tirx.shift_left(word, _word(8)))


def _int8(to: str, word: Any) -> Any:
    """Of the lower bytes of both halves."""
    if to == "float16":  # its sign bit turned over, a code is 128 more: 1024 + 128 + code
        biased = tirx.bitwise_xor(tirx.bitwise_and(word, _both(0xFF)), _both(0x6480))
        return instruction("sub.f16x2", biased, _both(0x6480), dtype="uint32")
    # Seven bits are all that fit after 128. The eighth, worth -128, makes a -256 of the -128 that is added.
    low = tirx.bitwise_or(tirx.bitwise_and(word, _both(0x7F)), _both(0x4300))
    high = tirx.bitwise_or(tirx.bitwise_and(word, _both(0x80)), _both(0xC300))
    return instruction("fma.rn.bf16x2", low, _both(0x3F80), high, dtype="uint32")


def _float8(given: _Format, to: str, word: Any) -> Any:
    """Of the upper bytes of both halves."""
    if not given.shift:
        return tirx.bitwise_and(word, _both(0xFF00))
    sign = tirx.bitwise_and(word, _word(_SIGNS))
    bits = tirx.bitwise_and(tirx.shift_right(word, _word(given.shift)), _both(0x7F00 >> given.shift))
    above = (given.special & -given.special) + given.special  # where the sum carries to
    told = tirx.bitwise_and(bits + _both(given.special & -given.special), _both(above))
    missing = _INFINITE[to] & -above  # the exponent's bits that the shorter one has not
    placed = tirx.bitwise_or(tirx.bitwise_or(bits, sign), told * _word(missing // above))
    if to == "float16":
        return instruction("mul.f16x2", placed, _both(given.factor), dtype="uint32")
    return instruction("fma.rn.bf16x2", placed, _both(given.factor), _word(_SIGNS), dtype="uint32")


def _word(value: int) -> Any:
    return tirx.const(value, "uint32")


def _both(half: int) -> Any:
    """The same 16 bits twice."""
    return _word(half << 16 | half)
