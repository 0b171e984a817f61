"""The key tiles that a query tile visits, the last first: all between two bounds, or those of a list."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from attncc._tvm import tirx
from attncc.schedules.cuda.device import ceil_div, div, mod, once
from attncc.schedules.cuda.scores import Scores
from attncc.schedules.cuda.survey import list_start
from attncc.schedules.cuda.surveyed import Surveyed, surveyed
from attncc.spec import AttentionSpec

Place = tuple[Any, Any, Any, Any]
"""Batch, head, first and last row of a query tile."""


class Visits(ABC):
    """`count` visits; one is an int32 that `at` gives, and the others take."""

    count: Any

    @abstractmethod
    def at(self, number: Any) -> Any:
        """Visit number `number`, which exists."""

    @abstractmethod
    def key(self, visit: Any) -> Any:
        """The first key of the tile."""

    @abstractmethod
    def partial(self, visit: Any, key: Any) -> Any:
        """Whether some row does not see all keys of the tile, whose first is `key`."""


def visits(spec: AttentionSpec, scores: Scores, place: Place, rows: int, keys: int) -> Visits:
    """The visits of a query tile, where tiles have so many rows and keys."""
    found = surveyed(spec)
    return _Between(scores, place, keys) if found is None else _Listed(found, scores, place, rows, keys)


class _Between(Visits):
    """All tiles between the bounds that follow from the form of the mask."""

    def __init__(self, scores: Scores, place: Place, keys: int) -> None:
        self.keys, self.seen = keys, scores.keys(*place[2:])
        begin = once("begin", div(self.seen.lo, keys))
        self.end = once("end", ceil_div(self.seen.hi, keys))
        self.count = once("count", tirx.max(self.end - begin, 0))

    def at(self, number: Any) -> Any:
        return self.end - 1 - number

    def key(self, visit: Any) -> Any:
        return visit * self.keys

    def partial(self, visit: Any, key: Any) -> Any:
        return tirx.any(key < self.seen.full_lo, key + self.keys > self.seen.full_hi)


class _Listed(Visits):
    """Those that the survey has found."""

    def __init__(self, found: Surveyed, scores: Scores, place: Place, rows: int, keys: int) -> None:
        batch, head, first, _ = place
        self.keys, given = keys, scores.arguments
        (self.lists,) = given.workspaces
        self.start = once("list", list_start(found, given, (batch, head, div(first, rows)), rows, keys))
        self.count = once("count", tirx.BufferLoad(self.lists, [self.start]))

    def at(self, number: Any) -> Any:
        return once("visit", tirx.BufferLoad(self.lists, [self.start + 1 + number]))

    def key(self, visit: Any) -> Any:
        return div(visit, 2) * self.keys

    def partial(self, visit: Any, key: Any) -> Any:
        return tirx.NE(mod(visit, 2), 0)
