"""From tasks to a result: starts what measures, finds out what the machine can do, and searches."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from attncc.bench.peak import measure as measure_peak
from attncc.target import detect
from attncc.tuning import session
from attncc.tuning.database import Database
from attncc.tuning.local import LocalMeasurer
from attncc.tuning.measure import Measurer
from attncc.tuning.result import Tuned
from attncc.tuning.search import Budget
from attncc.tuning.session import Say
from attncc.tuning.task import Task


def tune_tasks(
    tasks: Sequence[Task],
    budget: Budget,
    database: str | PathLike[str] | None = None,
    measurer: Measurer | None = None,
    progress: Say | None = None,
    seed: int = 0,
    neighbours: bool = False,
) -> Tuned:
    """Search all tasks within a budget, on this machine unless a measurer is given, and put it all on record."""
    records, say = Database(database), progress or _silent
    target = tasks[0].target if tasks else detect()
    if not tasks:
        return Tuned(session.Session(), target, records.path)
    if measurer is not None:
        found = session.run(tasks, budget, measurer, records, neighbours=neighbours, say=say, seed=seed)
        return Tuned(found, target, records.path)
    local = LocalMeasurer()
    try:
        found = session.run(tasks, budget, local, records, peak=measure_peak, neighbours=neighbours, say=say, seed=seed)
    finally:
        local.close()
    return Tuned(found, target, records.path)


def _silent(progress: session.Progress) -> None:
    pass
