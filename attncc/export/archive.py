"""The file of an artifact: a `.pt2` archive of torch.export, with attncc's part under `attncc/`.

    NAME/…                       what torch.export.save writes: graph, weights, example inputs
    NAME/attncc/manifest.json    `Manifest`: versions, kernels with their specs and decisions, SHA-256 of every record
    NAME/attncc/TARGET.so        the kernels for one target, a shared library

`torch.export.load` reads the program by itself, in a process that has imported attncc.

The digests find a file that was damaged on its way, not one that was forged: whoever can write an artifact can put
machine code and pickled objects into it, so load only what you would run as a program.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncc.tuning.bucket import Bucket

FORMAT = 1
"""Version of the manifest; an attncc of another format refuses the file."""
_MANIFEST = "attncc/manifest.json"
_CHUNK = 1 << 20


class ArtifactError(RuntimeError):
    """A file is no artifact, is damaged, or cannot be used here; the message says which and what to do."""


def place(family: str, bucket: Bucket) -> str:
    """What a manifest calls the sizes of a bucket for which `family` would be taken without records."""
    return f"{family} {bucket}"


@dataclass(frozen=True)
class KernelEntry:
    """One kernel of a library."""

    symbol: str
    spec: str
    """Canonical JSON of its AttentionSpec."""
    family: str
    decisions: dict[str, int]
    source: str
    """Where the decisions come from, in words."""
    places: tuple[str, ...] | None
    """Where tuning chose it: "FAMILY BUCKET" for sizes of that bucket for which that family would be taken otherwise.
    None for a family's analytic decisions."""


@dataclass(frozen=True)
class Library:
    """The kernels for one target."""

    mcpu: str
    triple: str
    arch: str
    features: tuple[str, ...]
    """Of `attncc.target.FEATURES`: with the name of the CPU these are what kernels were written for."""
    needs: tuple[str, ...]
    """All that the code may use, under LLVM's names: `attncc.export.machine` looks for it before loading."""
    record: str
    linker: str
    kernels: tuple[KernelEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """What an artifact holds and what it was made by."""

    versions: dict[str, str]
    """Of attncc, torch, apache-tvm and apache-tvm-ffi."""
    abi: int
    """`attncc.runtime.build.ABI`: the argument list of kernels."""
    generators: str
    """`attncc.runtime.build.code_digest("cpu")`: work tables are made when kernels are called, by the same sources."""
    created: str
    """Date and time (UTC), ISO 8601."""
    sites: tuple[dict[str, Any], ...]
    """Every attention that was found: fused or not, where, and why."""
    guards: tuple[str, ...]
    """Conditions on sizes that fusing added, such as `q.size()[3] == 16`; the program checks them."""
    libraries: tuple[Library, ...]
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other record, by name."""


def write(path: Path, program: Any, manifest: Manifest, libraries: Mapping[str, Path]) -> None:
    """Write an artifact to `path` in one step: a reader sees the old file or the whole new one.

    `program` is the ExportedProgram, `libraries` the shared libraries by record. Raises OSError.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        unfinished = Path(folder) / f"{path.stem}.pt2"
        torch.export.save(program, str(unfinished))
        with zipfile.ZipFile(unfinished, "a", zipfile.ZIP_STORED) as archive:
            top = _top(archive)
            for record, library in libraries.items():
                archive.write(library, f"{top}{record}")
            digests = {name.removeprefix(top): _digest(archive, name) for name in archive.namelist()}
            data = {"format": FORMAT, **asdict(manifest), "digests": digests}
            archive.writestr(f"{top}{_MANIFEST}", json.dumps(data, indent=1, sort_keys=True))
        os.replace(unfinished, path)


def read(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of an artifact and its libraries by record; everything in the file is held against its digest.

    Raises ArtifactError, or OSError where there is no such file.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _checked(archive, path)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ArtifactError(f"attncc.load: {path} is no artifact, or only a part of one: {error}") from error


def _checked(archive: zipfile.ZipFile, path: Path) -> tuple[Manifest, dict[str, bytes]]:
    top = _top(archive)
    names = archive.namelist()
    if f"{top}{_MANIFEST}" not in names:
        raise ArtifactError(f"attncc.load: {path} has no {_MANIFEST}; it was not written by attncc.export")
    manifest = _manifest(archive.read(f"{top}{_MANIFEST}"), path)
    held = {name.removeprefix(top) for name in names} - {_MANIFEST}
    if len(names) != len(set(names)) or held != manifest.digests.keys():
        raise ArtifactError(f"attncc.load: {path} does not hold the records that its manifest lists; export it again")
    for record, digest in manifest.digests.items():
        if _digest(archive, top + record) != digest:
            raise ArtifactError(f"attncc.load: {record} in {path} is damaged (its SHA-256 differs); export it again")
    return manifest, {library.record: archive.read(top + library.record) for library in manifest.libraries}


def _manifest(text: bytes, path: Path) -> Manifest:
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ArtifactError(
                f"attncc.load: {path} has format {data['format']}, and this attncc reads {FORMAT}; export it again "
                f"with this one, or install attncc {data['versions']['attncc']}"
            )
        data = {each.name: data[each.name] for each in fields(Manifest)}
        libraries = []
        for library in data["libraries"]:
            kernels = tuple(map(_kernel, library["kernels"]))
            lists = {name: tuple(library[name]) for name in ("features", "needs")}
            libraries.append(Library(**{**library, **lists, "kernels": kernels}))
        lists = {name: tuple(data[name]) for name in ("sites", "guards")}
        return Manifest(**{**data, **lists, "libraries": tuple(libraries)})
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"attncc.load: the manifest of {path} does not read: {error!r}; export it again") from error


def _kernel(data: dict[str, Any]) -> KernelEntry:
    places = data["places"]
    return KernelEntry(**{**data, "places": None if places is None else tuple(places)})


def _top(archive: zipfile.ZipFile) -> str:
    """The folder in which all records of an archive lie, with its slash."""
    name = archive.namelist()[0] if archive.namelist() else ""
    return name[: name.find("/") + 1]


def _digest(archive: zipfile.ZipFile, name: str) -> str:
    """SHA-256 of a record. Raises BadZipFile where the archive's own checksum already differs."""
    digest = hashlib.sha256()
    with archive.open(name) as record:
        _update(digest, record)
    return digest.hexdigest()


def _update(digest: Any, record: IO[bytes]) -> None:
    while chunk := record.read(_CHUNK):
        digest.update(chunk)
