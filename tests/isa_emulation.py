"""Runs a kernel that was compiled for another machine: its LLVM IR, with the other's instructions written out.

What LLVM's optimiser made for the other target (its vector width, its register tiles, its tiles in memory) is compiled
for this host; the instructions that only the other has are functions in plain LLVM IR. So a schedule's arithmetic and
addressing are tested, and what an instruction computes is as its manual says.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from attncc.runtime import build, launcher, native
from attncc.schedules.cpu.fallback import Fallback
from attncc.spec import AttentionSpec
from attncc.target import Target, detect

_TILES = """
@tiles = internal global [8 x [1024 x i8]] zeroinitializer, align 64
@configured = internal global i1 false
define internal void @llvm.x86.ldtilecfg(ptr %config) {
  %palette = load i8, ptr %config
  %rows.at = getelementptr i8, ptr %config, i64 48
  %rows = load <8 x i8>, ptr %rows.at, align 1
  %bytes.at = getelementptr i8, ptr %config, i64 16
  %bytes = load <8 x i16>, ptr %bytes.at, align 1
  %same.rows = icmp eq <8 x i8> %rows, splat (i8 16)
  %same.bytes = icmp eq <8 x i16> %bytes, splat (i16 64)
  %both = and <8 x i1> %same.rows, %same.bytes
  %all = call i1 @llvm.vector.reduce.and.v8i1(<8 x i1> %both)
  %first = icmp eq i8 %palette, 1
  %good = and i1 %all, %first
  store i1 %good, ptr @configured
  ret void
}
declare i1 @llvm.vector.reduce.and.v8i1(<8 x i1>)
declare void @llvm.trap()
define internal void @llvm.x86.tilerelease() {
  store i1 false, ptr @configured
  ret void
}
define internal ptr @tile(i8 %n) {
  %good = load i1, ptr @configured
  br i1 %good, label %yes, label %no
no:
  call void @llvm.trap()
  unreachable
yes:
  %at = getelementptr [8 x [1024 x i8]], ptr @tiles, i64 0, i8 %n
  ret ptr %at
}
define internal void @llvm.x86.tilezero(i8 %n) {
  %at = call ptr @tile(i8 %n)
  store [16 x <16 x i32>] zeroinitializer, ptr %at, align 64
  ret void
}
define internal void @copy(ptr %to, i64 %to.row, ptr %from, i64 %from.row) {
entry:
  br label %row
row:
  %n = phi i64 [ 0, %entry ], [ %next, %row ]
  %a = mul i64 %n, %from.row
  %b = mul i64 %n, %to.row
  %from.at = getelementptr i8, ptr %from, i64 %a
  %to.at = getelementptr i8, ptr %to, i64 %b
  %value = load <64 x i8>, ptr %from.at, align 1
  store <64 x i8> %value, ptr %to.at, align 1
  %next = add i64 %n, 1
  %more = icmp ult i64 %next, 16
  br i1 %more, label %row, label %end
end:
  ret void
}
define internal void @llvm.x86.tileloadd64(i8 %n, ptr %from, i64 %stride) {
  %at = call ptr @tile(i8 %n)
  call void @copy(ptr %at, i64 64, ptr %from, i64 %stride)
  ret void
}
define internal void @llvm.x86.tilestored64(i8 %n, ptr %to, i64 %stride) {
  %at = call ptr @tile(i8 %n)
  call void @copy(ptr %to, i64 %stride, ptr %at, i64 64)
  ret void
}
"""
"""Tile registers in memory, for one thread; using one that is not configured traps."""
_TILE_PRODUCT = """
define internal void @llvm.x86.@NAME@(i8 %c, i8 %a, i8 %b) {
entry:
  %c.at = call ptr @tile(i8 %c)
  %a.at = call ptr @tile(i8 %a)
  %b.at = call ptr @tile(i8 %b)
  br label %term
term:
  %n = phi i64 [ 0, %entry ], [ %next, %term ]
  %row = lshr i64 %n, 4
  %pair = and i64 %n, 15
  %c.row = getelementptr <16 x float>, ptr %c.at, i64 %row
  %a.one = getelementptr i32, ptr %a.at, i64 %n
  %b.row = getelementptr <16 x i32>, ptr %b.at, i64 %pair
  %sum = load <16 x float>, ptr %c.row
  %one = load i32, ptr %a.one
  %single = insertelement <16 x i32> poison, i32 %one, i64 0
  %pairs = shufflevector <16 x i32> %single, <16 x i32> poison, <16 x i32> zeroinitializer
  %others = load <16 x i32>, ptr %b.row
  %new = call <16 x float> @@DOT@(<16 x float> %sum, <16 x i32> %pairs, <16 x i32> %others)
  store <16 x float> %new, ptr %c.row
  %next = add i64 %n, 1
  %more = icmp ult i64 %next, 256
  br i1 %more, label %term, label %end
end:
  ret void
}
"""
"""c += a b of three of them, by an instruction's name and what it multiplies pairs with."""


def _dot(lanes: int) -> str:
    """c[l] + a[l, 0] b[l, 0] + a[l, 1] b[l, 1], pairs of bfloat16 as integers of 32 bits, the later of a pair above."""
    ints, floats = f"<{lanes} x i32>", f"<{lanes} x float>"
    return f"""
define internal {floats} @emulated_dot_{lanes}({floats} %c, {ints} %a, {ints} %b) {{
  %a.low = shl {ints} %a, splat (i32 16)
  %b.low = shl {ints} %b, splat (i32 16)
  %a.high = and {ints} %a, splat (i32 -65536)
  %b.high = and {ints} %b, splat (i32 -65536)
  %a0 = bitcast {ints} %a.low to {floats}
  %b0 = bitcast {ints} %b.low to {floats}
  %a1 = bitcast {ints} %a.high to {floats}
  %b1 = bitcast {ints} %b.high to {floats}
  %p0 = fmul {floats} %a0, %b0
  %p1 = fmul {floats} %a1, %b1
  %p = fadd {floats} %p0, %p1
  %r = fadd {floats} %c, %p
  ret {floats} %r
}}
"""


_DOT_HALF = """
define internal <16 x float> @emulated_dot_half(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) {
  %a.low = trunc <16 x i32> %a to <16 x i16>
  %b.low = trunc <16 x i32> %b to <16 x i16>
  %a.up = lshr <16 x i32> %a, splat (i32 16)
  %b.up = lshr <16 x i32> %b, splat (i32 16)
  %a.high = trunc <16 x i32> %a.up to <16 x i16>
  %b.high = trunc <16 x i32> %b.up to <16 x i16>
  %a0.half = bitcast <16 x i16> %a.low to <16 x half>
  %b0.half = bitcast <16 x i16> %b.low to <16 x half>
  %a1.half = bitcast <16 x i16> %a.high to <16 x half>
  %b1.half = bitcast <16 x i16> %b.high to <16 x half>
  %a0 = fpext <16 x half> %a0.half to <16 x float>
  %b0 = fpext <16 x half> %b0.half to <16 x float>
  %a1 = fpext <16 x half> %a1.half to <16 x float>
  %b1 = fpext <16 x half> %b1.half to <16 x float>
  %p0 = fmul <16 x float> %a0, %b0
  %p1 = fmul <16 x float> %a1, %b1
  %p = fadd <16 x float> %p0, %p1
  %r = fadd <16 x float> %c, %p
  ret <16 x float> %r
}
"""
"""The same of float16, subnormal ones as they are."""


def _rounded(lanes: int) -> str:
    """float32 to bfloat16, to nearest even; NaN stays one."""
    ints, floats, halves = f"<{lanes} x i32>", f"<{lanes} x float>", f"<{lanes} x bfloat>"
    return f"""
define internal {halves} @emulated_round_{lanes}({floats} %x) {{
  %bits = bitcast {floats} %x to {ints}
  %last = lshr {ints} %bits, splat (i32 16)
  %odd = and {ints} %last, splat (i32 1)
  %bias = add {ints} %odd, splat (i32 32767)
  %sum = add {ints} %bits, %bias
  %nan = fcmp uno {floats} %x, %x
  %kept = select <{lanes} x i1> %nan, {ints} splat (i32 2143289344), {ints} %sum
  %high = lshr {ints} %kept, splat (i32 16)
  %short = trunc {ints} %high to <{lanes} x i16>
  %r = bitcast <{lanes} x i16> %short to {halves}
  ret {halves} %r
}}
"""


def _tile_product(name: str, dot: str) -> str:
    return _TILE_PRODUCT.replace("@NAME@", name).replace("@DOT@", dot)


def _pair_dot(name: str, lanes: int) -> str:
    """A dot product of pairs under the instruction's name."""
    ints, floats, halves = f"<{lanes} x i32>", f"<{lanes} x float>", f"<{2 * lanes} x bfloat>"
    return f"""
define internal {floats} @{name}({floats} %c, {halves} %x, {halves} %y) {{
  %a = bitcast {halves} %x to {ints}
  %b = bitcast {halves} %y to {ints}
  %r = call {floats} @emulated_dot_{lanes}({floats} %c, {ints} %a, {ints} %b)
  ret {floats} %r
}}
"""


_MATRIX = """
define internal <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float> %c, <8 x bfloat> %x, <8 x bfloat> %y) {
  %a = bitcast <8 x bfloat> %x to <4 x i32>
  %b = bitcast <8 x bfloat> %y to <4 x i32>
  %a0 = shufflevector <4 x i32> %a, <4 x i32> poison, <4 x i32> <i32 0, i32 0, i32 2, i32 2>
  %a1 = shufflevector <4 x i32> %a, <4 x i32> poison, <4 x i32> <i32 1, i32 1, i32 3, i32 3>
  %b0 = shufflevector <4 x i32> %b, <4 x i32> poison, <4 x i32> <i32 0, i32 2, i32 0, i32 2>
  %b1 = shufflevector <4 x i32> %b, <4 x i32> poison, <4 x i32> <i32 1, i32 3, i32 1, i32 3>
  %first = call <4 x float> @emulated_dot_4(<4 x float> %c, <4 x i32> %a0, <4 x i32> %b0)
  %both = call <4 x float> @emulated_dot_4(<4 x float> %first, <4 x i32> %a1, <4 x i32> %b1)
  ret <4 x float> %both
}
"""
"""Two rows of four terms by two others."""
_ROUND_TWO = """
define internal <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %high, <16 x float> %low) {
  %a = call <16 x bfloat> @emulated_round_16(<16 x float> %low)
  %b = call <16 x bfloat> @emulated_round_16(<16 x float> %high)
  %r = shufflevector <16 x bfloat> %a, <16 x bfloat> %b, <32 x i32> <MASK>
  ret <32 x bfloat> %r
}
""".replace("MASK", ", ".join(f"i32 {lane}" for lane in range(32)))


_WIDEN = """
define internal <16 x float> @llvm.x86.avx512.mask.vcvtph2ps.512(<16 x i16> %bits, <16 x float>, i16, i32) {
  %halves = bitcast <16 x i16> %bits to <16 x half>
  %floats = fpext <16 x half> %halves to <16 x float>
  ret <16 x float> %floats
}
"""
"""Of all lanes, as kernels have it."""


def runs_here(target: Target) -> bool:
    """Whether this machine executes what is compiled for `target`."""
    host = detect()
    length = target.sve_bits in (0, host.sve_bits)  # without: NEON's code
    return target.arch == host.arch and target.features <= host.features and length


def load(text: str) -> Any:
    """The kernel of LLVM IR `text`, whatever it was compiled for, as a function of this process.

    The tile registers are one thread's: where the text uses them, call it with a launcher of one thread.
    """
    module, kernel = native.load_llvm(translated(text).encode(), "attention")
    _modules.append(module)
    return kernel


_modules: list[Any] = []


def translated(text: str) -> str:
    """LLVM IR for this host that computes what `text` does."""
    host = detect()
    rounded = sorted({int(lanes) for lanes in re.findall(r"fptrunc <(\d+) x float> \S+ to <\1 x bfloat>", text)})
    text = re.sub(
        r"fptrunc <(\d+) x float> (\S+) to <\1 x bfloat>",
        r"call <\1 x bfloat> @emulated_round_\1(<\1 x float> \2)",
        text,
    )
    more = [_dot(16), _dot(4), *(_rounded(lanes) for lanes in sorted({16, *rounded}))]
    more += [
        _pair_dot("llvm.x86.avx512bf16.dpbf16ps.512", 16), _ROUND_TWO,
        _pair_dot("llvm.aarch64.neon.bfdot.v4f32.v8bf16", 4), _TILES,
        _MATRIX, _WIDEN, _DOT_HALF,
        _tile_product("tdpbf16ps", "emulated_dot_16"), _tile_product("tdpfp16ps", "emulated_dot_half"),
    ]  # fmt: skip
    text = re.sub(r"^(?:target |declare .*@llvm\.(?:x86|aarch64)\.).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r'!"\{\\22kind\\22.*?\}"', r'!"{\\22kind\\22: \\22llvm\\22}"', text)
    text = re.sub(r'"target-cpu"="[^"]*" "target-features"="[^"]*"', _attributes(host), text)
    # the same attributes as the kernel's: how a vector is passed depends on them
    both = text + re.sub(
        r"^(define .*) \{$", lambda define: f"{define[1]} {_attributes(host)} {{", "".join(more), flags=re.MULTILINE
    )
    # bits: a host without bfloat16 passes vectors of it as floats, and calls a library to round them again
    bits = re.sub(r"\bbfloat\b", "i16", both)
    return header() + re.sub(r"@llvm\.(x86|aarch64)\.", r"@emulated.\1.", bits)


@functools.cache
def host_text() -> str:
    """LLVM IR of some kernel for this host."""
    family, spec = Fallback(), AttentionSpec("float32", 1, 1)
    return build.compile_llvm(spec, detect(), family, family.decisions(spec, detect())).decode()


def header() -> str:
    """Data layout and triple of this host's modules."""
    return "".join(re.findall(r"^target .*\n", host_text(), re.MULTILINE))


@functools.cache
def serial_launcher() -> int:
    """Runs parallel loops in the calling thread."""
    return launcher.address(1, host_text())


def _attributes(host: Target) -> str:
    return f'"target-cpu"="{host.mcpu}" "target-features"="{",".join(host.mattr)}"'
