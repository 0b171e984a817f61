"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attncc.runtime import build, cache, dispatch, stats


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty kernel cache, nothing in memory, no warning given yet, counters at 0. Gives the cache's root."""
    monkeypatch.setenv("ATTNCC_CACHE_DIR", str(tmp_path / "cache"))
    _forget()
    yield tmp_path / "cache"
    _forget()


def _forget() -> None:
    dispatch.set_target(None)  # drops all plans too
    build.forget()
    cache._warned.clear()
    stats.stats(reset=True)
