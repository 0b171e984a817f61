"""Tensor intrinsics on Intel's tile registers (AMX), and the LLVM IR behind them.

A tile register holds 16 rows of 64 bytes, and `tdpbf16ps` multiplies three of them: c[i, l] += a[i, 2 d + p]
b[d, l, p] over 16 rows i, 16 lanes l and 16 pairs d of bfloat16; `tdpfp16ps` the same of float16. Of the eight
registers four hold sums, two by two, so that each operand that is loaded is multiplied twice.

The registers are named in the code, not allocated by LLVM, and configured once for a tile of queries (`BEGIN`, `END`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from attncc._tvm import Buffer, IRBuilder, PrimFunc, T, TensorIntrin, Var, tirx
from attncc.algorithm.blocks import stage, store
from attncc.algorithm.storage import pack, storage_dtype, unpack

ROWS, LANES = 32, 32
"""Rows and lanes of a product: two registers each."""
STEP = 32
"""Terms of the sum that an instruction multiplies."""
KEYS, COLUMNS = 32, 16
"""Rows and columns that `turn` turns."""
BEGIN, END = "attncc_amx_begin", "attncc_amx_end"
"""Functions to be called before the first product of a thread, and after the last."""

_CONFIGURE = f"""
@attncc_amx_config = private unnamed_addr constant <{{ i8, [15 x i8], [8 x i16], [16 x i8], [8 x i8], [8 x i8] }}>
  <{{ i8 1, [15 x i8] zeroinitializer, [8 x i16] [{", ".join(["i16 64"] * 8)}], [16 x i8] zeroinitializer,
  [8 x i8] [{", ".join(["i8 16"] * 8)}], [8 x i8] zeroinitializer }}>
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
define i32 @{BEGIN}() alwaysinline {{
  call void @llvm.x86.ldtilecfg(ptr @attncc_amx_config)
  ret i32 0
}}
define i32 @{END}() alwaysinline {{
  call void @llvm.x86.tilerelease()
  ret i32 0
}}
"""
"""Palette 1: the bytes of a row, then the rows, of each register."""

_PRODUCT = """
declare void @llvm.x86.tilezero(i8)
declare void @llvm.x86.tileloadd64(i8, ptr, i64)
declare void @llvm.x86.tilestored64(i8, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8, i8, i8)
define i32 @attncc_amx_product(ptr %c, i64 %c.row, ptr %a, i64 %a.row, ptr %b, i64 %b.row, i64 %steps) alwaysinline {
entry:
  call void @llvm.x86.tilezero(i8 0)
  call void @llvm.x86.tilezero(i8 1)
  call void @llvm.x86.tilezero(i8 2)
  call void @llvm.x86.tilezero(i8 3)
  %a.half = shl i64 %a.row, 4
  %b.next = shl i64 %b.row, 4
  br label %step
step:
  %n = phi i64 [ 0, %entry ], [ %n.next, %step ]
  %a0 = phi ptr [ %a, %entry ], [ %a0.next, %step ]
  %b0 = phi ptr [ %b, %entry ], [ %b0.next, %step ]
  %a1 = getelementptr i8, ptr %a0, i64 %a.half
  %b1 = getelementptr i8, ptr %b0, i64 64
  call void @llvm.x86.tileloadd64(i8 4, ptr %a0, i64 %a.row)
  call void @llvm.x86.tileloadd64(i8 6, ptr %b0, i64 %b.row)
  call void @llvm.x86.tdpbf16ps(i8 0, i8 4, i8 6)
  call void @llvm.x86.tileloadd64(i8 7, ptr %b1, i64 %b.row)
  call void @llvm.x86.tdpbf16ps(i8 1, i8 4, i8 7)
  call void @llvm.x86.tileloadd64(i8 5, ptr %a1, i64 %a.row)
  call void @llvm.x86.tdpbf16ps(i8 2, i8 5, i8 6)
  call void @llvm.x86.tdpbf16ps(i8 3, i8 5, i8 7)
  %a0.next = getelementptr i8, ptr %a0, i64 64
  %b0.next = getelementptr i8, ptr %b0, i64 %b.next
  %n.next = add i64 %n, 1
  %more = icmp ult i64 %n.next, %steps
  br i1 %more, label %step, label %end
end:
  %c.half = shl i64 %c.row, 4
  %c1 = getelementptr i8, ptr %c, i64 64
  %c2 = getelementptr i8, ptr %c, i64 %c.half
  %c3 = getelementptr i8, ptr %c2, i64 64
  call void @llvm.x86.tilestored64(i8 0, ptr %c, i64 %c.row)
  call void @llvm.x86.tilestored64(i8 1, ptr %c1, i64 %c.row)
  call void @llvm.x86.tilestored64(i8 2, ptr %c2, i64 %c.row)
  call void @llvm.x86.tilestored64(i8 3, ptr %c3, i64 %c.row)
  ret i32 0
}
"""


_INSTRUCTIONS = {"bfloat16": "tdpbf16ps", "float16": "tdpfp16ps"}


def llvm_text(dtype: str) -> str:
    """The functions that the intrinsics call, for products of `dtype`: bfloat16 or float16."""
    return _CONFIGURE + _PRODUCT.replace("tdpbf16ps", _INSTRUCTIONS[dtype]) + turn_text()


def _number(source: str) -> str:
    """The dtype of those numbers."""
    return "float16" if source == "float16" else "bfloat16"


def turn_text() -> str:
    """attncc_amx_turn: 32 rows of 16 numbers of 16 bits become 16 rows of 32.

    Rows are taken in pairs, number by number, which leaves 16 rows of 16 numbers of 32 bits; those are turned in four
    rounds, each of which brings together what lies 1, 2, 4 and 8 rows apart.
    """
    row, wide = f"<{COLUMNS} x i16>", "<16 x i32>"
    lines = []
    for n in range(KEYS):
        lines.append(f"  %at{n} = mul i64 %s.row, {n}")
        lines.append(f"  %from{n} = getelementptr i8, ptr %s, i64 %at{n}")
        lines.append(f"  %r{n} = load {row}, ptr %from{n}, align 2")
    in_turn = mask(lane + COLUMNS * half for lane in range(COLUMNS) for half in range(2))
    for n in range(16):
        lines.append(f"  %pairs{n} = shufflevector {row} %r{2 * n}, {row} %r{2 * n + 1}, <{KEYS} x i32> {in_turn}")
        lines.append(f"  %v{n}.0 = bitcast <{KEYS} x i16> %pairs{n} to {wide}")
    for before, apart in enumerate((1, 2, 4, 8)):
        for n in range(16):
            first, second = f"%v{n & ~apart}.{before}", f"%v{n | apart}.{before}"
            chosen = mask((n & apart) + (lane if lane & apart == 0 else 16 + lane - apart) for lane in range(16))
            lines.append(f"  %v{n}.{before + 1} = shufflevector {wide} {first}, {wide} {second}, <16 x i32> {chosen}")
    for n in range(16):
        lines.append(f"  %below{n} = mul i64 %d.row, {n}")
        lines.append(f"  %to{n} = getelementptr i8, ptr %d, i64 %below{n}")
        lines.append(f"  store {wide} %v{n}.4, ptr %to{n}, align 2")
    body = "\n".join(lines)
    return f"""
define i32 @attncc_amx_turn(ptr %d, i64 %d.row, ptr %s, i64 %s.row) alwaysinline {{
{body}
  ret i32 0
}}
"""


def mask(chosen: Iterable[int]) -> str:
    """Of a shufflevector, without its type: the lanes that are taken, in order."""
    return f"<{', '.join(f'i32 {lane}' for lane in chosen)}>"


@cache
def product(source: str, terms: int) -> str:
    """Name of the intrinsic c[i, l] = sum over d of b[d / 2, l, d % 2] * a[i, d], of `terms` terms.

    a is of dtype `source`: of bfloat16 a tile (uint16) or an argument, or float16. c is float32 in memory.
    """
    number = _number(source)

    def declare() -> dict[str, Buffer]:
        return {
            "a": _declare("a", (ROWS, terms), source, [Var("a_row", "int32"), 1]),
            "b": _declare("b", (terms // 2, LANES, 2), storage_dtype(source), [Var("b_row", "int32"), 2, 1]),
            "c": _declare("c", (ROWS, LANES), "float32", [Var("c_row", "int32"), 1]),
        }

    def describe(a: Buffer, b: Buffer, c: Buffer) -> None:
        with stage("product", "SSR", i=ROWS, l=LANES, d=terms) as (i, lane, d):
            T.reads(c[i, lane], b[d // 2, lane, d % 2], a[i, d])  # as TVM writes it for a reduction that was moved
            T.writes(c[i, lane])
            with T.init():
                store(c, [i, lane], tirx.const(0.0, "float32"))
            value = a[i, d]
            bits = pack(number, value) if source == number else value
            term = unpack(number, "float32", b[d // 2, lane, d % 2]) * unpack(number, "float32", bits)
            store(c, [i, lane], c[i, lane] + term)

    def implement(a: Buffer, b: Buffer, c: Buffer) -> None:
        _call("attncc_amx_product", *_place(c, 4), *_place(a, 2), *_place(b, 2), tirx.const(terms // STEP, "int64"))

    return _register(f"attncc.amx_product_{source}_{terms}", declare, "ba", "c", describe, implement)


@cache
def turn(source: str) -> str:
    """Name of the intrinsic d[e, n] = s[n, e] over 32 rows n and 16 columns e; rows of dtype `source`, as above."""

    def declare() -> dict[str, Buffer]:
        return {
            "s": _declare("s", (KEYS, COLUMNS), source, [Var("s_row", "int32"), 1]),
            "d": _declare("d", (COLUMNS, KEYS), storage_dtype(source), [Var("d_row", "int32"), 1]),
        }

    def describe(s: Buffer, d: Buffer) -> None:
        with stage("turn", "SS", n=KEYS, e=COLUMNS) as (n, e):
            store(d, [e, n], s[n, e] if source == "uint16" else pack(source, s[n, e]))

    def implement(s: Buffer, d: Buffer) -> None:
        _call("attncc_amx_turn", *_place(d, 2), *_place(s, 2))

    return _register(f"attncc.amx_turn_{source}", declare, "s", "d", describe, implement)


def _declare(name: str, shape: tuple[int, ...], dtype: str, strides: list[object]) -> Buffer:
    """A buffer that matches any region of this shape; only its rows may be apart."""
    buffer = T.match_buffer(
        T.arg(f"{name}_handle", T.handle()), shape, dtype, strides=strides, offset_factor=1,
        align=4 if dtype == "float32" else 2, layout=None,
    )  # fmt: skip
    IRBuilder.name(name, buffer)
    return buffer


def _place(buffer: Buffer, size: int) -> tuple[tirx.Expr, tirx.Expr]:
    """Address of a buffer, and the bytes from one row to the next."""
    return T.address_of(buffer[(0,) * len(buffer.shape)]), tirx.Cast("int64", buffer.strides[0]) * size


def _call(function: str, *arguments: tirx.Expr) -> None:
    T.evaluate(T.call_extern("int32", function, *arguments))


def _register(
    name: str,
    declare: Callable[[], dict[str, Buffer]],
    reads: str,
    writes: str,
    describe: Callable[..., None],
    implement: Callable[..., None],
) -> str:
    """Register the intrinsic that two function bodies make, and give its name."""
    TensorIntrin.register(
        name, *(_function(declare, reads, writes, body) for body in (describe, implement)), override=True
    )
    return name


def _function(declare: Callable[[], dict[str, Buffer]], reads: str, writes: str, body: Callable[..., None]) -> PrimFunc:
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("intrinsic")
            buffers = declare()
            with T.sblock("root"):
                T.reads(*(_all(buffers[name]) for name in reads))
                T.writes(*(_all(buffers[name]) for name in writes))
                body(**buffers)
        function: PrimFunc = builder.get()
    return function


def _all(buffer: Buffer) -> tirx.Expr:
    return buffer[tuple(slice(0, extent) for extent in buffer.shape)]
