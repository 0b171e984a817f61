"""What the system tells of the machine and of what this process may use of it. Loads nothing of TVM."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

_GET_VECTOR_LENGTH, _VECTOR_LENGTH = 51, 0xFFFF
"""Linux's PR_SVE_GET_VL, and the bits of its answer that are the length in bytes."""


def features() -> frozenset[str]:
    """Features of the host under LLVM's names, from torch's CPU detection or, in older releases, /proc/cpuinfo.

    What the CPU has and the hypervisor or the operating system hides is in neither.
    """
    told = _torch_facts()
    words = {name for name, present in told.items() if present is True}
    if not words:
        lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
        words = set(lines[0].split()) if lines else set()
    renamed = {"fma3": "fma", "sse4_2": "sse4.2", "dot": "dotprod", "asimddp": "dotprod", "asimd": "neon"}
    renamed |= {"fp16_arith": "fullfp16", "asimdhp": "fullfp16"}
    return frozenset(renamed.get(w, w.replace("amx_", "amx-").replace("_", "")) for w in words)


def may_use_tiles() -> bool:
    """Whether the system lets this process use AMX's registers: Linux wants to be asked, once for all threads."""
    import torch

    ask = getattr(torch.cpu, "_init_amx", None)
    return ask is not None and bool(ask())


def sve_bits() -> int:
    """Length of SVE's vectors in this process, which the system may make shorter than the CPU's; 0 where unknown."""
    control = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
    found = -1 if control is None else int(control(_GET_VECTOR_LENGTH, 0, 0, 0, 0))
    return 0 if found < 0 else 8 * (found & _VECTOR_LENGTH)


def cores() -> int:
    """Physical cores within this process's affinity mask and its control group's CPU quota."""
    if not hasattr(os, "sched_getaffinity"):  # macOS, Windows: no mask to respect
        return max(1, _physical_cores())
    cpus = os.sched_getaffinity(0)
    places = set()
    for cpu in cpus:
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        places.add((_read(folder / "physical_package_id"), _read(folder / "core_id") or f"cpu{cpu}"))
    return max(1, min(len(places), _quota()))


def caches() -> tuple[int, int, int]:
    """Sizes of L1 data, L2 and L3 in bytes; where the system does not tell, torch's figures, then small ones."""
    sizes = {1: 0, 2: 0, 3: 0}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, text = _read(folder / "level"), _read(folder / "size")
        if _read(folder / "type") != "Instruction" and level.isdigit() and int(level) in sizes and text[:-1].isdigit():
            sizes[int(level)] = int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
    if not (sizes[1] and sizes[2]):
        told = _torch_facts()
        sizes[1] = sizes[1] or int(told.get("l1d_cache_size") or 0)
        sizes[2] = sizes[2] or int(told.get("l2_cache_size") or 0)
    # Small sizes are the safe guess: tiles that fit a smaller cache also fit a larger one.
    return sizes[1] or 32 << 10, sizes[2] or 256 << 10, sizes[3]


def _quota() -> int:
    """CPUs that the control group (v2) grants, rounded up; more than any machine has where there is no limit."""
    limit, _, period = _read(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return math.ceil(int(limit) / int(period)) if limit.isdigit() and period.isdigit() else 1 << 20


def _physical_cores() -> int:
    count = _torch_facts().get("num_physical_cores")
    return int(count) if count else os.cpu_count() or 1


def _torch_facts() -> dict[str, Any]:
    """What torch tells of the CPU (features, cache sizes, cores); empty where this release does not tell."""
    import torch

    facts: object = getattr(torch.cpu, "get_capabilities", dict)()
    return facts if isinstance(facts, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
