"""Prefill with float32 (or float64) products, for any CPU with vectors: AVX-512, AVX2, NEON.

float32 is multiplied where it lies, or from copies. float16 and bfloat16 are converted into tiles, a key block at a
time, so that the same register tiles serve them; their probabilities stay in float32.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from attncc.schedules.cpu import model
from attncc.schedules.cpu.work import is_window, prefill_launch
from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule
    from attncc.algorithm.prefill_tile import Tiling

EDGE_BLOCK = 32
"""Keys of a step at a diagonal or an end. Half of such a step is wasted on average; smaller ones take longer a key."""
NEVER = 1 << 30
"""Of `deal_from`: more keys than there are. Under a window a tile's keys are its neighbours', which share a core."""
MIN_ROWS = 8
"""Below this many query rows most lanes would idle: that is decode's case."""


@dataclass(frozen=True)
class PrefillFp32(Family):
    """See the module's docstring.

    Decisions: query_block, key_block, edge_block, vectors, key_rows, columns; copy_keys and copy_values, of 0 and 1;
    deal_from: keys from which on threads share each head instead of having heads of their own; ahead: rows of k
    between what is multiplied and what memory is asked for.
    """

    name: str = "cpu.prefill.fp32"
    regime: Literal["prefill", "decode", "any"] = "prefill"

    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        if target.kind != "cpu":
            return Declined(f"{self.name} is for CPUs, and the target is {target.kind}")
        return None

    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        return problem.q_len >= MIN_ROWS

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """The model's. Where a score has partial sums, they take registers as well."""
        found = prefill_decisions(spec, target, size_of(spec))
        if model.divided(spec.head_dim):
            found["key_rows"] //= 2
        must = int(_converts(spec))
        if must:  # a step copies its keys first: what it asks for is the next one's
            found["ahead"] = found["key_block"]
        return found | {"copy_keys": must, "copy_values": must}

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        copies = (1,) if _converts(spec) else (0, 1)
        found = prefill_space(self.decisions(spec, target), model.lanes(target, size_of(spec)))
        return found | {"copy_keys": copies, "copy_values": copies}

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        from attncc.algorithm.prefill import build
        from attncc.algorithm.signature import compute_dtype
        from attncc.schedules.cpu.prefill_schedule import Copies, PrefillSchedule, Registers

        lanes = model.lanes(target, size_of(spec))
        check(decisions, lanes)
        columns = -(-spec.value_dim // decisions["columns"]) * decisions["columns"]
        dtype = compute_dtype(spec)
        function = build(spec, tiling(decisions, columns, dtype, target))
        registers = Registers(lanes, decisions["vectors"], decisions["key_rows"], decisions["columns"])
        copies = Copies(bool(decisions["copy_keys"]), bool(decisions["copy_values"]))
        if _converts(spec) and not (copies.keys and copies.values):
            raise ValueError(f"{self.name}: keys and values that are not {dtype} are copied, and {dict(decisions)}")
        return PrefillSchedule(function, spec, registers, copies).module()

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        return prefill_launch(spec, decisions["query_block"], problem, problem.kv_len >= decisions["deal_from"])


def tiling(decisions: Decisions, columns: int, dtype: str, target: Target) -> Tiling:
    """What the algorithm is told of the decisions and the target."""
    from attncc.algorithm.prefill_tile import Tiling

    blocks = decisions["query_block"], decisions["key_block"]
    return Tiling(*blocks, columns, dtype, decisions["edge_block"], decisions["ahead"], model.turning(target))


def _converts(spec: AttentionSpec) -> bool:
    """Whether k and v have another dtype than the tiles."""
    return spec.dtype not in ("float32", "float64") or spec.quantized


def size_of(spec: AttentionSpec) -> int:
    """Bytes of a number of the compute dtype."""
    return 8 if spec.dtype == "float64" else 4


def prefill_decisions(spec: AttentionSpec, target: Target, size: int) -> dict[str, int]:
    """The model's sizes for products of operands of `size` bytes, with sums of 4, or 8 for float64."""
    tile = model.register_tile(target)
    queries = model.query_block(tile.vectors, model.lanes(target, max(size, 4)))
    keys, edge = model.key_block(spec, target, queries, size, EDGE_BLOCK), EDGE_BLOCK
    if is_window(spec.mask):
        edge = min(keys, model.window_edge(queries, EDGE_BLOCK))
        keys = min(keys, 2 * edge)  # less than a step between both ends takes edge steps
    return {
        "query_block": queries,
        "key_block": keys,
        "edge_block": edge,
        "vectors": tile.vectors,
        "key_rows": tile.rows,
        "columns": model.columns(spec.value_dim, tile.rows),
        "deal_from": deal_from(spec, target, size),
        "ahead": 2 * tile.rows,
    }


def deal_from(spec: AttentionSpec, target: Target, size: int) -> int:
    """The model's `deal_from`, for keys and values of `size` bytes an element."""
    return NEVER if is_window(spec.mask) else model.beyond_l2(spec, target, size)


def prefill_space(default: Decisions, lanes: int) -> dict[str, tuple[int, ...]]:
    """Candidates around the default that all go together: blocks are multiples of every register tile's."""
    vectors = model.near(default["vectors"], (1, 2) if default["vectors"] <= 2 else (1,))
    rows = math.lcm(*(count * lanes for count in vectors))
    keys = default["key_block"]
    return {
        "query_block": model.near(default["query_block"], (rows * n for n in (1, 2, 4) if rows * n <= 2 * model.ROWS)),
        "key_block": model.near(keys, (2 * keys, max(keys // 2, default["edge_block"]))),
        "edge_block": model.near(default["edge_block"], (16, EDGE_BLOCK)),
        "vectors": vectors,
        "key_rows": model.near(default["key_rows"], (4, 8)),
        "columns": model.near(default["columns"], (4, 8)),
        "deal_from": model.near(default["deal_from"], (1, NEVER)),
        "ahead": model.near(default["ahead"], (8, 16, 32, default["key_block"])),
    }


def check(decisions: Decisions, lanes: int) -> None:
    """Raise ValueError when tiles do not divide into register tiles."""
    query_tile = decisions["vectors"] * lanes
    sizes = [decisions[name] for name in ("key_block", "edge_block", "key_rows")]
    multiples = decisions["query_block"] % query_tile == 0 and not any(a % b for a, b in itertools.pairwise(sizes))
    if not multiples or decisions["ahead"] < 1:
        raise ValueError(
            f"prefill decisions {dict(decisions)} do not fit: query_block must be a multiple of {query_tile} "
            f"(vectors times {lanes} lanes), key_block of edge_block and that of key_rows; ahead positive"
        )
