"""Threads, forked children, spawned workers and whole processes that share a cache."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.utils.data import DataLoader, Dataset

from attncc.attention import attention
from attncc.runtime import launcher, stats


def operands(seed: int, q_len: int = 70) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, q_len, 16, generator=generator)
    k, v = (torch.randn(2, 4, 90, 16, generator=generator) for _ in range(2))
    return q, k, v


def test_eight_threads_build_a_kernel_once_and_get_right_results(fresh: Path) -> None:
    failures: list[BaseException] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            barrier.wait()
            for turn in range(30):
                q, k, v = operands(number * 100 + turn, q_len=(1, 70, 33)[turn % 3])
                torch.testing.assert_close(attention(q, k, v), sdpa(q, k, v))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not failures and not any(thread.is_alive() for thread in threads)
    seen = stats.stats()
    assert seen.calls == 240 and all(k.compiles == 1 for k in seen.kernels)


def in_child(results: Any) -> None:
    """A known and an unknown problem, a known and an unknown kernel."""
    torch.set_num_threads(torch.get_num_threads())
    outputs = [attention(*operands(1)), attention(*operands(2, q_len=21)), attention(*operands(3), is_causal=True)]
    results.put(([out.numpy() for out in outputs], launcher.usable_threads(8)))


def run_child(method: str) -> int:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=in_child, args=(results,))
    child.start()
    try:
        outputs, threads = results.get(timeout=600)
        child.join(600)
        assert child.exitcode == 0
    finally:
        child.kill()
    for out, arguments in zip(outputs, (operands(1), operands(2, q_len=21), operands(3)), strict=True):
        causal = out is outputs[2]
        torch.testing.assert_close(torch.from_numpy(out), sdpa(*arguments, is_causal=causal))
    return int(threads)


def test_a_forked_child_runs_serially_and_does_not_hang(fresh: Path) -> None:
    torch.testing.assert_close(attention(*operands(1)), sdpa(*operands(1)))
    torch.randn(512, 512) @ torch.randn(512, 512)  # torch's own pool is running, which is what hangs children
    assert run_child("fork") == 1
    assert launcher.usable_threads(8) == 8


def test_a_forked_child_whose_parents_thread_holds_the_build_lock(fresh: Path) -> None:
    from attncc.runtime import build

    attention(*operands(1))
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with build._lock:
            held.set()
            release.wait(600)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert run_child("fork") == 1
    finally:
        release.set()
        thread.join()


@pytest.mark.slow
def test_a_spawned_worker(fresh: Path) -> None:
    attention(*operands(1))
    assert run_child("spawn") == 8


class Attended(Dataset[Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> Tensor:
        return attention(*operands(number))


def test_dataloader_workers(fresh: Path) -> None:
    attention(*operands(0))
    batches = list(DataLoader(Attended(), batch_size=2, num_workers=2, timeout=600))
    for number, out in enumerate(torch.cat(batches)):
        torch.testing.assert_close(out, sdpa(*operands(number)))


PROGRAM = """
import json, torch
from attncc import attention, stats
from attncc.runtime import cache
from torch.nn.functional import scaled_dot_product_attention as sdpa
cache._LOCK_SECONDS = 600.0  # a slow machine changes nothing
for causal in (False, True):
    q, k, v = (torch.randn(2, 3, 40, 16) for _ in range(3))
    torch.testing.assert_close(attention(q, k, v, is_causal=causal), sdpa(q, k, v, is_causal=causal))
seen = stats()
print(json.dumps([seen.calls, seen.compiles, seen.disk_hits, seen.fallbacks]))
"""


@pytest.mark.slow
def test_two_processes_compile_into_one_cache(fresh: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", "-c", PROGRAM],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ},
        )

    both = [start(), start()]
    counts = [json.loads(process.communicate(timeout=600)[0]) for process in both]
    # Whoever comes second to a kernel waits for the first and loads it.
    assert sum(compiles for _, compiles, _, _ in counts) == 2
    assert sum(hits for _, _, hits, _ in counts) == 2
    assert all(calls == 2 and not fallbacks for calls, _, _, fallbacks in counts)
