"""Decode on CPUs: few query rows against a long cache, at the speed of memory.

The cache is read once, straight from where it lies; keys are split over threads. See `attncc.algorithm.decode`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from attncc.algorithm.decode_work import FRACTION_BITS
from attncc.algorithm.visibility import by_data, safe_maximum
from attncc.expr import FLOAT8
from attncc.schedules.cpu import model
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import CODES, DOT, AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule
    from attncc.algorithm.decode_parts import Tiling

MOST_ROWS, MOST_ROWS_BF16 = 16, 10
"""From this many query rows a head on, prefill is faster: a tile of 16 takes as long however many there are of them."""
WIDE, MOST_ROWS_WIDE, MOST_SHARED = 64, 25, 128
"""For heads wider than `WIDE` that is later, as a tile of few queries reads keys and values often for what it
multiplies; but scores of more than `MOST_SHARED` rows, of all heads that share keys, do not stay in L2."""
MOST_SHARED_BF16 = 48
"""The same in bfloat16, where three heads or more share keys."""
LEAST_SPLIT = 256
"""Keys that a split is worth: fewer, and the work around them takes longer than reading them. Where many threads share
few heads, what combines their splits wants them longer."""
VALUE_ROWS = 16
"""Keys whose values stay in L1 while all query rows are multiplied with them."""
AHEAD = 32
"""Rows of k and v between what is computed on and what memory is asked for."""
FEW_ROWS = 2
"""Query rows a key head, up to which short elements take so little work that asking for them, or interleaving them,
takes longer than it wins."""
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2} | dict.fromkeys(CODES, 1)


@dataclass(frozen=True)
class Decode(Family):
    """See the module's docstring. Decisions: the fields of `decode_parts.Tiling`, and least_split: the keys that a
    split is worth."""

    name: str = "cpu.decode"
    regime: Literal["prefill", "decode", "any"] = "decode"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu":
            return Declined(f"{self.name} is for CPUs, not for {target.kind}")
        halves = [d for d in ("float16", *FLOAT8) if d in (spec.dtype, spec.key_dtype, spec.value_dtype)]
        if halves and target.arch == "x86_64" and "f16c" not in target.features:
            return Declined(f"{self.name} reads {' and '.join(halves)} with f16c, which {target.mcpu} lacks")
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        rows, shared = problem.q_len, problem.q_len * spec.group
        if spec.dtype == "bfloat16":
            return rows < MOST_ROWS_BF16 or (spec.group > FEW_ROWS and shared <= MOST_SHARED_BF16)
        wide = spec.head_dim > WIDE and shared <= MOST_SHARED
        return rows < (MOST_ROWS_WIDE if wide else MOST_ROWS)

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """A vector of strands; register tiles of sums in half of the vector registers.

        A block's keys and its scores take half of L2: long runs keep hardware prefetch going, and where a group is more
        than one chunk of rows, the later ones find the keys in L2.
        """
        size, kept = max(_BYTES[spec.dtype], 4), spec.key_dtype or spec.dtype
        strands = model.lanes(target, size)
        fitting = target.l2 // 2 // (spec.head_dim * _BYTES[kept] + 3 * size * spec.group)
        accumulators = model.registers(target) // 2
        pairs = self._value_pairs(spec, target)
        # few rows of q, so that sums for a whole row of v fit: it is then read as it lies, not some columns of many
        # rows; but pairs are made of whole rows, and codes are converted for each chunk of rows
        several = pairs > 1 or spec.key_dtype is not None
        row_chunk = max(n for n in range(1, 5 if several else 3) if spec.group % n == 0)
        usual = {
            "row_chunk": row_chunk,
            "keys": min(max(1 << max(fitting, 1).bit_length() - 1, 4 * strands), 1024),
            "key_rows": 2 if spec.key_dtype is not None and row_chunk > 1 else 1,
            "key_chunk": strands,
            "strands": strands,
            "pairs": self._pairs(spec, target),
            "column_sets": max(1, accumulators // row_chunk),
            "value_rows": VALUE_ROWS,
            "value_pairs": pairs,
            "ahead": AHEAD if spec.group > FEW_ROWS or size == _BYTES[kept] else 0,
            "least_split": LEAST_SPLIT,
            "copy_by_key": 0,
        }
        return usual if model.registers(target) > 16 else usual | self._of_few_registers(spec, target)

    def _of_few_registers(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """What differs with 16 vector registers, which hold a whole row of v for no more than one row of q.

        Arithmetic is slower there beside memory, and what is loaded is to serve several rows; numbers that are
        converted also wait longer to be asked for, so memory is asked ahead. float8 is converted in float16, of which a
        register holds twice as many: strands are two registers each.
        """
        size, kept = max(_BYTES[spec.dtype], 4), spec.key_dtype or spec.dtype
        row_chunk = max(n for n in range(1, 5) if spec.group % n == 0)
        converted, wide = _BYTES[kept] < size, bool({spec.key_dtype, spec.value_dtype} & {*FLOAT8})
        lanes, most = model.lanes(target, size), 4 if converted else 8
        registers = 2 if wide else 1
        values = 2 * VALUE_ROWS * spec.value_dim * _BYTES[spec.value_dtype or spec.dtype]
        return {
            "row_chunk": row_chunk,
            "key_rows": 2 if converted and not wide else 1,
            "key_chunk": 2 * lanes,
            "strands": registers * lanes,
            "column_sets": min(most, 8 // row_chunk) // registers,
            "value_rows": VALUE_ROWS * (2 if values <= target.l1 // 2 else 1),
            "ahead": AHEAD if converted or spec.group > FEW_ROWS else 0,
            "copy_by_key": 1,
        }

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        """Vectors and chunks of keys are as wide as registers; what is held in them, and for how long, is open."""
        default = self.decisions(spec, target)
        keys, chunk = default["keys"], default["key_chunk"]
        return {name: (value,) for name, value in default.items()} | {
            "row_chunk": model.near(default["row_chunk"], (1, 2, 4)),
            "keys": model.near(keys, (n for n in (keys // 4, keys // 2, 2 * keys) if n % chunk == 0 < n)),
            "key_rows": model.near(default["key_rows"], (n for n in (1, 2, 4) if chunk % n == 0)),
            "column_sets": model.near(default["column_sets"], (2, 4, 8)),
            "value_rows": model.near(default["value_rows"], (32, 64)),
            "value_pairs": (1, 2) if self._pairs_values(spec, target) else (1,),
            "ahead": (0, AHEAD // 2, AHEAD),
            "least_split": model.near(default["least_split"], (64, 1024)),
        }

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc._tvm import IRModule, Schedule
        from attncc.algorithm.decode import build
        from attncc.algorithm.signature import NAME
        from attncc.schedules.cpu.decode_schedule import DecodeSchedule, llvm_texts

        tiling = self._tiling(decisions)
        sch = Schedule(IRModule({NAME: build(spec, tiling, llvm_texts(spec, tiling, bool(target.sve_bits)))}))
        sch.work_on(NAME)
        DecodeSchedule(sch, spec, tiling).apply()
        return sch.mod

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        n, rows = problem.batch * problem.heads // spec.group, problem.q_len * spec.group
        splits = best_splits(n, problem.kv_len, problem.threads, decisions["least_split"])
        spread = problem.threads if splits == 1 and by_data(spec) else 1
        work = work_table(problem.batch, problem.heads // spec.group, splits, spread)
        single: tuple[tuple[int, ...], ...] = ((1, 1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))
        several = ((n, splits, rows, spec.value_dim), *[(n, splits, rows)] * 3)
        redo, weights = safe_maximum(spec) is not None, "weights" in spec.outputs
        shapes = several if splits > 1 or redo or weights else single
        shapes += ((n,), (n,)) if redo else ()
        shapes += ((n, rows, problem.kv_len),) if weights else ()
        return Launch(work, shapes)

    def _pairs(self, spec: AttentionSpec, target: Target) -> int:
        """Columns that a lane of q k^T takes at once: 2 of bfloat16 as it lies in memory, 4 of float8 through tables.

        int8 is faster converted to float32: its sign takes tables of its own.
        """
        plain = spec.dtype == "bfloat16" and spec.element == DOT and spec.bilinear is None
        if not plain or not {"avx512f", "avx512bf16"} <= target.features:
            return 1
        if spec.key_dtype is None:
            return 2
        return 4 if spec.key_dtype in FLOAT8 and "avx512vbmi" in target.features else 1

    def _value_pairs(self, spec: AttentionSpec, target: Target) -> int:
        """2 where weights and values are multiplied in bfloat16."""
        return 2 if self._pairs_values(spec, target) and spec.group > FEW_ROWS else 1

    def _pairs_values(self, spec: AttentionSpec, target: Target) -> bool:
        """Whether weights and values can be multiplied in bfloat16."""
        halves = spec.dtype == "bfloat16" and {"avx512f", "avx512bf16"} <= target.features
        return halves and spec.value_dtype is None

    def _tiling(self, decisions: Decisions) -> Tiling:
        from attncc.algorithm.decode_parts import Tiling

        tiling = Tiling(**{name: value for name, value in decisions.items() if name != "least_split"})
        if (
            min(value + (name in ("ahead", "copy_by_key")) for name, value in decisions.items()) < 1
            or tiling.value_rows % 2
            or tiling.keys % math.lcm(tiling.key_chunk, tiling.strands)
            or tiling.key_chunk % tiling.key_rows
        ):
            raise ValueError(
                f"{self.name}: decisions are positive (ahead, copy_by_key: or 0), keys={tiling.keys} is a multiple of "
                f"key_chunk={tiling.key_chunk} and strands={tiling.strands}, key_chunk of key_rows={tiling.key_rows}, "
                f"value_rows={tiling.value_rows} is even"
            )
        return tiling


@lru_cache(256)
def best_splits(heads: int, kv_len: int, threads: int, least: int = LEAST_SPLIT) -> int:
    """Splits of each of `heads` key heads, of `least` keys: the fewest that keep `threads` about as busy as any number
    would."""
    most = max(1, min(threads, kv_len // least))
    busy = {s: heads * s / (threads * math.ceil(heads * s / threads)) for s in range(1, most + 1)}
    best = max(busy.values())
    return min(s for s, share in busy.items() if share >= 0.95 * best)


@lru_cache(64)
def work_table(batch: int, kv_heads: int, splits: int, spread: int = 1) -> npt.NDArray[np.int32]:
    """The work table of `attncc.algorithm.decode`, shared: a growing cache asks for the same one at every step.

    `spread` deals the tiles out to so many threads in turn: each then has batches of all lengths, also of sorted ones.
    """
    work = np.empty((batch, kv_heads, splits, 4), np.int32)
    work[..., 0] = np.arange(batch)[:, None, None]
    work[..., 1] = np.arange(kv_heads)[:, None]
    parts = (np.arange(splits + 1) << FRACTION_BITS) // splits
    work[..., 2], work[..., 3] = parts[:-1], parts[1:]
    table = work.reshape(-1, 4)
    return table if spread == 1 else np.concatenate([table[thread::spread] for thread in range(spread)])
