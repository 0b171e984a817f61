"""What is tuned: one attention by one schedule family, for sizes of one bucket, on one target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

from attncc.schedules import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.bucket import Bucket
from attncc.tuning.measure import Candidate
from attncc.tuning.record import family_named
from attncc.tuning.sample import Sample, generated


@dataclass(frozen=True)
class Task:
    """See the module's docstring. Two tasks are the same where spec, family, bucket and target are (`key`).

    Raises ValueError for a family that the target does not have, or that does not take the spec.
    """

    spec: AttentionSpec
    family: str
    """The name of the schedule family that the runtime chooses for these sizes."""
    problem: Problem
    """The sizes that are measured, which stand for all of their bucket."""
    target: Target
    calls: int = 1
    """How often a run of the model makes such a call."""
    label: str = ""
    """What the user calls it: a shape, or where in a model it stands."""
    sample: Sample | None = field(default=None, compare=False, repr=False)
    """How the operands of a call lay in memory; where there is none, they are made up."""

    def __post_init__(self) -> None:
        found = family_named(self.family, self.target)
        if found is None:
            raise ValueError(f"there is no kernel family {self.family!r} for {self.target}")
        declined = found.declines(self.spec, self.target)
        if declined is not None:
            raise ValueError(f"{self.family} does not take this attention: {declined.reason}")

    @cached_property
    def schedules(self) -> Family:
        """The family itself."""
        found = family_named(self.family, self.target)
        if found is None:
            raise ValueError(f"there is no kernel family {self.family!r} for {self.target}")
        return found

    @property
    def bucket(self) -> Bucket:
        """The bucket that what is found will serve."""
        return Bucket.of(self.problem)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells tasks apart."""
        return self.spec, self.family, self.bucket, self.target

    @cached_property
    def space(self) -> Mapping[str, tuple[int, ...]]:
        """What the family's decisions may be."""
        return self.schedules.space(self.spec, self.target)

    @cached_property
    def points(self) -> int:
        """How many candidates there are."""
        return sum(1 for _ in self.candidates())

    def candidates(self) -> Iterator[Candidate]:
        """All of them: the points of the space whose decisions go together."""
        for values in product(*self.space.values()):
            decisions = dict(zip(self.space, values, strict=True))
            if self.schedules.unfit(self.spec, self.target, decisions) is None:
                yield Candidate(decisions)

    @cached_property
    def default(self) -> Candidate:
        """The family's analytic decisions."""
        return Candidate(self.schedules.decisions(self.spec, self.target))

    @cached_property
    def operands(self) -> Sample:
        """The sample that candidates are measured on. Raises ValueError where none can be made up."""
        return self.sample or generated(self.spec, self.problem)

    def __str__(self) -> str:
        p = self.problem
        sizes = f"B{p.batch} H{p.heads} Sq{p.q_len} Skv{p.kv_len} D{self.spec.head_dim} {self.spec.dtype}"
        return f"{self.label or sizes} ({self.family})"


def distinct(tasks: Iterable[Task]) -> list[Task]:
    """One task for each spec, family and bucket, with the calls of all: of several sizes the one called most."""
    found: dict[tuple[object, ...], list[Task]] = {}
    for task in tasks:
        found.setdefault(task.key, []).append(task)
    merged = []
    for group in found.values():
        leader = max(group, key=lambda task: task.calls)
        merged.append(replace(leader, calls=sum(task.calls for task in group)))
    return merged
