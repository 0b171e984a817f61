"""The kernel cache on disk: what is trusted, what is a miss, and that no fault costs a result."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sampling import one_in
from torch.nn.functional import scaled_dot_product_attention as sdpa

from attncc.attention import attention
from attncc.runtime import build, cache, dispatch, stats

KEY = {"spec": "a", "decisions": {"block": 64}, "versions": {"attncc": "0.1"}}
TEXT = b"; ModuleID = 'x'\n" * 1000


def entry(root: Path, key: dict[str, Any] = KEY) -> Path:
    return root / cache.FORMAT / cache.key_name(key)


@pytest.mark.parametrize(("kind", "other"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_kernel_depends_on_the_schedules_of_its_kind_alone(kind: str, other: str) -> None:
    """Else an edit of one kind's would cost the other's kernels, and its tuned records their trust."""
    sources = build.generators(kind)
    folders = {source.parent.name for source in sources}
    assert {"algorithm", "schedules", kind} <= folders and other not in folders
    depending = [source for source in sources if f"schedules.{other}." in source.read_text()]
    assert [source.name for source in depending if source.name != "__init__.py"] == []  # which lists all families
    assert build.code_digest(kind) != build.code_digest(other)


def test_what_is_stored_is_loaded(fresh: Path) -> None:
    assert cache.load(KEY) is None
    cache.store(KEY, TEXT)
    assert cache.load(KEY) == TEXT
    assert cache.load({**KEY, "spec": "b"}) is None
    (listed,) = cache.entries()
    assert listed.key == KEY and listed.valid and listed.bytes > len(TEXT)
    assert oct((fresh / cache.FORMAT).stat().st_mode)[-3:] == "700"
    assert cache.clear() == 1 and cache.entries() == [] and cache.load(KEY) is None


def test_a_damaged_or_foreign_entry_is_a_miss_and_is_replaced(fresh: Path) -> None:
    def truncate(folder: Path) -> None:
        (folder / "kernel.ll").write_bytes(TEXT[:-7])

    def flip(folder: Path) -> None:
        (folder / "kernel.ll").write_bytes(b"!" + TEXT[1:])

    def drop_text(folder: Path) -> None:
        (folder / "kernel.ll").unlink()

    def drop_meta(folder: Path) -> None:
        (folder / "meta.json").unlink()

    def garble_meta(folder: Path) -> None:
        (folder / "meta.json").write_text("{")

    def list_meta(folder: Path) -> None:
        (folder / "meta.json").write_text("[]")

    def other_key(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, "key": {**KEY, "spec": "b"}}))

    def writable_by_others(folder: Path) -> None:
        (folder / "kernel.ll").chmod(0o666)

    def link(folder: Path) -> None:
        (folder / "kernel.ll").rename(folder / "elsewhere.ll")
        (folder / "kernel.ll").symlink_to("elsewhere.ll")

    def whole_file(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        folder.write_text("not a folder")

    damages = [
        truncate,
        flip,
        drop_text,
        drop_meta,
        garble_meta,
        list_meta,
        other_key,
        writable_by_others,
        link,
        whole_file,
    ]
    for damage in damages:
        cache.store(KEY, TEXT)
        assert cache.load(KEY) == TEXT, damage.__name__
        damage(entry(fresh))
        assert cache.load(KEY) is None, damage.__name__
        assert all(not e.valid for e in cache.entries()), damage.__name__
    cache.store(KEY, TEXT)
    assert cache.load(KEY) == TEXT
    assert not list((fresh / cache.FORMAT).glob("tmp-*"))


def test_a_good_entry_is_never_replaced(fresh: Path) -> None:
    cache.store(KEY, TEXT)
    before = (entry(fresh) / "kernel.ll").stat().st_ino
    cache.store(KEY, b"the same kernel, built by a slower process")
    assert (entry(fresh) / "kernel.ll").stat().st_ino == before and cache.load(KEY) == TEXT


def check_attention() -> None:
    """A right result through a kernel; counted from zero."""
    dispatch.forget_plans()
    build.forget()
    stats.stats(reset=True)
    q, k, v = (torch.randn(1, 2, 20, 16) for _ in range(3))
    torch.testing.assert_close(attention(q, k, v), sdpa(q, k, v))
    assert stats.stats().calls == 1 and stats.stats().fallbacks == 0


def one_warning(*calls: Any) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls:
            call()
    (message,) = (str(w.message) for w in caught if issubclass(w.category, RuntimeWarning))
    return message


FAULTS = ["root is a file", "folder is a file", "others may enter", "parent is a file", "no home"]


@pytest.mark.parametrize("fault", one_in(3, FAULTS))
def test_an_unusable_place_costs_one_warning(fresh: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "root is a file":
        fresh.write_text("")
    elif fault == "folder is a file":
        fresh.mkdir()
        (fresh / cache.FORMAT).write_text("")
    elif fault == "others may enter":
        (fresh / cache.FORMAT).mkdir(parents=True)
        (fresh / cache.FORMAT).chmod(0o755)
    elif fault == "parent is a file":
        fresh.write_text("")
        monkeypatch.setenv("ATTNCC_CACHE_DIR", str(fresh / "below" / "it"))
    else:
        monkeypatch.setenv("ATTNCC_CACHE_DIR", "~no-such-user/cache")
    message = one_warning(check_attention, check_attention)
    assert "ATTNCC_CACHE_DIR" in message
    assert stats.stats().compiles == 1


def test_another_users_folder_is_not_trusted(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store(KEY, TEXT)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "must belong to this user" in one_warning(lambda: cache.load(KEY))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_device_costs_one_warning(fresh: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(cache, "_write", write)
    assert os.strerror(code) in one_warning(check_attention, check_attention)
    assert not list((fresh / cache.FORMAT).glob("tmp-*")) and cache.entries() == []


def test_a_truncated_kernel_is_rebuilt_never_executed(fresh: Path) -> None:
    check_attention()
    assert stats.stats().compiles == 1
    check_attention()
    assert (stats.stats().compiles, stats.stats().disk_hits) == (0, 1)
    (kernel,) = fresh.rglob("kernel.ll")
    whole = kernel.read_bytes()
    kernel.write_bytes(whole[: len(whole) // 2])
    check_attention()
    assert (stats.stats().compiles, stats.stats().disk_hits) == (1, 0)
    assert all(e.valid for e in cache.entries())


def test_text_that_llvm_refuses_is_rebuilt(fresh: Path) -> None:
    """An entry can be whole and still useless, say when TVM's libraries were replaced under the same version."""
    check_attention()
    (listed,) = cache.entries()
    cache.clear()
    cache.store(listed.key, b"this is no LLVM IR")
    check_attention()
    assert stats.stats().compiles == 1


PUBLISH = """
from attncc.runtime import cache
for number in range(50):
    text = str(number).encode() * 10_000
    cache.store({"spec": number}, text)
    assert cache.load({"spec": number}) == text
"""


def test_processes_that_publish_the_same_entries(fresh: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", PUBLISH]) for _ in range(3)]
    assert [worker.wait(600) for worker in workers] == [0] * 3
    assert len(cache.entries()) == 50 and all(e.valid for e in cache.entries())
    assert not list((fresh / cache.FORMAT).glob("tmp-*"))


def numbered(run: int, number: int) -> dict[str, Any]:
    return {**KEY, "spec": f"{run} {number}"}


def publish_forever(run: int) -> None:
    for number in range(10**9):
        cache.store(numbered(run, number), TEXT * 20)


def test_a_process_killed_while_writing_leaves_no_bad_entry(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At moments that count from its first entry, however long it takes to get there."""
    context = multiprocessing.get_context("fork")
    for run, delay in enumerate((0.05, 0.11, 0.17)):
        worker = context.Process(target=publish_forever, args=(run,))
        worker.start()
        first = entry(fresh, numbered(run, 0))
        while not first.exists():
            assert worker.is_alive(), "nothing is written"
            time.sleep(0.01)
        time.sleep(delay)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    found = cache.entries()
    assert len(found) >= 3 and all(e.valid for e in found)
    monkeypatch.setattr(cache, "_STALE_SECONDS", -1.0)
    cache.store({**KEY, "spec": "last"}, TEXT)
    assert not list((fresh / cache.FORMAT).glob("tmp-*"))
