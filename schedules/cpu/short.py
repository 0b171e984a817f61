"""Few keys on CPUs: all scores of some rows at once, in one pass. See `attncc.algorithm.short`.

Prefill's tiles of many queries, and what it does to leave hidden keys out, cost more here than the attention itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from attncc.algorithm.short_parts import RUN_BITS, Tiling
from attncc.schedules.cpu import model
from attncc.schedules.cpu.prefill_fp32 import MIN_ROWS, size_of
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import DOT, AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule

MOST_KEYS = 128
"""Keys that a kernel has room for."""
LARGEST_HEAD = 128
"""Head size up to which the packed keys stay in a cache next to the core, and sums of products are short."""


@dataclass(frozen=True)
class Short(Family):
    """See the module's docstring. Decisions: the fields of `short.Tiling`."""

    name: str = "cpu.short"
    regime: Literal["prefill", "decode", "any"] = "prefill"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu":
            return Declined(f"{self.name} is for CPUs, not for {target.kind}")
        if spec.dtype == "float16" and target.arch == "x86_64" and "f16c" not in target.features:
            return Declined(f"{self.name} reads float16 with f16c, which {target.mcpu} lacks")
        if spec.quantized:
            return Declined(f"{self.name} multiplies plain numbers, not codes with scales")
        if max(spec.head_dim, spec.value_dim) > LARGEST_HEAD:
            return Declined(f"{self.name} is for heads of up to {LARGEST_HEAD}")
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return problem.q_len >= MIN_ROWS and problem.kv_len <= MOST_KEYS

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """A register tile of scores is a vector of keys by 8 rows, or two by 4 where there are 16 registers; of the
        output it is two vectors of columns."""
        many = model.registers(target) >= 32
        return {
            "rows": 8 if many else 4,
            "lanes": model.lanes(target, size_of(spec)),
            "keys": MOST_KEYS,
            "pairs": 2 if self._pairs(spec, target) else 1,
            "key_sets": 1 if many else 2,
            "column_sets": 2,
        }

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        """What is held in registers is open."""
        default = self.decisions(spec, target)
        return {name: (value,) for name, value in default.items()} | {
            "rows": model.near(default["rows"], (4, 8)),
            "column_sets": model.near(default["column_sets"], (1, 2, 4)),
        }

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc._tvm import IRModule, Schedule
        from attncc.algorithm.short import build
        from attncc.algorithm.signature import NAME
        from attncc.schedules.cpu.short_schedule import ShortSchedule, llvm_text

        tiling = self._tiling(decisions)
        sch = Schedule(IRModule({NAME: build(spec, tiling, llvm_text(spec, tiling, bool(target.sve_bits)))}))
        sch.work_on(NAME)
        ShortSchedule(sch, spec, tiling).apply()
        return sch.mod

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        """Raises ValueError for more keys than the kernel has room for."""
        if problem.kv_len > decisions["keys"]:
            raise ValueError(f"{self.name}: {problem.kv_len} keys, and a kernel for up to {decisions['keys']}")
        chunks = -(-problem.q_len // decisions["rows"])
        return Launch(work_table(problem, spec.group, runs(chunks, problem)))

    def _pairs(self, spec: AttentionSpec, target: Target) -> bool:
        """Whether products are AVX512-BF16's, which multiply pairs."""
        fits = spec.dtype == "bfloat16" and spec.element == DOT and spec.head_dim % 2 == 0 and spec.value_dim % 16 == 0
        return fits and {"avx512f", "avx512bf16"} <= target.features

    def _tiling(self, decisions: Decisions) -> Tiling:
        tiling = Tiling(**decisions)
        powers = all(n > 1 and n & (n - 1) == 0 for n in (tiling.rows, tiling.lanes))
        sets = tiling.key_sets, tiling.column_sets
        if not powers or min(sets) < 1 or tiling.keys % (tiling.lanes * tiling.key_sets) or tiling.pairs not in (1, 2):
            raise ValueError(
                f"{self.name}: rows={tiling.rows} and lanes={tiling.lanes} are powers of two, keys={tiling.keys} is a "
                f"multiple of lanes times key_sets={tiling.key_sets}, pairs={tiling.pairs} is 1 or 2 and "
                f"column_sets={tiling.column_sets} positive"
            )
        return tiling


def runs(chunks: int, problem: Problem) -> list[tuple[int, int]]:
    """The chunks of a head's rows, in as many runs (first chunk, number) as it takes to keep all threads busy.

    Each run packs the head's keys anew, so a head is cut only where threads would wait. Under a causal mask later rows
    cost more: the runs of a head cut in two for two threads are not equal, which is what few keys leave of it.
    """
    heads = problem.batch * problem.heads
    most = max(1, min(chunks, 2 * problem.threads))
    shares = {n: heads * n / (problem.threads * -(-heads * n // problem.threads)) for n in range(1, most + 1)}
    best = max(shares.values())
    count = min(n for n, share in shares.items() if share >= 0.9 * best)
    count = max(count, -(-chunks // MOST_CHUNKS))
    bounds = [chunks * n // count for n in range(count + 1)]
    return [(first, end - first) for first, end in itertools.pairwise(bounds)]


MOST_CHUNKS = 64
"""Chunks of a run: from there on packing the keys anew is a small part of the work."""


def work_table(problem: Problem, group: int, parts: list[tuple[int, int]]) -> npt.NDArray[np.int32]:
    """The work table of `attncc.algorithm.short`: the parts of all heads in order, shared out evenly."""
    work = np.empty((problem.batch, problem.heads, len(parts), 4), np.int32)
    work[..., 0] = np.arange(problem.batch)[:, None, None]
    work[..., 1] = (np.arange(problem.heads) // group)[:, None]
    work[..., 2] = np.arange(problem.heads)[:, None]
    work[..., 3] = [first << RUN_BITS | count for first, count in parts]
    tiles = work.reshape(-1, 4)
    threads = min(problem.threads, len(tiles))
    bounds = np.arange(threads + 1) * len(tiles) // threads
    packs = np.ones(len(tiles), np.int32)
    packs[1:] = np.any(tiles[1:, :2] != tiles[:-1, :2], axis=1)
    packs[bounds[:-1]] = 1
    tiles[:, 3] = tiles[:, 3] << 1 | packs
    head = np.zeros((threads, 4), np.int32)
    head[:, 0], head[:, 1], head[:, 2] = threads + bounds[:-1], threads + bounds[1:], threads
    return np.concatenate([head, tiles])
