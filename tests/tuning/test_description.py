"""What devices answer: data of another machine, checked before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from attncc.target import detect, parse
from attncc.tuning.description import Description
from attncc.tuning.remote import comparison
from attncc.tuning.versions import Versions


def honest() -> dict[str, Any]:
    return json.loads(json.dumps(Description.here(detect()).data))


def test_round_trip() -> None:
    """A device says what it is, and is believed."""
    described = Description.from_json(json.dumps(honest()))
    assert described == Description.here(detect())
    assert described.refusal(detect()) is None


FORGED: list[Callable[[dict[str, Any]], object]] = [
    lambda d: d.pop("target"), lambda d: d.update(threads=0), lambda d: d.update(threads="2"),
    lambda d: d.update(threads=1 << 30), lambda d: d.update(threads=True), lambda d: d.update(host="\x1b[2J"),
    lambda d: d.update(versions=[]), lambda d: d["versions"].update(abi="1"), lambda d: d["target"].update(kind="cuda"),
    lambda d: d["target"].update(mcpu="znver4 -mattr=+x"), lambda d: d["target"].update(triple="x86_64-\nlinux"),
    lambda d: d["target"].update(features=["avx", "rm -rf"]), lambda d: d["target"].update(features={"avx": 1}),
    lambda d: d["target"].update(l1=-1), lambda d: d["target"].update(cores=1.5),
]  # fmt: skip


@pytest.mark.parametrize("forge", FORGED, ids=range(len(FORGED)))
def test_what_is_no_description(forge: Callable[[dict[str, Any]], object]) -> None:
    """Neither odd numbers nor texts that a compiler or a terminal would obey come through."""
    data = honest()
    forge(data)
    with pytest.raises(ValueError):
        Description.from_json(json.dumps(data))


@pytest.mark.parametrize("answer", [None, 3, b"{}", "", "[]", "3", "{", '{"a": NaN}', "[" * 100_000, " " * (1 << 21)])
def test_what_is_no_answer(answer: object) -> None:
    with pytest.raises(ValueError):
        Description.from_json(answer)
    with pytest.raises(ValueError):
        comparison(answer, 1)


def test_refusals() -> None:
    """A device that is another machine, or has another attncc, is refused for a reason in words."""
    here = Description.here(detect())
    other = replace(here, target=parse("neoverse-v1"))
    assert "neoverse-v1" in str(other.refusal(detect())) and "another machine" in str(other.refusal(detect()))
    small = replace(here, target=replace(detect(), l2=1))
    assert "L2 0" in str(small.refusal(detect()))
    newer = replace(here, versions=replace(Versions.current(detect()), generators="0" * 64))
    assert "generators" in str(newer.refusal(detect())) and "same attncc" in str(newer.refusal(detect()))


def test_times() -> None:
    """Times, failures and SDPA's times come back as outcomes."""
    found = comparison(json.dumps({"outcomes": [[0.1, 0.3, 0.2], "wrong\x1b[2J"], "sdpa": [0.5]}), 2)
    assert found.outcomes[0].seconds == pytest.approx(0.2)
    assert found.outcomes[1].seconds is None
    assert found.outcomes[1].failure == "wrong[2J"
    assert found.sdpa is not None and found.sdpa.seconds == 0.5
    broken = comparison(json.dumps({"failure": "out of memory"}), 2)
    assert [outcome.failure for outcome in broken.outcomes] == ["out of memory"] * 2


TIMES: list[Any] = [
    None, [], [[0.1]] * 2, [3], [None], [{}], [[]], [["0.1"]], [[0.0]], [[-1.0]], [[1e300]], [[True]], [[0.1] * 5000],
]  # fmt: skip


@pytest.mark.parametrize("outcomes", TIMES, ids=range(len(TIMES)))
def test_times_that_cannot_be(outcomes: object) -> None:
    """A device cannot win by nonsense."""
    with pytest.raises(ValueError):
        comparison(json.dumps({"outcomes": outcomes}), 1)
    with pytest.raises(ValueError):
        comparison('{"outcomes": [[1e999]]}', 1)
