"""The fields of a tuning record's line: how each is written, and how each is checked when it is read.

Nothing in a line is trusted: types, ranges and lengths are checked one by one, before anything is made of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attncc.schedules import Problem
from attncc.target import SVE_BITS, Target
from attncc.tuning.bucket import Bucket
from attncc.tuning.versions import Versions

if TYPE_CHECKING:
    from attncc.tuning.record import Record

FORMAT = 1
"""Version of the line; a change of meaning or form raises it, and lines of another one are rejected."""
LINE_BYTES = 1 << 18
"""Longer lines are rejected unread. A spec's JSON takes a few thousand bytes."""
FAILURE_CHARACTERS = 500
_TEXT, _MOST = 400, 1 << 40
"""Bounds of texts, in characters, and of numbers."""
_LEAST, _SECONDS = 1e-12, 1e6
_DECISIONS = 64


def written(record: Record) -> dict[str, Any]:
    """The record as JSON data, in the order in which a person would ask for it."""
    target = asdict(record.target) | {"features": sorted(record.target.features)}
    failed = {"failure": line_of(record.failure)} if record.status == "failed" else {}
    return {
        "format": FORMAT,
        "date": record.date,
        "status": record.status,
        **failed,
        "name": record.name,
        "bucket": str(record.bucket),
        "family": record.family,
        "decisions": dict(record.decisions),
        "seconds": record.seconds,
        "spread": record.spread,
        "default_seconds": record.default_seconds,
        "default_family": record.default_family,
        "default_decisions": None if record.default_decisions is None else dict(record.default_decisions),
        "sdpa_seconds": record.sdpa_seconds,
        "trials": record.trials,
        "problem": asdict(record.problem),
        "target": target,
        "versions": asdict(record.versions),
        "spec": json.loads(record.spec),
    }


def read(line: str | bytes) -> dict[str, Any]:
    """The arguments of the `Record` that a line describes. Raises ValueError, saying what is wrong with it."""
    if len(line) > LINE_BYTES:
        raise ValueError(f"a line of {len(line)} bytes; a record takes at most {LINE_BYTES}")
    data = object_of(line)
    if data.get("format") != FORMAT or isinstance(data["format"], bool):
        raise ValueError(f"of format {_shown(data.get('format'))}, and this version reads format {FORMAT}")
    return _checked(data)


def object_of(text: str | bytes) -> dict[str, Any]:
    """The JSON object that `text` is. Raises ValueError, saying what is wrong, for anything else."""
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"a JSON object was due, not {_shown(data)}")
    return data


def _checked(data: Mapping[str, Any]) -> dict[str, Any]:
    spec = _spec(data)
    sizes = part_of(data, "problem")
    problem = Problem(**{f.name: integer_of(sizes, f.name, 1) for f in fields(Problem)})
    if data.get("bucket") != str(Bucket.of(problem)):
        raise ValueError(f"bucket {_shown(data.get('bucket'))} is not that of its problem, {Bucket.of(problem)}")
    status = text_of(data, "status")
    if status not in ("ok", "failed"):
        raise ValueError(f"status {status!r} is neither 'ok' nor 'failed'")
    seconds, default_seconds = number_of(data, "seconds", _LEAST), number_of(data, "default_seconds", _LEAST)
    if (seconds is None) == (status == "ok"):
        raise ValueError(f"status {status!r} with seconds {_shown(data.get('seconds'))}")
    return {
        "spec": spec,
        "family": text_of(data, "family"),
        "decisions": _decisions(data, "decisions"),
        "problem": problem,
        "target": target_of(part_of(data, "target")),
        "status": status,
        "failure": text_of(data, "failure", FAILURE_CHARACTERS) if status == "failed" else "",
        "seconds": seconds,
        "spread": number_of(data, "spread", 0.0),
        "default_seconds": default_seconds,
        "default_family": None if data.get("default_family") is None else text_of(data, "default_family"),
        "default_decisions": None if data.get("default_decisions") is None else _decisions(data, "default_decisions"),
        "sdpa_seconds": number_of(data, "sdpa_seconds", _LEAST),
        "trials": integer_of(data, "trials", 0),
        "versions": versions_of(part_of(data, "versions")),
        "date": _date(data),
    }


def _spec(data: Mapping[str, Any]) -> str:
    """The spec's canonical JSON, which `name` must be the SHA-256 of. What it means is not looked at."""
    try:
        text = json.dumps(part_of(data, "spec"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise ValueError("its attention is nested too deeply") from error
    if data.get("name") != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError("its name is not that of its attention")
    return text


def target_of(data: Mapping[str, Any]) -> Target:
    """The target that `data` describes. Raises ValueError, as all of these do, for what is none."""
    features = data.get("features")
    names = isinstance(features, list) and all(isinstance(name, str) and name.isprintable() for name in features)
    if not isinstance(features, list) or not names or len(features) > _TEXT:
        raise ValueError(f"target: features {_shown(features)} is not a list of names")
    texts: dict[str, Any] = {name: text_of(data, name) for name in ("kind", "mcpu", "triple")}
    sizes: dict[str, Any] = {name: integer_of(data, name, 0) for name in ("cores", "l1", "l2", "l3")}
    length = data.get("sve_bits", 0)
    if length not in (0, *SVE_BITS):
        raise ValueError(f"target: sve_bits={_shown(length)} is none of 0, {', '.join(map(str, SVE_BITS))}")
    return Target(**texts, features=frozenset(features), **sizes, sve_bits=length)


def versions_of(data: Mapping[str, Any]) -> Versions:
    """The versions that `data` names."""
    texts = {name: text_of(data, name) for name in ("attncc", "generators", "tvm")}
    return Versions(**texts, abi=integer_of(data, "abi", 0))


def _date(data: Mapping[str, Any]) -> str:
    """UTC, so that texts compare as their moments do."""
    text = text_of(data, "date")
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"date {text!r} is not in ISO 8601: {error}") from error


def part_of(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The JSON object under `name`."""
    value = data.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a JSON object, not {_shown(value)}")
    return value


def _decisions(data: Mapping[str, Any], name: str) -> dict[str, int]:
    given = part_of(data, name)
    if len(given) > _DECISIONS:
        raise ValueError(f"{name} has {len(given)} entries; no kernel family has more than {_DECISIONS}")
    if odd := [key for key in given if not key.isidentifier() or len(key) > _TEXT]:
        raise ValueError(f"{name}: {_shown(odd[0])} is no name of a decision")
    return {key: integer_of(given, key, -_MOST) for key in given}


def text_of(data: Mapping[str, Any], name: str, limit: int = _TEXT) -> str:
    """The line of text under `name`, which is safe to print."""
    value = data.get(name)
    # Only what prints: these texts are shown on terminals, which obey control characters.
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise ValueError(f"{name} {_shown(value)} is not a line of text of up to {limit} characters")
    return value


def integer_of(data: Mapping[str, Any], name: str, least: int) -> int:
    """The whole number from `least` on under `name`."""
    value = data.get(name)
    if type(value) is not int or not least <= value <= _MOST:
        raise ValueError(f"{name}={_shown(value)} is not a whole number from {least} to {_MOST}")
    return value


def number_of(data: Mapping[str, Any], name: str, least: float) -> float | None:
    """A finite number (JSON's own have no NaN, but 1e999 is infinite), or None for null."""
    value = data.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not least <= value <= _SECONDS:
        raise ValueError(f"{name}={_shown(value)} is not a number from {least:g} to {_SECONDS:g}")
    return float(value)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def line_of(text: str) -> str:
    """A text of any origin as one line that `text_of` accepts."""
    words = " ".join(text.split())
    return "".join(c for c in words if c.isprintable())[:FAILURE_CHARACTERS]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
