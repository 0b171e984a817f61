"""Kernels that came ready-made with a loaded artifact: the runtime takes them before it would build one.

They serve every call of their spec in the process for as long as the library that holds them is alive.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Protocol

from attncc.spec import AttentionSpec

if TYPE_CHECKING:
    from attncc.runtime.build import Kernel
    from attncc.schedules.family import Problem


class Library(Protocol):
    """What holds kernels."""

    def kernel(self, spec: AttentionSpec, problem: Problem) -> Kernel | None:
        """The one for a call of these sizes, if there is one."""
        ...


def provide(library: Library) -> None:
    """Let calls use the kernels of `library` from now on, until nothing else refers to it."""
    global _libraries
    with _lock:
        known = [held for held in _libraries if held() is not None]
        _libraries = (weakref.ref(library), *known)


def find(spec: AttentionSpec, problem: Problem) -> Kernel | None:
    """A ready-made kernel for a call of these sizes; of several libraries, that of the one provided last."""
    for held in _libraries:
        library = held()
        kernel = None if library is None else library.kernel(spec, problem)
        if kernel is not None:
            return kernel
    return None


_libraries: tuple[weakref.ref[Library], ...] = ()
_lock = threading.Lock()
