"""Which decisions a call gets: those of the best record that fits, else the family's analytic ones.

In order: a record of this kind of machine and this very bucket of sizes; of the nearest bucket; of the nearest machine.
A tuned kernel must not be slower than the default, so a record counts only where

- it beat the default in a paired measurement by more than the noise (`Record.wins`), the latest of its candidate;
- what it was compared with is what would run here without it: same family, same decisions;
- it fits: this release of attncc, of its kernels' interface and of TVM, features that the machine has, decisions within
  the family's space. Where only the kernels' sources have changed since, as they do for those who work on attncc, the
  gain must exceed the noise by `OTHER_SOURCES` more;
- for each doubling of a size between its bucket and the call's, the gain exceeds the noise by `NEXT_BUCKET` more, and
  by `OTHER_MACHINE` on another kind of machine: what was not measured needs the better evidence.

Where the nearest bucket was tuned and nothing there beat the default, that is the answer too. Records of another
attention are never used, however similar: a mask or a score decides how much of a tile is work, and what was measured
for one says nothing certain of the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from attncc.runtime.stats import DEFAULT
from attncc.schedules import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.bucket import Bucket, doublings_of
from attncc.tuning.database import latest
from attncc.tuning.record import LEAST_GAIN, Record, family_named, machine
from attncc.tuning.sources import Source, Stamp, sources
from attncc.tuning.versions import Versions

OTHER_SOURCES = 0.05
NEXT_BUCKET = 0.05
OTHER_MACHINE = 0.10
FARTHEST = 2
"""Doublings between buckets that a record is carried over."""


@dataclass(frozen=True)
class Choice:
    """What a call runs."""

    family: Family
    decisions: Mapping[str, int]
    source: str
    """Where the decisions come from, for people: "analytic default", "tuned here 2026-11-23 for h16 q1024 …"."""
    record: Record | None = None
    """The record that they are of; None for the default."""


@dataclass(frozen=True)
class _Found:
    """A record that may be used, with the source to tell, or the news that here the default is best."""

    record: Record | None
    source: str


_Known = tuple[Source, Sequence[Record]]
_Rank = tuple[tuple[float, ...], int, int]
"""How far a record is: the machine, doublings of sizes, the place of its file."""


def choice(spec: AttentionSpec, family: Family, target: Target, problem: Problem) -> Choice:
    """The decisions for a call of these sizes, for which `family` would be taken without records.

    A record may name another family, which must suit these sizes as well. Reads the databases when this attention and
    bucket are asked for the first time, and when a file has changed.
    """
    found = _found(spec, family, target, problem)
    for candidate in found:
        record = candidate.record
        if record is None:
            return analytic(spec, family, target, candidate.source)
        other = family if record.family == family.name else family_named(record.family, target)
        if other is not None and (other is family or other.suits(spec, problem)):
            return Choice(other, record.decisions, candidate.source, record)
    return analytic(spec, family, target)


def analytic(spec: AttentionSpec, family: Family, target: Target, source: str = DEFAULT) -> Choice:
    """What runs without records."""
    return Choice(family, family.decisions(spec, target), source)


def _found(spec: AttentionSpec, family: Family, target: Target, problem: Problem) -> tuple[_Found, ...]:
    """What the records say of such calls, best first; remembered for as long as no file changes.

    A cache that grows by a key a call asks at each of them: the way to what is remembered is short.
    """
    stamped = tuple([(source, source.stamp()) for source in sources()])
    key = (spec.name, family.name, target, doublings_of(problem))
    known = _remembered.get(key)
    if known is not None and known[0] == stamped:
        return known[1]
    if len(_remembered) >= _MOST_REMEMBERED:
        _remembered.clear()
    records = [(source, _records(source, stamp, spec.name)) for source, stamp in stamped if stamp is not None]
    found = tuple(_judged(spec, family, target, Bucket.of(problem), records))
    _remembered[key] = stamped, found
    return found


@lru_cache(256)
def _records(source: Source, stamp: Stamp, name: str) -> tuple[Record, ...]:
    """The last record of each candidate for the attention of that name, as long as the file is as `stamp` says."""
    return tuple(latest(source.records(name)))


def _judged(
    spec: AttentionSpec, family: Family, target: Target, bucket: Bucket, known: Sequence[_Known]
) -> Iterator[_Found]:
    """The verdict of the nearest records there are: nothing where there are none."""
    default = family.name, family.decisions(spec, target)
    misfits: list[str] = []
    usable: dict[_Rank, list[Record]] = {}
    for place, (_, records) in enumerate(known):
        for record in records:
            if record.gain is None:
                continue
            distance = record.bucket.distance(bucket)
            if reason := _unusable(record, default, target):
                misfits.append(reason)
            elif distance <= FARTHEST:
                usable.setdefault((_strangeness(record.target, target), distance, place), []).append(record)
    if usable:
        nearest = min(usable)
        yield from _verdict(usable[nearest], known[nearest[2]][0], target, nearest[1])
    elif misfits:
        yield _Found(None, f"{DEFAULT}: {_count(len(misfits), 'record')} not used, {misfits[-1]}")


def _strangeness(there: Target, here: Target) -> tuple[float, ...]:
    """How unlike two machines are: compared in order, whether at all, the CPU, its features, L2 in doublings."""
    if machine(there) == machine(here):
        return (0,)
    caches = abs(math.log2(max(there.l2, 1) / max(here.l2, 1)))
    return 1, there.mcpu != here.mcpu, len(there.features ^ here.features), caches


def _unusable(record: Record, default: tuple[str, Mapping[str, int]], target: Target) -> str | None:
    """Why a paired record says nothing here, or None."""
    if reason := record.misfit(target):
        return reason
    if (record.default_family, record.default_decisions) != default:
        return f"compared with another default than {default[0]}'s; attncc tune --check measures it anew"
    return None


def _verdict(records: Sequence[Record], source: Source, target: Target, distance: int) -> Iterator[_Found]:
    """What records of one origin, at one distance, say: those that won by enough, the best first, then the default."""
    buckets = {record.bucket: False for record in records}
    for record in records:
        buckets[record.bucket] |= record.wins
    names = ", ".join(map(str, sorted(buckets)))
    if all(buckets.values()):
        enough = [record for record in records if record.wins and _excess(record, target, distance) > 0]
        for record in sorted(enough, key=lambda record: -(record.gain or 0.0)):
            yield _Found(record, _told(record, source, target, distance))
        yield _Found(None, f"{DEFAULT}: what won for {names} won too little to be carried over")
    else:
        yield _Found(None, f"{DEFAULT}: nothing beat it for {names}")


def _excess(record: Record, target: Target, distance: int) -> float:
    """By how much a record's gain is larger than what is asked of it here."""
    asked = max(LEAST_GAIN, record.spread or 0.0) + NEXT_BUCKET * distance
    if record.versions.generators != Versions.current(target).generators:
        asked += OTHER_SOURCES
    if machine(record.target) != machine(target):
        asked += OTHER_MACHINE
    return (record.gain or 0.0) - asked


def _told(record: Record, source: Source, target: Target, distance: int) -> str:
    """Where the decisions of a record come from, for people."""
    words = ["nearest bucket:"] if distance else []
    if machine(record.target) != machine(target):
        words = [f"nearest machine, {record.target.mcpu}:", *words]
    origin = "shipped with attncc" if source.shipped else record.target.mcpu
    return " ".join([*words, record.summary, f"({origin})"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_MOST_REMEMBERED = 4096
_remembered: dict[object, tuple[object, tuple[_Found, ...]]] = {}
