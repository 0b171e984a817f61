"""Comparing a candidate with the default by turns that were taken together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Paired:
    """What a paired measurement gives a record."""

    seconds: float
    """The candidate's median."""
    default_seconds: float
    """The default's."""
    spread: float
    """The distance between the quartiles of the turns' ratios, relative to their median.

    With the usual dozen turns it is about four standard errors of the median: a gain beyond it is no accident. What
    slows both of a pair down, such as a lower clock, is not in it.
    """

    @classmethod
    def of(cls, candidate: Sequence[float], default: Sequence[float]) -> Self:
        """From seconds a call, the n-th turn of one beside the n-th of the other; ValueError under three turns."""
        if min(len(candidate), len(default)) < 3:
            raise ValueError(f"{len(candidate)} and {len(default)} turns say nothing of noise; take three at least")
        ratios = [theirs / ours for ours, theirs in zip(candidate, default, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(statistics.median(candidate), statistics.median(default), (high - low) / middle)
