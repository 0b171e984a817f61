"""Sums along vectors, several at a time: a tensor intrinsic that takes N vectors to one vector of their N sums.

Vectors that share their shuffles and additions cost little more than one alone:

    combine(a, b) = (low halves of a's groups, of b's groups) + (high halves of a's groups, of b's groups)

leaves half as many vectors with twice as many groups, each half as wide, until a group is one lane. It is written in
LLVM IR, which has shuffles where TIR has none, and is inlined; the same text serves every target.
"""

from __future__ import annotations

from functools import cache

from attncc._tvm import IRBuilder, PrimFunc, T, s_tir, tirx

_LLVM = {"float32": "float", "float64": "double"}


def available(vectors: int, lanes: int) -> bool:
    """Whether there is such an intrinsic: both are powers of two, with several vectors, but not more than lanes."""
    return all(n & (n - 1) == 0 for n in (vectors, lanes)) and 1 < vectors <= lanes


def name_of(vectors: int, lanes: int, dtype: str) -> str:
    return f"attncc_row_sums_{vectors}x{lanes}_{dtype}"


@cache
def register(vectors: int, lanes: int, dtype: str) -> str:
    """Register the intrinsic with TVM (once) and give its name; a kernel that uses it imports `llvm_text`."""
    name = name_of(vectors, lanes, dtype)
    description, implementation = (_function(vectors, lanes, dtype, call) for call in ("", name))
    s_tir.TensorIntrin.register(name, description, implementation, override=True)
    return name


def _function(vectors: int, lanes: int, dtype: str, call: str) -> PrimFunc:
    """The intrinsic's description, or its implementation by the function named `call`."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("row_sums")
            handles = [T.arg(name, T.handle()) for name in ("source_handle", "target_handle")]
            source, target = (
                T.match_buffer(handle, shape, dtype, scope="local", offset_factor=1, layout=None)
                for handle, shape in zip(handles, ((vectors, lanes), (vectors,)), strict=True)
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
                            T.buffer_store(target, tirx.const(0.0, dtype), [vn])
                        T.buffer_store(target, target[vn] + source[vn, vl], [vn])
        function: PrimFunc = builder.get()
    return function


def llvm_text(vectors: int, lanes: int, dtype: str) -> str:
    """The function in LLVM IR."""
    scalar = _LLVM[dtype]
    lines: list[str] = []
    values = [f"%v{n}" for n in range(vectors)]
    group, count = lanes, lanes  # lanes of a group, lanes of a vector

    def emit(text: str) -> str:
        lines.append(f"  %r{len(lines)} = {text}")
        return f"%r{len(lines) - 1}"

    def halves(a: str, b: str, chosen: list[int], high: int) -> str:
        mask = ", ".join(f"i32 {n + high}" for n in chosen)
        return emit(f"shufflevector <{count} x {scalar}> {a}, <{count} x {scalar}> {b}, <{len(chosen)} x i32> <{mask}>")

    while group > 1:
        half = group // 2
        pairs = list(zip(values[0::2], values[1::2], strict=True)) if len(values) > 1 else [(values[0], "poison")]
        chosen = [first + n for first in range(0, count * min(len(values), 2), group) for n in range(half)]
        values = []
        for a, b in pairs:
            low, high = halves(a, b, chosen, 0), halves(a, b, chosen, half)
            values.append(emit(f"fadd <{len(chosen)} x {scalar}> {low}, {high}"))
        count, group = len(chosen), half
    arguments = ", ".join(f"<{lanes} x {scalar}> %v{n}" for n in range(vectors))
    result = f"<{vectors} x {scalar}>"
    body = "\n".join(lines)
    return f"""
define {result} @{name_of(vectors, lanes, dtype)}({arguments}) alwaysinline {{
{body}
  ret {result} {values[0]}
}}
"""
