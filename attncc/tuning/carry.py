"""How much of a win carries over to sizes nearby: the winner against the default at half and at twice the lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from attncc import schedules
from attncc.tuning.database import Database
from attncc.tuning.measure import Candidate, Measurer
from attncc.tuning.paired import Paired
from attncc.tuning.record import Record
from attncc.tuning.search import Search
from attncc.tuning.task import Task
from attncc.tuning.versions import Versions


def carried(state: Search, measurer: Measurer, database: Database) -> list[Record]:
    """Paired measurements of a search's winner in the buckets next to its own; they are put on record as well.

    None where there is no winner, for sizes that another family runs, and for attention whose operands cannot be made
    up at other sizes.
    """
    winner, found = state.winner, []
    if winner is None:
        return []
    for task in neighbours(state.task):
        candidates = [task.default, Candidate(dict(winner.decisions))]
        try:
            compared = measurer.compare(task, candidates)
        except ValueError:
            continue
        if any(outcome.seconds is None for outcome in compared.outcomes):
            continue
        default, own = (outcome.turns for outcome in compared.outcomes)
        found.append(
            Record(
                spec=task.spec.json, family=task.family, decisions=candidates[1].decisions, problem=task.problem,
                target=task.target, **asdict(Paired.of(own, default)), default_family=task.family,
                default_decisions=dict(task.default.decisions), trials=1,
                versions=Versions.current(task.target),
                sdpa_seconds=None if compared.sdpa is None else compared.sdpa.seconds,
            )
        )  # fmt: skip
    database.append(*found)
    return found


def neighbours(task: Task) -> Iterator[Task]:
    """The same attention at half and at twice the lengths, a single query row staying one, where its family runs it."""
    p = task.problem
    for double in (False, True):
        kv_len = 2 * p.kv_len if double else max(1, p.kv_len // 2)
        q_len = p.q_len if p.q_len == 1 else 2 * p.q_len if double else max(1, p.q_len // 2)
        problem = replace(p, q_len=q_len, kv_len=kv_len)
        if schedules.select(task.spec, problem, task.target).name == task.family:
            yield replace(task, problem=problem, label="", sample=None)
