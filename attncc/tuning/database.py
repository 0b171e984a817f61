"""The tuning database: a file of JSON lines that is only ever appended to.

A record is one line, written by one call under a lock and on the disk before `append` returns: a process that is killed
loses at most the line that it was writing, and that line does no harm to those around it. Records are read as data and
checked field by field; nothing in a file is executed. A file that could be another user's is not read at all.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from attncc.target import Target
from attncc.tuning.bucket import Bucket
from attncc.tuning.record import Record, machine

MOST_BYTES = 256 << 20
"""A larger file is not read: some 100 000 records."""
OFF = "none"
"""$ATTNCC_DATABASE says this where no tuned record is to be used, shipped ones included."""
_LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Rejected:
    """A line that is not a record, and why."""

    number: int
    """Counted from 1, as editors do."""
    reason: str


@dataclass(frozen=True)
class Contents:
    """What a file of records holds."""

    records: tuple[Record, ...]
    """In the order in which they were appended."""
    rejected: tuple[Rejected, ...]


class Database:
    """The records of one file. The file, and the folder that it is in, come to exist with the first record.

    Methods raise OSError where the file cannot be used: it is another user's or others may write it, it is a link or
    too large, its folder is read-only.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, foreign: bool = False) -> None:
        """`path` defaults to `default_path()`. With `foreign`, whoever owns the file: to merge from it, never to use it
        unasked."""
        self.path = default_path() if path is None else Path(path).expanduser().absolute()
        self._foreign = foreign

    def append(self, *records: Record) -> None:
        """Add records. When this returns, they are on the disk."""
        if not records:
            return
        data = b"".join(record.to_json().encode() + b"\n" for record in records)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            new = not self.path.exists()
            with _opened(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, self._foreign) as file:
                file.write(b"\n" * _torn(file) + data)
                file.flush()
                os.fsync(file.fileno())
            if new:
                _sync_folder(self.path.parent)

    def read(self) -> Contents:
        """All lines, the bad ones with what is wrong with them; nothing where there is no file.

        The last line may be one that is being written just now, or that a killed process left unfinished: it counts as
        absent where it is not whole.
        """
        records, rejected = [], []
        data = self.content()
        lines = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                records.append(Record.from_json(line))
            except ValueError as error:
                if number < len(lines):
                    rejected.append(Rejected(number, str(error)))
        return Contents(tuple(records), tuple(rejected))

    def content(self) -> bytes:
        """The file as it is; empty where there is none."""
        try:
            with _opened(self.path, os.O_RDONLY, self._foreign) as file:
                size = os.fstat(file.fileno()).st_size
                if size > MOST_BYTES:
                    limit = f"{MOST_BYTES >> 20} MiB; attncc db prune or export make a smaller one"
                    raise OSError(f"{self.path} has {size >> 20} MiB, and a tuning database at most {limit}")
                return file.read()
        except FileNotFoundError:
            return b""

    def records(self) -> tuple[Record, ...]:
        """Every valid record, in the order in which they were appended."""
        return self.read().records

    def best(self, spec: str, target: Target, bucket: Bucket) -> Record | None:
        """The record that beats the default by most for these calls on this very kind of machine, if there is one.

        `spec` is an AttentionSpec's JSON. Only records that win count: see `winners`.
        """
        task = spec, bucket, machine(target)
        mine = [record for record in winners(self.records()) if record.task == task and record.fits(target)]
        return max(mine, key=lambda record: record.gain or 0.0, default=None)

    def merge(self, others: Iterable[Record]) -> int:
        """Add those of `others` that are not in this database yet; returns how many there were."""
        known = {record.to_json() for record in self.records()}
        new = {text: record for record in others if (text := record.to_json()) not in known}
        self.append(*new.values())
        return len(new)

    def prune(self) -> tuple[int, int]:
        """Rewrite the file without damaged lines, superseded records (see `latest`) and those of other versions.

        Returns how many lines stay and how many went. The new file replaces the old one in one step: a process killed
        in the middle leaves the old one.
        """
        if not self.path.exists():
            return 0, 0
        with self._locked():
            contents = self.read()
            kept = [record for record in latest(contents.records) if record.versions.differs() is None]
            unfinished = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
            try:
                with _opened(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, self._foreign) as file:
                    file.writelines(record.to_json().encode() + b"\n" for record in kept)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(self.path)
                _sync_folder(self.path.parent)
            finally:
                unfinished.unlink(missing_ok=True)
        return len(kept), len(contents.records) + len(contents.rejected) - len(kept)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the writers of this file. The lock goes with its process, however that ends."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(f"{self.path}.lock", timeout=_LOCK_SECONDS, mode=0o600):
                yield
        except Timeout as error:
            message = f"{self.path} has been locked by another process for {_LOCK_SECONDS:.0f} s"
            raise TimeoutError(f"{message}; end it, and try again") from error


def default_path() -> Path:
    """The database of this user: $ATTNCC_DATABASE, else a file in the user's data folder of this operating system.

    Raises FileNotFoundError where the user has no home.
    """
    given = os.environ.get("ATTNCC_DATABASE")
    if given == OFF:
        raise FileNotFoundError(f"ATTNCC_DATABASE={OFF} switches tuned records off; unset it, or name a file")
    try:
        if given:
            return Path(given).expanduser().absolute()
        import platformdirs

        return Path(platformdirs.user_data_dir("attncc")) / "tuned.jsonl"
    except RuntimeError as error:
        raise FileNotFoundError(f"no home folder: {error}; ATTNCC_DATABASE names a file for tuned records") from error


def latest(records: Iterable[Record]) -> list[Record]:
    """The last record of each candidate: a later measurement supersedes an earlier one."""
    found: dict[tuple[object, ...], Record] = {}
    for record in records:
        before = found.get(record.candidate)
        # A time without the default's beside it says nothing against a pair of times.
        unpaired = record.status == "ok" and record.gain is None
        if before is None or (record.date >= before.date and (before.gain is None or not unpaired)):
            found[record.candidate] = record
    return list(found.values())


def winners(records: Iterable[Record]) -> list[Record]:
    """Those that beat the default by more than the noise in the last measurement of their candidate."""
    return [record for record in latest(records) if record.wins]


@contextlib.contextmanager
def _opened(path: Path, flags: int, foreign: bool) -> Iterator[IO[bytes]]:
    """A file that is this user's alone to write, opened without following a link; a `foreign` one may be anything."""
    # Without blocking: a named pipe would make the call wait for its writer.
    careful = ["O_NONBLOCK", "O_BINARY"] + ["O_NOFOLLOW"] * (not foreign)
    handle = os.open(path, flags | sum(getattr(os, name, 0) for name in careful), 0o600)
    with open(handle, "r+b" if flags & os.O_RDWR else "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(f"{path} is not a file")
        others = hasattr(os, "geteuid") and (facts.st_uid not in (os.geteuid(), 0) or facts.st_mode & 0o022)
        if others and not foreign:
            raise PermissionError(f"{path} must belong to this user, and no other may write it (chmod go-w)")
        yield file


def _torn(file: IO[bytes]) -> bool:
    """Whether the last line has no end: its writer was killed. A line of its own then keeps the next one whole."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return False
    file.seek(size - 1)
    return file.read(1) != b"\n"


def _sync_folder(folder: Path) -> None:
    """Have the name of a new file on the disk; where the system offers no such thing, it is the system's own affair."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
