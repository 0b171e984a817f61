"""Products of bfloat16 pairs summed into float32: AVX512-BF16's vdpbf16ps as a tensor intrinsic.

    for l < 16: for p < 2: sums[l] += q[2 l + p] * k[2 l + p]

in one instruction, from bfloat16 as it lies in memory. TVM rewrites bfloat16 vectors into float32, so q is held as the
bits of its numbers, and k is loaded by LLVM IR from its address. The load says that it shares memory with no buffer of
TVM's, in the terms of TVM's own alias metadata: otherwise sums would be stored after each step.
"""

from __future__ import annotations

from functools import cache

from attncc._tvm import IRBuilder, PrimFunc, T, s_tir, tirx
from attncc.algorithm.numeric import cast, widened

NAME = "attncc_dot_pairs"
LANES, PAIR = 16, 2
LLVM = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @{NAME}(<16 x float> %sums, <32 x i16> %q, ptr %k) alwaysinline {{
  %a = bitcast <32 x i16> %q to <32 x bfloat>
  %b = load <32 x bfloat>, ptr %k, align 2, !tbaa !0
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}}
!0 = !{{!1, !1, i64 0}}
!1 = !{{!"attncc k", !2, i64 0}}
!2 = !{{!"tvm-tbaa"}}
"""


@cache
def register() -> str:
    """Register the intrinsic with TVM (once) and give its name; a kernel that uses it imports `LLVM`."""
    s_tir.TensorIntrin.register(NAME, _function(call=False), _function(call=True), override=True)
    return NAME


def _function(call: bool) -> PrimFunc:
    """The intrinsic's implementation (`call`), or its description."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("dot_pairs")
            width = LANES * PAIR
            handles = [T.arg(name, T.handle()) for name in ("sums_handle", "q_handle", "k_handle")]
            sums = T.match_buffer(handles[0], (LANES,), "float32", scope="local", offset_factor=1, layout=None)
            q, k = (
                T.match_buffer(handle, (width,), dtype, offset_factor=1, align=2, layout=None)
                for handle, dtype in zip(handles[1:], ("uint16", "bfloat16"), strict=True)
            )
            with T.sblock("root"):
                T.reads(sums[0:LANES], q[0:width], k[0:width])
                T.writes(sums[0:LANES])
                if call:
                    lanes, both = tirx.Ramp(0, 1, LANES), tirx.Ramp(0, 1, width)
                    value = T.call_extern("float32x16", NAME, sums[lanes], q[both], T.address_of(k[0]))
                    T.buffer_store(sums, value, [lanes])
                else:
                    with T.grid(LANES, PAIR) as (lane, part), T.sblock("multiply"):
                        vl, vp = T.axis.remap("SR", [lane, part])
                        at = vl * PAIR + vp
                        product = widened(q[at]) * cast("float32", k[at])
                        T.buffer_store(sums, sums[vl] + product, [vl])
        function: PrimFunc = builder.get()
    return function
