"""Records: what is written is read back, and nothing that is not one gets through, whoever wrote it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_records import FAMILY, SPEC, decisions, default, failed, record

from attncc.schedules import Problem
from attncc.target import detect
from attncc.tuning.bucket import Bucket
from attncc.tuning.paired import Paired
from attncc.tuning.record import Record

LINE = json.loads(record().to_json())


def changed(**fields: Any) -> str:
    """The line of a record with some of its fields replaced."""
    return json.dumps({**LINE, **fields})


@pytest.mark.parametrize("given", [record(), record(None), failed(), record(sdpa_seconds=2.5e-3, trials=0)])
def test_a_line_is_read_as_what_was_written(given: Record) -> None:
    line = given.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == Record.from_json(line.encode()) == given


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "not JSON"),
        ('{"format":', "not JSON"),
        ("[1, 2]", "a JSON object"),
        (b"\xff\xfe{}", "not"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000, "nested too deeply"),
        ("1" * 10_000, "not JSON"),
        (" " * (1 << 20), "a record takes at most"),
        (changed(format=2), "this version reads format 1"),
        (changed(format=True), "this version reads format 1"),
        (changed(status="perhaps"), "neither 'ok' nor 'failed'"),
        (changed(seconds=None), "with seconds None"),
        (changed(seconds=-1.0), "seconds=-1.0"),
        (changed(seconds=0), "seconds=0"),
        (changed(seconds=float("nan")), "NaN is no number"),
        (changed(default_seconds=float("inf")), "Infinity is no number"),
        (changed().replace("0.0012", "1e999"), "default_seconds=inf"),
        (changed(seconds=True), "seconds=True"),
        (changed(seconds="fast"), "seconds='fast'"),
        (changed(spread=-0.1), "spread=-0.1"),
        (changed(name="0" * 64), "not that of its attention"),
        (changed(spec={**LINE["spec"], "head_dim": 17}), "not that of its attention"),
        (changed(bucket="h8 q256 k256 t1"), "not that of its problem"),
        (changed(problem={**LINE["problem"], "q_len": 0}), "q_len=0"),
        (changed(problem={**LINE["problem"], "q_len": 10**30}), "not a whole number"),
        (changed(decisions={"query_block": "64"}), "query_block='64'"),
        (changed(decisions={"query_block": True}), "query_block=True"),
        (changed(decisions={"query_block": 64.0}), "query_block=64.0"),
        (changed(decisions={"; import os": 1}), "no name of a decision"),
        (changed(decisions=[64]), "decisions is a JSON object"),
        (changed(decisions={f"n{n}": 1 for n in range(1000)}), "1000 entries"),
        (changed(family="x" * 1000), "a line of text"),
        (changed(family="\x1b[2Jgone"), "a line of text"),
        (changed(date="yesterday"), "ISO 8601"),
        (changed(target={**LINE["target"], "features": "avx2"}), "features 'avx2'"),
        (changed(versions=None), "versions is a JSON object"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_rejected_with_what_is_wrong(line: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + says.replace("(", r"\(").replace("[", r"\[")):
        Record.from_json(line)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (decisions(query_block=10**9), "query_block=1000000000 is not one of"),
        (decisions(query_block=-64), "query_block=-64 is not one of"),
        ({**decisions(), "unroll": 4}, "this has .*unroll"),
        ({}, "cpu.prefill.fp32 decides"),
    ],
)
def test_decisions_outside_of_the_space_do_not_fit(given: dict[str, int], says: str) -> None:
    """Whatever a forged line asks for, no kernel is built from it."""
    forged = Record.from_json(record(given=given).to_json())
    assert re.search(says, forged.misfit(detect()) or "")


def test_decisions_that_equal_numbers_but_are_none_do_not_fit() -> None:
    """True is 1 and 8.0 is 8 where Python compares them; in TIR they are another type."""
    for odd in (True, 64.0, "64"):
        value = {**decisions(), "query_block": odd}
        assert record(given=value).misfit(detect()) is not None  # type: ignore[arg-type]


def test_a_record_of_another_version_or_target_says_which() -> None:
    here = record()
    versions = here.versions
    other = {
        "attncc 0.0.1": replace(here, versions=replace(versions, attncc="0.0.1")),
        "interface 99": replace(here, versions=replace(versions, abi=99)),
        "apache-tvm 9.9": replace(here, versions=replace(versions, tvm="9.9")),
        "made for cuda": replace(here, target=replace(detect(), kind="cuda")),
        "made for cpu riscv64": replace(here, target=replace(detect(), triple="riscv64-linux-gnu")),
        "which has amx-fp99": replace(here, target=replace(detect(), features=detect().features | {"amx-fp99"})),
        "no kernel family 'cpu.magic'": replace(here, family="cpu.magic"),
        "does not parse": replace(here, spec='{"version":1}'),
    }
    assert here.fits(detect())
    for says, odd in other.items():
        assert says in (odd.misfit(detect()) or ""), says
    assert replace(here, versions=replace(versions, generators="edited")).fits(detect())


def test_a_win_is_a_gain_beyond_the_noise() -> None:
    assert record(0.2).wins
    assert not record(0.2, spread=0.25).wins
    assert not record(0.015, spread=0.0).wins
    assert not record(-0.1).wins
    assert not record(None).wins
    assert not record(0.2, spread=None).wins
    assert not failed().wins
    assert not record(0.2, given=default()).wins, "the default does not beat itself"


def test_paired_turns_give_medians_and_the_noise_of_their_ratio() -> None:
    """A machine that slows down halfway slows both down; their ratio stays."""
    candidate = [1.0, 1.0, 1.0, 2.0, 2.0]
    found = Paired.of(candidate, [1.25 * seconds for seconds in candidate])
    assert (found.seconds, found.default_seconds) == (1.0, 1.25)
    assert found.spread == pytest.approx(0.0)
    assert Paired.of([1.0, 1.0, 1.0], [1.0, 1.5, 2.0]).spread == pytest.approx(0.5 / 1.5)
    with pytest.raises(ValueError, match="three at least"):
        Paired.of([1.0], [1.0])


def test_buckets_round_up_and_count_doublings() -> None:
    bucket = Bucket.of(Problem(3, 4, 1000, 1025, 6))
    assert str(bucket) == "h16 q1024 k2048 t8"
    assert Bucket.parse(str(bucket)) == bucket
    assert Bucket.of(Problem(1, 1, 1, 1, 1)) == Bucket(1, 1, 1, 1)
    assert bucket.distance(Bucket(8, 1024, 8192, 8)) == 3
    assert bucket.distance(bucket) == 0
    for text in ("h3 q1 k1 t1", "h1 q1 k1", "h1 q1 k1 t-1", "h0 q1 k1 t1", ""):
        with pytest.raises(ValueError, match="bucket"):
            Bucket.parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(LINE)), st.sampled_from(["", *LINE["decisions"], *LINE["target"], *LINE["spec"]]), JSON)
def test_no_line_gets_anything_but_a_point_of_the_space_through(name: str, inner: str, value: Any) -> None:
    """Whatever stands in one field or one part of it: a ValueError, or a record that either does not fit, and says why,
    or whose decisions are a point of the family's space."""
    line = json.loads(json.dumps(LINE))
    if inner and isinstance(line[name], dict):
        line[name][inner] = value
    else:
        line[name] = value
    if isinstance(line["spec"], dict):  # a forger can hash as well
        text = json.dumps(line["spec"], sort_keys=True, separators=(",", ":"))
        line["name"] = line["name"] if name == "name" else hashlib.sha256(text.encode()).hexdigest()
    try:
        found = Record.from_json(json.dumps(line))
    except ValueError:
        return
    assert math.isfinite(found.gain or 0.0)
    assert found.summary.isprintable()
    if found.misfit(detect()) is None and found.name == record().name:
        space = FAMILY.space(SPEC, detect())
        assert all(found.decisions[key] in space[key] for key in space)
