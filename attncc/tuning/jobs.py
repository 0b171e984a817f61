"""What a fleet is given to do: jobs of kernels, and the work that they are part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from attncc.tuning.measure import Comparison, Outcome


class NoDevices(ConnectionError):
    """No device is left to measure on."""


@dataclass(eq=False)
class Job:
    """Kernels that are measured together on one device."""

    kernels: Sequence[Future[bytes]]
    """Their LLVM IR, as soon as it is built."""
    request: Mapping[str, Any]
    limit: float
    """Seconds that it may take a device."""
    result: Comparison | None = None
    lost: list[str] = field(default_factory=list)
    """How devices were lost with it."""


@dataclass(frozen=True)
class Work:
    """What every session with a device is begun with."""

    request: Mapping[str, Any]
    task: tuple[str, bytes]
    kernel: Future[bytes]
    """The default's."""
    limit: float
    """Seconds that a device may take to prepare it."""
    patience: float
    """Seconds that building a kernel may take here."""


def failed(job: Job, reason: str) -> Comparison:
    """The result of a job of which no kernel can be chosen."""
    return Comparison((Outcome.failed(reason),) * len(job.kernels))
