"""Asking devices what they are: all that a tracker knows, or the first one under a key that answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attncc.tuning.description import Description
from attncc.tuning.fields import line_of
from attncc.tuning.jobs import NoDevices
from attncc.tuning.remote import Remote
from attncc.tuning.tracker import Address, Offer, Registered, Tracker

_OFFERED = 1.0
"""Seconds that a tracker takes to offer what is free."""
_ANSWERED = 15.0
"""Seconds that a device takes to say what it is: its session imports nothing."""
_REGISTERED = 3.0
"""Seconds until a device that has started is registered."""
_FREED = 120.0
"""Seconds to wait for a device that is busy."""


@dataclass(frozen=True)
class Answer:
    """What is known of one registered device."""

    device: Registered
    description: Description | None
    state: str
    """"free", "busy", or what is wrong with it."""

    @property
    def data(self) -> dict[str, Any]:
        """As JSON data."""
        told = {} if self.description is None else self.description.data
        return {"key": self.device.key, "address": str(self.device.address), "state": self.state, **told}


def survey(address: Address, key: str | None = None) -> list[Answer]:
    """The devices that the tracker at `address` knows, those under `key` or all, sorted by key and address.

    Raises ConnectionError without a tracker.
    """
    with Tracker(address) as tracker:
        devices = sorted(tracker.devices(key), key=lambda device: (device.key, str(device.address)))
    offers: dict[Address, Offer] = {}
    for each in devices:
        with Tracker(address) as tracker:
            tracker.request(each.key)
            offer = tracker.offer(_OFFERED)
        if offer is not None:
            offers[offer.address] = offer
    found = describe([*offers.values()])
    return [_answer(device, found.get(device.address)) for device in devices]


def first(address: Address, key: str) -> Description:
    """What the first device under `key` that answers is. Raises NoDevices, or ConnectionError without a tracker."""
    reasons = []
    for _ in _registered(address, key):
        with Tracker(address) as tracker:
            tracker.request(key)
            offer = tracker.offer(_FREED)
        if offer is None:
            reasons.append(f"all have been busy for {_FREED:.0f} s")
            break
        told = describe([offer])[offer.address]
        if isinstance(told, Description):
            return told
        reasons.append(f"{offer.address}: {told}")
    what = "; ".join(reasons) or f"none is registered; attncc device serve --tracker {address} --key {key} starts one"
    raise NoDevices(f"no device answers under {key!r} at tracker {address}: {what}")


def _registered(address: Address, key: str) -> list[Registered]:
    """The devices under `key`; one that was started just now, or whose session crashed, is waited for."""
    until = time.monotonic() + _REGISTERED
    with Tracker(address) as tracker:
        while not (found := tracker.devices(key)) and time.monotonic() < until:
            time.sleep(0.1)
    return found


def describe(offers: Sequence[Offer]) -> dict[Address, Description | str]:
    """What each offered device says that it is, or what is wrong with it; all are asked at once."""
    found: dict[Address, Description | str] = {}

    def ask(offer: Offer) -> None:
        try:
            found[offer.address] = Remote(offer, int(2 * _ANSWERED)).describe()
        except Exception as error:  # TVM raises whatever class the other side names
            found[offer.address] = line_of((str(error).strip().splitlines() or ["it hung up"])[-1])

    # A call over TVM's RPC cannot be given a time limit, so a thread whose device is silent is left behind.
    threads = [threading.Thread(target=ask, args=(offer,), daemon=True) for offer in offers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_ANSWERED)
    return {offer.address: found.get(offer.address, "it does not answer") for offer in offers}


def _answer(device: Registered, told: Description | str | None) -> Answer:
    if isinstance(told, Description):
        return Answer(device, told, "free")
    return Answer(device, None, "busy" if told is None else told)
