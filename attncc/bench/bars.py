"""What a row of the suite has to reach: a figure of each result, and its limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from attncc.bench.cases import Case
from attncc.bench.run import OURS, Result
from attncc.spec import AttentionSpec
from attncc.target import detect

Number = Callable[[Result], float | None]
Condition = Callable[[Result], bool]


@dataclass(frozen=True)
class Finding:
    """One figure that was measured, and whether it is what it has to be."""

    case: str
    what: str
    """The figure, in words: "of peak", "times SDPA's speed"."""
    value: float
    limit: float
    least: bool
    """Whether `limit` is the least that will do; the most otherwise."""

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True)
class Figure:
    """All findings of one bar, as the tables show them."""

    what: str
    bar: float
    least: bool
    met: int
    values: tuple[float, ...]
    worst: str
    """The case that is farthest from the bar, or nearest to it where all meet it."""

    @property
    def spread(self) -> str:
        """The range of the values."""
        return f"{min(self.values):.3g} to {max(self.values):.3g}"

    @property
    def share(self) -> str:
        """In how many cases it is met."""
        return f"{self.met} of {len(self.values)}"


def figures(findings: Iterable[Finding]) -> list[Figure]:
    """What was found, by bar, in the order of the findings."""
    groups: dict[tuple[str, float, bool], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.what, finding.limit, finding.least), []).append(finding)
    return [
        Figure(
            *bar,
            sum(finding.met for finding in found),
            tuple(finding.value for finding in found),
            min(found, key=lambda finding: finding.value if finding.least else -finding.value).case,
        )
        for bar, found in groups.items()
    ]


@dataclass(frozen=True)
class Bar:
    """A figure that results have, where `when` says so and its contenders were timed."""

    what: str
    value: Number
    limit: Number
    least: bool = True
    when: Condition = lambda result: True

    def findings(self, results: Iterable[Result]) -> list[Finding]:
        """The figure of every result that has one."""
        found = []
        for result in results:
            value = self.value(result) if result.passed and self.when(result) else None
            limit = None if value is None else self.limit(result)
            if value is not None and limit is not None:
                found.append(Finding(result.case.label, self.what, value, limit, self.least))
        return found


def always(result: Result) -> bool:
    """For bars that hold everywhere."""
    return True


def roofline(share: float, when: Condition = always) -> Bar:
    """At least this share of the measured peak, or of the read bandwidth."""

    def value(result: Result) -> float | None:
        seconds = result.seconds(OURS)
        return None if seconds is None else result.share(seconds)[1]

    return Bar("share of the roofline", value, lambda result: share, when=when)


def faster(times: float, than: str, when: Condition = always, name: str = OURS) -> Bar:
    """At least `times` as fast as the contender `than`."""
    words = f"{name} against {than}" if name != OURS else f"against {than}"
    return Bar(words, lambda result: _ratio(result, than, name), lambda result: times, when=when)


def within(times: float, of: str, when: Condition = always) -> Bar:
    """At most `times` the time of the variant `of`."""
    words = f"time beside {of}"
    return Bar(words, lambda result: _ratio(result, OURS, of), lambda result: times, False, when)


def less_than_linear(of: str) -> Bar:
    """Less than as many times the time of the variant `of`, of one row, as there are rows."""
    words = f"time beside {of}"
    return Bar(words, lambda result: _ratio(result, OURS, of), lambda result: result.case.q_len * 0.999, False)


def in_proportion(slack: float, of: str) -> Bar:
    """Within `slack` of the time of the variant `of`, times the share of its key blocks that are visited."""

    def value(result: Result) -> float | None:
        ratio = _ratio(result, OURS, of)
        return None if ratio is None else ratio / visited(result.case)

    words = f"time beside {of} x visited key blocks"
    return Bar(words, value, lambda result: slack, False)


def same_rate(share: float, of: str) -> Bar:
    """At least `share` of the arithmetic rate of the variant `of`."""

    def value(result: Result) -> float | None:
        entry, ratio = result.entry(of), _ratio(result, of, OURS)
        if ratio is None or entry is None or entry.case is None:
            return None
        return ratio * result.case.flops / entry.case.flops

    return Bar(f"rate beside {of}", value, lambda result: share)


def as_exact(than: str) -> Bar:
    """An error no larger than that of the contender `than`."""

    def value(result: Result) -> float | None:
        ours, theirs = result.entry(OURS), result.entry(than)
        return None if ours is None or theirs is None or theirs.failure else ours.error / theirs.error

    return Bar(f"error beside {than}", value, lambda result: 1.0, False)


def _ratio(result: Result, numerator: str, denominator: str) -> float | None:
    """Of the times of two contenders, where both were timed."""
    above, below = result.seconds(numerator), result.seconds(denominator)
    return None if above is None or below is None else above / below


def blocks(case: Case) -> tuple[int, int]:
    """Rows of a tile and keys of its smallest step, in the kernel that computes `case`."""
    from attncc import schedules

    target, group = detect(), case.heads // case.kv_heads
    spec = AttentionSpec(case.dtype, case.head_dim, case.columns, group=group)
    problem = schedules.Problem(case.batch, case.heads, case.q_len, case.kv_len, torch.get_num_threads())
    decisions = schedules.select(spec, problem, target).decisions(spec, target)
    keys = decisions.get("edge_block", decisions.get("key_block", 1))
    return decisions.get("query_block", case.q_len), keys


def visited(case: Case) -> float:
    """The share of the key blocks of `case` of which some row of their tile sees a key."""
    queries, keys = blocks(case)
    seen = total = 0
    for rows in case.all_rows.split(queries):
        keep = case.visible(rows)
        if keep is None:
            return 1.0
        some = keep.any(2)
        pad = -some.shape[-1] % keys
        hit = torch.nn.functional.pad(some, (0, pad)).unflatten(-1, (-1, keys)).any(-1)
        seen, total = seen + int(hit.sum()), total + hit.numel()
    return seen / total


def judge(bars: Sequence[Bar], results: Sequence[Result]) -> tuple[Finding, ...]:
    """All figures of `results`, case by case."""
    found = [finding for bar in bars for finding in bar.findings(results)]
    order = {result.case.label: position for position, result in enumerate(results)}
    return tuple(sorted(found, key=lambda finding: order[finding.case]))
