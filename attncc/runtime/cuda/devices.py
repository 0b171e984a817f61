"""CUDA devices as targets."""

from __future__ import annotations

from functools import cache

import torch

from attncc.target import Target

TRIPLE = "nvptx64-nvidia-cuda"


@cache
def target(device: int) -> Target | None:
    """What kernels for torch's CUDA device number `device` are generated for; `cores` counts its multiprocessors.

    None for GPUs of other makers, which torch's ROCm builds call "cuda" too.
    """
    if torch.version.hip is not None:
        return None
    facts = torch.cuda.get_device_properties(device)
    return Target("cuda", arch(facts.major, facts.minor), TRIPLE, frozenset(), facts.multi_processor_count, 0, 0, 0)


def arch(major: int, minor: int) -> str:
    """nvcc's name of a compute capability; with the letter that Hopper's own instructions need."""
    return f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")
