"""What all tests share: worker processes, a kernel cache of their own, golden texts.

`python -m pytest` runs in as many processes as there are cores, at most four (pytest-xdist; `-n 0` is one process, and
`--pdb` implies it). Each gets a contiguous part of the tests, so that kernels which neighbours share are built once.
Tests marked `alone` measure time or memory: while one runs, the other workers wait.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

try:
    import fcntl
except ImportError:  # another operating system: run what measures with `-n 0`
    fcntl = None  # type: ignore[assignment]

GOLDEN = Path(__file__).parent / "golden"
WORKER = "PYTEST_XDIST_WORKER" in os.environ

# Set when pytest starts, before any module of attncc looks; inherited by workers and by the processes that tests start.
if not WORKER:
    _folder = tempfile.mkdtemp(prefix="attncc-tests-")
    os.environ["ATTNCC_CACHE_DIR"] = _folder
    # Kernels have their analytic decisions, whatever this machine's user has tuned and attncc ships.
    os.environ["ATTNCC_DATABASE"] = "none"
    # Threads that spin while they wait would take the cores from the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def pytest_xdist_auto_num_workers() -> int:
    """The cores that this process may use; every worker needs about 2 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


@pytest.fixture(scope="session")
def _locks() -> Iterator[tuple[IO[str], IO[str]] | None]:
    """Two files that all workers lock: the turnstile before the room, and the room."""
    if not WORKER or fcntl is None:
        yield None
        return
    root = Path(os.environ["ATTNCC_CACHE_DIR"])
    with open(root / "turnstile", "w") as turnstile, open(root / "room", "w") as room:
        yield turnstile, room


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, _locks: tuple[IO[str], IO[str]] | None) -> Iterator[None]:
    """Tests share the room; one marked `alone` has it for itself, and holds the turnstile so that no other slips in."""
    if _locks is None:
        yield
        return
    turnstile, room = _locks
    fcntl.flock(turnstile, fcntl.LOCK_EX)
    if request.node.get_closest_marker("alone"):
        fcntl.flock(room, fcntl.LOCK_EX)
    else:
        fcntl.flock(room, fcntl.LOCK_SH)
    fcntl.flock(turnstile, fcntl.LOCK_UN)
    try:
        yield
    finally:
        fcntl.flock(room, fcntl.LOCK_UN)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the texts in tests/golden that differ")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text is that of tests/golden/NAME; `--update-golden` makes it so."""
    update = request.config.getoption("--update-golden")

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text.rstrip() + "\n"
        if update and (not path.exists() or path.read_text() != text):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"there is no {path}; pytest --update-golden writes it"
        assert text == path.read_text(), f"{path} differs; where that is meant, pytest --update-golden rewrites it"

    return check
