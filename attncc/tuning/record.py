"""A tuning record: one candidate's decisions for one attention, sizes and machine, and how it fared. One JSON line.

Decisions are names and numbers. They are checked against the family's space before they reach a schedule, so the worst
that a wrong or forged record can do is to be slow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Self

from attncc import schedules
from attncc.schedules import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning import fields
from attncc.tuning.bucket import Bucket
from attncc.tuning.versions import Versions

LEAST_GAIN = 0.02
"""A candidate must be this much faster than the default, whatever its measurement's noise claims to be."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured (or failed) candidate. `to_json` gives its line, `from_json` reads and checks one."""

    spec: str
    """The AttentionSpec's canonical JSON."""
    family: str
    decisions: Mapping[str, int]
    problem: Problem
    """The sizes that were measured; `bucket` is what they stand for."""
    target: Target
    """The machine that it was measured on."""
    status: Literal["ok", "failed"] = "ok"
    failure: str = ""
    """Why a failed candidate failed: it crashed, hung, computed wrong results, could not be built."""
    seconds: float | None = None
    """Median time of a call; None for a failed candidate."""
    spread: float | None = None
    """Noise of the measurement as a fraction: the distance between the quartiles of the turns' ratios of default to
    candidate, relative to their median (of the candidate's times where the default was not measured beside it)."""
    default_seconds: float | None = None
    """The default's median in the same turns (a paired measurement); None where it was not measured beside."""
    default_family: str | None = None
    default_decisions: Mapping[str, int] | None = None
    """What ran without this record, when it was measured."""
    sdpa_seconds: float | None = None
    """PyTorch's SDPA in the same turns, where it computes this attention."""
    trials: int = 0
    """Candidates of this task measured so far, this one included."""
    versions: Versions
    date: str = field(default_factory=_now)
    """ISO 8601, UTC."""

    @property
    def name(self) -> str:
        """The spec's name."""
        return hashlib.sha256(self.spec.encode()).hexdigest()

    @property
    def bucket(self) -> Bucket:
        """The bucket of its sizes."""
        return Bucket.of(self.problem)

    @property
    def task(self) -> tuple[object, ...]:
        """What records that compete with each other share: attention, sizes and machine."""
        return self.spec, self.bucket, machine(self.target)

    @property
    def candidate(self) -> tuple[object, ...]:
        """Task, kernel and versions: a later record of the same candidate supersedes an earlier one."""
        versions = self.versions.attncc, self.versions.abi, self.versions.tvm
        return *self.task, self.family, tuple(sorted(self.decisions.items())), versions

    @property
    def gain(self) -> float | None:
        """How much faster than the default, as a fraction: 0.1 where the default takes 10% longer. None if unpaired."""
        if self.status != "ok" or self.seconds is None or self.default_seconds is None:
            return None
        return self.default_seconds / self.seconds - 1

    @property
    def wins(self) -> bool:
        """Whether it beat the default in a paired measurement by more than the noise."""
        gain, spread = self.gain, self.spread
        if (self.family, self.decisions) == (self.default_family, self.default_decisions):
            return False  # the default itself, whatever the clock said
        return gain is not None and spread is not None and gain > max(LEAST_GAIN, spread)

    @property
    def summary(self) -> str:
        """When and for what it was measured, and its gain, in a few words for people."""
        when = f"{self.date[:10]} for {self.bucket}"
        if self.status == "failed":
            return f"failed {when}: {self.failure}"
        gain = self.gain
        return f"tuned {when}" + ("" if gain is None else f", {gain:.0%} faster than the default")

    def misfit(self, target: Target) -> str | None:
        """Why these decisions cannot be used for `target` by this version, or None where they can.

        Says nothing about whether they are fast there.
        """
        if outdated := self.versions.differs():
            return outdated
        if self.target.kind != target.kind or self.target.arch != target.arch:
            return f"made for {self.target.kind} {self.target.arch}, and this is {target.kind} {target.arch}"
        if missing := sorted(self.target.features - target.features):
            return f"made on {self.target.mcpu}, which has {', '.join(missing)}; {target.mcpu} has not"
        family = family_named(self.family, target)
        if family is None:
            return f"this version has no kernel family {self.family!r} for {target.kind}"
        try:
            spec = AttentionSpec.from_json(self.spec)
            declined = family.declines(spec, target)
            return declined.reason if declined is not None else outside(self.decisions, family, spec, target)
        except Exception as error:  # an attention from a file may be anything at all
            return f"its attention does not parse: {type(error).__name__}: {error}"

    def fits(self, target: Target) -> bool:
        """Whether these decisions can be used for `target` by this version."""
        return self.misfit(target) is None

    def to_json(self) -> str:
        """Its line, without the end of line: keys in the order of reading, the spec as it is."""
        return json.dumps(fields.written(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """The record of a line. Raises ValueError, saying what is wrong, for anything that is not one."""
        return cls(**fields.read(line))


def machine(target: Target) -> tuple[object, ...]:
    """What records of one kind of machine share: its code, and the caches that tiles are fitted to.

    Cores are not part of it, as the threads of a call are part of its sizes; nor is L3, which a cloud shares out.
    """
    return target.key, target.l1, target.l2


def family_named(name: str, target: Target) -> Family | None:
    """The family of that name for such targets."""
    return next((family for family in schedules.families(target) if family.name == name), None)


def outside(decisions: Mapping[str, int], family: Family, spec: AttentionSpec, target: Target) -> str | None:
    """Which decision is not in the family's space, or why they do not go together; None where all is well."""
    space = family.space(spec, target)
    if decisions.keys() != space.keys():
        return f"{family.name} decides {', '.join(sorted(space))}; this has {', '.join(sorted(decisions))}"
    for name, value in decisions.items():
        # `in` alone would take True for 1 and 8.0 for 8.
        if type(value) is not int or value not in space[name]:
            return f"{family.name}: {name}={value!r} is not one of {', '.join(map(str, space[name]))}"
    reason = family.unfit(spec, target, decisions)
    return reason and f"{family.name} with {' '.join(f'{n}={v}' for n, v in decisions.items())}: {reason}"
