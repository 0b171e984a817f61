"""Words for the body of a CUDA kernel: registers, conditions, and the few instructions that every family uses.

Kernels are written with TVM's IRBuilder by Python functions that run once, while the kernel is made: a Python `for` is
an unrolled loop, a Python `if` is settled before any code exists. What is to happen at run time goes through `when` and
`loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from attncc._tvm import IRBuilder, T, tirx

WARP = 32
ALL_LANES = 0xFFFFFFFF
LOG2E = math.log2(math.e)
_INTRINSIC = {"float16": "__floats2half2_rn", "bfloat16": "__floats2bfloat162_rn"}
_PAIR = {"float16": "half2", "bfloat16": "__nv_bfloat162"}
SHORT = {"float16": "f16", "bfloat16": "bf16"}
"""PTX's names of the dtypes that tensor cores multiply here."""


class Registers:
    """`count` values of one dtype in registers of each thread; indices are Python numbers, never run-time values."""

    def __init__(self, name: str, count: int, dtype: str = "float32") -> None:
        self.buffer = T.alloc_local([count], dtype)
        self.count = count
        IRBuilder.name(name, self.buffer)

    def __getitem__(self, index: int) -> Any:
        return tirx.BufferLoad(self.buffer, [index])

    def __setitem__(self, index: int, value: Any) -> None:
        T.buffer_store(self.buffer, value, [index])

    def __iter__(self) -> Iterator[Any]:
        return (self[n] for n in range(self.count))

    def fill(self, value: float) -> None:
        """Give every register the same literal."""
        for n in range(self.count):
            self[n] = tirx.const(value, str(self.buffer.dtype))

    def fence(self, first: int = 0, count: int | None = None) -> None:
        """What reads these registers after this line stays after it, and what writes them before it, before.

        Tensor cores write registers asynchronously, and the compiler does not know; and a long run of independent
        arithmetic would be interleaved until registers run out.
        """
        count = self.count if count is None else count
        name = f"attncc_fence_{count}"
        loop = f'for (int i = 0; i < {count}; ++i) asm volatile("" : "+f"(r[i]) :: "memory");'
        code = f"\n__device__ __forceinline__ void {name}(float* r) {{\n#pragma unroll\n{loop}\n}}\n"
        do(T.cuda.func_call(name, tirx.address_of(self[first]), source_code=code))


def do(call: Any) -> None:
    """Run an instruction for what it does."""
    T.evaluate(call)


def ptx(instruction: str, *operands: Any) -> None:
    """One PTX instruction, type-checked by TVM."""
    T.evaluate(T.ptx[instruction](*operands))


def bind(name: str, value: Any) -> Any:
    """A name for a value. TVM may put the expression back wherever the name is used: see `once`."""
    variable = T.Bind(value)
    IRBuilder.name(name, variable)
    return variable


def once(name: str, value: Any) -> Any:
    """An int32 that is computed here and nowhere else: kept in a register, which TVM does not see through."""
    register = Registers(name, 1, "int32")
    register[0] = value
    return register[0]


def attribute(name: str, value: int) -> None:
    """An attribute of the rest of the kernel."""
    frame = T.attr({name: value})
    frame.add_callback(partial(frame.__exit__, None, None, None))  # closes with its parent
    frame.__enter__()


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """What follows happens where `condition` holds."""
    with T.If(condition), T.Then():
        yield


@contextmanager
def loop(name: str, count: Any) -> Iterator[Any]:
    """A loop at run time; gives its counter, from 0."""
    with T.serial(0, count) as counter:
        IRBuilder.name(name, counter)
        yield counter


def choose(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; both are evaluated."""
    return tirx.Select(condition, a, b)


def number(value: float) -> Any:
    """A float32 literal."""
    return tirx.const(value, "float32")


def whole(value: int) -> Any:
    """An int32 literal."""
    return tirx.const(value, "int32")


def div(a: Any, b: Any) -> Any:
    """a / b of integers that are not negative."""
    return tirx.truncdiv(a, b)


def mod(a: Any, b: Any) -> Any:
    """The remainder of integers that are not negative."""
    return tirx.truncmod(a, b)


def ceil_div(a: Any, b: int) -> Any:
    """a / b rounded up, of integers that are not negative."""
    return tirx.truncdiv(a + (b - 1), b)


def pack(a: Any, b: Any, dtype: str) -> Any:
    """Two float32 as one 32-bit register of two 16-bit floats, a in the lower half."""
    name = f"attncc_pack_{SHORT[dtype]}"
    body = f"{_PAIR[dtype]} h = {_INTRINSIC[dtype]}(a, b); return *reinterpret_cast<unsigned*>(&h);"
    code = f"\n__device__ __forceinline__ unsigned {name}(float a, float b) {{ {body} }}\n"
    return T.cuda.func_call(name, a, b, source_code=code, return_type="uint32")


def instruction(name: str, *operands: Any, dtype: str = "float32") -> Any:
    """An instruction on operands of `dtype`, which is also its result's, that CUDA C has no plain name for:
    "rcp.approx.ftz.f32". In "uint32" are pairs of 16-bit floats.
    """
    kind, register = {"float32": ("float", "f"), "uint32": ("unsigned", "r")}[dtype]
    function = "attncc_" + name.replace(".", "_")
    names = [f"x{n}" for n in range(len(operands))]
    inputs = ", ".join(f'"{register}"({n})' for n in names)
    places = ", ".join(f"%{n}" for n in range(len(names) + 1))
    body = f'{kind} r; asm("{name} {places};" : "={register}"(r) : {inputs}); return r;'
    parameters = ", ".join(f"{kind} {n}" for n in names)
    code = f"\n__device__ __forceinline__ {kind} {function}({parameters}) {{ {body} }}\n"
    return T.cuda.func_call(function, *operands, source_code=code, return_type=dtype)


def again(value: Any, nothing: Any) -> Any:
    """The int32 `value` plus `nothing`, a run-time value that is 0: what follows from it is computed once more.

    Otherwise compilers keep what was computed of it before, and run out of registers.
    """
    code = (
        "\n__device__ __forceinline__ int attncc_again(int x0, int x1) "
        '{ int r; asm volatile("add.s32 %0, %1, %2;" : "=r"(r) : "r"(x0), "r"(x1)); return r; }\n'
    )
    return T.cuda.func_call("attncc_again", value, nothing, source_code=code, return_type="int32")


def exp2(x: Any) -> Any:
    """2**x by the special function unit: 2 ulp, exactly 0 for -inf."""
    return instruction("ex2.approx.ftz.f32", x)


def reciprocal(x: Any) -> Any:
    """1 / x by the special function unit: 1 ulp."""
    return instruction("rcp.approx.ftz.f32", x)


def maximum(a: Any, b: Any) -> Any:
    """The larger of both; a NaN gives way to the other operand."""
    return tirx.max(a, b)


def over_quad(value: Any, combine: Callable[[Any, Any], Any], register: tuple[Registers, int]) -> None:
    """`register` becomes `value` combined over the four lanes that share a row of an accumulator tile."""
    registers, at = register
    registers[at] = value
    over_lanes(registers, at, combine, 4)


def over_lanes(registers: Registers, at: int, combine: Callable[[Any, Any], Any], lanes: int) -> None:
    """A register combined over so many neighbouring lanes, a power of two."""
    for step in range(lanes.bit_length() - 1):
        other = T.tvm_warp_shuffle_xor(tirx.const(ALL_LANES, "uint32"), registers[at], 1 << step, WARP, WARP)
        registers[at] = combine(registers[at], other)


def layout(shape: Sequence[Any], strides: Sequence[Any]) -> Any:
    """A buffer's layout. tirx's own default ignores the strides that `match_buffer` declares."""
    from tvm.tirx.layout import S, TileLayout

    return TileLayout(S[tuple(shape) : tuple(strides)])
