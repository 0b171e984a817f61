"""A thread block of the wgmma kernel: what its warpgroups share, and which tiles it works on."""

from __future__ import annotations

from typing import Any

from attncc._tvm import T, Var, tirx
from attncc.schedules.cuda.arguments import Arguments
from attncc.schedules.cuda.device import attribute, ceil_div, div, do, loop, mod, once, when
from attncc.schedules.cuda.families import PrefillWgmma
from attncc.schedules.cuda.ring import Barriers
from attncc.schedules.cuda.room import COLUMNS, panels
from attncc.schedules.cuda.scores import Scores
from attncc.schedules.cuda.visits import Visits, visits
from attncc.schedules.family import Decisions
from attncc.spec import AttentionSpec

GROUP = 128
"""Threads of a warpgroup."""
GROUP_ROWS = 64
"""Query rows of a warpgroup: the M of a wgmma."""
SWIZZLE_128 = 3
_STEP = 79
"""Thread block c takes tile c + _STEP * n of round n, so that none keeps getting the longest."""


def tensor_maps(spec: AttentionSpec, arguments: Arguments, decisions: Decisions) -> dict[str, Any]:
    """What TMA knows of q, k, v and out: sizes, strides, and the box of a copy. Made by the host at every call."""
    maps = {}
    for name, (rows, columns) in PrefillWgmma().boxes(decisions).items():
        buffer = getattr(arguments, name)
        batch, heads, length, width = buffer.shape
        variable = T.Bind(T.tvm_stack_alloca("tensormap", 1), var=Var(f"map_{name}", T.handle("tensormap").ty))
        strides = [stride * 2 for stride in reversed(list(buffer.strides)[:3])]
        sizes, boxes, ones = [width, length, heads, batch], [columns, rows, 1, 1], [1, 1, 1, 1]
        encode = T.tensormap_encode_tiled(
            variable, buffer.data, *sizes, *strides, *boxes, *ones,
            descriptor_dtype=spec.dtype, rank=4, swizzle=SWIZZLE_128,
        )  # fmt: skip
        do(encode)
        maps[name] = variable
    return maps


class Block:
    """What the warpgroups share: places, shared memory, barriers, the order of tiles."""

    def __init__(self, spec: AttentionSpec, decisions: Decisions, given: Arguments, maps: dict[str, Any]) -> None:
        self.spec, self.given, self.maps = spec, given, maps
        self.rows, self.keys, self.stages = decisions["rows"], decisions["keys"], decisions["stages"]
        self.query_stages = decisions["query_stages"]
        self.consumers = self.rows // GROUP_ROWS
        self.wide_k, self.wide_v = panels(spec.head_dim), panels(spec.value_dim)
        attribute("tirx.launch_bounds_min_blocks_per_sm", 1)
        self.block = T.cta_id([given.processors])
        self.group = T.warpgroup_id([self.consumers + 1])
        self.warp, self.thread = T.warp_id_in_wg([4]), T.thread_id_in_wg([GROUP])
        self.tiles = once("tiles", ceil_div(given.q_len, self.rows))
        self._allocate()

    def _allocate(self) -> None:
        dtype = self.spec.dtype
        pool = T.SMEMPool()
        self.query_size = max(self.wide_k, self.wide_v) * self.rows * COLUMNS
        self.key_size, self.value_size = (n * self.keys * COLUMNS for n in (self.wide_k, self.wide_v))
        self.q = pool.alloc((self.query_stages * self.query_size,), dtype, align=1024)
        self.k = pool.alloc((self.stages * self.key_size,), dtype, align=1024)
        self.v = pool.alloc((self.stages * self.value_size,), dtype, align=1024)
        # Every warp of a query tile stores its own part of the result, and says so.
        self.queries = Barriers(pool, self.query_stages, readers=4 * self.consumers)
        self.key_ring = Barriers(pool, self.stages, readers=self.consumers)
        self.value_ring = Barriers(pool, self.stages, readers=self.consumers)
        pool.commit()
        with when(tirx.all(tirx.EQ(self.group, 0), tirx.EQ(self.thread, 0), tirx.EQ(self.warp, 0))):
            for barriers in (self.queries, self.key_ring, self.value_ring):
                barriers.start()
        do(T.ptx.fence.proxy.async_.shared__cta())
        do(T.ptx.fence.mbarrier_init.release.cluster())
        do(T.cuda.cta_sync())

    def each_tile(self, body: Any) -> None:
        """Run `body(first_row, head, batch)` for every tile of this thread block."""
        given = self.given
        count = once("all_tiles", self.tiles * given.heads * given.batch)
        with loop("round", ceil_div_by(count, given.processors)) as turn:
            place = mod(self.block + turn * _STEP, given.processors)
            tile = once("tile", turn * given.processors + place)
            with when(tile < count):
                over = once("over", div(tile, self.tiles))
                first_row = once("first_row", (self.tiles - 1 - mod(tile, self.tiles)) * self.rows)
                head, batch = once("head", mod(over, given.heads)), once("batch", div(over, given.heads))
                body(first_row, head, batch)

    def visits(self, scores: Scores, first_row: Any, head: Any, batch: Any) -> Visits:
        """The key tiles that some row of a query tile sees."""
        last = tirx.min(first_row + self.rows, self.given.q_len) - 1
        return visits(self.spec, scores, (batch, head, first_row, last), self.rows, self.keys)


def ceil_div_by(a: Any, b: Any) -> Any:
    """a / b rounded up, of run-time integers that are not negative."""
    return tirx.truncdiv(a + b - 1, b)
