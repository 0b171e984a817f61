"""Which kernels of an artifact tuning chose, and for which sizes: what a call in this process would get."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attncc.schedules import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.bucket import Bucket
from attncc.tuning.choose import FARTHEST, Choice, choice
from attncc.tuning.sources import sources

if TYPE_CHECKING:
    from attncc.export.kernels import Call


def tuned(call: Call, family: Family, target: Target) -> Iterator[tuple[Bucket, Choice]]:
    """The buckets of sizes for which records have something better than `family` with its analytic decisions."""
    for bucket in sorted(_near_records(call.spec)):
        if _possible(call, bucket):
            found = choice(call.spec, family, target, Problem(1, *bucket.sizes))
            if found.record is not None:
                yield bucket, found


def _near_records(spec: AttentionSpec) -> set[Bucket]:
    """The buckets to which any record of an attention may be carried over."""
    recorded = {record.bucket for source in sources() for record in source.records(spec.name)}
    steps = [s for s in itertools.product(range(-FARTHEST, FARTHEST + 1), repeat=4) if sum(map(abs, s)) <= FARTHEST]
    near = ([(n.bit_length() - 1) + d for n, d in zip(b.sizes, s, strict=True)] for b in recorded for s in steps)
    return {Bucket(*(1 << n for n in doublings)) for doublings in near if min(doublings) >= 0}


def _possible(call: Call, bucket: Bucket) -> bool:
    """Whether the call may have such sizes."""
    heads = call.batch * call.heads if call.batch is not None and call.heads is not None else None
    fixed = ((heads, bucket.heads), (call.q_len, bucket.q_len), (call.kv_len, bucket.kv_len))
    return all(size is None or 1 << (size - 1).bit_length() == rounded for size, rounded in fixed)
