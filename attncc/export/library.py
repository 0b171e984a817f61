"""The kernels of an artifact in this process: a shared library, loaded by tvm_ffi alone, that the runtime can call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from attncc import schedules
from attncc.export import archive
from attncc.export.support import MOST_THREADS, OPENMP
from attncc.runtime import build, launcher, native, stats
from attncc.spec import AttentionSpec
from attncc.target import Target, host_without_llvm


class _Kernel(build.Kernel):
    """A kernel whose launchers are in its own library."""

    def launcher(self, threads: int) -> int:
        """The address of a launcher; of one that runs the loop in the calling thread where torch has no OpenMP."""
        most = 1 if launcher.openmp() is None else MOST_THREADS
        return int(self.module["attncc_launcher"](min(launcher.usable_threads(threads), most)))


class LoadedLibrary:
    """A loaded `archive.Library`; its kernels are in use for as long as it is referred to.

    Raises ArtifactError where the system does not load it or it does not hold what its manifest says.
    """

    def __init__(self, library: archive.Library, code: bytes) -> None:
        host = host_without_llvm()
        features = frozenset(library.features)
        self.target: Target = replace(host, mcpu=library.mcpu, triple=library.triple, features=features)
        self._families = {family.name: family for family in schedules.families(self.target)}
        try:
            self._module = native.load_library(code)
            addresses = launcher.openmp()
            if addresses is not None:
                self._module["attncc_openmp"](*(addresses[name] for name in OPENMP))
            self._kernels = self._bound(library.kernels)
        except (RuntimeError, OSError, ValueError, KeyError, AttributeError) as error:
            raise archive.ArtifactError(
                f"attncc.load: the kernels for {library.mcpu} do not load here: {error}"
            ) from error

    @property
    def kernels(self) -> Mapping[str, Sequence[build.Kernel]]:
        """By the name of their spec, special families before general ones."""
        return self._kernels

    def _bound(self, entries: Sequence[archive.KernelEntry]) -> dict[str, list[build.Kernel]]:
        found: dict[str, list[build.Kernel]] = {}
        for entry in entries:
            spec = AttentionSpec.from_json(entry.spec)
            found.setdefault(spec.name, []).append(self._kernel(entry, spec))
        order = list(self._families)
        return {name: sorted(some, key=lambda k: order.index(k.family.name)) for name, some in found.items()}

    def _kernel(self, entry: archive.KernelEntry, spec: AttentionSpec) -> build.Kernel:
        family = self._families[entry.family]
        counters = stats.kernel(build.kernel_name(spec, family))
        call: Any = self._module[entry.symbol]
        return _Kernel(spec, self.target, family, entry.decisions, call, "", counters, self._module)
