"""What the machine itself can do, measured: multiply-add peak, bfloat16 dot peak and read bandwidth.

Percentages in `attncc bench` are of these figures, taken in the same run, never of a data sheet. Each comes from a
small serial kernel that TVM compiles for the detected target, run on every core at once: the calls release the GIL, so
Python threads are enough, and neither thread pool (torch's, TVM's) takes part in the measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attncc.target import Target, detect

if TYPE_CHECKING:
    from attncc._tvm import PrimFunc

ACCUMULATORS = 12
"""Independent accumulators: at least latency x throughput of the multiply-adds (4 x 2), and at most 16 registers."""
UNROLL = 8
"""Rounds of the accumulators in one loop iteration."""
READ_BYTES = 512 << 20
"""Least size of the buffer that the bandwidth kernel reads; four times the last-level cache where that is more."""
ROUNDS, REPEATS = 4, 3
"""The figures take turns: a scheduler can keep two threads on one core for as long as one of them takes."""
SECONDS = 0.05
"""Rough duration of one repeat."""
STEPS = 3
"""Figures that `measure` takes."""

_BF16_DOT = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @attncc_peak_dpbf16(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {
  %a1 = bitcast <16 x i32> %a to <32 x bfloat>
  %b1 = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %a1, <32 x bfloat> %b1)
  ret <16 x float> %r
}
"""


@dataclass(frozen=True)
class Peak:
    """Measured limits of the machine, all cores together: the best of some repeats, as a limit should be."""

    threads: int
    fp32_gflops: float
    """Multiply-adds in float32, two operations each, in 1e9 operations a second."""
    bf16_gflops: float | None
    """The same in bfloat16 dot products; None where the target has no such instruction that attncc uses."""
    read_gbs: float
    """Sequential reads from memory, in 1e9 bytes a second."""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)

    def gflops(self, dtype: str) -> float:
        """The arithmetic limit for attention in `dtype` ("float32", "bfloat16", …)."""
        if dtype == "float64":
            return self.fp32_gflops / 2
        return self.bf16_gflops or self.fp32_gflops if dtype == "bfloat16" else self.fp32_gflops


def measure(
    target: Target | None = None, threads: int | None = None, progress: Callable[[str], None] | None = None
) -> Peak:
    """Measure the CPU at hand on `threads` threads (default: `torch.get_num_threads()`). Takes about three seconds.

    `progress` is called with the name of each figure before it is measured (`STEPS` at most). Raises ValueError for a
    target that is not a CPU.
    """
    target = target or detect()
    if target.kind != "cpu":
        raise ValueError(f"peak figures are measured on a CPU; the target is {target.kind!r}")
    threads = threads or torch.get_num_threads()
    say = progress or (lambda _: None)
    lanes = target.vector_bits // 32
    say("float32 multiply-add peak")
    samples = [_arithmetic(_build(_fma_kernel(lanes), target), torch.float32, lanes, threads)]
    if "avx512bf16" in target.features:
        say("bfloat16 dot peak")
        samples.append(_arithmetic(_build(_bf16_kernel(), target), torch.int32, 16, threads))
    say("read bandwidth")
    samples.append(_bandwidth(target, threads))
    best = [max(rates) for rates in zip(*([sample() for sample in samples] for _ in range(ROUNDS)), strict=True)]
    bf16 = 2 * best[1] if len(best) == 3 else None
    return Peak(threads=threads, fp32_gflops=best[0], bf16_gflops=bf16, read_gbs=best[-1])


def _build(func: PrimFunc, target: Target) -> Callable[..., None]:
    from attncc._tvm import IRModule, llvm_target, tvm

    built = tvm.compile(IRModule({"main": func}), target=llvm_target(target))
    kernel: Callable[..., None] = built["main"]
    return kernel


def _fma_kernel(lanes: int) -> PrimFunc:
    """acc[i] = acc[i] * a + b over registers only: `rounds` x UNROLL x ACCUMULATORS vector multiply-adds."""
    from attncc._tvm import IRBuilder, T

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        rounds = T.arg("rounds", T.int64())
        operands = T.match_buffer(T.arg("operands_handle", T.handle()), (2, lanes), "float32")
        out = T.match_buffer(T.arg("out_handle", T.handle()), (ACCUMULATORS, lanes), "float32")
        acc = T.alloc_buffer((ACCUMULATORS, lanes), "float32", scope="local")
        row = T.ramp(0, 1, lanes)
        for i in range(ACCUMULATORS):
            T.buffer_store(acc, operands[0, row], [i, row])
        with T.serial(0, rounds):
            for _ in range(UNROLL):
                for i in range(ACCUMULATORS):
                    T.buffer_store(acc, acc[i, row] * operands[0, row] + operands[1, row], [i, row])
        for i in range(ACCUMULATORS):
            T.buffer_store(out, acc[i, row], [i, row])
    return builder.get()


def _bf16_kernel() -> PrimFunc:
    """The same with vdpbf16ps: each lane adds two products, operands are int32 pairs of bfloat16."""
    from attncc._tvm import IRBuilder, T

    lanes = 16
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        rounds = T.arg("rounds", T.int64())
        operands = T.match_buffer(T.arg("operands_handle", T.handle()), (2, lanes), "int32")
        out = T.match_buffer(T.arg("out_handle", T.handle()), (ACCUMULATORS, lanes), "float32")
        acc = T.alloc_buffer((ACCUMULATORS, lanes), "float32", scope="local")
        row = T.ramp(0, 1, lanes)
        with T.attr(0, "pragma_import_llvm", _BF16_DOT):
            for i in range(ACCUMULATORS):
                T.buffer_store(acc, T.broadcast(T.float32(0), lanes), [i, row])
            with T.serial(0, rounds):
                for _ in range(UNROLL):
                    for i in range(ACCUMULATORS):
                        dot = T.call_extern(
                            f"float32x{lanes}", "attncc_peak_dpbf16", acc[i, row], operands[0, row], operands[1, row]
                        )
                        T.buffer_store(acc, dot, [i, row])
            for i in range(ACCUMULATORS):
                T.buffer_store(out, acc[i, row], [i, row])
    return builder.get()


def _read_kernel(lanes: int) -> PrimFunc:
    """Sum of a buffer, ACCUMULATORS vectors at a time; the sums are written so that no load can be dropped."""
    from attncc._tvm import IRBuilder, T

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        rows = T.int64()
        data = T.match_buffer(T.arg("data_handle", T.handle()), (rows, ACCUMULATORS, lanes), "float32")
        out = T.match_buffer(T.arg("out_handle", T.handle()), (ACCUMULATORS, lanes), "float32")
        acc = T.alloc_buffer((ACCUMULATORS, lanes), "float32", scope="local")
        row = T.ramp(0, 1, lanes)
        for i in range(ACCUMULATORS):
            T.buffer_store(acc, T.broadcast(T.float32(0), lanes), [i, row])
        with T.serial(0, rows) as n:
            for i in range(ACCUMULATORS):
                T.buffer_store(acc, acc[i, row] + data[n, i, row], [i, row])
        for i in range(ACCUMULATORS):
            T.buffer_store(out, acc[i, row], [i, row])
    return builder.get()


def _arithmetic(kernel: Callable[..., None], dtype: torch.dtype, lanes: int, threads: int) -> Callable[[], float]:
    """Measures GFLOP/s of a register-only kernel, counting two operations a lane and accumulator step."""
    operands = torch.zeros(2, lanes, dtype=dtype)
    outs = [torch.empty(ACCUMULATORS, lanes) for _ in range(threads)]

    def seconds(rounds: int) -> float:
        return _together([partial(kernel, rounds, operands, out) for out in outs])

    rounds = 1 << 14
    while (once := seconds(rounds)) < SECONDS / 2:
        rounds = int(rounds * max(2.0, SECONDS / once))
    operations = threads * rounds * ACCUMULATORS * UNROLL * lanes * 2
    return lambda: operations / min(seconds(rounds) for _ in range(REPEATS)) / 1e9


def _bandwidth(target: Target, threads: int) -> Callable[[], float]:
    """Measures GB/s of reading a buffer that no cache holds, each thread its own part."""
    lanes = target.vector_bits // 32
    kernel = _build(_read_kernel(lanes), target)
    size = min(max(READ_BYTES, 4 * target.l3), 4 * READ_BYTES)
    rows = size // 4 // (threads * ACCUMULATORS * lanes)
    data = torch.ones(threads, rows, ACCUMULATORS, lanes)
    calls = [partial(kernel, part, torch.empty(ACCUMULATORS, lanes)) for part in data]
    _together(calls)
    elements: int = data.numel()
    return lambda: elements * 4 / min(_together(calls) for _ in range(REPEATS)) / 1e9


def _together(calls: Sequence[Callable[[], None]]) -> float:
    """Seconds that the calls take side by side, a thread each."""
    with ThreadPoolExecutor(len(calls)) as pool:
        list(pool.map(lambda _: None, calls))  # starts the threads before the clock
        start = time.perf_counter()
        for done in [pool.submit(call) for call in calls]:
            done.result()
        return time.perf_counter() - start
