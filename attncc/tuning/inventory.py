"""What databases hold, task by task, for people: `attncc db` and `attncc info`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.database import latest
from attncc.tuning.record import Record, machine
from attncc.tuning.sources import sources


@dataclass(frozen=True)
class Entry:
    """One task: an attention at sizes of one bucket on one kind of machine, and what its records come to."""

    record: Record
    """The winner; else the best that was compared with the default; else the fastest."""
    measured: int
    failed: int
    use: str
    """"used", or why it is not."""


@dataclass(frozen=True)
class Held:
    """What the runtime finds in one file."""

    path: str
    shipped: bool
    used: int
    """Tasks with a record that the runtime uses on this machine."""
    unused: int
    problem: str = ""
    """Why the file cannot be used."""


def entries(records: Iterable[Record], target: Target) -> list[Entry]:
    """One entry a task, by attention and size; `use` is for a machine like `target`."""
    tasks: dict[tuple[object, ...], list[Record]] = {}
    for record in latest(records):
        tasks.setdefault(record.task, []).append(record)
    found = []
    for group in tasks.values():
        best = leading(group)
        failed = sum(record.status == "failed" for record in group)
        found.append(Entry(best, len(group) - failed, failed, _use(best, target)))
    return sorted(found, key=lambda entry: (entry.record.name, entry.record.bucket, entry.record.target.key))


def essence(records: Iterable[Record]) -> list[Record]:
    """What is worth handing on: of each task its winner, or where nothing beat the default the record that says so."""
    tasks: dict[tuple[object, ...], list[Record]] = {}
    for record in latest(records):
        if record.gain is not None:
            tasks.setdefault(record.task, []).append(record)
    return [leading(group) for group in tasks.values()]


def leading(records: Iterable[Record]) -> Record:
    """The winner of a task's records, else the best one beside the default, else the fastest, else one that failed."""

    def rank(record: Record) -> tuple[bool, bool, float, float]:
        seconds = math.inf if record.seconds is None else record.seconds
        return record.wins, record.gain is not None, record.gain or 0.0, -seconds

    return max(records, key=rank)


def held(target: Target) -> list[Held]:
    """The files that the runtime looks into, in its order, those that do not exist left out."""
    found = []
    for source in sources():
        if source.stamp() is None:
            continue
        try:
            listed = entries(source.database.records(), target)
        except OSError as error:
            found.append(Held(str(source.path), source.shipped, 0, 0, str(error)))
            continue
        used = sum(entry.use == "used" for entry in listed)
        found.append(Held(str(source.path), source.shipped, used, len(listed) - used))
    return found


def meaning(record: Record) -> str:
    """The attention of a record as a formula, or what is wrong with it."""
    try:
        return str(AttentionSpec.from_json(record.spec))
    except Exception as error:  # one from a file may be anything at all
        return f"no attention of this version: {error}"


def _use(record: Record, target: Target) -> str:
    if record.status == "failed":
        return "every candidate failed"
    if record.gain is None:
        return "not compared with the default"
    if not record.wins:
        return "nothing beat the default"
    target = (_gpu() if record.target.kind == "cuda" else None) or target
    if reason := record.misfit(target):
        return reason
    return "used" if machine(record.target) == machine(target) else "used where no nearer record is"


def _gpu() -> Target | None:
    """Torch's current GPU, where there is one that kernels are made for."""
    import torch

    if not torch.cuda.is_available():
        return None
    from attncc.runtime.cuda import devices

    return devices.target(torch.cuda.current_device())
