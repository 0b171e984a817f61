"""From a spec to a callable kernel: memory, else disk, else compiled; built once however many threads ask."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attncc.runtime import cache as disk
from attncc.runtime import launcher, native, stats
from attncc.spec import AttentionSpec
from attncc.target import KINDS, Target

if TYPE_CHECKING:
    from attncc.schedules.family import Family

ABI = 1
"""Version of the kernels' argument list; part of every cache key."""
ENTRY = "attention"
_PACKAGE = Path(__file__).parent.parent
_CAPACITY = 64
"""Kernels held in memory, some 3 MB each; the least recently planned goes, and comes back from disk."""


@dataclass(frozen=True)
class Kernel:
    """A compiled attention, ready to be called."""

    spec: AttentionSpec
    target: Target
    family: Family
    decisions: Mapping[str, int]
    call: Callable[..., Any]
    """The bound native function, called with the arguments that `attncc.algorithm.signature` lists."""
    header: str
    """Data layout and triple of its LLVM module."""
    counters: stats.KernelCounters
    module: Any
    """The native module, which must outlive `call`."""

    @property
    def name(self) -> str:
        """Family and the first characters of the spec's name, as statistics and reports show it."""
        return kernel_name(self.spec, self.family)

    def launcher(self, threads: int) -> int:
        """The address of what runs its parallel loops on so many threads."""
        return launcher.address(threads, self.header)


def kernel_name(spec: AttentionSpec, family: Family) -> str:
    """How statistics and reports call the kernel of `spec` in `family`."""
    return f"{family.name} {spec.name[:12]}"


def kernel(
    spec: AttentionSpec,
    target: Target,
    family: Family,
    decisions: Mapping[str, int] | None = None,
    source: str = stats.DEFAULT,
) -> Kernel:
    """The kernel of `spec` for `target`, by default with the family's analytic decisions.

    `source` says where `decisions` came from, for statistics. Raises RuntimeError or ValueError where it cannot be
    built.
    """
    chosen = dict(family.decisions(spec, target) if decisions is None else decisions)
    identity = (spec.json, target.key, family.name, tuple(sorted(chosen.items())))
    found = _in_memory(identity)  # without the lock, which is held for as long as another kernel is compiled
    if found is not None:
        return found
    with _lock:
        found = _in_memory(identity)
        if found is not None:
            return found
        made = _load_or_compile(spec, target, family, chosen, source)
        _kernels[identity] = made
        while len(_kernels) > _CAPACITY:
            _, evicted = _kernels.popitem(last=False)
            for drop in on_eviction:
                drop(evicted)
        return made


def _in_memory(identity: tuple[Any, ...]) -> Kernel | None:
    found = _kernels.get(identity)
    if found is not None:
        with contextlib.suppress(KeyError):  # evicted by another thread just now
            _kernels.move_to_end(identity)
        stats.memory_hits.add()
    return found


def forget() -> None:
    """Drop the kernels held in memory; those in use stay alive until their calls end."""
    with _lock:
        _kernels.clear()


def compile_llvm(spec: AttentionSpec, target: Target, family: Family, decisions: Mapping[str, int]) -> bytes:
    """LLVM IR of the kernel, compiled anew; for any target that LLVM knows, not only this host."""
    from attncc._tvm import llvm_text

    return llvm_text(family.module(spec, target, decisions), target).encode()


def llvm(spec: AttentionSpec, target: Target, family: Family, decisions: Mapping[str, int]) -> bytes:
    """LLVM IR of the kernel for any target, from disk where it is kept there. Nothing is loaded."""
    key = cache_key(spec, target, family, decisions)
    with disk.building(key):
        text = disk.load(key)
        if text is None:
            text = compile_llvm(spec, target, family, decisions)
            disk.store(key, text)
        return text


def cache_key(spec: AttentionSpec, target: Target, family: Family, decisions: Mapping[str, int]) -> dict[str, Any]:
    """Everything that the code of a kernel depends on."""
    return {
        "abi": ABI,
        "spec": spec.json,
        "target": target.key,
        "family": family.name,
        "decisions": dict(sorted(decisions.items())),
        "generators": code_digest(target.kind),
        "versions": {name: version(name) for name in ("attncc", "apache-tvm", "apache-tvm-ffi")},
    }


@cache
def code_digest(kind: str) -> str:
    """SHA-256 over `generators(kind)`: an edited schedule never meets a kernel of its older self."""
    digest = hashlib.sha256()
    for source in generators(kind):
        name = source.relative_to(_PACKAGE).as_posix()
        digest.update(name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def generators(kind: str) -> list[Path]:
    """The sources that generate kernels for targets of that kind; those of other kinds may change without effect."""
    sources = [_PACKAGE / "expr.py", _PACKAGE / "spec.py", _PACKAGE / "_tvm.py"]
    for folder in ("algorithm", "schedules"):
        sources += sorted((_PACKAGE / folder).rglob("*.py"))
    others = [_PACKAGE / "schedules" / other for other in KINDS if other != kind]
    return [each for each in sources if each.is_file() and not any(each.is_relative_to(other) for other in others)]


def _load_or_compile(
    spec: AttentionSpec, target: Target, family: Family, decisions: Mapping[str, int], source: str
) -> Kernel:
    counters = stats.kernel(kernel_name(spec, family), source)
    key = cache_key(spec, target, family, decisions)
    found = _loaded(key)
    if found is None:
        with disk.building(key):
            found = _loaded(key)  # another process may have published it while this one waited
            if found is None:
                from attncc import _tvm  # noqa: F401  (importing TVM is not the kernel's compile time)

                start = time.perf_counter()
                text = compile_llvm(spec, target, family, decisions)
                counters.seconds += time.perf_counter() - start
                module, call = native.load_llvm(text, ENTRY)
                counters.compiles.add()
                disk.store(key, text)
                return Kernel(spec, target, family, decisions, call, header(text), counters, module)
    text, module, call = found
    counters.disk_hits.add()
    return Kernel(spec, target, family, decisions, call, header(text), counters, module)


def _loaded(key: Mapping[str, Any]) -> tuple[bytes, Any, Callable[..., Any]] | None:
    """Text, module and function of the entry of `key` on disk; None where there is none that loads."""
    text = disk.load(key)
    if text is None:
        return None
    try:
        return text, *native.load_llvm(text, ENTRY)
    except RuntimeError:
        disk.discard(key)
        return None


def header(text: bytes) -> str:
    """Data layout and triple of a module's text."""
    return b"\n".join(line for line in text.splitlines() if line.startswith(b"target ")).decode()


@cache
def version(package: str) -> str:
    """The installed version of a package, "source" where it runs from a source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # running from a source tree; the digest of the sources tells versions apart
        return "source"


on_eviction: list[Callable[[Kernel], None]] = []
"""Called with each kernel that leaves memory, for those who hold something of it."""
_kernels: OrderedDict[tuple[Any, ...], Kernel] = OrderedDict()
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that the child does not have may hold it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
