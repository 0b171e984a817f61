"""`attncc tune --tracker`: measuring on a fleet of devices instead of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attncc.tuning.fleet import RpcMeasurer

TrackerOption = Annotated[
    str | None,
    typer.Option("--tracker", help="host:port of a tracker: measure on its devices under --key (`attncc device`)."),
]
KeyOption = Annotated[str | None, typer.Option("--key", help="With --tracker: the kind of machine to tune for.")]


@contextmanager
def measuring(tracker: str | None, key: str | None) -> Iterator[RpcMeasurer | None]:
    """The measurer of the fleet that was named; None for this machine, where none was.

    Raises ValueError for half a name, ConnectionError where no device answers.
    """
    if tracker is None and key is None:
        yield None
        return
    if tracker is None or key is None:
        raise ValueError("--tracker HOST:PORT and --key KEY go together: they name the devices to measure on")
    from attncc.tuning.fleet import measurer

    with closing(measurer(tracker, key)) as fleet:
        yield fleet
