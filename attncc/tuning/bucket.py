"""Buckets of sizes: calls that are near enough to each other to share their tuned decisions."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
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
        if any(size < 1 or size & (size - 1) for size in astuple(self)):
            raise ValueError(f"sizes of a bucket are powers of two, not {self}")

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """The bucket that a call of these sizes falls into."""
        sizes = (problem.batch * problem.heads, problem.q_len, problem.kv_len, problem.threads)
        return cls(*(1 << (size - 1).bit_length() for size in sizes))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`. Raises ValueError for any other text."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no bucket of sizes; one reads 'h16 q1024 k1024 t2'")
        return cls(*map(int, found.groups()))

    def distance(self, other: Bucket) -> int:
        """How many doublings lie between two buckets, over all four sizes."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return sum(abs(one.bit_length() - two.bit_length()) for one, two in pairs)

    def __str__(self) -> str:
        return f"h{self.heads} q{self.q_len} k{self.kv_len} t{self.threads}"
