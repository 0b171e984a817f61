"""`attncc tune --check`: measure what the database claims again, beside the default, and record what comes out.

A record that no longer wins is superseded by the new one, so the runtime stops using it; one of an older release that
still wins is from then on a record of this release.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from attncc import schedules
from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target, detect
from attncc.tuning.bucket import Bucket
from attncc.tuning.database import Database, winners
from attncc.tuning.paired import Paired
from attncc.tuning.record import LEAST_GAIN, Record
from attncc.tuning.sources import shipped
from attncc.tuning.versions import Versions

if TYPE_CHECKING:
    from attncc.tuning.measure import Measurer

TURNS = 21
MOST_ELEMENTS = 1 << 30
"""Of q, k and v together."""


@dataclass(frozen=True)
class Verdict:
    """What became of one record's claim."""

    record: Record
    """The record that claimed to beat the default."""
    state: Literal["confirmed", "lost", "regressed", "failed", "unclear", "skipped"]
    """It still wins; is no faster than the default; is slower, by more than the noise; crashed, hung or computed
    wrongly; was measured on a machine too busy to tell; could not be measured."""
    reason: str
    """The same with figures, for people."""
    measured: Record | None = None
    """What was measured now, and recorded."""

    @property
    def bad(self) -> bool:
        """Whether calls were slower, or wrong, for this record until now."""
        return self.state in ("regressed", "failed")


def recheck(
    database: Database,
    target: Target | None = None,
    *,
    measurer: Measurer | None = None,
    turns: int = TURNS,
    progress: Callable[[Record, int, int], None] | None = None,
) -> list[Verdict]:
    """Measure every record that `target` (the host, by default) takes decisions from, and those of other versions that
    it would, in interleaved turns with the default; the results are appended to `database`.

    Where a record loses, the next best of its task is measured too. Shipped records are checked with the user's own.
    `progress` hears the record that is next, the number of its task and how many tasks there are. Raises OSError where
    the database cannot be used.
    """
    from attncc.tuning.local import LocalMeasurer

    here = target or detect()
    claims = _claims(database, here)
    if not claims:
        return []
    verdicts: list[Verdict] = []
    with contextlib.ExitStack() as stack:
        used = measurer or stack.enter_context(contextlib.closing(LocalMeasurer()))
        for number, group in enumerate(claims):
            for record in group:
                if progress is not None:
                    progress(record, number, len(claims))
                verdicts.append(_verdict(record, here, used, turns))
                if verdicts[-1].measured is not None:
                    database.append(verdicts[-1].measured)
                if verdicts[-1].state == "confirmed":
                    break
    return verdicts


def _claims(database: Database, here: Target) -> list[list[Record]]:
    """The winners that can be built here, task by task, the best of a task first."""
    groups: dict[tuple[str, Bucket], dict[object, Record]] = {}
    files = [database, *(source.database for source in shipped())]
    for record in winners(record for file in files for record in file.records()):
        renewed = replace(record, versions=Versions.current(here), target=here)
        if record.target.kind == here.kind and record.target.arch == here.arch and renewed.fits(here):
            group = groups.setdefault((record.spec, record.bucket), {})
            group.setdefault(renewed.candidate, record)
    return [sorted(group.values(), key=lambda record: -(record.gain or 0.0)) for group in groups.values()]


def _verdict(record: Record, here: Target, measurer: Measurer, turns: int) -> Verdict:
    """One claim, measured."""
    from attncc.tuning.measure import Candidate
    from attncc.tuning.task import Task

    spec = AttentionSpec.from_json(record.spec)
    family = schedules.select(spec, record.problem, here)
    if family.name != record.family:
        return Verdict(record, "skipped", f"{family.name} is the default now, and the record is of {record.family}")
    default = family.decisions(spec, here)
    if default == record.decisions:
        return Verdict(record, "skipped", "its decisions are the default's now")
    if large := _too_large(spec, record.problem):
        return Verdict(record, "skipped", large)
    task, candidate = Task(spec, family.name, record.problem, here), Candidate(dict(record.decisions))
    known: dict[str, Any] = {
        "spec": record.spec, "family": record.family, "decisions": record.decisions, "problem": record.problem,
        "target": here, "trials": record.trials, "default_family": family.name, "default_decisions": default,
        "versions": Versions.current(here),
    }  # fmt: skip
    try:
        ((_, outcome),) = measurer.measure(task, [candidate])  # checks its results, too
        found = measurer.compare(task, [Candidate(default), candidate], turns=turns)
    except (ValueError, RuntimeError) as error:  # no operands can be made up, or none of these sizes
        return Verdict(record, "skipped", str(error))
    if outcome.seconds is None:
        return Verdict(record, "failed", outcome.failure, Record(**known, status="failed", failure=outcome.failure))
    if unsure := next((o.failure for o in found.outcomes if o.seconds is None), None):
        return Verdict(record, "skipped", f"it ran, and then could not be compared: {unsure}")
    pair = Paired.of(found.outcomes[1].turns, found.outcomes[0].turns)
    sdpa = None if found.sdpa is None else found.sdpa.seconds
    return _judged(record, Record(**known, **asdict(pair), sdpa_seconds=sdpa))


def _too_large(spec: AttentionSpec, problem: Problem) -> str | None:
    """Why sizes, which anybody may have written, are not measured: the operands would not fit most machines."""
    rows = problem.q_len + 2 * problem.kv_len
    elements = problem.batch * problem.heads * rows * max(spec.head_dim, spec.value_dim)
    return f"its operands have {elements:.1g} elements" if elements > MOST_ELEMENTS else None


def _judged(record: Record, now: Record) -> Verdict:
    claimed, gain, spread = record.gain or 0.0, now.gain or 0.0, now.spread or 0.0
    figures = f"{gain:+.1%} ± {spread:.1%}, and {claimed:+.1%} when it was recorded"
    if now.wins:
        return Verdict(record, "confirmed", figures, now)
    if gain < -max(LEAST_GAIN, spread):
        return Verdict(record, "regressed", figures, now)
    if spread > claimed:  # what was claimed could not have shown either
        return Verdict(record, "unclear", f"{figures}: try again on a quiet machine")
    return Verdict(record, "lost", figures, now)
