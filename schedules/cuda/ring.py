"""A ring of shared-memory stages between the thread that orders copies and the warpgroups that read them.

Each stage has two mbarriers: "filled" completes when TMA has written all bytes that were announced, "free" when every
reader has said that it is done. A phase bit tells the rounds of the ring apart.
"""

from __future__ import annotations

from typing import Any

from attncc._tvm import T, tirx
from attncc.schedules.cuda.device import Registers, do, ptx, when


class Place:
    """Where someone is in a ring: a stage, and the phase of its barriers."""

    def __init__(self, name: str, stages: int) -> None:
        self.stages = stages
        self.registers = Registers(name, 2, "int32")
        for n in range(2):
            self.registers[n] = tirx.const(0, "int32")

    @property
    def stage(self) -> Any:
        return self.registers[0] if self.stages > 1 else tirx.const(0, "int32")

    @property
    def phase(self) -> Any:
        return self.registers[1]

    def advance(self) -> None:
        """Go on to the next stage; after the last one, to the first in the other phase."""
        if self.stages > 1:
            self.registers[0] = self.registers[0] + 1
        with when(tirx.EQ(self.registers[0], self.stages if self.stages > 1 else 0)):
            if self.stages > 1:
                self.registers[0] = tirx.const(0, "int32")
            self.registers[1] = tirx.bitwise_xor(self.registers[1], tirx.const(1, "int32"))


class Barriers:
    """The barriers of a ring's stages, for `readers` arrivals that free a stage."""

    def __init__(self, pool: Any, stages: int, readers: int) -> None:
        self.stages, self.readers = stages, readers
        self._filled = pool.alloc((stages,), "uint64", align=8)
        self._free = pool.alloc((stages,), "uint64", align=8)

    def start(self) -> None:
        """Set the barriers up; one thread does, before any other touches them."""
        for stage in range(self.stages):
            for buffer, count in ((self._filled, 1), (self._free, self.readers)):
                ptx("mbarrier.init.shared.b64", _at(buffer, stage), tirx.const(count, "uint32"))

    def filled(self, place: Place) -> Any:
        """Address of the barrier that a copy reports to."""
        return _at(self._filled, place.stage)

    def expect(self, place: Place, size: int) -> None:
        """Announce the bytes that are to fill a stage."""
        ptx("mbarrier.arrive.expect_tx.shared.b64", self.filled(place), tirx.const(size, "uint32"))

    def wait_filled(self, place: Place) -> None:
        do(T.cuda.mbarrier_wait(self.filled(place), place.phase))

    def wait_free(self, place: Place) -> None:
        """Until the readers of the last round are done; at once in the first round."""
        other = tirx.bitwise_xor(place.phase, tirx.const(1, "int32"))
        do(T.cuda.mbarrier_wait(_at(self._free, place.stage), other))

    def free(self, place: Place) -> None:
        """One reader is done with a stage."""
        ptx("mbarrier.arrive.shared.b64", _at(self._free, place.stage), tirx.const(1, "uint32"))


def _at(buffer: Any, place: Any) -> Any:
    return tirx.address_of(tirx.BufferLoad(buffer, [place]))
