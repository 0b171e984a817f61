"""Records for tests of the tuning database: of one attention on this machine, unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attncc import expr as ex
from attncc.schedules import CPU, Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import detect
from attncc.tuning.record import Record
from attncc.tuning.versions import Versions

SPEC = AttentionSpec("float32", 16, 8, score_mod=ex.op("mul", ex.Score(), ex.Scalar("s0", "float32")), scalars=("s0",))
PROBLEM = Problem(2, 3, 300, 280, 1)
"""Prefill, too long for the family for few keys."""
FAMILY: Family = next(family for family in CPU if family.name == "cpu.prefill.fp32")


def default() -> dict[str, int]:
    """What runs without records."""
    return FAMILY.decisions(SPEC, detect())


def another(name: str) -> int:
    """The largest value of a decision that is not the default, which machines differ in."""
    return next(value for value in reversed(FAMILY.space(SPEC, detect())[name]) if value != default()[name])


def decisions(**changed: int) -> dict[str, int]:
    """A candidate: the default with another block of queries, and whatever is `changed`."""
    return {**default(), "query_block": another("query_block"), **changed}


def record(gain: float | None = 0.2, given: Mapping[str, int] | None = None, **fields: Any) -> Record:
    """A record whose candidate takes 1 ms, and the default `gain` longer; None was not compared with it."""
    paired: dict[str, Any] = {}
    if gain is not None:
        paired = {
            "default_seconds": 1e-3 * (1 + gain), "default_family": FAMILY.name, "default_decisions": default(),
        }  # fmt: skip
    known = {
        "spec": SPEC.json, "family": FAMILY.name, "decisions": decisions() if given is None else given,
        "problem": PROBLEM, "target": detect(), "seconds": 1e-3, "spread": 0.01, "trials": 7,
        "versions": Versions.current(detect()), **paired,
    }  # fmt: skip
    return Record(**{**known, **fields})


def failed(reason: str = "it crashed", **fields: Any) -> Record:
    """A record of a candidate that failed."""
    return record(None, status="failed", failure=reason, seconds=None, spread=None, **fields)
