"""A fleet on the loopback interface: a tracker and devices as users start them, measured on, killed, and listed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.tuning.database import Database
from attncc.tuning.fleet import RpcMeasurer
from attncc.tuning.measure import Candidate
from attncc.tuning.survey import survey
from attncc.tuning.task import Task
from attncc.tuning.tracker import Address, Tracker

pytest.importorskip("tornado", reason="TVM's tracker needs tornado")


class Started:
    """A server that was started by its command, with all its sessions."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "attncc", "device", *arguments, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    @property
    def address(self) -> Address:
        """Where it listens, as soon as it does."""
        assert self.process.stdout is not None
        where = json.loads(self.process.stdout.readline())
        return Address(where["host"], where["port"])

    def send(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> None:
        """As if its machine lost power."""
        if self.process.returncode is None:
            self.send(signal.SIGKILL)
            self.process.communicate()


@contextmanager
def started(*arguments: str) -> Iterator[Started]:
    server = Started(*arguments)
    try:
        yield server
    finally:
        server.end()


@contextmanager
def fleet(count: int) -> Iterator[tuple[str, list[Started], list[Address]]]:
    """A tracker and `count` devices under the key "zen": the tracker's address, the devices, and theirs."""
    with ExitStack() as stack:
        tracker = str(stack.enter_context(started("tracker", "--port", "0")).address)
        serve = ("serve", "--tracker", tracker, "--key", "zen", "--port", "0")
        devices = [stack.enter_context(started(*serve)) for _ in range(count)]
        addresses = [device.address for device in devices]
        with Tracker(Address.parse(tracker)) as known:
            soon(lambda: {each.address for each in known.devices("zen")} == {*addresses})
        yield tracker, devices, addresses


def soon(happened: Callable[[], bool]) -> None:
    """Wait for what is bound to happen, however slow the machine is."""
    until = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.05)


def a_task(of: RpcMeasurer, length: int = 64) -> Task:
    spec = AttentionSpec(dtype="float32", head_dim=16, value_dim=16)
    return Task(spec, "cpu.prefill.fp32", Problem(1, 2, length, length, min(2, of.threads)), of.target)


def candidates(task: Task, count: int) -> list[Candidate]:
    """The default, and others that differ from it in one decision."""
    found = [task.default]
    for name, values in task.space.items():
        found += [Candidate({**task.default.decisions, name: value}) for value in values]
    return list(dict.fromkeys(found))[:count]


@pytest.mark.slow
def test_a_fleet_of_one() -> None:
    """Measured and compared over RPC; the device is listed, and listens on the loopback interface alone."""
    with fleet(1) as (tracker, _, (device,)):
        measuring = RpcMeasurer(Address.parse(tracker), "zen", builders=1)
        try:
            task = a_task(measuring)
            tried = candidates(task, 3)
            outcomes = dict(measuring.measure(task, tried))
            assert outcomes.keys() == set(tried)
            assert all(outcome.seconds and outcome.seconds > 0 for outcome in outcomes.values()), outcomes
            compared = measuring.compare(task, tried[:2], turns=5)
            assert [len(outcome.turns) for outcome in compared.outcomes] == [5, 5]
            assert compared.sdpa is not None and compared.sdpa.seconds
        finally:
            measuring.close()
        answers = []

        def free() -> bool:
            answers[:] = survey(Address.parse(tracker))
            return [answer.state for answer in answers] == ["free"]

        soon(free)  # as soon as its session is over
        (answer,) = answers
        assert answer.device.address == device
        assert answer.description is not None and answer.description.target == measuring.target
        for address in (device, Address.parse(tracker)):
            with pytest.raises(OSError):
                socket.create_connection((_outside(), address.port), timeout=5)


def _outside() -> str:
    """An address of this machine that others might reach; of the loopback net, but not 127.0.0.1, if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks for a route
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.2"


@pytest.mark.slow
def test_devices_are_killed_under_load(tmp_path: Path) -> None:
    """`attncc tune` on two devices loses one, and goes on; then the other, which is an error. All measured is kept."""
    shape = {"heads": 2, "kv_heads": 2, "q_len": 256, "kv_len": 256, "head_dim": 32}
    (tmp_path / "shapes.json").write_text(json.dumps([shape]))
    database = Database(tmp_path / "db")
    with fleet(2) as (tracker, devices, _):

        def tuned_while_one_dies(trials: int, device: Started) -> tuple[int, str]:
            words = ["--workload", str(tmp_path / "shapes.json"), "--database", str(tmp_path / "db")]
            words += ["--trials", str(trials), "--tracker", tracker, "--key", "zen"]
            before = len(database.records())
            with subprocess.Popen(
                [sys.executable, "-m", "attncc", "tune", *words],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                while len(database.records()) < before + 3 and process.poll() is None:
                    time.sleep(0.02)
                device.end()
                _, said = process.communicate(timeout=1800)
            return process.returncode, said

        status, said = tuned_while_one_dies(16, devices[0])
        assert status == 0, said
        trials = [record for record in database.records() if record.default_seconds is None]
        assert len(trials) == len({record.candidate for record in trials}) == 16
        assert all(record.status == "ok" for record in trials)
        kept = len(database.records())
        assert kept > 16, "the best were compared with the default"
        status, said = tuned_while_one_dies(32, devices[1])
        assert status == 1 and f"no device is left under 'zen' at tracker {tracker}" in said
        assert len(database.records()) >= kept + 3


@pytest.mark.slow
def test_candidates_that_crash_and_hang() -> None:
    """Neither takes the device with it: what comes after them is measured."""
    with fleet(1) as (tracker, _, _):
        measuring = RpcMeasurer(Address.parse(tracker), "zen", patience=30, builders=1, say=lambda text: None)
        try:
            task = a_task(measuring)
            good, crashing, hanging, other = candidates(task, 4)
            assert dict(measuring.measure(task, [good]))[good].seconds
            text = measuring.text(good)
            assert text is not None and measuring._task is not None
            for candidate, body in ((crashing, "call void @llvm.trap() br label %end"), (hanging, "br label %begin")):
                broken: Future[bytes] = Future()
                broken.set_result(kernel_of(text, body))
                measuring._task.kernels[candidate] = broken
            found = dict(measuring.measure(task, [crashing, hanging, other]))
        finally:
            measuring.close()
        assert found[other].seconds
        assert found[crashing].failure.count("the process of its session died") == 2
        assert found[hanging].failure.count("it took too long") == 2


def kernel_of(text: bytes, body: str) -> bytes:
    """A kernel for the target of another, which does `body` when it is called."""
    header = "\n".join(line for line in text.decode().splitlines() if line.startswith("target "))
    return f"""{header}
define i32 @__tvm_ffi_attention(ptr %self, ptr %args, i32 %count, ptr %result) {{
  br label %begin
begin:
  {body}
end:
  ret i32 0
}}
declare void @llvm.trap()
!llvm.module.flags = !{{!0}}
!0 = !{{i32 4, !"tvm_target", !"{{\\22kind\\22: \\22llvm\\22}}"}}
""".replace(") br label", ")\n  br label").encode()


@pytest.mark.slow
def test_a_silent_device_and_another_machine() -> None:
    """One that stops answering is left behind; one that serves another target is refused in words."""
    said: list[str] = []
    with fleet(2) as (tracker, devices, _):
        measuring = RpcMeasurer(Address.parse(tracker), "zen", patience=30, say=said.append)
        serve = ("serve", "--tracker", tracker, "--key", "zen", "--port", "0", "--target", "x86-64-v3")
        with started(*serve) as other:
            where = other.address
            try:
                task = a_task(measuring)
                stop = threading.Timer(1.0, devices[0].send, [signal.SIGSTOP])
                stop.start()
                outcomes = dict(measuring.measure(task, candidates(task, 12)))
                assert all(outcome.seconds for outcome in outcomes.values()), outcomes
            finally:
                devices[0].send(signal.SIGCONT)
                measuring.close()
            if measuring.target.mcpu != "x86-64-v3":
                assert any(f"device {where} is not used: it is another machine" in line for line in said), said
