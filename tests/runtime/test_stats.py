"""Counters that several threads raise at once."""

from __future__ import annotations

import threading

from attncc.runtime.stats import Counter, kernel, stats


def test_no_increment_is_lost_between_threads() -> None:
    counter = Counter()

    def raise_it() -> None:
        for _ in range(20_000):
            next(counter.tick)

    threads = [threading.Thread(target=raise_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 160_000
    counter.reset()
    counter.add()
    assert counter.value == 1


def test_reset_starts_anew_and_idle_kernels_are_not_listed() -> None:
    stats(reset=True)
    kernel("test kernel").calls.add()
    before = stats(reset=True)
    assert [k.name for k in before.kernels if k.name == "test kernel"] == ["test kernel"]
    assert "test kernel: 1 calls" in str(before)
    assert all(k.name != "test kernel" for k in stats().kernels)
