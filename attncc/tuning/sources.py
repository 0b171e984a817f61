"""The databases that the runtime looks into, in order: those named in the program, the user's own, the shipped ones.

A file is read when an attention is planned for the first time, and again only when it has changed; of its lines, those
of that attention alone are parsed.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from attncc.tuning.database import OFF, Database, default_path
from attncc.tuning.record import Record

SHIPPED = Path(__file__).parent.parent / "data" / "tuned"
_NAME = re.compile(rb'"name"\s*:\s*"([0-9a-f]{64})"')

Stamp = tuple[int, int, int] | None
"""What changes with a file: inode, size and time of modification; None where there is no file."""


@dataclass(frozen=True)
class Source:
    """A file of records, and whether they came with attncc."""

    path: Path
    shipped: bool = False

    @property
    def database(self) -> Database:
        """The file as a database. The shipped ones belong to whoever installed the package, as its code does."""
        return Database(self.path, foreign=self.shipped)

    def stamp(self) -> Stamp:
        """What to compare with to know whether the file has changed; the shipped ones do not."""
        if self.shipped:
            return 0, 0, 0
        try:
            facts = os.stat(self.path)
        except OSError:
            return None
        return facts.st_ino, facts.st_size, facts.st_mtime_ns

    def records(self, name: str) -> tuple[Record, ...]:
        """The valid records of the attention of that name, without the trials of searches: a time that was not taken
        beside the default's decides nothing. A file that cannot be used costs one warning."""
        key = name.encode()
        try:
            lines = self.database.content().split(b"\n")
        except OSError as error:
            _warn(error)
            return ()
        found = []
        for line in lines:
            trial = b'"default_seconds":null' in line and b'"status":"ok"' in line
            named = None if trial else _NAME.search(line)
            if named is not None and named[1] == key:
                try:
                    found.append(Record.from_json(line))
                except ValueError:
                    continue  # `attncc db list` says what is wrong with it
        return tuple(found)


def sources() -> tuple[Source, ...]:
    """The files to look into, in order."""
    return _sources(os.environ.get("ATTNCC_DATABASE"), tuple(_named))


@lru_cache(16)
def _sources(given: str | None, named: tuple[Path, ...]) -> tuple[Source, ...]:
    if given == OFF:
        return ()
    paths = dict.fromkeys([*named, *_own()])
    return (*map(Source, paths), *shipped())


@cache
def shipped() -> tuple[Source, ...]:
    """The files of records that came with attncc."""
    return tuple(Source(path, shipped=True) for path in sorted(SHIPPED.glob("*.jsonl")))


def use(path: str | os.PathLike[str]) -> bool:
    """Look into this file first from now on, in this process; returns whether that is news."""
    wanted = Path(path).expanduser().absolute()
    if _named[:1] == [wanted]:
        return False
    if wanted in _named:
        _named.remove(wanted)
    _named.insert(0, wanted)
    return True


def _own() -> tuple[Path, ...]:
    try:
        return (default_path(),)
    except FileNotFoundError:  # a user without a home has no records
        return ()


def _warn(error: OSError) -> None:
    text = str(error)
    if text not in _warned:
        _warned.add(text)
        warnings.warn(f"attncc: tuned records are not used: {text}", RuntimeWarning, stacklevel=2)


_named: list[Path] = []
_warned: set[str] = set()
