"""What is known of NVIDIA GPUs by their compute capability."""

from __future__ import annotations

from attncc.target import Target

LONGEST = 2**29 - 1
"""Query rows or keys of a call at most, so that positions and their sums are int32."""
_SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
"""Shared memory that a thread block may have by compute capability, in KiB."""


def capability(target: Target) -> int:
    """80 for "sm_80", 90 for "sm_90a"."""
    return int("".join(filter(str.isdigit, target.mcpu)))


def shared_limit(target: Target) -> int:
    """Bytes of shared memory that a thread block may have; as little as any has on a GPU that is not known."""
    return shared_bytes(capability(target))


def shared_bytes(compute: int) -> int:
    """The same by compute capability, times 10."""
    return _SHARED.get(compute, min(_SHARED.values())) << 10
