"""A folder of generated kernels for GPUs that are somewhere else: `attncc cuda-pack` fills it, `use` reads from it.

A machine without TVM, or without a network to install it from, then compiles every kernel that was packed, by the nvrtc
that comes with torch. Kernels are found by the same keys as in the cache, but for the versions of TVM.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attncc.runtime import cache as disk
from attncc.runtime.cuda import build, code
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
    """Generate every kernel that is wanted into `folder`; gives each with its size in bytes, as it is done.

    What an earlier pack in `folder` holds of them is kept; its name says what it was made by.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}
    for each in wanted:
        spec, target, family, decisions = each
        key = build.cache_key(spec, target, family, decisions)
        path = folder / name(key)
        data = path.read_bytes() if path.exists() else code.generate(spec, target, family, decisions).to_bytes()
        path.write_bytes(data)
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
