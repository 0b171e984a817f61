"""Prefill by `wgmma` and the tensor memory accelerator (TMA): Hopper (sm_90a).

One warpgroup copies, two or three compute; each owns 64 query rows, and all share the keys and values in a ring of
shared memory. What hides what:

* copies run as far ahead as the ring holds, over the ends of tiles too: the grid is persistent;
* inside a warpgroup, the product of the next keys and that of the last values run while the softmax in between does;
* the warpgroups take turns in issuing products, so that one's softmax falls into the other's products;
* results leave through the shared memory of their query rows, by TMA, while the next tile is at work.

Shah et al., "FlashAttention-3" (2024). TMA fills rows and columns that do not exist with zeros, and drops what is
stored to them: ragged lengths and head sizes that are no multiple of 64 need no code of their own.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, tirx
from attncc.schedules.cuda.arguments import declare
from attncc.schedules.cuda.device import div, loop, ptx, when
from attncc.schedules.cuda.ring import Barriers, Place
from attncc.schedules.cuda.room import COLUMNS
from attncc.schedules.cuda.scores import Scores
from attncc.schedules.cuda.survey import LISTS
from attncc.schedules.cuda.surveyed import surveyed
from attncc.schedules.cuda.wgmma_block import Block, tensor_maps
from attncc.schedules.cuda.wgmma_consumer import Consumer
from attncc.schedules.family import Decisions
from attncc.spec import AttentionSpec

_PRODUCER_REGISTERS = {2: 24, 3: 32}
_LOAD = "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"


def build(spec: AttentionSpec, decisions: Decisions) -> PrimFunc:
    """The kernel of `spec`."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("attention")
            arguments = declare(spec, LISTS if surveyed(spec) else (), scratch="int32")
            maps = tensor_maps(spec, arguments, decisions)
            T.device_entry()
            kernel = Block(spec, decisions, arguments, maps)
            with T.If(tirx.EQ(kernel.group, 0)):
                with T.Then():
                    _produce(kernel)
                with T.Else():
                    Consumer(kernel).run()
        function: PrimFunc = builder.get()
    return function


def _produce(kernel: Block) -> None:
    """The copying warpgroup: one thread of it gives TMA its orders."""
    ptx("setmaxnreg.dec.sync.aligned.u32", _PRODUCER_REGISTERS[kernel.consumers])
    with when(tirx.EQ(kernel.warp, 0)), when(T.cuda.elect_sync()):
        query, place = Place("query", kernel.query_stages), Place("ring", kernel.stages)

        def tile(first_row: Any, head: Any, batch: Any) -> None:
            scores = Scores(kernel.spec, kernel.given, batch, head)
            visits = kernel.visits(scores, first_row, head, batch)
            kv_head = div(head, kernel.spec.group)
            kernel.queries.wait_free(query)
            _fetch(kernel, "q", kernel.queries, query, kernel.query_size, kernel.wide_k, first_row, head, batch)
            query.advance()
            with loop("step", visits.count) as step:
                key = visits.key(visits.at(step))
                kernel.key_ring.wait_free(place)
                _fetch(kernel, "k", kernel.key_ring, place, kernel.key_size, kernel.wide_k, key, kv_head, batch)
                kernel.value_ring.wait_free(place)
                _fetch(kernel, "v", kernel.value_ring, place, kernel.value_size, kernel.wide_v, key, kv_head, batch)
                place.advance()

        kernel.each_tile(tile)


def _fetch(
    kernel: Block, name: str, barriers: Barriers, place: Place, size: int, wide: int, row: Any, head: Any, batch: Any
) -> None:
    """Order one tile of q, k or v, a panel at a time."""
    buffer = getattr(kernel, name)
    rows = kernel.rows if name == "q" else kernel.keys
    barriers.expect(place, wide * rows * COLUMNS * 2)
    for panel in range(wide):
        to = tirx.address_of(tirx.BufferLoad(buffer, [place.stage * size + panel * rows * COLUMNS]))
        tensor = tirx.address_of(kernel.maps[name])
        ptx(_LOAD, to, tensor, panel * COLUMNS, row, head, batch, barriers.filled(place))
