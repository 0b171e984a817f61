"""The kernels of an artifact in this process: a shared library, loaded by tvm_ffi alone, that the runtime can call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attncc import schedules
from attncc.export import archive
from attncc.export.support import MOST_THREADS, OPENMP
from attncc.runtime import build, launcher, native, stats
from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target, host_without_llvm
from attncc.tuning.bucket import Bucket


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
        self._kernels: dict[str, list[build.Kernel]] = {}
        """By the name of their spec: those with analytic decisions."""
        self._tuned: dict[tuple[str, str], build.Kernel] = {}
        """By the name of their spec and a place."""
        try:
            self._module = native.load_library(code)
            addresses = launcher.openmp()
            if addresses is not None:
                self._module["attncc_openmp"](*(addresses[name] for name in OPENMP))
            self._bind(library.kernels)
        except (RuntimeError, OSError, ValueError, KeyError, AttributeError) as error:
            raise archive.ArtifactError(
                f"attncc.load: the kernels for {library.mcpu} do not load here: {error}"
            ) from error

    def kernel(self, spec: AttentionSpec, problem: Problem) -> build.Kernel | None:
        """The kernel for a call of these sizes: what tuning chose for them, else of the first family that suits."""
        for kernel in self._kernels.get(spec.name, ()):
            if kernel.family.suits(spec, problem):
                better = self._tuned.get((spec.name, archive.place(kernel.family.name, Bucket.of(problem))))
                return better if better is not None and better.family.suits(spec, problem) else kernel
        return None

    def _bind(self, entries: Sequence[archive.KernelEntry]) -> None:
        """Look all functions up, special families before general ones."""
        order = list(self._families)
        for entry in sorted(entries, key=lambda e: order.index(e.family)):
            spec = AttentionSpec.from_json(entry.spec)
            kernel = self._kernel(entry, spec)
            if entry.places is None:
                self._kernels.setdefault(spec.name, []).append(kernel)
            else:
                self._tuned |= {(spec.name, where): kernel for where in entry.places}

    def _kernel(self, entry: archive.KernelEntry, spec: AttentionSpec) -> build.Kernel:
        family = self._families[entry.family]
        counters = stats.kernel(build.kernel_name(spec, family), entry.source)
        call: Any = self._module[entry.symbol]
        return _Kernel(spec, self.target, family, entry.decisions, call, "", counters, self._module)
