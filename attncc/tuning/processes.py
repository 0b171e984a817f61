"""Worker processes that may crash or hang without harm to the search: TVM's, started once and again where one is lost.

TVM's own `LocalBuilder` and `LocalRunner` are built on the same workers. They import the intrinsics of all targets in
each of them (10 to 25 s), and time kernels on TVM's thread pool, where users run them on PyTorch's.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Failure(str):
    """Why a worker gave no result, in one line."""


class Hung(Failure):
    """There was no result in time. Once, that says little: a whole machine may have been suspended meanwhile."""


class Builders:
    """As many processes as cores, for work that only takes time. Raises ImportError, naming the extra."""

    def __init__(self, count: int, patience: float) -> None:
        self._patience = patience
        self._pool = _popen().PopenPoolExecutor(count, timeout=patience)
        for _ in range(count):  # each imports TVM while the caller does
            self._pool.submit(_undisturbed, _ready)

    def map(self, function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T | Failure]:
        """`function(*call)` for each call, in order; a `Failure` where it raised, died or hung."""
        found = [caught(future.result, self._patience) for future in [self.submit(function, *call) for call in calls]]
        return [
            caught(self.submit(function, *call).result, self._patience) if isinstance(result, Hung) else result
            for call, result in zip(calls, found, strict=True)
        ]

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """`function(*args)`, some time: `caught` gives its result."""
        future: Future[T] = self._pool.submit(_undisturbed, function, *args)
        return future

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=False)


class Runner:
    """One process, which runs what is timed."""

    def __init__(self) -> None:
        self._worker = _popen().PopenWorker()
        self._starting = True
        self._worker.send(_undisturbed, (_ready,))

    def call(self, function: Callable[..., T], *args: Any, patience: float) -> T | Failure:
        """`function(*args)`, or a `Failure` where it raised, died or took longer than `patience` seconds, twice."""
        if self._starting:
            self._starting = False
            caught(self._worker.recv, patience)
        found = self._once(function, *args, patience=patience)
        return self._once(function, *args, patience=patience) if isinstance(found, Hung) else found

    def _once(self, function: Callable[..., T], *args: Any, patience: float) -> T | Failure:
        self._worker.send(_undisturbed, (function, *args), timeout=patience)
        return caught(self._worker.recv, patience)

    def close(self) -> None:
        """End the process."""
        self._worker.kill()


def caught(result: Callable[[], T], patience: float) -> T | Failure:
    """The result of a worker, or in the user's words why there is none."""
    try:
        return result()
    except TimeoutError:
        return Hung(f"hung: there was no result after {patience:g} s")
    except ChildProcessError:
        return Failure("crashed, and took its process down")
    except Exception as error:  # of whatever class the worker's was: the last line of its traceback says which
        return Failure((str(error).strip().splitlines() or [type(error).__name__])[-1])


def _undisturbed(function: Callable[..., T], *args: Any) -> T:
    """The call, in a worker that leaves Ctrl-C to the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return function(*args)


def _ready() -> None:
    """What is imported before the first call: the module that has the functions to come."""
    import attncc.tuning.worker  # noqa: F401


def _popen() -> Any:
    try:
        import cloudpickle  # noqa: F401
        import psutil  # noqa: F401
        from tvm.support import popen_pool
    except ImportError as error:
        raise ImportError(f"tuning needs {error.name}: pip install 'attncc[tune]'") from error
    return popen_pool
