"""Prefill with float32 (or float64) products, for any CPU with vectors: AVX-512, AVX2, NEON.

float32 is multiplied where it lies. float16 and bfloat16 are converted into tiles, a key block at a time, so that the
same register tiles serve them; their probabilities stay in float32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from attncc.schedules.cpu.work import prefill_launch
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule
    from attncc.algorithm.prefill_tile import Tiling

MIN_ROWS = 8
"""Below this many query rows most lanes would idle: that is decode's case."""


@dataclass(frozen=True)
class PrefillFp32(Family):
    """See the module's docstring. Decisions: query_block, key_block, edge_block, vectors, key_rows, columns."""

    name: str = "cpu.prefill.fp32"
    regime: Literal["prefill", "decode", "any"] = "prefill"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu":
            return Declined(f"{self.name} is for CPUs, and the target is {target.kind}")
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return problem.q_len >= MIN_ROWS

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        lanes = lanes_of(spec, target)
        vectors, key_rows, columns = (2, 8, 8) if registers_of(target) >= 32 else (2, 4, 4)
        return {
            "query_block": 2 * vectors * lanes,
            "key_block": 128,
            "edge_block": 32,
            "vectors": vectors,
            "key_rows": key_rows,
            "columns": columns_of(spec.value_dim, columns),
        }

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc.algorithm.prefill import build
        from attncc.algorithm.signature import compute_dtype
        from attncc.schedules.cpu.prefill_schedule import PrefillSchedule, Registers

        lanes = lanes_of(spec, target)
        check(decisions, lanes)
        columns = -(-spec.value_dim // decisions["columns"]) * decisions["columns"]
        dtype = compute_dtype(spec)
        function = build(spec, tiling(decisions, columns, dtype))
        registers = Registers(lanes, decisions["vectors"], decisions["key_rows"], decisions["columns"])
        return PrefillSchedule(function, spec, registers, inline_loads=spec.dtype == dtype).module()

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        return prefill_launch(spec, decisions["query_block"], problem)


def tiling(decisions: Decisions, columns: int, dtype: str) -> Tiling:
    """What the algorithm is told of the decisions."""
    from attncc.algorithm.prefill_tile import Tiling

    return Tiling(decisions["query_block"], decisions["key_block"], columns, dtype, decisions["edge_block"])


def lanes_of(spec: AttentionSpec, target: Target) -> int:
    """Numbers of the compute dtype in a vector register."""
    return target.vector_bits // (64 if spec.dtype == "float64" else 32)


def registers_of(target: Target) -> int:
    """Vector registers: 32 on AVX-512 and AArch64, 16 on older x86."""
    return 32 if target.vector_bits == 512 or target.arch == "aarch64" else 16


def columns_of(value_dim: int, most: int) -> int:
    """Columns of a register tile: the largest divisor of value_dim up to `most`, or `most`, which pads the output."""
    divisor = max(n for n in range(1, most + 1) if value_dim % n == 0)
    return divisor if 2 * divisor > most or value_dim <= most else most


def check(decisions: Decisions, lanes: int) -> None:
    """Raise ValueError when tiles do not divide into register tiles."""
    query_tile = decisions["vectors"] * lanes
    sizes = [decisions[name] for name in ("key_block", "edge_block", "key_rows")]
    if decisions["query_block"] % query_tile or any(a % b for a, b in itertools.pairwise(sizes)):
        raise ValueError(
            f"prefill decisions {dict(decisions)} do not fit: query_block must be a multiple of {query_tile} "
            f"(vectors times {lanes} lanes), key_block of edge_block and that of key_rows"
        )
