"""A VNF whose ports are queues: a test gives frames, turns the engine and takes what left, on a clock of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from libvnf import VNF, _native
from libvnf.config import PortConfig
from libvnf.transport.bypass import BypassTransport, EngineDriver

MACS = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b", "c": "02:00:00:00:00:0c"}


class Driver(EngineDriver):
    """Turns only when the test says so."""

    def __init__(self, core: _native.Core) -> None:
        self.time_s = 0.0
        self.wakes = 0
        self.engine = _native.Engine(core, clock=lambda: self.time_s, wake=self.wake)

    def wake(self) -> None:
        self.wakes += 1

    def close(self) -> None:
        self.engine.close()


class Queue(BypassTransport):
    """A port that is no kind of an operator's."""

    def describe(self) -> str:
        return f"queue:{self.name}"


class ByHand:
    """The first port is 10.0.0.2 and fd00::2, the second 10.1.0.2 and fd01::2, and so on."""

    def __init__(self, vnf: VNF, names: Sequence[str]) -> None:
        self.vnf, self.names = vnf, names
        self.driver: Driver

    def transports(self, core: _native.Core) -> Sequence[Queue]:
        self.driver = Driver(core)
        options = {
            name: {
                "address": [f"10.{number}.0.2/24", f"fd0{number}::2/64"],
                "mac": MACS.get(name, f"02:00:00:00:01:0{number}"),
            }
            for number, name in enumerate(self.names)
        }
        return [Queue(self.driver, PortConfig(name, "queue", options[name])) for name in self.names]

    def turn(self, after_s: float = 0.0) -> dict[str, list[bytes]]:
        """What left by each port."""
        self.driver.time_s += after_s
        while self.driver.engine.turn() == 0.0:
            pass
        return self.take()

    def take(self) -> dict[str, list[bytes]]:
        left = {name: self.driver.engine.take_frames(name) for name in self.names}
        return {name: frames for name, frames in left.items() if frames}

    def give(self, port: str, *frames: bytes) -> dict[str, list[bytes]]:
        """These come by ``port``; what leaves then."""
        for frame in frames:
            self.driver.engine.give_frame(port, bytes(frame))
        return self.turn()

    def counters(self, port: str) -> dict[str, int]:
        row = next(row for row in self.driver.engine.ports() if row["name"] == port)
        return {name: count for name, count in row["counters"].items() if count}


@asynccontextmanager
async def by_hand(vnf: VNF, *names: str) -> AsyncIterator[ByHand]:
    """Runs ``vnf`` on ports ``a``, ``b`` and ``c``, or those that are named; announcements have left already."""
    hand = ByHand(vnf, names or tuple(MACS))
    await vnf.start(transports=hand.transports)
    try:
        hand.turn()
        yield hand
    finally:
        await vnf.close()
