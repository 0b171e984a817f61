"""The fleet's servers: TVM's RPC tracker, and the RPC server that makes a machine a device.

**RPC is remote code execution by design**: whoever reaches a device's port runs what he likes on it. So both listen on
the loopback interface unless the caller says that the network may come in. For machines apart, forward the ports with
ssh, or put them in a network of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from attncc.target import Target, detect
from attncc.tuning.tracker import Address, Tracker, check_key

ALLOW = "--allow-remote-code-execution-from-network"
TRACKER_PORT = 9190
DEVICE_PORTS = range(9090, 9190)
"""TVM's usual ports."""
_WILDCARDS = ("0.0.0.0", "::", "")


def run_tracker(host: str, port: int, ready: Callable[[Address], None], *, exposed: bool = False) -> NoReturn:
    """Run a tracker until the process is ended; port 0 takes a free one. `ready` hears where it listens.

    Raises ValueError for an address that the network reaches unless `exposed`, RuntimeError without tornado, OSError
    for a port in use.
    """
    check_exposure(host, exposed)
    try:
        from tvm.rpc import tracker
    except ImportError as error:
        raise RuntimeError("TVM's tracker needs the package tornado: pip install 'attncc[tune]'") from error
    tracker.logger.setLevel(logging.ERROR)
    listening = _listen(host, [port])
    asyncio.set_event_loop(asyncio.new_event_loop())
    handler = tracker.TrackerServerHandler(listening, secrets.token_hex())
    ready(_where(listening))
    handler.run()
    raise SystemExit(0)


def run_device(
    tracker: Address,
    key: str,
    target: Target,
    host: str,
    port: int | None,
    ready: Callable[[Address], None],
    *,
    exposed: bool = False,
) -> NoReturn:
    """Serve this machine under `key` until the process is ended, one session at a time. `ready` hears where.

    Kernels are compiled for `target`. Raises ConnectionError where there is no tracker, ValueError for an address that
    the network reaches unless `exposed` and for a target that this machine cannot run, OSError for a port in use,
    RuntimeError where processes cannot be forked.
    """
    check_key(key)
    check_exposure(host, exposed)
    _check_runs_here(target)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("attncc device serve needs an operating system that forks processes, such as Linux")
    Tracker(tracker).close()  # a wrong address shows now, and not as a retry every five seconds
    multiprocessing.set_start_method("fork", force=True)
    from tvm.rpc import server

    from attncc.tuning import device

    server.logger.setLevel(logging.ERROR)
    device.register(target)
    listening = _listen(host, DEVICE_PORTS if port is None else [port])
    where = _where(listening)
    # The tracker tells clients the address from which a device called it, unless the device names one.
    advertised = None if host in _WILDCARDS or Address(host, where.port).loopback else host
    home = os.getcwd()
    ready(where)
    while True:
        # A session in a process that died (a kernel crashed it, or took too long) ends TVM's loop with an error, as
        # does a stray connection that talks another protocol. The device itself is well.
        with contextlib.suppress(Exception):
            server._listen_loop(listening, where.port, key, (tracker.host, tracker.port), None, advertised)
        os.chdir(home)  # that of a session is gone
        time.sleep(0.1)


def check_exposure(host: str, exposed: bool) -> None:
    """Raise ValueError for a `host` to listen on that other machines reach, unless that was said to be meant."""
    if not exposed and (host in _WILDCARDS or not Address(host, 0).loopback):
        raise ValueError(
            f"listening on {host!r} lets anyone who reaches this machine run code on it, for that is what TVM's RPC "
            f"does; forward the port with ssh instead, or say {ALLOW} in a network that you trust"
        )


def _check_runs_here(target: Target) -> None:
    """Raise ValueError for a target whose code this machine does not run."""
    here = detect()
    missing = sorted(target.features - here.features)
    if target.arch != here.arch or missing:
        lacks = f"it has no {', '.join(missing)}" if missing else f"it is {here.arch}"
        raise ValueError(f"this machine cannot run code for {target}: {lacks}")


def _listen(host: str, ports: range | list[int]) -> socket.socket:
    """A socket that listens on the first free one of `ports`. Raises OSError where there is none."""
    for port in ports:
        family = socket.getaddrinfo(host or None, port, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(16)
            return listening
        except OSError as error:
            listening.close()
            if port == ports[-1]:
                raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; --port names another port") from error
    raise ValueError("no port to listen on")


def _where(listening: socket.socket) -> Address:
    host, port = listening.getsockname()[:2]
    return Address(host, port)
