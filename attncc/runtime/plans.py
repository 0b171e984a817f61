"""Launch plans that are kept: a dictionary bounded in entries and in bytes, whose oldest entries go first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar


class Sized(Protocol):
    """What says how many bytes it holds."""

    @property
    def bytes(self) -> int:
        """Bytes held."""
        ...


P = TypeVar("P", bound=Sized)


class Plans(dict[tuple[Any, ...], P]):
    """Plans by what they follow from. Reading needs no lock; all changes go through the methods below."""

    def __init__(self, entries: int, limit: int) -> None:
        super().__init__()
        self.entries, self.limit = entries, limit
        self._held = 0
        self._lock = threading.Lock()

    def put(self, key: tuple[Any, ...], plan: P) -> None:
        """Keep `plan`, and drop the oldest ones beyond the bounds."""
        with self._lock:
            self._pop(key)
            self[key] = plan
            self._held += plan.bytes
            while len(self) > self.entries or (self._held > self.limit and len(self) > 1):
                self._pop(next(iter(self)))

    def drop(self, condition: Callable[[P], bool] = lambda plan: True) -> None:
        """Drop the plans for which `condition` holds; all of them without one."""
        with self._lock:
            for key in [key for key, plan in self.items() if condition(plan)]:
                self._pop(key)

    def after_fork(self) -> None:
        """In a forked child: start empty, with a lock that no thread of the parent holds."""
        self._lock = threading.Lock()
        self.drop()

    def _pop(self, key: tuple[Any, ...]) -> None:
        plan = self.pop(key, None)
        if plan is not None:
            self._held -= plan.bytes
