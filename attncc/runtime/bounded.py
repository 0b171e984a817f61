"""A dictionary bounded in entries and in bytes, whose oldest entries go first: it keeps launch plans."""

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


class Bounded(dict[tuple[Any, ...], P]):
    """Values by what they follow from. Reading needs no lock; all changes go through the methods below."""

    def __init__(self, entries: int, limit: int) -> None:
        super().__init__()
        self.entries, self.limit = entries, limit
        self._held = 0
        self._lock = threading.Lock()

    def put(self, key: tuple[Any, ...], value: P) -> None:
        """Keep `value`, and drop the oldest ones beyond the bounds."""
        with self._lock:
            self._pop(key)
            self[key] = value
            self._held += value.bytes
            while len(self) > self.entries or (self._held > self.limit and len(self) > 1):
                self._pop(next(iter(self)))

    def drop(self, condition: Callable[[P], bool] = lambda value: True) -> None:
        """Drop the values for which `condition` holds; all of them without one."""
        with self._lock:
            for key in [key for key, value in self.items() if condition(value)]:
                self._pop(key)

    def after_fork(self) -> None:
        """In a forked child: start empty, with a lock that no thread of the parent holds."""
        self._lock = threading.Lock()
        self.drop()

    def _pop(self, key: tuple[Any, ...]) -> None:
        value = self.pop(key, None)
        if value is not None:
            self._held -= value.bytes
