"""`attncc.export`: a model compiled ahead, into one file."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attncc.export import archive
from attncc.report import Site
from attncc.target import Target, parse

if TYPE_CHECKING:
    from rich.console import RenderableType

    from attncc.export.kernels import Wanted

PACKAGES = ("attncc", "torch", "apache-tvm", "apache-tvm-ffi")
Targets = str | Target | Sequence[str | Target]


@dataclass(frozen=True)
class Exported:
    """What `attncc.export` wrote; `str()` reads well, `to_json()` is for machines."""

    path: Path
    sites: tuple[Site, ...]
    """Every attention of the model: fused or not, where, and why."""
    libraries: tuple[archive.Library, ...]
    """The kernels for each target."""
    guards: tuple[str, ...]
    """Conditions on sizes that calls must meet beyond those of `dynamic_shapes`."""
    bytes: int
    capture_seconds: float
    seconds: float

    def to_json(self) -> str:
        """All of it as JSON text."""
        data = {"path": str(self.path), "bytes": self.bytes, "seconds": self.seconds, "guards": self.guards}
        sites, libraries = [site.to_dict() for site in self.sites], [asdict(each) for each in self.libraries]
        return json.dumps(data | {"sites": sites, "libraries": libraries}, indent=2)

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from attncc._rich import table
        from attncc.report import Report

        written = f"{self.path}, {self.bytes / 1e6:.1f} MB, written in {self.seconds:.1f} s"
        kernels = table(written, "target", "kernels", "of these tuned", "linked by")
        for library in self.libraries:
            tuned = sum(kernel.places is not None for kernel in library.kernels)
            kernels.add_row(library.mcpu, str(len(library.kernels)), str(tuned), library.linker)
        if not self.libraries:
            kernels.add_row("", "none: no attention was fused, and the program runs as PyTorch runs it", "", "")
        conditions = [f"calls must meet: {guard}" for guard in self.guards]
        return Group(Report(self.sites, 1, self.capture_seconds), "", kernels, *conditions)

    def __str__(self) -> str:
        from attncc._rich import to_text

        return to_text(self)


def export(
    model: Any,
    args: Sequence[Any],
    path: str | os.PathLike[str],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: Targets = "native",
    strict: bool = False,
    verify: bool = True,
    say: Callable[[str], None] | None = None,
) -> Exported:
    """Compile `model` ahead for inference, into the one file `path` (by convention `.pt2`); `attncc.load` runs it.

    `model` is an nn.Module in evaluation mode, a function, or a `torch.export.ExportedProgram`; `args`, `kwargs` and
    `dynamic_shapes` are those of `torch.export.export`: sizes that are not named there are fixed; "auto" leaves all
    open that the model does not fix. Attention becomes attncc's operator with its kernels beside it; what is not fused
    (see `Exported.sites`) stays PyTorch's. Weights are in the file, and loading needs neither the model's code nor TVM
    nor a compiler.

    `target` is the CPU that kernels are compiled for, or several, best first ("native" is this one; names are LLVM's:
    "x86-64-v3", "znver4"). Building needs a linker (binutils, lld or `attncc[cross]`). `strict` and `verify` are
    those of `attncc.compile`; `say` hears what is being done.

    Raises ValueError for a model in training mode or with autocast inside, UnfusedAttention under `strict`, NoLinker,
    LookupError for an attention that no kernel family takes, and whatever torch.export raises for a model that it
    cannot capture.
    """
    from attncc.backend import check_fused
    from attncc.export import kernels, machine, program
    from attncc.runtime import build

    start, path = time.perf_counter(), Path(path)
    say = say or (lambda text: None)
    targets = _targets(target)
    say("capturing the program")
    captured = program.capture(model, args, kwargs, dynamic_shapes, verify)
    capture_seconds = time.perf_counter() - start
    if strict:
        check_fused(captured.sites)
    with tempfile.TemporaryDirectory(prefix="attncc-") as folder:
        files: dict[str, Path] = {}
        libraries = []
        for each in targets if captured.calls else ():
            record = f"attncc/{len(files)}-{each.mcpu}.so"
            files[record] = Path(folder) / Path(record).name
            wanted = kernels.wanted(captured.calls, each)
            linker = kernels.compile_library(wanted, each, files[record], say)
            libraries.append(_library(each, machine.needs(each), record, linker, wanted))
        say("writing the artifact")
        manifest = archive.Manifest(
            versions={name: _version(name) for name in PACKAGES},
            abi=build.ABI,
            generators=build.code_digest("cpu"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            sites=tuple(site.to_dict() for site in captured.sites),
            guards=captured.guards,
            libraries=tuple(libraries),
        )
        archive.write(path, captured.program, manifest, files)
    return Exported(
        path,
        tuple(_with_kernels(site, libraries) for site in captured.sites),
        tuple(libraries),
        captured.guards,
        path.stat().st_size,
        capture_seconds,
        time.perf_counter() - start,
    )


def _targets(given: Targets) -> list[Target]:
    """The targets, each once. Raises ValueError for none, or a name that LLVM does not know."""
    several = [given] if isinstance(given, str | Target) else list(given)
    if not several:
        raise ValueError("attncc.export: target names no CPU to compile for")
    return list(dict.fromkeys(each if isinstance(each, Target) else parse(each) for each in several))


def _library(
    target: Target, needs: Sequence[str], record: str, linker: str, wanted: Sequence[Wanted]
) -> archive.Library:
    entries = [
        archive.KernelEntry(each.symbol, each.spec.json, each.family.name, each.decisions, each.source, each.places)
        for each in wanted
    ]
    return archive.Library(
        mcpu=target.mcpu,
        triple=target.triple,
        arch=target.arch,
        features=tuple(sorted(target.features)),
        needs=tuple(needs),
        record=record,
        linker=linker,
        kernels=tuple(entries),
    )


def _with_kernels(site: Site, libraries: Sequence[archive.Library]) -> Site:
    """The site with the families that may run it."""
    if site.spec is None or not site.fused:
        return site
    families = [kernel.family for each in libraries for kernel in each.kernels if kernel.spec == site.spec.json]
    return replace(site, kernel=", ".join(dict.fromkeys(families)))


def _version(package: str) -> str:
    if package == "torch":
        return str(torch.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # running from a source tree
        return "source"
