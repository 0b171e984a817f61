"""Jobs for whatever devices are registered under a key: one queue, from which each device that is free pulls.

A device that is lost gives its job back; a job that was lost with two devices has failed. Devices that join later, or
come back, take part. The loop runs in the caller's thread, each session in a thread of its own, since calls over TVM's
RPC block: one that has not come back in time is left behind, and its device with it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from attncc.tuning.description import Description
from attncc.tuning.jobs import Job, NoDevices, Work, failed
from attncc.tuning.measure import Comparison
from attncc.tuning.processes import Failure, caught
from attncc.tuning.remote import Remote
from attncc.tuning.tracker import Address, Offer, Tracker

TICK = 0.2
MARGIN = 15.0
"""Seconds for the way there and back, beside what a device may take for a call."""
CONNECT = 30.0
GRACE = 15.0
"""Seconds without any device before that is an error: one whose session crashed registers again within a few."""
BUSY = 900.0
"""The same where devices are registered, but serve others."""
STRIKES = 3
"""Sessions with a device that may fail before any measurement."""


class Crew:
    """The devices under a key, for one queue of jobs. `say` hears what goes wrong with a device."""

    def __init__(
        self, tracker: Address, key: str, refusal: Callable[[Description], str | None], say: Callable[[str], None]
    ) -> None:
        self._tracker, self._key, self._refusal, self._say = tracker, key, refusal, say
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._sessions: list[_Session] = []
        self._asked: Tracker | None = None
        self._refused: dict[Address, str] = {}
        self._unfit: dict[Address, str] = {}
        """Devices that cannot do the work of this run, and why."""
        self._silent: set[Address] = set()
        self._strikes: Counter[Address] = Counter()

    def run(self, work: Work, jobs: Sequence[Job]) -> Iterator[Job]:
        """Each job as it is done, in whatever order. Raises NoDevices where none is left for those that are not."""
        self._waiting = deque(jobs)
        self._unfit.clear()
        unfinished, without = list(jobs), 0.0
        try:
            while unfinished:
                before = time.monotonic()
                offer = self._offer()
                if offer is not None:
                    self._begin(offer, work, len(unfinished))
                # A process that was stopped for a while must not take that for the devices' silence.
                passed = min(time.monotonic() - before, 2 * TICK)
                self._watch(passed)
                without = 0.0 if self._sessions or offer is not None else without + passed
                done = [job for job in unfinished if job.result is not None]
                unfinished = [job for job in unfinished if job.result is None]
                yield from done
                if self._unfit and offer is None and not self._sessions and not self._hopeful():
                    reason = "; ".join(dict.fromkeys(self._unfit.values()))
                    for job in unfinished:
                        job.result = failed(job, reason)
                self._despair(without)
        finally:
            self._withdraw()
            with self._changed:
                self._waiting.clear()
                for session in self._sessions:
                    session.over = True
                self._sessions.clear()

    def _offer(self) -> Offer | None:
        """The next free device, if one comes up within a moment and there is something to do for it."""
        if not self._waiting:
            self._withdraw()
            with self._changed:
                self._changed.wait(TICK)
            return None
        try:
            if self._asked is None:
                self._asked = Tracker(self._tracker)
                self._asked.request(self._key)
            offer = self._asked.offer(TICK)
        except ConnectionError:  # it may come back; sessions go on without it
            self._withdraw()
            time.sleep(TICK)
            return None
        if offer is not None:
            self._withdraw()
            self._silent.discard(offer.address)
        return None if offer is None or offer.address in {*self._refused, *self._unfit} else offer

    def _withdraw(self) -> None:
        if self._asked is not None:
            self._asked.close()
            self._asked = None

    def _begin(self, offer: Offer, work: Work, count: int) -> None:
        session = _Session(self, offer, work, count)
        with self._changed:
            self._sessions.append(session)
        threading.Thread(target=session.serve, name=f"device {offer.address}", daemon=True).start()

    def _watch(self, passed: float) -> None:
        """Leave behind the sessions whose call is overdue."""
        for session in list(self._sessions):
            session.left -= passed
            if session.left < 0:
                self._silent.add(session.offer.address)
                self.lose(session, f"did not answer within {session.limit:.0f} s")

    def _despair(self, without: float) -> None:
        """Raise NoDevices where nobody has worked for `without` seconds and nobody can be hoped for."""
        if without < GRACE:
            return
        try:
            hopeful = self._hopeful()
        except ConnectionError as error:
            raise NoDevices(str(error)) from error
        if hopeful and without < BUSY:
            return
        if hopeful:
            raise NoDevices(f"the devices under {self._key!r} have been busy with others for {without:.0f} s")
        reasons = [f"{address}: {reason}" for address, reason in self._refused.items()]
        reasons += [f"{address}: it does not answer" for address in self._silent]
        told = f" ({'; '.join(reasons)})" if reasons else ""
        raise NoDevices(
            f"no device is left under {self._key!r} at tracker {self._tracker}{told}; start one with: "
            f"attncc device serve --tracker {self._tracker} --key {self._key}"
        )

    def _hopeful(self) -> set[Address]:
        """The registered devices of which nothing bad is known."""
        with Tracker(self._tracker) as tracker:
            registered = {device.address for device in tracker.devices(self._key)}
        return registered - self._silent - {*self._refused, *self._unfit}

    def pull(self, session: _Session) -> Job | None:
        """The next job of a session; None where there is none, or the session has been left behind."""
        with self._changed:
            if session.over or not self._waiting:
                return None
            session.job = self._waiting.popleft()
            return session.job

    def finish(self, session: _Session, job: Job, result: Comparison) -> None:
        """Take a job's result, unless the session has been left behind and the job given to another."""
        with self._changed:
            if not session.over:
                job.result, session.job = result, None
                self._strikes.pop(session.offer.address, None)
                self._changed.notify_all()

    def lose(self, session: _Session, reason: str) -> None:
        """End a session that has failed: its job goes back into the queue once."""
        address = session.offer.address
        with self._changed:
            if session.over:
                return
            session.over = True
            self._sessions.remove(session)
            job = session.job
            if job is not None:
                job.lost.append(f"device {address} {reason}")
                if len(job.lost) > 1:
                    job.result = failed(job, "; ".join(job.lost))
                else:
                    self._waiting.append(job)
            else:
                self._strikes[address] += 1
                if self._strikes[address] == STRIKES:
                    self._refused[address] = reason
            self._changed.notify_all()
        self._say(f"device {address} {reason}{'' if job is None else '; its candidate is measured again elsewhere'}")

    def refuse(self, session: _Session, reason: str) -> None:
        """End a session with a device that is none of ours."""
        with self._changed:
            self._refused[session.offer.address] = reason
        self.end(session)
        self._say(f"device {session.offer.address} is not used: {reason}")

    def spare(self, session: _Session, reason: str) -> None:
        """End a session with a device that cannot do this work, where another may."""
        with self._changed:
            self._unfit[session.offer.address] = reason
        self.end(session)

    def end(self, session: _Session) -> None:
        """End a session in good order."""
        with self._changed:
            if not session.over:
                session.over = True
                self._sessions.remove(session)
                self._changed.notify_all()

    def refusal(self, description: Description) -> str | None:
        """Why a device is none of ours."""
        return self._refusal(description)


class _Session:
    """What one thread does with one device."""

    def __init__(self, crew: Crew, offer: Offer, work: Work, count: int) -> None:
        self.crew, self.offer, self.work, self.count = crew, offer, work, count
        self.job: Job | None = None
        self.over = False
        self.limit = self.left = CONNECT
        """Seconds that the current call may take, and that it has left."""
        self.since = time.monotonic()

    def serve(self) -> None:
        """Connect, prepare, and measure jobs until there are none."""
        try:
            self._serve()
        except Exception as error:  # TVM raises whatever class the other side names
            self.crew.lose(self, self._lost(error))

    def _serve(self) -> None:
        work = self.work
        # At once: an offer lapses after some seconds.
        remote = Remote(self.offer, int(CONNECT + work.limit + self.count * (work.limit + MARGIN)))
        if reason := self.crew.refusal(remote.describe()):
            self.crew.refuse(self, reason)
            return
        text = self._wait(work.kernel)
        if isinstance(text, Failure):
            self.crew.spare(self, f"the default could not be built: {text}")
            return
        self._allow(work.limit + MARGIN)
        if reason := remote.prepare(work.request, work.task, text):
            self.crew.spare(self, f"the default fails: {reason}")
            return
        while (job := self.crew.pull(self)) is not None:
            built = [self._wait(kernel) for kernel in job.kernels]
            texts = [each for each in built if isinstance(each, bytes)]
            if len(texts) < len(built):
                reason = next(each for each in built if isinstance(each, Failure))
                self.crew.finish(self, job, failed(job, f"could not be built: {reason}"))
                continue
            self._allow(job.limit + MARGIN)
            self.crew.finish(self, job, remote.measure(texts, job.request))
        self.crew.end(self)

    def _wait(self, built: Future[bytes]) -> bytes | Failure:
        """What the builders of this machine, who have a time limit of their own, come up with."""
        self._allow(math.inf)
        return caught(built.result, self.work.patience)

    def _allow(self, seconds: float) -> None:
        self.limit = self.left = seconds
        self.since = time.monotonic()

    def _lost(self, error: Exception) -> str:
        """How a session ended, in a few words: TVM's messages hold whole stacks."""
        line = (str(error).strip().splitlines() or [""])[-1]
        if "kShutdown" not in line:
            return f"was lost ({type(error).__name__}: {line[:200]})"
        late = self.job is not None and time.monotonic() - self.since >= self.job.limit
        return f"was lost ({'it took too long' if late else 'the process of its session died'})"
