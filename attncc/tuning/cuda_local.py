"""Measuring on this machine's GPU: as on its CPU, by other functions, in a process of its own.

Not yet run on a GPU: see `attncc.tuning.cuda_worker`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attncc.runtime.cuda import devices
from attncc.target import Target
from attncc.tuning import cuda_worker
from attncc.tuning.local import LocalMeasurer, T
from attncc.tuning.processes import Failure, Runner

PATIENCE = 60.0
"""Seconds after which a candidate counts as hanging: nvrtc's, and those in which a new process finds the GPU."""


class CudaMeasurer(LocalMeasurer):
    """A `Measurer` on torch's current GPU. Raises RuntimeError where there is none that kernels are made for."""

    steps = cuda_worker

    def __init__(self, patience: float = PATIENCE, builders: int | None = None) -> None:
        self._target = gpu()
        super().__init__(patience, builders)

    @property
    def target(self) -> Target:
        """The GPU."""
        return self._target

    def _run(self, function: Callable[..., T], *args: Any, patience: float) -> T | Failure:
        found = super()._run(function, *args, patience=patience)
        if isinstance(found, Failure) and self._runner.call(cuda_worker.alive, patience=patience) is not True:
            # An error of CUDA stays with its process, and would be every later candidate's.
            self._runner.close()
            self._runner = Runner()
        return found


def gpu() -> Target:
    """Torch's current GPU. Raises RuntimeError, saying what was found, where there is none to tune for."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        found = f"torch {torch.__version__} " + (f"finds none (it is built for {built})" if built else "is a CPU build")
        raise RuntimeError(
            f"--device cuda needs an NVIDIA GPU, and {found}; run it on a machine that has one with a torch for CUDA, "
            "or leave --device out to tune for this machine's CPU"
        )
    target = devices.target(torch.cuda.current_device())
    if target is None:
        raise RuntimeError(f"{torch.cuda.get_device_name()} is no NVIDIA GPU: attention runs on it as PyTorch runs it")
    return target
