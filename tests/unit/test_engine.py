"""The native engine on a queue: frames given and taken by hand, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from libvnf import Connection, Limits, Request, _native

OWN_MAC, PEER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
ETHERNET = bytes.fromhex("020000000002 020000000001".replace(" ", ""))


def arp(operation: int, source: str, target: str) -> bytes:
    addresses = [bytes(map(int, text.split("."))) for text in (source, target)]
    sender = bytes.fromhex(PEER_MAC.replace(":", ""))
    fixed = bytes.fromhex("0001 0800 06 04".replace(" ", ""))
    return (
        ETHERNET + b"\x08\x06" + fixed + operation.to_bytes(2, "big") + sender + addresses[0] + bytes(6) + addresses[1]
    )


class Bench:
    """An engine with one queue, driven by hand."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.wakes = 0
        self.core = _native.Core(
            asyncio.get_running_loop(),
            connection=Connection,
            request=Request,
            resolve=lambda url: self.target,
            on_failure=print,
            limits=Limits().native(),
        )
        self.engine = _native.Engine(self.core, clock=lambda: self.time_s, wake=self._woken)
        self.engine.add_queue("q", {"address": "10.0.0.2/24", "mac": OWN_MAC})
        self.target = self.engine.target("udp", "q", "10.0.0.1", 5000)

    def _woken(self) -> None:
        self.wakes += 1

    def turn(self) -> tuple[float | None, list[bytes]]:
        """What the engine said, once it wanted no further turn at once; and the frames that left."""
        frames = self.engine.take_frames("q")
        while (delay := self.engine.turn()) == 0.0:
            pass
        return delay, frames + self.engine.take_frames("q")


async def on_bench(check: Callable[[Bench], Any]) -> None:
    bench = Bench()
    bench.turn()
    check(bench)
    bench.engine.close()


async def test_a_frame_that_is_given_is_answered_in_the_same_turn() -> None:
    def check(bench: Bench) -> None:
        bench.engine.give_frame("q", arp(1, "10.0.0.1", "10.0.0.2"))
        assert bench.wakes == 1
        _, frames = bench.turn()
        assert [frame[:6].hex(":") for frame in frames] == [PEER_MAC]

    await on_bench(check)


async def test_what_is_sent_outside_a_turn_wakes_once() -> None:
    def check(bench: Bench) -> None:
        connection = Connection(bench.core, _native.Endpoint(bench.core, "outgoing")).connect("udp://10.0.0.1:5000")
        connection.send(b"ping")
        bench.core.flush()
        connection.send(b"ping")
        bench.core.flush()
        assert bench.wakes == 1
        delay, frames = bench.turn()
        # The address is asked for first, and once more after a while of this clock.
        assert [frame[12:14] for frame in frames] == [b"\x08\x06"]
        assert delay is not None
        assert bench.turn() == (delay, [])
        bench.time_s += delay
        assert [frame[12:14] for frame in bench.turn()[1]] == [b"\x08\x06"]

    await on_bench(check)
