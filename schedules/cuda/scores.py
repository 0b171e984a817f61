"""What is done to the scores of a tile between the two products: scale, score function, mask; and which keys count.

A tile of scores lies in registers as tensor cores leave it: register n of a thread belongs to row `(n // 2) % 2` of its
two rows, eight apart, and to key `n // 4 * 8 + lane % 4 * 2 + n % 2` of the tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from attncc import expr as ex
from attncc._tvm import tirx
from attncc.algorithm.bounds import Bounds, key_bounds
from attncc.algorithm.lower_expr import Env, lower
from attncc.schedules.cuda.arguments import Arguments
from attncc.schedules.cuda.constants import split
from attncc.schedules.cuda.device import LOG2E, Registers, again, choose, mod, number, once, whole
from attncc.schedules.cuda.functions import FUNCTIONS
from attncc.schedules.cuda.gpu import LONGEST
from attncc.spec import AttentionSpec

_LARGEST = 3.0e38
_AT_ONCE = 8
"""Scores whose arithmetic may be interleaved."""


def constant_scale(spec: AttentionSpec) -> float | None:
    """The positive constant that a score is multiplied by, where that is all that is done to it; else None.

    Such a factor costs nothing: it goes into the exponent of the softmax, by one fused multiplication and addition.
    """
    if spec.sink is not None or spec.normalizer != "softmax":
        return None
    match spec.score_mod:
        case ex.Score():
            return 1.0
        case ex.Op("mul", (ex.Score(), ex.Const(value)) | (ex.Const(value), ex.Score())):
            scale = float(value)
        case ex.Op("div", (ex.Score(), ex.Const(value))) if value:
            scale = 1.0 / float(value)
        case _:
            return None
    return scale if 1e-6 < scale < 1e6 else None


@dataclass(frozen=True)
class Keys:
    """Bounds of the keys that a range of rows deals with, as int32: [lo, hi) are read, [full_lo, full_hi) all seen."""

    lo: Any
    hi: Any
    full_lo: Any
    full_hi: Any


class Rows:
    """A thread's two rows of a tile: their query positions, and what the score needs once a row."""

    def __init__(self, query: Callable[[int], Any], constants: list[Registers]) -> None:
        self.query, self.constants = query, constants


class Scores:
    """The scores of one batch and head, in a kernel under construction."""

    def __init__(self, spec: AttentionSpec, arguments: Arguments, batch: Any, head: Any = None, seat: Any = 0) -> None:
        """`head` is the query head, or None where the rows of a tile belong to several: `heads` then says to which.

        `seat` is an int32 that the thread's query rows follow from.
        """
        self.spec, self.arguments = spec, arguments
        self.place = {"b": batch} | ({} if head is None else {"h": head})
        self.heads: Callable[[int], Any] | None = None
        scale = constant_scale(spec)
        self.general = scale is None
        self.unit = LOG2E * (scale or 1.0)
        """exp(x) is 2 ** (unit * register)."""
        self.hidden = (
            max(spec.fill / (scale or 1.0), -_LARGEST / max(1.0, self.unit)) if math.isfinite(spec.fill) else spec.fill
        )
        self.score_mod, fixed = split(spec.score_mod)
        self.mask: ex.Expr | None = None
        if spec.mask is not None:
            self.mask, masking = split(spec.mask, len(fixed))
            fixed += masking
        self.fixed = fixed
        self._seat, self._key = Registers("seat", 1, "int32"), Registers("column", 1, "int32")
        self._nothing = Registers("nothing", 1, "int32")
        self._seat[0] = seat
        self._nothing[0] = tirx.shift_right(arguments.q_len, whole(LONGEST.bit_length()))

    def keys(self, first: Any, last: Any) -> Keys:
        """The keys that rows first … last deal with."""
        bounds = key_bounds(self.spec.mask)
        if "h" not in self.place and _reads_head(bounds):
            bounds = Bounds(ex.Const(0, "int64"), ex.Size("Skv"), ex.Const(0, "int64"), ex.Const(0, "int64"))
        if math.isfinite(self.spec.fill) and self.spec.normalizer == "softmax":
            # A row that sees no key at all is the mean of them all, so every key is read.
            bounds = Bounds(ex.Const(0, "int64"), ex.Size("Skv"), bounds.full_lo, bounds.full_hi)
        env = self.env({"first": first, "last": last})
        lo, hi, full_lo, full_hi = (
            once(name, tirx.Cast("int32", lower(getattr(bounds, name), env)))
            for name in ("lo", "hi", "full_lo", "full_hi")
        )
        return Keys(lo, hi, full_lo, full_hi)

    @property
    def seat(self) -> Any:
        """What the thread's query rows follow from."""
        return self._seat[0]

    def rows(self, query: Callable[[int], Any]) -> Rows:
        """The rows at `query(0)` and `query(1)`, with their constants, which are computed here."""
        constants = []
        for at, tree in enumerate(self.fixed):
            dtype = "float32" if tree.dtype in ex.FLOATS else tree.dtype
            register = Registers(f"constant{at}", 2, dtype)
            for row in range(2):
                place = self.position(Rows(query, []), 2 * row)
                register[row] = lower(tree, self.env(place))
            constants.append(register)
        return Rows(query, constants)

    def change(self, tile: Registers, rows: Rows, key: Any) -> None:
        """Apply the score function; `key` is the first key of the tile."""
        if not self.general:
            return
        for n in self.each(tile.count, key, self.score_mod):
            env = self.env(self.position(rows, n), tile[n], rows, n)
            tile[n] = lower(self.score_mod, env)
            if n % _AT_ONCE == _AT_ONCE - 1:
                tile.fence(n + 1 - _AT_ONCE, _AT_ONCE)

    def hide(self, tile: Registers, rows: Rows, key: Any, end: Any) -> None:
        """Give keys that the mask hides their value, and keys from `end` on the weight 0."""
        outside = number(0.0 if self.spec.normalizer == "none" else -math.inf)
        for n in self.each(tile.count, key, self.mask):
            value = tile[n]
            if self.mask is not None:
                seen = lower(self.mask, self.env(self.position(rows, n), None, rows, n))
                value = choose(seen, value, number(self.hidden))
            tile[n] = choose(self._key[0] + _column(n) < end, value, outside)

    def sinks(self, rows: Rows) -> tuple[Any, Any] | None:
        """The sink's logits for the thread's two rows, where there is a sink."""
        if self.spec.sink is None:
            return None
        first, second = (lower(self.spec.sink, self.env(self.position(rows, n))) for n in (0, 2))
        return first, second

    def position(self, rows: Rows, n: int) -> dict[str, Any]:
        """Query row, key and head of register n."""
        head = {} if self.heads is None else {"h": self.heads(n // 2 % 2)}
        return {"i": rows.query(n // 2 % 2), "j": self._key[0] + _column(n), **head}

    def each(self, count: int, key: Any, tree: ex.Expr | None) -> Iterator[int]:
        """The registers of a tile whose first key is `key`, for `tree` to be lowered at the `position` of each.

        Compilers would keep whatever positions, addresses and terms a mask or score function has in common for all
        strips and tiles, until registers run out. So positions are made to look new: in every tile, and where tensors
        are read, after every few of them.
        """
        self._key[0] = key
        group = _AT_ONCE if tree is not None and any(isinstance(node, ex.Load) for node in tree.walk()) else count
        for n in range(count):
            if n % group == 0:
                for register in (self._seat, self._key):
                    register[0] = again(register[0], self._nothing[0])
            yield n

    def env(self, index: dict[str, Any], score: Any = None, rows: Rows | None = None, n: int = 0) -> Env:
        given = self.arguments
        names = self.place | index
        last = {"i": given.q_len - 1, "j": given.kv_len - 1}
        inside = {name: tirx.min(index[name], last[name]) for name in last if name in index}
        constants = {} if rows is None else {f"c{k}": each[n // 2 % 2] for k, each in enumerate(rows.constants)}
        return Env(
            "float32",
            names,
            given.sizes,
            {**given.scalars, **constants},
            given.extras,
            score,
            functions=FUNCTIONS,
            inside=inside,
            longest=LONGEST,
        )


def lane_column(lane: Any) -> Any:
    """Where a lane's keys start in each group of eight; added to the `key` that `Scores` is given."""
    return mod(lane, 4) * 2


def _reads_head(bounds: Bounds) -> bool:
    trees = (bounds.lo, bounds.hi, bounds.full_lo, bounds.full_hi)
    return any(isinstance(node, ex.Index) and node.axis == "h" for tree in trees for node in tree.walk())


def _column(n: int) -> int:
    return n // 4 * 8 + n % 2
