"""Buckets of sizes: calls that are near enough to each other to share their tuned decisions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from attncc.schedules.family import Problem

_TEXT = re.compile(r"h(\d{1,19}) q(\d{1,19}) k(\d{1,19}) t(\d{1,19})")


@dataclass(frozen=True, order=True)
class Bucket:
    """Sizes of calls, each rounded up to a power of two. `str` gives `h16 q1024 k1024 t2`, which `parse` reads.

    Raises ValueError for a size that is no power of two.
    """

    heads: int
    """Batch times query heads: tiles of either run apart from each other."""
    q_len: int
    kv_len: int
    threads: int

    def __post_init__(self) -> None:
        if any(size < 1 or size & (size - 1) for size in self.sizes):
            raise ValueError(f"sizes of a bucket are powers of two, not {self}")

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """All four."""
        return self.heads, self.q_len, self.kv_len, self.threads

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """The bucket that a call of these sizes falls into."""
        return cls(*(1 << doublings for doublings in doublings_of(problem)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`. Raises ValueError for any other text."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no bucket of sizes; one reads 'h16 q1024 k1024 t2'")
        return cls(*map(int, found.groups()))

    def distance(self, other: Bucket) -> int:
        """How many doublings lie between two buckets, over all four sizes."""
        pairs = zip(self.sizes, other.sizes, strict=True)
        return sum(abs(one.bit_length() - two.bit_length()) for one, two in pairs)

    def __str__(self) -> str:
        return f"h{self.heads} q{self.q_len} k{self.kv_len} t{self.threads}"


def doublings_of(problem: Problem) -> tuple[int, int, int, int]:
    """The logarithms of the sizes of a problem's bucket: what tells buckets apart, at a fraction of their cost."""
    return (
        (problem.batch * problem.heads - 1).bit_length(),
        (problem.q_len - 1).bit_length(),
        (problem.kv_len - 1).bit_length(),
        (problem.threads - 1).bit_length(),
    )
