"""Which key tiles a query tile visits where only the data tell: a kernel of its own finds out before attention starts.

Padding, documents, positions in a cache: `attncc.algorithm.knowledge` says what is to be collected over the rows of a
tile and over the keys of another, and what follows from it. That costs a read of what the mask reads by key, for each
query tile, once for all heads where no head differs; attention itself reads some hundred times as much. What is found
is a list for each query tile: how many key tiles there are to visit, then these, the last first, each as twice its
number, and one more where the mask hides something in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from attncc._tvm import IRBuilder, PrimFunc, T, tirx
from attncc.algorithm import numeric
from attncc.algorithm.knowledge import FALSE_SEEN, TRUE_SEEN, Fact
from attncc.algorithm.lower_expr import Env, lower
from attncc.schedules.cuda.arguments import Arguments, declare
from attncc.schedules.cuda.device import (
    WARP,
    Registers,
    bind,
    ceil_div,
    choose,
    div,
    do,
    loop,
    mod,
    once,
    over_lanes,
    when,
    whole,
)  # fmt: skip
from attncc.schedules.cuda.functions import FUNCTIONS
from attncc.schedules.cuda.gpu import LONGEST
from attncc.schedules.cuda.scores import Scores
from attncc.schedules.cuda.surveyed import Surveyed
from attncc.spec import AttentionSpec

LISTS = (("lists",),)
"""The workspace of a kernel that makes or reads lists: int32, all in a row."""
_WARPS = 4
_LANES = 4
"""That look at the keys of a tile together."""
_AT_ONCE = _WARPS * WARP // _LANES
"""Key tiles that a thread block looks at together: as many as a warp has lanes."""
_NOTHING = {"seen": 0, "least": 2**63 - 1, "most": -(2**63 - 1)}
"""A fact before anything was looked at."""


def build(spec: AttentionSpec, found: Surveyed, rows: int, keys: int) -> PrimFunc:
    """The kernel that makes the lists of tiles of so many rows and keys."""
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("survey")
            arguments = declare(spec, LISTS, scratch="int32")
            T.device_entry()
            _Survey(spec, found, arguments, rows, keys).run()
        function: PrimFunc = builder.get()
    return function


def list_start(found: Surveyed, given: Arguments, place: tuple[Any, Any, Any], rows: int, keys: int) -> Any:
    """Where the list of a query tile starts; `place` is batch, head and number of the tile."""
    batch, head, tile = place
    number = batch * given.heads + head if found.by_head else batch
    return (number * ceil_div(given.q_len, rows) + tile) * (ceil_div(given.kv_len, keys) + 1)


class _Survey:
    """One thread block: the list of one query tile."""

    def __init__(self, spec: AttentionSpec, found: Surveyed, given: Arguments, rows: int, keys: int) -> None:
        self.known, self.given, self.rows, self.keys = found.known, given, rows, keys
        tiles = ceil_div(given.q_len, rows)
        self.tile, self.head, self.batch = T.cta_id([tiles, given.heads if found.by_head else 1, given.batch])
        self.thread = T.thread_id([_WARPS * WARP])
        self.lane = bind("lane", mod(self.thread, WARP))
        self.start = bind("list", list_start(found, given, (self.batch, self.head, self.tile), rows, keys))
        self.first = bind("first_row", self.tile * rows)
        self.last = bind("last_row", tirx.min(self.first + rows, given.q_len) - 1)
        seen = Scores(spec, given, self.batch, self.head if found.by_head else None).keys(self.first, self.last)
        self.end = once("end", ceil_div(seen.hi, keys))
        self.count = once("count", tirx.max(self.end - div(seen.lo, keys), 0))
        pool = T.SMEMPool()
        self.flags = pool.alloc((_AT_ONCE,), "int32", align=16)
        pool.commit()
        self.facts = {fact.name: Registers(fact.name, 1, "int64") for fact in self.known.facts}
        self.total = Registers("total", 1, "int32")

    def run(self) -> None:
        self.total[0] = whole(0)
        self._rows()
        with loop("chunk", ceil_div(self.count, _AT_ONCE)) as chunk:
            place = div(self.thread, _LANES)
            self._flag(chunk * _AT_ONCE + place, place)
            do(T.cuda.cta_sync())
            self._append(chunk * _AT_ONCE)
            do(T.cuda.cta_sync())
        with when(tirx.EQ(self.thread, 0)):
            T.buffer_store(self.given.workspaces[0], self.total[0], [self.start])

    def _rows(self) -> None:
        """The facts of the tile's rows: every warp collects them for itself."""
        for fact, register in self._over("rows"):
            register[0] = _int64(_NOTHING[fact.kind])
            for n in range(-(-self.rows // WARP)):
                self._observe(fact, register, {"i": tirx.min(self.first + n * WARP + self.lane, self.last)})
            over_lanes(register, 0, partial(_both, fact), WARP)

    def _flag(self, number: Any, place: Any) -> None:
        """What the key tile number `number` from the end is: 0 hidden, 1 seen by all rows, 2 seen in part."""
        tile = once("key_tile", tirx.max(self.end - 1 - number, 0))
        last = once("last_key", tirx.min((tile + 1) * self.keys, self.given.kv_len) - 1)
        for fact, register in self._over("keys"):
            register[0] = _int64(_NOTHING[fact.kind])
            with loop("key", self.keys // _LANES) as n:
                key = tile * self.keys + n * _LANES + mod(self.thread, _LANES)
                self._observe(fact, register, {"j": tirx.min(key, last)})
            over_lanes(register, 0, partial(_both, fact), _LANES)
        index = {name: register[0] for name, register in self.facts.items()}
        index |= {"first_key": _wide(tile * self.keys), "last_key": _wide(last)}
        env = Env("float32", index)
        masked = tirx.Or(lower(self.known.masked, env), (tile + 1) * self.keys > self.given.kv_len)
        visible = tirx.And(lower(self.known.visible, env), number < self.count)
        flag = choose(visible, choose(masked, whole(2), whole(1)), whole(0))
        with when(tirx.EQ(mod(self.thread, _LANES), 0)):
            T.buffer_store(self.flags, flag, [place])

    def _append(self, number: Any) -> None:
        """Add the tiles that were flagged to the list, in their order: a lane of the first warp each."""
        before, all_of = Registers("before", 1, "int32"), Registers("all_of", 1, "int32")
        with when(self.thread < WARP):
            before[0] = all_of[0] = whole(0)
            for n in range(_AT_ONCE):
                visited = choose(tirx.BufferLoad(self.flags, [n]) > 0, whole(1), whole(0))
                before[0] = before[0] + choose(n < self.lane, visited, whole(0))
                all_of[0] = all_of[0] + visited
            flag = tirx.BufferLoad(self.flags, [self.lane])
            with when(flag > 0):
                entry = (self.end - 1 - number - self.lane) * 2 + flag - 1
                at = self.start + self.total[0] + before[0] + 1
                T.buffer_store(self.given.workspaces[0], entry, [at])
            self.total[0] = self.total[0] + all_of[0]

    def _over(self, what: str) -> Iterator[tuple[Fact, Registers]]:
        return ((fact, self.facts[fact.name]) for fact in self.known.facts if fact.over == what)

    def _observe(self, fact: Fact, register: Registers, index: dict[str, Any]) -> None:
        """The fact with one more row or key."""
        given = self.given
        places = {"b": self.batch, "h": self.head} | index
        wide = {name: _wide(value) for name, value in places.items()}
        env = Env("float32", wide, given.sizes, given.scalars, given.extras, functions=FUNCTIONS, longest=LONGEST)
        value = lower(fact.value, env)
        if fact.kind == "seen":
            value = choose(value, _int64(TRUE_SEEN), _int64(FALSE_SEEN))
        register[0] = _both(fact, register[0], numeric.cast("int64", value))


def _both(fact: Fact, a: Any, b: Any) -> Any:
    """A fact over what two have seen."""
    return {"seen": tirx.bitwise_or, "least": tirx.min, "most": tirx.max}[fact.kind](a, b)


def _int64(value: int) -> Any:
    return tirx.const(value, "int64")


def _wide(value: Any) -> Any:
    return tirx.Cast("int64", value)
