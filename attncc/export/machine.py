"""Whether a machine can run what was compiled for another: asked before any of it runs, which would end the process.

`Target.features` are what kernels are written with. Beyond these LLVM uses what a CPU's name implies (znver4 has AMD's
sse4a, say, which no Intel CPU has), so an artifact states that as well.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from attncc.target import Target, detect, host_without_llvm, implied_features

_IMPLIED = {
    "x86_64": {
        "adx": "adx", "bmi": "bmi1", "bmi2": "bmi2", "fma4": "fma4", "gfni": "gfni", "lzcnt": "abm", "movbe": "movbe",
        "popcnt": "popcnt", "sse4a": "sse4a", "tbm": "tbm", "xop": "xop", "avx512bitalg": "avx512_bitalg",
        "avx512ifma": "avx512ifma", "avx512vbmi2": "avx512_vbmi2", "avx512vpopcntdq": "avx512_vpopcntdq",
    },
    "aarch64": {
        "complxnum": "fcma", "flagm": "flagm", "fp16fml": "asimdfhm", "fptoint": "frint", "jsconv": "jscvt",
        "lse": "atomics", "rcpc": "lrcpc", "rdm": "asimdrdm", "sha3": "sha3",
    },
}  # fmt: skip
"""Instructions that LLVM uses by itself, by architecture: its names for them, and those of /proc/cpuinfo."""


def needs(target: Target) -> list[str]:
    """What a machine must have to run code compiled for `target`, under LLVM's names. Imports TVM."""
    implied = implied_features(target) & _IMPLIED.get(target.arch, {}).keys()
    if target == detect():
        implied &= _present(target.arch)  # a virtual machine may hide what its CPU's name implies
    return sorted(target.features | implied | _length(target))


def missing(arch: str, needed: Collection[str]) -> list[str]:
    """Why this machine cannot run code for `arch` that uses `needed`: what it lacks. Empty where it can."""
    host = host_without_llvm()
    if host.arch != arch:
        return [arch]
    present = host.features | _present(arch) | _length(host)
    return sorted(name for name in needed if name not in present)


def describe() -> str:
    """This machine, for messages about what it lacks."""
    host = host_without_llvm()
    return f"{host.arch} with {' '.join(sorted(host.features)) or 'no vector extensions'}"


def _length(target: Target) -> frozenset[str]:
    """The length of SVE's vectors, where kernels use them, as if it were a feature."""
    return frozenset({f"sve-of-{target.sve_bits}-bits"} if target.sve_bits else ())


def _present(arch: str) -> frozenset[str]:
    """Those of `_IMPLIED` that this machine has; all where the system does not tell."""
    names = _IMPLIED.get(arch, {})
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset(names)
    flags = {word for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE) for word in line.split()}
    return frozenset(name for name, flag in names.items() if flag in flags)
