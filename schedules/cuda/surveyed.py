"""What only data tell of the key tiles that a query tile visits, and the lists of them. Needs no TVM."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from attncc import expr as ex
from attncc.algorithm.bounds import key_bounds
from attncc.algorithm.knowledge import FALSE_SEEN, TRUE_SEEN, Knowledge, knowledge
from attncc.schedules.family import Problem
from attncc.spec import SCORE, AttentionSpec


@dataclass(frozen=True)
class Surveyed:
    """Facts and conclusions, and whose they are."""

    known: Knowledge
    by_head: bool
    """Whether heads have lists of their own."""

    def workspace(self, problem: Problem, rows: int, keys: int) -> tuple[int, ...]:
        """The shape of all lists, in elements of four bytes; tiles have so many rows and keys."""
        tiles, heads, batch = self.grid(problem, rows)
        return (batch, heads, tiles, 1 + -(-problem.kv_len // keys))

    def grid(self, problem: Problem, rows: int) -> tuple[int, int, int]:
        """Thread blocks of the survey: one a list."""
        return (-(-problem.q_len // rows), problem.heads if self.by_head else 1, problem.batch)


@cache
def surveyed(spec: AttentionSpec) -> Surveyed | None:
    """What data tell of the keys that the mask of `spec` hides, by row and by key; None where they tell nothing.

    What would take a look at every pair of them counts as unknown. Under a finite fill a hidden key has a weight in
    rows that see no other, so that none may be left out.
    """
    if spec.mask is None or (spec.normalizer == "softmax" and math.isfinite(spec.fill)):
        return None
    known = knowledge(replace(spec, score_mod=SCORE))
    if known is None:
        return None
    known = _without_pairs(known)
    if not any(isinstance(node, ex.Load) for fact in known.facts for node in fact.value.walk()):
        return None
    bounds = key_bounds(spec.mask)
    trees = (bounds.lo, bounds.hi, *(fact.value for fact in known.facts))
    return Surveyed(known, any(node == ex.Index("h") for tree in trees for node in tree.walk()))


def _without_pairs(known: Knowledge) -> Knowledge:
    pairs = {ex.Index(fact.name) for fact in known.facts if fact.over == "pairs"}

    def both(node: ex.Expr) -> ex.Expr | None:
        return ex.Const(TRUE_SEEN | FALSE_SEEN, "int64") if node in pairs else None

    visible, masked = (ex.substitute(tree, both) for tree in (known.visible, known.masked))
    used = {node.axis for tree in (visible, masked) for node in tree.walk() if isinstance(node, ex.Index)}
    return replace(known, facts=tuple(f for f in known.facts if f.name in used), visible=visible, masked=masked)
