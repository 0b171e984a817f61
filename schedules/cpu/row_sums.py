"""Sums (or maxima) along vectors, several at a time: a tensor intrinsic from N vectors to one vector of their N sums.

Vectors that share their shuffles and additions cost little more than one alone:

    combine(a, b) = (low halves of a's groups, of b's groups) + (high halves of a's groups, of b's groups)

leaves half as many vectors with twice as many groups, each half as wide, until a group is one lane. It is written in
LLVM IR, which has shuffles where TIR has none, and is inlined. The same text serves every target but SVE, whose long
vectors have no instruction for halves of groups: even lanes and odd ones take their places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

from attncc._tvm import IRBuilder, PrimFunc, T, s_tir, tirx

Operation = Literal["sum", "max"]
OPERATIONS: tuple[Operation, ...] = ("sum", "max")
_LLVM = {"float32": "float", "float64": "double"}


def available(vectors: int, lanes: int) -> bool:
    """Whether there is such an intrinsic: for several vectors, a power of two of them, of a power of two lanes."""
    return all(n > 1 and n & (n - 1) == 0 for n in (vectors, lanes))


def name_of(vectors: int, lanes: int, dtype: str, operation: Operation = "sum") -> str:
    return f"attncc_row_{operation}s_{vectors}x{lanes}_{dtype}"


@cache
def register(vectors: int, lanes: int, dtype: str, operation: Operation = "sum") -> str:
    """Register the intrinsic with TVM (once) and give its name; a kernel that uses it imports `llvm_text`.

    A maximum may drop NaN, as TIR's does.
    """
    name = name_of(vectors, lanes, dtype, operation)
    description, implementation = (_function(vectors, lanes, dtype, operation, call) for call in ("", name))
    s_tir.TensorIntrin.register(name, description, implementation, override=True)
    return name


def _function(vectors: int, lanes: int, dtype: str, operation: Operation, call: str) -> PrimFunc:
    """The intrinsic's description, or its implementation by the function named `call`."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("row_sums")
            handles = [T.arg(name, T.handle()) for name in ("source_handle", "target_handle")]
            source, target = (
                T.match_buffer(handle, shape, dtype, scope=scope, offset_factor=1, align=4, layout=None)
                for handle, shape, scope in zip(
                    handles, ((vectors, lanes), (vectors,)), ("global", "local"), strict=True
                )
            )
            with T.sblock("root"):
                T.reads(source[0:vectors, 0:lanes])
                T.writes(target[0:vectors])
                if call:
                    rows = [tirx.BufferLoad(source, [n, tirx.Ramp(0, 1, lanes)]) for n in range(vectors)]
                    sums = T.call_extern(f"{dtype}x{vectors}", call, *rows)
                    T.buffer_store(target, sums, [tirx.Ramp(0, 1, vectors)])
                else:
                    with T.grid(vectors, lanes) as (n, lane), T.sblock("sum"):
                        vn, vl = T.axis.remap("SR", [n, lane])
                        T.reads(target[vn], source[vn, vl])  # as `set_scope` writes it
                        T.writes(target[vn])
                        with T.init():
                            T.buffer_store(target, tirx.const(0.0 if operation == "sum" else -math.inf, dtype), [vn])
                        T.buffer_store(target, _joined(operation, target[vn], source[vn, vl]), [vn])
        function: PrimFunc = builder.get()
    return function


def _joined(operation: Operation, a: Any, b: Any) -> Any:
    return a + b if operation == "sum" else T.max(a, b)


def llvm_text(vectors: int, lanes: int, dtype: str, operation: Operation = "sum", unzip: bool = False) -> str:
    """The function in LLVM IR; with `unzip` neighbouring lanes are joined instead of halves of groups."""
    writer = _Writer(_LLVM[dtype], operation, unzip)
    together = min(vectors, lanes)
    values = [f"%v{n}" for n in range(vectors)]
    sums = [writer.sums(values[first : first + together], lanes) for first in range(0, vectors, together)]
    width = together
    while len(sums) > 1:
        sums = [writer.shuffle(a, b, width, range(2 * width)) for a, b in zip(sums[0::2], sums[1::2], strict=True)]
        width *= 2
    arguments = ", ".join(f"<{lanes} x {writer.scalar}> {value}" for value in values)
    result = f"<{vectors} x {writer.scalar}>"
    body = "\n".join(writer.lines)
    return f"""
define {result} @{name_of(vectors, lanes, dtype, operation)}({arguments}) alwaysinline {{
{body}
  ret {result} {sums[0]}
}}
"""


class _Writer:
    """Writes instructions over vectors of one scalar type; values are named in order."""

    def __init__(self, scalar: str, operation: Operation, unzip: bool) -> None:
        self.scalar, self.operation, self.unzip = scalar, operation, unzip
        self.lines: list[str] = []

    def sums(self, values: list[str], lanes: int) -> str:
        """The sums along some vectors (a power of two of them, at most `lanes`), as one vector."""
        group, count = lanes, lanes  # lanes of a group, lanes of a vector
        while group > 1:
            half = group // 2
            pairs = list(zip(values[0::2], values[1::2], strict=True)) if len(values) > 1 else [(values[0], "poison")]
            step, apart = (2, 1) if self.unzip else (1, half)
            low = [first + step * n for first in range(0, count * min(len(values), 2), group) for n in range(half)]
            high = [n + apart for n in low]
            values = [
                self.join(self.shuffle(a, b, count, low), self.shuffle(a, b, count, high), len(low)) for a, b in pairs
            ]
            count, group = len(low), half
        return values[0]

    def shuffle(self, a: str, b: str, width: int, chosen: Iterable[int]) -> str:
        """The chosen lanes of two vectors, one after the other."""
        mask = [f"i32 {n}" for n in chosen]
        kind = f"<{width} x {self.scalar}>"
        return self.emit(f"shufflevector {kind} {a}, {kind} {b}, <{len(mask)} x i32> <{', '.join(mask)}>")

    def join(self, a: str, b: str, width: int) -> str:
        kind = f"<{width} x {self.scalar}>"
        if self.operation == "sum":
            return self.emit(f"fadd {kind} {a}, {b}")
        larger = self.emit(f"fcmp ogt {kind} {a}, {b}")
        return self.emit(f"select <{width} x i1> {larger}, {kind} {a}, {kind} {b}")

    def emit(self, text: str) -> str:
        name = f"%r{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return name
