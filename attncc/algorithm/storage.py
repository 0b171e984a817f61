"""How tiles hold numbers: in their own dtype, but bfloat16 as its bits.

TVM 0.27's BF16ComputeLegalize turns every bfloat16 buffer of a function's own into float32. A tile of uint16 is left
alone, and an intrinsic then finds the sixteen bits that it expects.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import tirx
from attncc.algorithm import numeric
from attncc.expr import FLOAT8


def storage_dtype(dtype: str) -> str:
    """The dtype of a buffer that holds numbers of `dtype`."""
    return "uint16" if dtype == "bfloat16" else dtype


def memory_dtype(dtype: str) -> str:
    """The dtype of an argument of a kernel that holds numbers of `dtype`: float8 comes as its bits."""
    return "uint8" if dtype in FLOAT8 else dtype


def loaded(dtype: str, compute: str, value: Any) -> Any:
    """What an argument of `dtype` holds, in the compute dtype; a few instructions a vector, and exact."""
    number = in_units(dtype, compute, value)
    return number if unit(dtype) == 1.0 else number * tirx.const(unit(dtype), compute)


def unit(dtype: str) -> float:
    """What the numbers of `in_units` are multiples of."""
    return 256.0 if dtype == "float8_e4m3fn" else 1.0


def in_units(dtype: str, compute: str, value: Any) -> Any:
    """What an argument of `dtype` holds, divided by `unit`: a factor that a sum of products can do without.

    float8 goes by way of float16, whose conversion hardware has. e5m2 is the upper half of one. e4m3fn has another
    exponent and no infinity: its bits in a float16's places are 2^-8 of its value, subnormals included, but for NaN.
    """
    if dtype == "float8_e5m2":
        bits = tirx.shift_left(tirx.Cast("uint16", value), tirx.const(8, "uint16"))
        return numeric.cast(compute, tirx.reinterpret("float16", bits))
    if dtype == "float8_e4m3fn":
        signed = tirx.Cast("int16", tirx.reinterpret("int8", value))
        placed = tirx.bitwise_and(tirx.shift_left(signed, tirx.const(7, "int16")), tirx.const(-0x4001, "int16"))
        # one more than NaN's bits reaches into the exponent, where it makes a NaN of float16's
        nan = tirx.bitwise_and(placed + tirx.const(0x80, "int16"), tirx.const(0x4000, "int16"))
        return numeric.cast(compute, tirx.reinterpret("float16", tirx.bitwise_or(placed, nan)))
    return numeric.cast(compute, value)


def pack(dtype: str, value: Any) -> Any:
    """`value`, of any float dtype, as a tile of `dtype` holds it. bfloat16 rounds to nearest even; NaN stays."""
    if dtype != "bfloat16":
        return numeric.cast(dtype, value)
    if numeric.dtype_of(value) == "bfloat16":
        return tirx.reinterpret("uint16", value)
    return _round(numeric.cast("float32", value))


def unpack(dtype: str, compute: str, value: Any) -> Any:
    """What a tile of `dtype` holds, in the compute dtype."""
    if dtype != "bfloat16":
        return numeric.cast(compute, value)
    bits = tirx.shift_left(tirx.Cast("uint32", value), tirx.const(16, "uint32"))
    return numeric.cast(compute, tirx.reinterpret("float32", bits))


def _round(value: Any) -> Any:
    """The upper half of a float32, rounded. No `Let` shares the value: a tensor intrinsic could not be matched then.

    NaN is told by its bits: TVM 0.27 takes vectors apart for `isnan`.
    """
    bits = tirx.reinterpret("uint32", value)
    odd = tirx.bitwise_and(tirx.shift_right(bits, tirx.const(16, "uint32")), tirx.const(1, "uint32"))
    nearest = tirx.shift_right(bits + (odd + tirx.const(0x7FFF, "uint32")), tirx.const(16, "uint32"))
    magnitude = tirx.bitwise_and(bits, tirx.const(0x7FFFFFFF, "uint32"))
    quiet = tirx.const(0x7FC0, "uint32")
    return tirx.Cast("uint16", tirx.Select(magnitude > tirx.const(0x7F800000, "uint32"), quiet, nearest))
