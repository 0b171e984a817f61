"""Products of bfloat16 pairs summed into float32: AVX512-BF16's vdpbf16ps as a tensor intrinsic.

    for l < 16: for p < 2: sums[l] += q[2 l + p] * k[2 l + p]

in one instruction, from bfloat16 as it lies in memory; from codes four columns a lane, by way of tables. TVM rewrites
bfloat16 vectors into float32, so q is held as the bits of its numbers, and k is loaded by LLVM IR from its address. The
load says that it shares memory with no buffer of TVM's, in the terms of TVM's own alias metadata: otherwise sums would
be stored after each step. (Which of the columns a lane sums does not matter: the lanes are summed in the end.)
"""

from __future__ import annotations

from functools import cache

from attncc._tvm import IRBuilder, PrimFunc, T, s_tir, tirx
from attncc.algorithm.numeric import widened
from attncc.algorithm.storage import loaded, memory_dtype
from attncc.schedules.cpu import code_tables

LANES = 16
_DECLARATION = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
"""
_NUMBERS = """
define <16 x float> @attncc_dot_bfloat16(<16 x float> %sums, <32 x i16> %q, ptr %k) alwaysinline {
  %a = bitcast <32 x i16> %q to <32 x bfloat>
  %b = load <32 x bfloat>, ptr %k, align 2, !tbaa !0
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}
"""
_CODES = """
define <16 x float> @attncc_dot_@KIND@(<16 x float> %sums, <64 x i16> %q, ptr %k) alwaysinline {
  %q0 = shufflevector <64 x i16> %q, <64 x i16> poison, <32 x i32> <@FIRST@>
  %q1 = shufflevector <64 x i16> %q, <64 x i16> poison, <32 x i32> <@SECOND@>
  %a0 = bitcast <32 x i16> %q0 to <32 x bfloat>
  %a1 = bitcast <32 x i16> %q1 to <32 x bfloat>
  %codes = load <64 x i8>, ptr %k, align 1, !tbaa !0
  %b0 = call <32 x bfloat> @attncc_codes_0_@KIND@(<64 x i8> %codes)
  %b1 = call <32 x bfloat> @attncc_codes_1_@KIND@(<64 x i8> %codes)
  %r0 = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %a0, <32 x bfloat> %b0)
  %r1 = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %r0, <32 x bfloat> %a1, <32 x bfloat> %b1)
  ret <16 x float> %r1
}
"""
_ALIAS = """
!0 = !{!1, !1, i64 0}
!1 = !{!"attncc k", !2, i64 0}
!2 = !{!"tvm-tbaa"}
"""


def pairs_of(kind: str) -> int:
    """Neighbouring columns that a lane takes at once."""
    return 2 if kind == "bfloat16" else code_tables.WIDTH // LANES


def llvm_text(kind: str) -> str:
    """The function that the intrinsic calls; for codes it calls those of `code_tables`."""
    if kind == "bfloat16":
        return _DECLARATION + _NUMBERS + _ALIAS
    first, second = (", ".join(f"i32 {n}" for n in range(at, at + 32)) for at in (0, 32))
    text = _CODES.replace("@FIRST@", first).replace("@SECOND@", second)
    return _DECLARATION + text.replace("@KIND@", kind) + _ALIAS


@cache
def register(kind: str) -> str:
    """Register the intrinsic for k of `kind` with TVM (once) and give its name; its kernel imports `llvm_text`."""
    name = f"attncc_dot_{kind}"
    s_tir.TensorIntrin.register(name, _function(kind, ""), _function(kind, name), override=True)
    return name


def _function(kind: str, call: str) -> PrimFunc:
    """The intrinsic's description, or its implementation by the function named `call`."""
    pair = pairs_of(kind)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("dot_pairs")
            width = LANES * pair
            handles = [T.arg(name, T.handle()) for name in ("sums_handle", "q_handle", "k_handle")]
            sums = T.match_buffer(handles[0], (LANES,), "float32", scope="local", offset_factor=1, layout=None)
            q, k = (
                T.match_buffer(handle, (width,), dtype, offset_factor=1, align=align, layout=None)
                for handle, dtype, align in zip(
                    handles[1:], ("uint16", memory_dtype(kind)), (2, 2 if kind == "bfloat16" else 1), strict=True
                )
            )
            with T.sblock("root"):
                T.reads(sums[0:LANES], q[0:width], k[0:width])
                T.writes(sums[0:LANES])
                if call:
                    lanes, all_columns = tirx.Ramp(0, 1, LANES), tirx.Ramp(0, 1, width)
                    value = T.call_extern("float32x16", call, sums[lanes], q[all_columns], T.address_of(k[0]))
                    T.buffer_store(sums, value, [lanes])
                else:
                    with T.grid(LANES, pair) as (lane, part), T.sblock("multiply"):
                        vl, vp = T.axis.remap("SR", [lane, part])
                        at = vl * pair + vp
                        product = widened(q[at]) * loaded(kind, "float32", k[at])
                        T.buffer_store(sums, sums[vl] + product, [vl])
        function: PrimFunc = builder.get()
    return function
