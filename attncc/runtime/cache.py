"""The kernel cache on disk: one folder a kernel, holding its code and JSON metadata, published by one rename.

An entry is used only when it is ours (owner and permissions of the open files are checked, not of their names), its
metadata states exactly the key that is asked for, and the SHA-256 of its text is the one recorded. Anything else is a
miss: the kernel is rebuilt and the entry replaced. Nothing is unpickled. A cache that cannot be used costs one warning
and no result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "kernels-1"
"""Name of the folder below the cache root; another layout of entries gets another name."""
_META = "meta.json"
_STALE_SECONDS = 3600.0
_LOCK_SECONDS = 60.0
_MAX_BYTES = 64 << 20
_warned = threading.Event()

Key = Mapping[str, Any]
"""Everything a kernel's code depends on, as JSON data."""


@dataclass(frozen=True)
class Entry:
    """One kernel on disk, for `attncc cache`."""

    name: str
    key: dict[str, Any]
    bytes: int
    created: float
    """Seconds since the epoch."""
    valid: bool
    """Whether text and metadata agree; a damaged entry is rebuilt on its next use."""


def root() -> Path:
    """The folder of the cache: $ATTNCC_CACHE_DIR, else the user's cache folder of this operating system.

    Raises FileNotFoundError where the user has no home.
    """
    given = os.environ.get("ATTNCC_CACHE_DIR")
    try:
        if given:
            return Path(given).expanduser()
        import platformdirs

        return Path(platformdirs.user_cache_dir("attncc"))
    except RuntimeError as error:
        raise FileNotFoundError(f"no home folder: {error}") from error


def key_name(key: Key) -> str:
    """Name of the entry of `key`: the SHA-256 of its canonical JSON."""
    return hashlib.sha256(_canonical(key)).hexdigest()


def load(key: Key) -> bytes | None:
    """The code of the entry of `key`, verified; None where there is none or it is not to be trusted."""
    try:
        folder = _folder()
        entry = folder / key_name(key)
        if not entry.is_dir():
            return None
        return _verified(entry, key)
    except OSError as error:
        _warn(error)
        return None


def store(key: Key, text: bytes) -> None:
    """Publish `text` as the entry of `key`, replacing a damaged one. A failure costs a warning and nothing else."""
    unfinished: Path | None = None
    try:
        folder = _folder()
        unfinished = folder / f"tmp-{os.getpid()}-{uuid.uuid4().hex}"
        unfinished.mkdir(mode=0o700)
        meta = {"key": key, "sha256": hashlib.sha256(text).hexdigest(), "created": time.time()}
        _write(unfinished / _text(key), text)
        _write(unfinished / _META, json.dumps(meta, sort_keys=True).encode())
        _publish(unfinished, folder / key_name(key), key)
    except OSError as error:
        _warn(error)
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def discard(key: Key) -> None:
    """Remove the entry of `key`: it is whole, but what it holds does not load."""
    try:
        _remove(_folder() / key_name(key))
    except OSError as error:
        _warn(error)


@contextlib.contextmanager
def building(key: Key) -> Iterator[None]:
    """Hold the lock of `key` while its kernel is built, so that other processes wait and load instead of building too.

    The lock only saves work: where it cannot be had (a read-only or odd file system, a holder that hangs), the build
    goes on without it, and publishing stays atomic.
    """
    lock = None
    try:
        from filelock import FileLock

        lock = FileLock(_folder() / f"{key_name(key)}.lock", timeout=_LOCK_SECONDS, mode=0o600)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # filelock.Timeout is an OSError
        if not isinstance(error, TimeoutError):
            _warn(error)
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.release()


def entries() -> list[Entry]:
    """All kernels on disk, newest first."""
    found = []
    try:
        folder = _folder(create=False)
    except OSError:
        return []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("tmp-") or not path.is_dir():
            continue
        try:
            meta = json.loads(_read(path / _META))
            key, created = dict(meta["key"]), float(meta["created"])
            valid = _verified(path, key) is not None and key_name(key) == path.name
        except (OSError, ValueError, TypeError, KeyError):
            key, created, valid = {}, path.stat().st_mtime, False
        size = sum(file.stat().st_size for file in path.iterdir())
        found.append(Entry(path.name, key, size, created, valid))
    return sorted(found, key=lambda entry: -entry.created)


def clear() -> int:
    """Remove every kernel from disk; returns how many there were. Raises OSError where that is not permitted."""
    try:
        folder = _folder(create=False)
    except FileNotFoundError:
        return 0
    count = 0
    for path in list(folder.iterdir()):
        if path.is_dir():
            count += not path.name.startswith("tmp-")
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return count


def _text(key: Key) -> str:
    """The file of an entry's code: LLVM IR, or machine code of a GPU."""
    return "kernel.cubin" if str(key.get("target")).startswith("cuda ") else "kernel.ll"


def _folder(create: bool = True) -> Path:
    """The private folder that holds the entries. Raises OSError where it cannot be made or could be another user's."""
    base = root()
    folder = base / FORMAT
    if create and not folder.is_dir():
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if hasattr(os, "geteuid") and (facts.st_uid != os.geteuid() or facts.st_mode & 0o077):
        raise PermissionError(f"{folder} must belong to this user and be closed to others (mode 0700)")
    return folder


def _publish(unfinished: Path, final: Path, key: Key) -> None:
    for _ in range(3):
        try:
            unfinished.rename(final)
            _remove_leftovers(final.parent)
            return
        except OSError:
            if not final.exists():
                raise
        if _verified(final, key) is not None:
            return  # another process was faster with the same kernel
        _remove(final)


def _remove(entry: Path) -> None:
    """Remove an entry: out of the way in one step, so that no reader sees half of it."""
    old = entry.with_name(f"tmp-{os.getpid()}-{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        entry.rename(old)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing left behind."""
    for path in folder.glob("tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path)


def _verified(entry: Path, key: Key) -> bytes | None:
    """The text of `entry` if it is whole and of exactly this key."""
    try:
        meta = json.loads(_read(entry / _META))
        if not isinstance(meta, dict) or _canonical(meta.get("key")) != _canonical(key):
            return None
        text = _read(entry / _text(key))
    except (OSError, ValueError):
        return None
    return text if hashlib.sha256(text).hexdigest() == meta.get("sha256") else None


def _read(path: Path) -> bytes:
    """The bytes of a file that is ours. Raises PermissionError when it is another's, a link, or writable by others."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        facts = os.fstat(handle)
        foreign = hasattr(os, "geteuid") and (facts.st_uid != os.geteuid() or facts.st_mode & 0o022)
        if foreign or not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_BYTES:
            raise PermissionError(f"{path} is not a private file of this user")
        return file.read()


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with open(handle, "wb") as file:
        file.write(data)


def _canonical(key: Any) -> bytes:
    return json.dumps(key, sort_keys=True, separators=(",", ":")).encode()


def _warn(error: Exception) -> None:
    """One warning a process: the cache is a convenience, and its absence must not flood a log."""
    if not _warned.is_set():
        _warned.set()
        warnings.warn(
            f"attncc: kernels are not kept on disk, because the cache cannot be used: {error}. They are compiled in "
            "each process instead; ATTNCC_CACHE_DIR names another folder.",
            RuntimeWarning,
            stacklevel=2,
        )
