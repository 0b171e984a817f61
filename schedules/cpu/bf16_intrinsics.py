"""Tensor intrinsics over pairs of bfloat16, and the LLVM IR behind them.

AVX512-BF16's `vdpbf16ps` and NEON's `bfdot` multiply pairs: c[l] += a[0] b[l, 0] + a[1] b[l, 1], over 16 lanes or 4. So
what they read lies in pairs along the reduced axis: a from where it is, b (and a, where rows are reduced) interleaved
from two rows.

The functions see vectors of integers, so that TVM's legalisation does not take bfloat16 apart. All loads and stores
are TVM's own, which say what cannot alias: that lets LLVM keep accumulators in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from attncc._tvm import Buffer, IRBuilder, PrimFunc, T, TensorIntrin, Var, tirx
from attncc.algorithm.blocks import stage, store
from attncc.algorithm.storage import pack, storage_dtype, unpack

_DOTS = {16: "llvm.x86.avx512bf16.dpbf16ps.512", 4: "llvm.aarch64.neon.bfdot.v4f32.v8bf16"}
"""LLVM's name of the instruction, by lanes."""

_DOT = """
declare <@LANES@ x float> @@DOT@(<@LANES@ x float>, <@PAIRS@ x bfloat>, <@PAIRS@ x bfloat>)

define <@LANES@ x float> @attncc_dot_bf16(<@LANES@ x float> %c, <@LANES@ x i32> %b, <@LANES@ x i32> %a) alwaysinline {
  %x = bitcast <@LANES@ x i32> %b to <@PAIRS@ x bfloat>
  %y = bitcast <@LANES@ x i32> %a to <@PAIRS@ x bfloat>
  %sum = call <@LANES@ x float> @@DOT@(<@LANES@ x float> %c, <@PAIRS@ x bfloat> %x, <@PAIRS@ x bfloat> %y)
  ret <@LANES@ x float> %sum
}
"""

_ROUND = """
define <@PAIRS@ x i16> @attncc_round_bf16(<@LANES@ x float> %s0, <@LANES@ x float> %s1) alwaysinline {
@BOTH@
  %pairs = shufflevector <@PAIRS@ x bfloat> %both, <@PAIRS@ x bfloat> poison, <@PAIRS@ x i32> <@MASK@>
  %bits = bitcast <@PAIRS@ x bfloat> %pairs to <@PAIRS@ x i16>
  ret <@PAIRS@ x i16> %bits
}
"""

_BOTH = {
    16: """  %both = call <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float> %s1, <16 x float> %s0)""",
    4: """  %all = shufflevector <4 x float> %s0, <4 x float> %s1, <8 x i32> <@ALL@>
  %both = fptrunc <8 x float> %all to <8 x bfloat>""",
}
"""Two vectors rounded, one after the other, by lanes."""

_ROUND_HALF = """
define <@PAIRS@ x half> @attncc_round_fp16(<@LANES@ x float> %s0, <@LANES@ x float> %s1) alwaysinline {
  %all = shufflevector <@LANES@ x float> %s0, <@LANES@ x float> %s1, <@PAIRS@ x i32> <@MASK@>
  %pairs = fptrunc <@PAIRS@ x float> %all to <@PAIRS@ x half>
  ret <@PAIRS@ x half> %pairs
}
"""
"""The same for float16."""

_DECLARED = {16: "declare <32 x bfloat> @llvm.x86.avx512bf16.cvtne2ps2bf16.512(<16 x float>, <16 x float>)", 4: ""}

_PAIR = """
define <@PAIRS@ x i16> @attncc_pair_@LANES@(<@LANES@ x i16> %s0, <@LANES@ x i16> %s1) alwaysinline {
  %pairs = shufflevector <@LANES@ x i16> %s0, <@LANES@ x i16> %s1, <@PAIRS@ x i32> <@MASK@>
  ret <@PAIRS@ x i16> %pairs
}
"""


def llvm_text(lanes: int, pair_lanes: int) -> str:
    """The functions that the intrinsics call: all over `lanes`, `pair` over `pair_lanes` as well."""
    texts = [_DECLARED[lanes], _DOT.replace("@DOT@", _DOTS[lanes]), _ROUND.replace("@BOTH@", _BOTH[lanes])]
    pairs = [_sized(_PAIR, n) for n in sorted({lanes, pair_lanes})]
    return "".join([*(_sized(text, lanes) for text in texts), *pairs])


def half_text(lanes: int, pair_lanes: int) -> str:
    """The functions that `pair` and `round_pairs` call for float16."""
    return _sized(_ROUND_HALF, lanes) + "".join(_sized(_PAIR, n) for n in sorted({lanes, pair_lanes}))


def _sized(text: str, lanes: int) -> str:
    """`text` for vectors of so many lanes."""
    values = {"LANES": lanes, "PAIRS": 2 * lanes, "MASK": _interleaved(lanes), "ALL": _in_turn(2 * lanes)}
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def _in_turn(lanes: int) -> str:
    """The shuffle mask that takes one vector after another."""
    return ", ".join(f"i32 {lane}" for lane in range(lanes))


def _interleaved(lanes: int) -> str:
    """The shuffle mask that takes two vectors in turns."""
    return ", ".join(f"i32 {lane}, i32 {lanes + lane}" for lane in range(lanes))


@dataclass(frozen=True)
class Operand:
    """A buffer of an intrinsic."""

    shape: tuple[int, ...]
    dtype: str
    scope: str = "global"


@cache
def dot(source: str, lanes: int) -> str:
    """Name of the intrinsic c[l] += b[l, p] * a[p], in float32, over `lanes` lanes l and a pair p.

    b is a tile; a is of dtype `source`: a tile (uint16) or an argument (bfloat16).
    """
    operands = {
        "a": Operand((2,), source),
        "b": Operand((lanes, 2), "uint16"),
        "c": Operand((lanes,), "float32", "local"),
    }

    def describe(a: Buffer, b: Buffer, c: Buffer) -> None:
        with stage("dot", "SR", l=lanes, p=2) as (lane, p):
            product = _unpacked(b[lane, p]) * _unpacked(pack("bfloat16", a[p]) if source == "bfloat16" else a[p])
            store(c, [lane], c[lane] + product)

    def implement(a: Buffer, b: Buffer, c: Buffer) -> None:
        kind = f"float32x{lanes}"
        pairs = T.reinterpret(f"int32x{lanes}", _bits(b, [0, 0], 2 * lanes))
        same = T.broadcast(T.reinterpret("int32", _bits(a, [0], 2)), lanes)
        store(c, [T.ramp(0, 1, lanes)], T.call_extern(kind, "attncc_dot_bf16", c.vload([0], kind), pairs, same))

    return _register(f"attncc.dot_bf16_{source}_{lanes}", operands, "cba", "c", describe, implement)


@cache
def round_pairs(lanes: int, dtype: str = "bfloat16") -> str:
    """Name of the intrinsic d[l, p] = s[p, l], rounded to `dtype`, over `lanes` lanes l and a pair of rows p of
    float32."""
    source, short = Operand((2, lanes), "float32", "local"), {"bfloat16": "bf16", "float16": "fp16"}[dtype]
    return _interleave(f"attncc.round_{short}_{lanes}", f"attncc_round_{short}", source, dtype)


@cache
def pair(source: str, lanes: int) -> str:
    """Name of the intrinsic d[l, p] = s[p, l], over `lanes` lanes l and a pair of rows p.

    The rows are of dtype `source`: of bfloat16 a tile (uint16) or an argument, or float16.
    """
    number = "float16" if source == "float16" else "bfloat16"
    return _interleave(f"attncc.pair_{source}_{lanes}", f"attncc_pair_{lanes}", Operand((2, lanes), source), number)


def _interleave(name: str, function: str, source: Operand, dtype: str) -> str:
    """The intrinsic of that name, into pairs of `dtype` as a tile holds them."""
    lanes, held = source.shape[1], storage_dtype(dtype)
    operands = {"s": source, "d": Operand((lanes, 2), held)}

    def describe(s: Buffer, d: Buffer) -> None:
        with stage("interleave", "SS", p=2, l=lanes) as (p, lane):
            store(d, [lane, p], s[p, lane] if source.dtype == "uint16" else pack(dtype, s[p, lane]))

    def implement(s: Buffer, d: Buffer) -> None:
        rows = [_bits(s, [p, 0], lanes) for p in range(2)]
        result = held if source.dtype == "float32" else "uint16"
        pairs = T.call_extern(f"{result}x{2 * lanes}", function, *rows)
        same = pairs if result == held else T.reinterpret(f"{held}x{2 * lanes}", pairs)
        store(d, [0, T.ramp(0, 1, 2 * lanes)], same)

    return _register(name, operands, "s", "d", describe, implement)


def _bits(buffer: Buffer, first: list[int], lanes: int) -> tirx.Expr:
    """Neighbouring elements of a buffer; bfloat16 and float16 as they lie in memory."""
    dtype = buffer.ty.dtype
    vector = buffer.vload(first, f"{dtype}x{lanes}")
    return T.reinterpret(f"uint16x{lanes}", vector) if str(dtype) in ("bfloat16", "float16") else vector


def _unpacked(value: tirx.Expr) -> tirx.Expr:
    return unpack("bfloat16", "float32", value)


def _register(
    name: str,
    operands: dict[str, Operand],
    reads: str,
    writes: str,
    describe: Callable[..., None],
    implement: Callable[..., None],
) -> str:
    """Register the intrinsic that two function bodies over `operands` make, and give its name."""
    functions = [_function(operands, reads, writes, body) for body in (describe, implement)]
    TensorIntrin.register(name, *functions, override=True)
    return name


def _function(operands: dict[str, Operand], reads: str, writes: str, body: Callable[..., None]) -> PrimFunc:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("intrinsic")
            buffers = {name: _declare(name, operand) for name, operand in operands.items()}
            with T.sblock("root"):
                T.reads(*(_all(buffers[name]) for name in reads))
                T.writes(*(_all(buffers[name]) for name in writes))
                body(**buffers)
        function: PrimFunc = builder.get()
    return function


def _declare(name: str, operand: Operand) -> Buffer:
    """A buffer that matches any region of this shape whose rows are dense."""
    strides = [Var(f"{name}_stride", "int32"), 1] if len(operand.shape) == 2 else [1]
    buffer = T.match_buffer(
        T.arg(f"{name}_handle", T.handle()),
        operand.shape,
        operand.dtype,
        strides=strides,
        offset_factor=1,
        scope=operand.scope,
        align=4 if operand.dtype == "float32" else 2,
        layout=None,
    )
    IRBuilder.name(name, buffer)
    return buffer


def _all(buffer: Buffer) -> tirx.Expr:
    return buffer[tuple(slice(0, extent) for extent in buffer.shape)]
