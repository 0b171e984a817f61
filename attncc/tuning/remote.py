"""One session with one device: what it says of itself, what it measures. Calls block; `crew` sees to their limits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attncc.tuning import device, fields
from attncc.tuning.description import Description, answer
from attncc.tuning.measure import Comparison, Outcome
from attncc.tuning.tracker import Offer

_MOST_TURNS = 1000
_SECONDS = 1e-9, 1e4
"""Bounds of what a device may claim a call took."""


class Remote:
    """A session. It ends when this object is dropped, and the device is free for another.

    Raises RuntimeError or OSError where the device is lost, ValueError for an answer that is none.
    """

    def __init__(self, offer: Offer, seconds: int) -> None:
        """`seconds` is what the session may take in all: after that the device ends it."""
        from tvm import rpc

        self.address = offer.address
        host, port = offer.address.host, offer.address.port
        self._session = rpc.connect(host, port, offer.matchkey, session_timeout=seconds)

    def describe(self) -> Description:
        """What the device is."""
        return Description.from_json(self._call(device.DESCRIBE))

    def prepare(self, request: Mapping[str, Any], task: tuple[str, bytes], kernel: bytes) -> str | None:
        """Have the operands of a task (`wire.packed`) and their reference made; why the device cannot, or None.

        `kernel` is the default's LLVM IR, which must compute what the reference does.
        """
        failure = answer(self._call(device.PREPARE, json.dumps(request), *task, kernel)).get("failure")
        return None if failure is None else fields.line_of(str(failure))

    def measure(self, kernels: Sequence[bytes], request: Mapping[str, Any]) -> Comparison:
        """Check and time kernels (LLVM IR) of the prepared task, in interleaved turns where they are several."""
        return comparison(self._call(device.MEASURE, json.dumps(request), *kernels), len(kernels))

    def _call(self, name: str, *arguments: str | bytes) -> object:
        function: Callable[..., object] = self._session.get_function(name)
        found = function(*arguments)
        return str(found) if isinstance(found, str) else found


def comparison(text: object, count: int) -> Comparison:
    """The outcomes of `count` kernels in a device's answer. Raises ValueError for any other answer."""
    data = answer(text)
    if "failure" in data:
        return Comparison((Outcome.failed(fields.line_of(str(data["failure"]))),) * count)
    outcomes = data.get("outcomes")
    if not isinstance(outcomes, list) or len(outcomes) != count:
        raise ValueError(f"its answer is not about {count} kernels")
    sdpa = data.get("sdpa")
    return Comparison(tuple(_outcome(each) for each in outcomes), None if sdpa is None else _outcome(sdpa))


def _outcome(data: object) -> Outcome:
    """An outcome of times or of a failure."""
    if isinstance(data, str):
        return Outcome.failed(fields.line_of(data) or "no message")
    low, high = _SECONDS
    if not isinstance(data, list) or not 0 < len(data) <= _MOST_TURNS:
        raise ValueError("its answer holds neither times nor a failure")
    if not all(type(t) in (int, float) and math.isfinite(t) and low <= t <= high for t in data):
        raise ValueError("its answer holds times that cannot be")
    return Outcome.of([float(t) for t in data])
