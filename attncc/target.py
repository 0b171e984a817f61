"""The machine that kernels are compiled for: detected, never assumed.

`detect()` describes the host; `parse()` reads a target from text, for cross-compiling and for tests. A `Target`
itself is plain data and needs neither torch nor TVM.
"""

from __future__ import annotations

import difflib
import platform
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from attncc import system

FEATURES = {
    "x86_64": (
        "sse4.2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni",
        "avx512vbmi", "avx512bf16", "avx512fp16", "avxvnni", "avxneconvert", "amx-tile", "amx-bf16", "amx-int8",
        "amx-fp16",
    ),
    "aarch64": ("neon", "dotprod", "fullfp16", "bf16", "i8mm", "sve", "sve2", "sme"),
}  # fmt: skip
"""LLVM features that decide how a kernel is written, by architecture; the others are left to LLVM."""
TRIPLES = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-macos")
"""Where `parse` looks a CPU name up, after the host's own triple."""
SVE_BITS = (256, 512)
"""Lengths of SVE's vectors that kernels are written for. NEON is as good at 128, and no machine has longer ones."""
_SVE_BITS_OF = {"neoverse-v1": 256, "a64fx": 512}
"""The lengths of CPUs with one of these; that of a host is asked for."""
HOST_NAMES = ("", "cpu", "llvm", "native", "host")
KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Target:
    """What code is generated for. Sizes in bytes; `l1` and `l2` are those of one core, `l3` is shared."""

    kind: str
    """One of `KINDS`."""
    mcpu: str
    """LLVM's name of the CPU, e.g. "znver4"."""
    triple: str
    features: frozenset[str]
    """Those of `FEATURES` that the target has, under LLVM's names."""
    cores: int
    """Physical cores that this process may use."""
    l1: int
    l2: int
    l3: int
    sve_bits: int = 0
    """Length of SVE's vectors, of `SVE_BITS`; 0 where kernels do without them. Code for one length is of no other."""

    @property
    def arch(self) -> str:
        """Architecture as LLVM spells it in a triple: "x86_64", "aarch64" (for "arm64" too)."""
        return _arch(self.triple)

    @property
    def vector_bits(self) -> int:
        """Width of a vector register: 512, 256 or 128."""
        if "avx512f" in self.features:
            return 512
        if self.sve_bits:
            return self.sve_bits
        return 256 if "avx" in self.features else 128

    @property
    def mattr(self) -> tuple[str, ...]:
        """Features as LLVM takes them, each with + or -: a virtual machine may hide what the named CPU has."""
        known = FEATURES.get(self.arch, ())
        return tuple(f"{'+' if name in self.features else '-'}{name}" for name in known)

    @property
    def key(self) -> str:
        """Text that tells apart the targets whose machine code differs; part of every cache key."""
        length = f" sve-bits={self.sve_bits}" if self.sve_bits else ""
        return f"{self.kind} {self.triple} {self.mcpu} {' '.join(sorted(self.features))}".rstrip() + length

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"{self.kind} {self.mcpu} ({self.cores} multiprocessors)"
        return f"{self.kind} {self.mcpu} ({self.vector_bits}-bit vectors, {self.cores} cores)"


@cache
def detect() -> Target:
    """The host CPU. LLVM names it; without TVM's LLVM it is the x86-64 level (or "generic") that torch reports."""
    return _host(_llvm_host())


@cache
def host_without_llvm() -> Target:
    """The host as far as it is known without loading anything of TVM: its CPU by its x86-64 level."""
    return _host(None)


def parse(text: str) -> Target:
    """The target that `text` names.

    "cpu", "native" or "llvm" is the host; "x86-64-v3" or "cortex-a76" is a CPU under LLVM's name for it;
    "llvm -mcpu=… -mtriple=… -mattr=+a,-b -num-cores=4" is the long form. Cores and caches are the host's unless given.
    "-sve-bits=256" is the length of SVE's vectors, which else follows from the CPU's name or is 128.
    Raises ValueError, naming what is near, for an unknown CPU or option.
    """
    words = shlex.split(text)
    host = detect()
    if " ".join(words) in HOST_NAMES:
        return host
    if words[0] == "cuda":
        raise ValueError(f"target {text!r}: a GPU is detected by its tensors, and needs no target")
    if len(words) == 1 and not words[0].startswith("-"):
        words = ["llvm", f"-mcpu={words[0]}"]
    if words[0] not in HOST_NAMES:
        raise ValueError(f"target {text!r}: the kind {words[0]!r} is unknown; use 'llvm' or 'cpu'")
    options = {"mcpu": "", "mtriple": "", "mattr": "", "num-cores": str(host.cores), "sve-bits": ""}
    for word in words[1:]:
        name, _, value = word.lstrip("-").partition("=")
        if name not in options:
            near = difflib.get_close_matches(name, options, 1) or list(options)
            raise ValueError(f"target {text!r}: unknown option {word!r}; did you mean -{near[0]}?")
        options[name] = value
    if not options["num-cores"].isdigit() or int(options["num-cores"]) < 1:
        raise ValueError(f"target {text!r}: -num-cores={options['num-cores']} is not a positive number")
    triple = options["mtriple"] or (_triple_of(options["mcpu"], host.triple) if options["mcpu"] else host.triple)
    arch = _arch(triple)
    mcpu = options["mcpu"] or (host.mcpu if triple == host.triple else "generic")
    attributes = [a for a in options["mattr"].split(",") if a]
    features = _llvm_features(mcpu, triple, attributes) & frozenset(FEATURES.get(arch, ()))
    known = _SVE_BITS_OF.get(mcpu, 0) if options["mcpu"] else host.sve_bits
    length = _named_length(text, options["sve-bits"] or str(known or 128), features)
    cores = int(options["num-cores"])
    return replace(host, mcpu=mcpu, triple=triple, features=features, cores=cores, sve_bits=length)


def _named_length(text: str, named: str, features: frozenset[str]) -> int:
    """`Target.sve_bits` of a target that is named, not detected. Raises ValueError for lengths that are not used."""
    if named not in map(str, (128, *SVE_BITS)):
        raise ValueError(f"target {text!r}: -sve-bits={named} is none of 128, {', '.join(map(str, SVE_BITS))}")
    return int(named) if "sve" in features and int(named) in SVE_BITS else 0


def cuda_devices() -> tuple[str, ...]:
    """Names and compute capabilities of the CUDA devices at hand."""
    import torch

    if not torch.cuda.is_available():
        return ()
    names = []
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        names.append(f"{torch.cuda.get_device_name(number)} (sm_{major}{minor})")
    return tuple(names)


def _arch(triple: str) -> str:
    arch = triple.partition("-")[0]
    return "aarch64" if arch == "arm64" else arch


def _llvm_host() -> tuple[str, str] | None:
    """CPU name and triple of the host as LLVM sees them; None where TVM or its LLVM does not load."""
    from attncc.runtime import native

    try:
        name = str(native.function("target.llvm_get_system_cpu")())
        return name, str(native.function("target.llvm_get_system_triple")())
    except RuntimeError:
        return None


def _plain_host(found: frozenset[str]) -> tuple[str, str]:
    """The same without LLVM: the x86-64 level that the features reach."""
    machine = platform.machine().lower().replace("amd64", "x86_64")
    system = {"Linux": "unknown-linux-gnu", "Darwin": "apple-macos", "Windows": "pc-windows-msvc"}
    triple = f"{machine}-{system.get(platform.system(), 'unknown-unknown')}"
    if machine != "x86_64":
        return "generic", triple
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= found:
        return "x86-64-v4", triple
    return ("x86-64-v3" if {"avx2", "fma", "f16c"} <= found else "x86-64"), triple


def _host(named: tuple[str, str] | None) -> Target:
    """The host, whose CPU and triple LLVM `named`."""
    found = system.features()
    mcpu, triple = named or _plain_host(found)
    l1, l2, l3 = system.caches()
    features = _usable(found, _arch(triple))
    length = system.sve_bits() if "sve" in features else 0
    return Target("cpu", mcpu, triple, features, system.cores(), l1, l2, l3, length if length in SVE_BITS else 0)


def _usable(found: frozenset[str], arch: str) -> frozenset[str]:
    """Those of `FEATURES` that this process may use, of the features `found` on the host."""
    if arch == "aarch64":
        found |= {"neon"}  # part of the base architecture, and not reported by every operating system
    features = found & frozenset(FEATURES.get(arch, ()))
    if "amx-tile" in features and not system.may_use_tiles():
        features = frozenset(name for name in features if not name.startswith("amx-"))
    return features


def _triple_of(mcpu: str, host: str) -> str:
    """The first triple whose LLVM backend knows `mcpu`. Raises ValueError, with near names, where none does."""
    from attncc.runtime import native

    known = native.function("target.llvm_is_valid_cpu")
    for triple in (host, *TRIPLES):
        if known(mcpu, triple):
            return triple
    names = sorted({name for triple in (host, *TRIPLES) for name in _cpu_names(triple)})
    near = ", ".join(difflib.get_close_matches(mcpu, names, 3, 0.5)) or "x86-64-v3, x86-64-v4, znver4, cortex-a76"
    raise ValueError(f"target: LLVM knows no CPU named {mcpu!r}; near or usual names: {near}")


def _cpu_names(triple: str) -> Iterable[str]:
    from tvm.target import Target as TvmTarget
    from tvm.target.codegen import llvm_get_cpu_archlist

    return [str(name) for name in llvm_get_cpu_archlist(TvmTarget({"kind": "llvm", "mtriple": triple}))]


def implied_features(target: Target) -> frozenset[str]:
    """All that LLVM may use on a CPU of the target's name, also what is not in `FEATURES`. Imports TVM."""
    return _llvm_features(target.mcpu, target.triple, list(target.mattr))


def _llvm_features(mcpu: str, triple: str, attributes: list[str]) -> frozenset[str]:
    from tvm.target import Target as TvmTarget
    from tvm.target.codegen import llvm_get_cpu_features

    target = {"kind": "llvm", "mtriple": triple, "mcpu": mcpu, "mattr": attributes}
    return frozenset(str(name) for name in llvm_get_cpu_features(TvmTarget(target)))
