"""A folder of machine code for GPUs that are somewhere else: `attncc cuda-pack` fills it, `use` reads from it.

A machine without TVM, or without a network to install it from, then runs every kernel that was packed for it. Kernels
are found by the same keys as in the cache, but for the versions of TVM, which such a machine does not have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attncc.runtime import cache as disk
from attncc.runtime.cuda import build
from attncc.runtime.cuda.code import Code
from attncc.schedules.cuda.families import CudaFamily
from attncc.schedules.family import Decisions
from attncc.spec import AttentionSpec
from attncc.target import Target

MANIFEST = "pack.json"
Wanted = tuple[AttentionSpec, Target, CudaFamily, Decisions]


def name(key: disk.Key) -> str:
    """Where the kernel of a cache key lies in a pack."""
    return disk.key_name({part: value for part, value in key.items() if part != "versions"})


def use(folder: Path | None) -> None:
    """Take kernels from `folder` from now on; None: no longer. Raises OSError or ValueError for what is no pack."""
    build.packed = None if folder is None else Pack(folder).load


def write(folder: Path, wanted: Iterable[Wanted]) -> Iterator[tuple[Wanted, int]]:
    """Build every kernel that is wanted into `folder`; gives each with its size in bytes, as it is done.

    Raises RuntimeError where one cannot be compiled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for each in wanted:
        spec, target, family, decisions = each
        key = build.cache_key(spec, target, family, decisions)
        data = build.stored(key, spec, target, family, decisions).to_bytes()
        (folder / name(key)).write_bytes(data)
        digests[name(key)] = hashlib.sha256(data).hexdigest()
        yield each, len(data)
    (folder / MANIFEST).write_text(json.dumps({"kernels": digests}, sort_keys=True))


class Pack:
    """A pack to read from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        held: Any = json.loads((folder / MANIFEST).read_text())
        self.digests: dict[str, str] = dict(held["kernels"])

    def load(self, key: disk.Key) -> Code | None:
        """The kernel of a cache key; None where it was not packed, or is damaged."""
        digest = self.digests.get(name(key))
        if digest is None:
            return None
        data = (self.folder / name(key)).read_bytes()
        return Code.from_bytes(data) if hashlib.sha256(data).hexdigest() == digest else None
