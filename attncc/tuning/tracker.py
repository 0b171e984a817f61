"""TVM's RPC tracker as its clients see it: which devices are registered under a key, and the next one that is free.

The messages are those of `tvm.rpc.tracker`: a magic number, then JSON texts, each behind its length. TVM's own client
(`tvm.rpc.TrackerSession`) waits forever, takes an answer of any size, and does not say which device it was given.
"""

from __future__ import annotations

import ipaddress
import json
import re
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
"""`tvm.rpc.base.RPC_TRACKER_MAGIC`, and the codes of `TrackerCode` that are used here."""
_LARGEST = 1 << 20
"""Bytes of one message; TVM's tracker takes no longer ones either."""
_PATIENCE = 10.0
"""Seconds that a tracker may take to answer what it can answer at once."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Address:
    """Where a tracker or a device listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address that "host:port" names ("[::1]:9190" with IPv6). Raises ValueError for anything else."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"{text!r} is no address: write host:port, as 127.0.0.1:9190")
        return cls(host.strip("[]"), int(port))

    @property
    def loopback(self) -> bool:
        """Whether only processes of the same machine reach it. Raises ValueError for a name that does not resolve."""
        try:
            found = socket.getaddrinfo(self.host, self.port, proto=socket.IPPROTO_TCP)
        except OSError as error:
            raise ValueError(f"there is no host {self.host!r}: {error}") from error
        return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Registered:
    """A device that the tracker knows, free or not."""

    key: str
    address: Address


@dataclass(frozen=True)
class Offer:
    """A device that the tracker has reserved: it takes one session that knows the `matchkey`."""

    address: Address
    matchkey: str


class Tracker:
    """A connection to a tracker. Raises ConnectionError where there is none, or none that answers as one."""

    def __init__(self, address: Address) -> None:
        self.address = address
        try:
            self._socket = socket.create_connection((address.host, address.port), timeout=_PATIENCE)
        except OSError as error:
            raise ConnectionError(
                f"no tracker answers at {address} ({error}); start one with: attncc device tracker"
            ) from error
        self._socket.sendall(struct.pack("<i", _MAGIC))
        if self._number() != _MAGIC:
            raise self._strange("it greets otherwise")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; a request that has not been answered is withdrawn."""
        self._socket.close()

    def devices(self, key: str | None = None) -> list[Registered]:
        """The devices registered under `key`, or all."""
        self._send([_SUMMARY])
        answer = self._receive()
        try:
            code, summary = answer
            found = [_registered(server) for server in summary["server_info"]]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise self._strange(f"its summary is {str(answer)[:200]!r}") from error
        if code != _SUCCESS:
            raise self._strange(f"it answers with code {code!r}")
        return [device for device in found if key is None or device.key == key]

    def request(self, key: str) -> None:
        """Ask for the next free device under `key`, which `offer` will give. The connection serves nothing else."""
        self._send([_REQUEST, check_key(key), "", 1])

    def offer(self, wait: float) -> Offer | None:
        """The device that the last `request` was given; None where `wait` seconds pass without one."""
        if not select.select([self._socket], [], [], wait)[0]:
            return None
        answer = self._receive()
        try:
            code, (host, port, matchkey) = answer
            offer = Offer(_address(host, port), matchkey)
        except (TypeError, ValueError) as error:
            raise self._strange(f"it offers {str(answer)[:200]!r}") from error
        # The match key becomes part of a line that TVM splits at blanks, where "-timeout=" has a meaning.
        if code != _SUCCESS or not isinstance(matchkey, str) or not re.fullmatch(r"[\w.:+-]{1,200}", matchkey):
            raise self._strange(f"it offers {str(answer)[:200]!r}")
        return offer

    def _send(self, message: Sequence[Any]) -> None:
        text = json.dumps(message).encode()
        try:
            self._socket.sendall(struct.pack("<i", len(text)) + text)
        except OSError as error:
            raise self._strange(str(error)) from error

    def _receive(self) -> Any:
        size = self._number()
        if not 0 < size <= _LARGEST:
            raise self._strange(f"it announces a message of {size} bytes")
        try:
            return json.loads(self._bytes(size))
        except (ValueError, RecursionError) as error:
            raise self._strange("it does not answer in JSON") from error

    def _number(self) -> int:
        return int(struct.unpack("<i", self._bytes(4))[0])

    def _bytes(self, count: int) -> bytes:
        found, until = b"", time.monotonic() + _PATIENCE
        while len(found) < count:
            try:
                chunk = self._socket.recv(count - len(found))
            except OSError as error:
                raise self._strange(str(error)) from error
            if not chunk or time.monotonic() > until:
                raise self._strange("it hung up" if not chunk else "it is too slow")
            found += chunk
        return found

    def _strange(self, what: str) -> ConnectionError:
        return ConnectionError(f"what listens at {self.address} does not behave like TVM's RPC tracker: {what}")


def check_key(key: str) -> str:
    """`key`, if devices can be registered under it. Raises ValueError."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key: letters, digits and . _ - make one, as in zen4-box")
    return key


def _registered(server: Any) -> Registered:
    side, _, key = server["key"].partition(":")
    if side != "server":
        raise ValueError("not a server")
    return Registered(check_key(key), _address(*server["addr"]))


def _address(host: Any, port: Any) -> Address:
    """An address out of a message. Raises ValueError for what is none."""
    if not isinstance(host, str) or not isinstance(port, int) or not re.fullmatch(r"[\w.:%-]{1,255}", host):
        raise ValueError("no address")
    return Address.parse(str(Address(host, port)))
