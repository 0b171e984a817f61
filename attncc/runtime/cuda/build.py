"""From a spec to kernels loaded on a CUDA device: memory, else the cache on disk, else compiled from CUDA C++, which a
pack holds or TVM generates.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attncc.runtime import cache as disk
from attncc.runtime import stats
from attncc.runtime.build import cache_key, kernel_name
from attncc.runtime.cuda import code, driver
from attncc.runtime.cuda.code import Code, Kernel
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc.schedules.cuda.families import CudaFamily

__all__ = ["CudaKernel", "cache_key", "forget", "kernel", "packed", "stored"]


@dataclass(frozen=True)
class CudaKernel:
    """The kernels of one spec in one family, loaded on one device."""

    spec: AttentionSpec
    target: Target
    family: CudaFamily
    decisions: Mapping[str, int]
    device: int
    kernels: Mapping[str, tuple[int, Kernel]]
    """The driver's handle, and how it is called, by name."""
    counters: stats.KernelCounters
    module: Any
    """Stays loaded with the process: a captured graph may start its kernels long after."""

    @property
    def name(self) -> str:
        """Family and the first characters of the spec's name, as statistics and reports show it."""
        return kernel_name(self.spec, self.family)


def kernel(
    spec: AttentionSpec,
    target: Target,
    family: CudaFamily,
    decisions: Mapping[str, int],
    device: int,
    source: str = stats.DEFAULT,
) -> CudaKernel:
    """The kernels of `spec` on torch's CUDA device number `device`; `source` says where the decisions come from.

    Raises RuntimeError or ValueError where they cannot be built or loaded.
    """
    identity = (spec.json, target.key, family.name, device, *sorted(decisions.items()))
    with _lock:
        found = _kernels.get(identity)
        if found is not None:
            stats.memory_hits.add()
            return found
        key = cache_key(spec, target, family, decisions)
        made = stored(key, spec, target, family, decisions, source)
        _kernels[identity] = load(made, spec, target, family, decisions, device, source)
        return _kernels[identity]


def load(
    made: Code,
    spec: AttentionSpec,
    target: Target,
    family: CudaFamily,
    decisions: Mapping[str, int],
    device: int,
    source: str = stats.DEFAULT,
) -> CudaKernel:
    """Machine code as kernels on a device, which neither memory nor disk keeps. Raises as `kernel` does."""
    module = driver.Module(made.text, device)
    loaded = {each.name: (module.function(each.symbol, each.shared), each) for each in made.kernels}
    counters = stats.kernel(kernel_name(spec, family), source)
    return CudaKernel(spec, target, family, decisions, device, loaded, counters, module)


def stored(
    key: disk.Key,
    spec: AttentionSpec,
    target: Target,
    family: CudaFamily,
    decisions: Mapping[str, int],
    source: str = stats.DEFAULT,
) -> Code:
    """Machine code from the cache on disk; else compiled, and kept there. Needs no GPU."""
    counters = stats.kernel(kernel_name(spec, family), source)
    found = _loaded(key)
    if found is None:
        with disk.building(key):
            found = _loaded(key)  # another process may have published it while this one waited
            if found is None:
                start = time.perf_counter()
                text = packed(key) if packed is not None else None
                found = (text or code.generate(spec, target, family, decisions)).machine(target.mcpu)
                counters.seconds += time.perf_counter() - start
                counters.compiles.add()
                disk.store(key, found.to_bytes())
                return found
    counters.disk_hits.add()
    return found


def forget() -> None:
    """Drop the kernels held in memory; those in use stay loaded."""
    with _lock:
        _kernels.clear()


def _loaded(key: disk.Key) -> Code | None:
    data = disk.load(key)
    if data is None:
        return None
    try:
        return Code.from_bytes(data)
    except (ValueError, KeyError, TypeError):
        disk.discard(key)
        return None


packed: Callable[[disk.Key], Code | None] | None = None
"""Where else kernels may lie: see `attncc.runtime.cuda.pack`."""
_kernels: dict[tuple[Any, ...], CudaKernel] = {}
_lock = threading.RLock()
