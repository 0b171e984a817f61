"""The tracker's client: addresses, and what it makes of trackers that are none."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from attncc.tuning import tracker as client
from attncc.tuning.serve import ALLOW, check_exposure
from attncc.tuning.tracker import Address, Registered, Tracker, check_key


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9190", "127.0.0.1", 9190), ("[::1]:1", "::1", 1), ("box:65535", "box", 65535)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    """They read back as they were written."""
    address = Address.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, text)


@pytest.mark.parametrize("text", ["", "9190", ":9190", "box", "box:", "box:0", "box:65536", "box:-1", "box:9190x"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Address.parse(text)


@pytest.mark.parametrize("key", ["", "a b", "a:b", "-timeout=1", "a\n", "x" * 65])
def test_what_is_no_key(key: str) -> None:
    """A key is part of lines that TVM splits at blanks and colons."""
    with pytest.raises(ValueError, match="is no key"):
        check_key(key)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_the_network_comes_in_only_where_that_is_said(host: str) -> None:
    """The refusal names the flag, whose name says what it allows."""
    with pytest.raises(ValueError, match=ALLOW):
        check_exposure(host, exposed=False)
    check_exposure(host, exposed=True)
    assert "remote-code-execution" in ALLOW


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1"])
def test_loopback_needs_no_flag(host: str) -> None:
    check_exposure(host, exposed=False)


class Peer:
    """Listens as a tracker does, and gives each client the same bytes."""

    def __init__(self, *answers: bytes) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self.listening.getsockname())
        self.answers = answers
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(4)
                for answer in self.answers:
                    connection.sendall(answer)
                connection.recv(1000)
                connection.recv(1000)


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.listening.close()


MAGIC = struct.pack("<i", 0x2F271)


def message(data: object) -> bytes:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack("<i", len(text)) + text


def test_devices(peers: list[Peer]) -> None:
    servers = [{"key": "server:zen4", "addr": ["127.0.0.1", 9090]}, {"key": "server:a", "addr": ["::1", 9091]}]
    peers.append(Peer(MAGIC, message([0, {"queue_info": {}, "server_info": servers}])))
    with Tracker(peers[0].address) as tracker:
        assert tracker.devices("zen4") == [Registered("zen4", Address("127.0.0.1", 9090))]


SUMMARIES = [
    b"not json", b"[" * 100_000, 3, None, [0, {}], [0, {"server_info": 3}], [0, {"server_info": [3]}],
    [0, {"server_info": [{"key": 3, "addr": ["a", 1]}]}], [0, {"server_info": [{"key": "server:a", "addr": "x"}]}],
    [0, {"server_info": [{"key": "server:a", "addr": ["a b", 1]}]}], [-1, {"server_info": []}],
    [0, {"server_info": [{"key": "server:a\u001b[2J", "addr": ["a", 1]}]}],
]  # fmt: skip


@pytest.mark.parametrize("summary", SUMMARIES, ids=range(len(SUMMARIES)))
def test_a_strange_tracker(peers: list[Peer], summary: object) -> None:
    """Whatever it answers, one line says that it is not what was looked for."""
    peers.append(Peer(MAGIC, message(summary)))
    with Tracker(peers[0].address) as tracker, pytest.raises(ConnectionError, match="does not behave like TVM's"):
        tracker.devices()


OFFERS = [
    [0], [0, 3], [-1, ["127.0.0.1", 1, "k"]], [0, ["127.0.0.1", "1", "k"]], [0, ["127.0.0.1", 1, 3]],
    [0, ["127.0.0.1", 1, "key -timeout=9"]], [0, ["127.0.0.1", 70000, "k"]], [0, ["a;b", 1, "k"]],
]  # fmt: skip


@pytest.mark.parametrize("offer", OFFERS, ids=range(len(OFFERS)))
def test_a_strange_offer(peers: list[Peer], offer: object) -> None:
    peers.append(Peer(MAGIC, message(offer)))
    with Tracker(peers[0].address) as tracker:
        tracker.request("zen4")
        with pytest.raises(ConnectionError, match="does not behave like TVM's"):
            tracker.offer(5)


def test_an_endless_answer(peers: list[Peer]) -> None:
    """A message may not announce more than any honest one has."""
    peers.append(Peer(MAGIC, struct.pack("<i", 1 << 30)))
    with Tracker(peers[0].address) as tracker, pytest.raises(ConnectionError, match="1073741824 bytes"):
        tracker.devices()


def test_a_silent_peer(peers: list[Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for."""
    monkeypatch.setattr(client, "_PATIENCE", 0.2)
    peers.append(Peer())
    with pytest.raises(ConnectionError, match="timed out"):
        Tracker(peers[0].address)


def test_no_tracker() -> None:
    """The error says how to start one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listening: nobody else can meanwhile
        with pytest.raises(ConnectionError, match="attncc device tracker"):
            Tracker(Address(*taken.getsockname()))
