"""Where `attncc tune` measures: on this machine's CPU, on its GPU (`--device`), or on a fleet (`--tracker`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attncc.tuning.measure import Measurer

TrackerOption = Annotated[
    str | None,
    typer.Option("--tracker", help="host:port of a tracker: measure on its devices under --key (`attncc device`)."),
]
KeyOption = Annotated[str | None, typer.Option("--key", help="With --tracker: the kind of machine to tune for.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu; or cuda: kernels for torch's current NVIDIA GPU, measured there.")
]


@contextmanager
def measuring(tracker: str | None, key: str | None, device: str = "cpu") -> Iterator[Measurer | None]:
    """The measurer of the fleet that was named, or of the GPU; None for this machine's CPU.

    Raises ValueError for half a name, ConnectionError where no device answers, RuntimeError where there is no GPU.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device {device}: there is cpu and cuda")
    if device == "cuda":
        if tracker is not None or key is not None:
            raise ValueError("--device cuda measures on this machine: it takes no --tracker and no --key")
        from attncc.tuning.cuda_local import CudaMeasurer

        with closing(CudaMeasurer()) as gpu:
            yield gpu
        return
    if tracker is None and key is None:
        yield None
        return
    if tracker is None or key is None:
        raise ValueError("--tracker HOST:PORT and --key KEY go together: they name the devices to measure on")
    from attncc.tuning.fleet import measurer

    with closing(measurer(tracker, key)) as fleet:
        yield fleet
