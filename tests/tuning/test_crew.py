"""The queue of a fleet with devices that are made up: who gets which job, and what becomes of it when one is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from attncc.tuning import crew
from attncc.tuning.jobs import Job, NoDevices, Work
from attncc.tuning.measure import Comparison, Outcome
from attncc.tuning.tracker import Address, Offer, Registered

Behaviour = Callable[[bytes], float]
TRACKER = Address("127.0.0.1", 9190)


class World:
    """Devices by address: which are free, what they do with a kernel, what was refused, and what was said."""

    def __init__(self, **devices: Behaviour | None) -> None:
        self.devices = {Address(name, 9090): behaviour for name, behaviour in devices.items()}
        self.free = list(self.devices)
        self.measured: list[tuple[str, bytes]] = []
        self.others: set[Address] = set()
        self.unfit: dict[Address, str] = {}
        self.said: list[str] = []
        self.lock = threading.Lock()

    def run(self, *kernels: bytes | Exception, limit: float = 60.0) -> list[Job]:
        """Have a job of each kernel done; jobs in the order in which they were."""
        made = crew.Crew(TRACKER, "key", lambda told: "it is another machine" if told else None, self.said.append)
        work = Work({}, ("", b""), built(b"default"), limit, 60.0)
        return list(made.run(work, [Job([built(kernel)], {}, limit) for kernel in kernels]))


def built(kernel: bytes | Exception) -> Future[bytes]:
    future: Future[bytes] = Future()
    if isinstance(kernel, Exception):
        future.set_exception(kernel)
    else:
        future.set_result(kernel)
    return future


def outcomes(jobs: Sequence[Job]) -> list[Outcome]:
    return [job.result.outcomes[0] for job in jobs if job.result is not None]


def measuring(kernel: bytes) -> float:
    return 1.0


def measuring_after(happened: Callable[[], object]) -> Behaviour:
    """Measures nothing before something has happened that another device has to do with."""

    def behave(kernel: bytes) -> float:
        until = time.monotonic() + 50
        while not happened() and time.monotonic() < until:
            time.sleep(0.005)
        return 1.0

    return behave


def dying(kernel: bytes) -> float:
    raise RuntimeError("TVM's stack of calls\nend of file")


def crashed_by(bad: bytes) -> Behaviour:
    def behave(kernel: bytes) -> float:
        return dying(kernel) if kernel == bad else measuring(kernel)

    return behave


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Make a world, whose tracker and devices stand in for TVM's."""
    worlds: list[World] = []

    class Tracker:
        def __init__(self, address: Address) -> None:
            self.world = worlds[-1]

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

        def request(self, key: str) -> None: ...

        def offer(self, wait: float) -> Offer | None:
            with self.world.lock:
                if self.world.free:
                    return Offer(self.world.free.pop(0), "matchkey")
            time.sleep(0.01)
            return None

        def devices(self, key: str) -> list[Registered]:
            return [Registered(key, address) for address in self.world.devices]

    class Remote:
        def __init__(self, offer: Offer, seconds: int) -> None:
            self.world, self.address = worlds[-1], offer.address

        def __del__(self) -> None:
            with self.world.lock:  # a device whose session is over registers again
                if self.world.devices.get(self.address) is not None:
                    self.world.free.append(self.address)

        def describe(self) -> bool:
            return self.address in self.world.others

        def prepare(self, request: Any, task: Any, kernel: bytes) -> str | None:
            assert kernel == b"default"
            return self.world.unfit.get(self.address)

        def measure(self, kernels: Sequence[bytes], request: Any) -> Comparison:
            behave = self.world.devices[self.address]
            assert behave is not None
            self.world.measured.append((self.address.host, kernels[0]))
            try:
                return Comparison((Outcome.of([behave(kernels[0])]),))
            except RuntimeError:
                if behave is dying:
                    self.world.devices.pop(self.address)
                raise

    monkeypatch.setattr(crew, "Tracker", Tracker)
    monkeypatch.setattr(crew, "Remote", Remote)
    monkeypatch.setattr(crew, "TICK", 0.02)
    monkeypatch.setattr(crew, "GRACE", 0.2)

    def make(**devices: Behaviour | None) -> World:
        worlds.append(World(**devices))
        return worlds[-1]

    return make


KERNELS = [str(n).encode() for n in range(12)]


def test_devices_share_the_queue(world: Callable[..., World]) -> None:
    """Each job is measured once, and both devices work."""
    both = measuring_after(lambda: len({name for name, _ in here.measured}) == 2)
    here = world(one=both, two=both)
    jobs = here.run(*KERNELS)
    assert [o.seconds for o in outcomes(jobs)] == [1.0] * 12
    assert sorted(kernel for _, kernel in here.measured) == sorted(KERNELS)
    assert {name for name, _ in here.measured} == {"one", "two"}


def test_a_device_that_dies_loses_its_own_measurement_only(world: Callable[..., World]) -> None:
    """What it held is measured by another."""
    here = world(one=dying, two=measuring_after(lambda: here.said))
    jobs = here.run(*KERNELS)
    assert [o.seconds for o in outcomes(jobs)] == [1.0] * 12
    assert sum(name == "one" for name, _ in here.measured) == 1
    assert any("device one:9090 was lost (RuntimeError: end of file)" in line for line in here.said)


def test_a_candidate_that_kills_two_devices_has_failed(world: Callable[..., World]) -> None:
    """It is not tried a third time, and the devices, whose sessions alone died, measure the others."""
    here = world(one=crashed_by(b"5"), two=crashed_by(b"5"))
    jobs = here.run(*KERNELS)
    failed = [outcome for outcome in outcomes(jobs) if outcome.seconds is None]
    assert len(failed) == 1 and failed[0].failure.count("was lost") == 2
    assert sum(kernel == b"5" for _, kernel in here.measured) == 2
    assert len(jobs) == 12


def test_a_device_that_hangs_is_left_behind(world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its late answer counts no more. The other device comes when this one hangs."""
    monkeypatch.setattr(crew, "MARGIN", 0.5)
    release = threading.Event()

    def hanging(kernel: bytes) -> float:
        with here.lock:
            here.free.append(Address("two", 9090))
        release.wait(600)
        return 0.001

    here = world(one=hanging, two=measuring)
    here.free.remove(Address("two", 9090))
    jobs = here.run(*KERNELS, limit=0.1)
    release.set()
    assert [o.seconds for o in outcomes(jobs)] == [1.0] * 12
    assert any("did not answer within" in line for line in here.said)


def test_another_machine_is_refused(world: Callable[..., World]) -> None:
    """Once, in words, though the tracker offers it again and again."""
    here = world(one=measuring, two=measuring_after(lambda: here.said))
    here.others = {Address("one", 9090)}
    jobs = here.run(*KERNELS)
    assert len(jobs) == 12 and {name for name, _ in here.measured} == {"two"}
    assert here.said == ["device one:9090 is not used: it is another machine"]


def test_no_device_is_left(world: Callable[..., World]) -> None:
    """What was measured has been given out by then; the error says how to go on."""
    here = world(one=measuring)
    done: list[Job] = []
    made = crew.Crew(TRACKER, "key", lambda told: None, here.said.append)
    jobs = [Job([built(kernel)], {}, 1.0) for kernel in KERNELS]
    here.devices[Address("one", 9090)] = _mortal(here)
    with pytest.raises(NoDevices, match=r"no device is left under 'key'.*attncc device serve"):
        for job in made.run(Work({}, ("", b""), built(b"default"), 1.0, 60.0), jobs):
            done.append(job)
    assert len(done) == 3 and all(job.result is not None for job in done)


def _mortal(here: World) -> Behaviour:
    """Three measurements, then it is gone for good."""
    left = [3]

    def behave(kernel: bytes) -> float:
        if not left[0]:
            here.devices.clear()
            raise RuntimeError("gone")
        left[0] -= 1
        return 1.0

    return behave


def test_all_are_refused(world: Callable[..., World]) -> None:
    here = world(one=measuring)
    here.others = {Address("one", 9090)}
    with pytest.raises(NoDevices, match="one:9090: it is another machine"):
        here.run(*KERNELS)


def test_what_cannot_be_built_has_failed(world: Callable[..., World]) -> None:
    """Without a device's time."""
    here = world(one=measuring)
    jobs = here.run(b"good", ValueError("no such tile"))
    assert sorted(outcome.failure for outcome in outcomes(jobs)) == ["", "could not be built: no such tile"]
    assert len(here.measured) == 1


def test_work_that_no_device_can_do(world: Callable[..., World]) -> None:
    """Another device may be able to; where none is, it is the work that has failed, not the fleet."""
    here = world(one=measuring, two=measuring)
    here.unfit = {Address("one", 9090): "out of memory"}
    assert [o.seconds for o in outcomes(here.run(*KERNELS))] == [1.0] * 12
    here.unfit[Address("two", 9090)] = "out of memory"
    here.free = list(here.devices)
    assert [o.failure for o in outcomes(here.run(*KERNELS))] == ["the default fails: out of memory"] * 12
