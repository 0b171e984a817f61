"""Runs the CUDA code that TVM generates for a kernel on the CPU, and gives its result, or the race it found.

The device functions stay as they are; only the PTX instructions in them are replaced (`translate`), by functions of the
C++ in `device`. There, what is asynchronous happens as late as it may, at the wait for it; and every access of shared
memory is checked against all earlier ones, whatever order the threads ran in (`device/races.h`). So wrong indices,
wrong arithmetic, missing waits and missing barriers all show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kernel_harness import Case
from torch import Tensor

from attncc.runtime.cuda import build
from attncc.runtime.cuda.plan import CudaPlan
from attncc.schedules.cuda.families import CudaFamily
from attncc.schedules.family import Problem
from cuda_emulation.machine import DEVICE, EmulationError, available, gpu

__all__ = ["DEVICE", "EmulationError", "available", "gpu", "run"]


def run(
    family: CudaFamily,
    case: Case,
    folder: Path,
    processors: int = 4,
    arch: str = "sm_80",
    edit: Callable[[str], str] | None = None,
) -> Sequence[Tensor]:
    """The outputs of `case` by `family`, built, loaded and started by the runtime; its CUDA code changed by `edit`.

    Raises EmulationError for a race or a deadlock, CalledProcessError where g++ rejects the code.
    """
    spec = case.spec
    batch, heads, q_len, _ = case.q.shape
    problem = Problem(batch, heads, q_len, case.k.shape[2], processors)
    operands = (case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    with gpu(folder, processors, arch, edit) as target:
        declined = family.declines(spec, target)
        assert declined is None, declined
        kernel = build.kernel(spec, target, family, family.decisions(spec, target), DEVICE)
        return CudaPlan(kernel, problem, "bhsd", operands).run(operands)
