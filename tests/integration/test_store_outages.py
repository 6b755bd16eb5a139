"""What a VNF tells and does while its store is not there, stands still, is full, is another program or lets nobody in;
and that nothing which was accepted meanwhile is lost."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from libvnf import VNF, Limits, Table, write_back, write_through
from libvnf.errors import StateError, StateFull, StoreUnavailable
from libvnf.state.redis import RedisStore
from libvnf.state.url import StoreURL
from tests.integration.inside import until
from tests.peers import DEADLINE_S
from tests.redis_cluster import RedisServer

pytestmark = pytest.mark.needs("redis-server")

Server = Callable[..., RedisServer]
# What it has answered is with the kernel, which is not killed.
KEPT = {"appendonly": "yes", "appendfsync": "no"}
MAX_ENTRIES = 1000
QUEUED_BYTES = 64 << 20
"""What the client keeps at most of what it was asked for (``max_queued_bytes``)."""


class Relay:
    """A way to the server that a test can put something else into: ``await relay.babble(b"…")``."""

    def __init__(self, port: int) -> None:
        self._to, self._answer = port, b""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._listening = await asyncio.start_server(self._connected, "127.0.0.1")
        self.port: int = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        self._cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def babble(self, answer: bytes) -> None:
        """Whatever is asked is answered with this from now on; nothing: with what the server says."""
        self._answer = answer
        self._cut()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._answer:
                while await reader.read(65536):
                    writer.write(self._answer)
                    await writer.drain()
                return
            there, here = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers.add(here)
            try:
                await asyncio.gather(self._pass(reader, here), self._pass(there, writer))
            finally:
                self._writers.discard(here)
                here.close()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


class Fault(ABC):
    """Something that happens to a server, and goes by."""

    states: tuple[str, ...]
    """How the store's state may begin meanwhile."""
    why: str
    """What is in it, and in the log."""

    def __init__(self, server: RedisServer, relay: Relay) -> None:
        self.server, self.relay = server, relay

    @abstractmethod
    async def begin(self) -> None: ...

    @abstractmethod
    async def end(self) -> None: ...


class Gone(Fault):
    states, why = ("down: ",), "connection refused|it closed the connection"

    async def begin(self) -> None:
        await asyncio.to_thread(self.server.kill)

    async def end(self) -> None:
        await asyncio.to_thread(self.server.start)


class Still(Fault):
    """SIGSTOP: connections are there, and nobody answers."""

    states, why = ("down: ",), "no answer for"

    async def begin(self) -> None:
        self.server.pause()

    async def end(self) -> None:
        self.server.resume()


class Full(Fault):
    states, why = ("refusing: ",), "OOM command not allowed"

    async def begin(self) -> None:
        self.server.ask("config", "set", "maxmemory", "1")

    async def end(self) -> None:
        self.server.ask("config", "set", "maxmemory", "0")


class Garbage(Fault):
    states, why = ("down: ",), "answered what is not RESP3"

    async def begin(self) -> None:
        self.relay.babble(b"HTTP/1.1 400 Bad Request\r\nServer: \0\xff\r\n\r\n")

    async def end(self) -> None:
        self.relay.babble(b"")


class Flood(Fault):
    states, why = ("down: ",), "answered what is not RESP3"

    async def begin(self) -> None:
        self.relay.babble(b"+" * 10_000_000)

    async def end(self) -> None:
        self.relay.babble(b"")


class AnotherPassword(Fault):
    states, why = ("down: ",), "WRONGPASS|NOAUTH"

    async def begin(self) -> None:
        self.server.ask("config", "set", "requirepass", "another")
        self.server.ask("client", "kill", "type", "normal", "skipme", "yes")

    async def end(self) -> None:
        self.server.ask("config", "set", "requirepass", "right")


FAULTS = [Gone, Still, Full, Garbage, Flood, AnotherPassword]
for_each = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)


class Rig(NamedTuple):
    vnf: VNF
    counts: Table[str, int]
    through: Table[str, int]
    fault: Fault
    server: RedisServer

    @property
    def state(self) -> str:
        return str(self.vnf.statistics()["store"]["state"])

    async def told(self, caplog: pytest.LogCaptureFixture) -> None:
        """The state says what is wrong, and so does the log."""
        await until(lambda: self.state.startswith(self.fault.states) and re.search(self.fault.why, self.state))
        assert f"the store is {self.state}" in caplog.text

    async def stored(self) -> dict[str, int]:
        """What stands in the store, as another replica sees it."""
        async with started(self.server.url.replace("//", "//:right@")) as vnf:
            return dict([item async for item in table(vnf, "counts").scan()])


def make(patience_s: float) -> VNF:
    vnf = VNF("b", Limits(connect_s=patience_s), program=False)
    vnf.table("counts", key=str, value=int, durability=write_back(interval_s=0.02), max_entries=MAX_ENTRIES)
    vnf.table("through", key=str, value=int, durability=write_through)
    return vnf


def table(vnf: VNF, name: str) -> Any:
    return next(one for one in vnf.tables if one.name == name)


@asynccontextmanager
async def started(url: str, patience_s: float = DEADLINE_S) -> AsyncIterator[VNF]:
    vnf = make(patience_s)
    vnf.tables.store = RedisStore(StoreURL.parse(url), timeout_s=2.0)
    vnf.config = replace(vnf.config, store=url)
    await vnf.start()
    try:
        yield vnf
    finally:
        await vnf.close()


@asynccontextmanager
async def rig(fault: type[Fault], server: RedisServer) -> AsyncIterator[Rig]:
    """A VNF whose store is about to fail."""
    async with Relay(server.port) as relay, started(f"redis://:right@127.0.0.1:{relay.port}") as vnf:
        counts, through = vnf.tables
        await counts.put("before", 1)
        await counts.flush()
        made = Rig(vnf, counts, through, fault(server, relay), server)
        assert made.state == "up"
        yield made


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


@for_each
async def test_what_is_wrong_with_a_store_is_told_and_what_was_put_meanwhile_is_stored(
    fault: type[Fault], redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with rig(fault, redis_server({**KEPT, "requirepass": "right"})) as it:
        await it.fault.begin()
        put = {f"k{number}": number for number in range(500)}
        for key, value in put.items():
            it.counts.put_nowait(key, value)
        await it.told(caplog)
        await until(lambda: it.counts.statistics()["flush_failures"] > 500)
        assert it.counts.statistics()["dirty_now"] + it.counts.statistics()["flying_now"] == 500
        assert it.counts.get_nowait("k7") == 7, "what was put here is read here"
        await it.fault.end()
        await until(lambda: it.state == "up")
        await it.counts.flush()
        assert it.counts.statistics()["dirty_now"] == 0
        assert await it.stored() == {"before": 1, **put}
    assert "the store is up" in caplog.text
    assert "not stored" not in "".join(record.getMessage() for record in caplog.records if record.levelname == "ERROR")


@for_each
async def test_afterwards_it_hears_again_of_what_others_change(fault: type[Fault], redis_server: Server) -> None:
    server = redis_server({**KEPT, "requirepass": "right"})
    async with rig(fault, server) as it:
        assert await it.counts.get("before") == 1
        await it.fault.begin()
        it.counts.put_nowait("other", 1)
        await until(lambda: it.state != "up")
        await it.fault.end()
        await until(lambda: it.state == "up")
        async with started(server.url.replace("//", "//:right@")) as other:
            for value in (2, 3):
                await it.counts.get("before")
                await table(other, "counts").put("before", value, durability=write_through)
                await until(lambda: it.counts.get_nowait("before") is None)
                assert await it.counts.get("before") == value


@pytest.mark.parametrize("fault", [Garbage, Flood], ids=lambda fault: fault.__name__)
async def test_of_a_store_that_is_out_of_reach_nothing_cached_is_served(
    fault: type[Fault], redis_server: Server
) -> None:
    server = redis_server({**KEPT, "requirepass": "right"})
    async with rig(fault, server) as it, started(server.url.replace("//", "//:right@")) as other:
        assert await it.counts.get("before") == 1
        await it.fault.begin()  # it is in the way of this replica alone
        await until(lambda: it.state != "up")
        await table(other, "counts").put("before", 2, durability=write_through)
        assert it.counts.get_nowait("before") is None
        await it.fault.end()
        await until(lambda: it.state == "up")
        assert await it.counts.get("before") == 2


@for_each
async def test_a_store_that_is_not_right_at_the_start_is_waited_for(
    fault: type[Fault], redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it lets nobody in, or is none: then the VNF does not start."""
    caplog.set_level(logging.INFO)
    server = redis_server({**KEPT, "requirepass": "right"})
    async with Relay(server.port) as relay:
        broken = fault(server, relay)
        await broken.begin()
        url = f"redis://:right@127.0.0.1:{relay.port}"
        if fault in (Garbage, Flood, AnotherPassword):
            with pytest.raises(StateError, match=fault.why):
                async with started(url):
                    pass
            await broken.end()
            return
        try:
            async with started(url, 0.5) as vnf:
                counts, through = vnf.tables
                it = Rig(vnf, counts, through, broken, server)
                await until(lambda: it.state.startswith("down: "))
                assert f"the store is {it.state}" in caplog.text
                counts.put_nowait("early", 1)
                with pytest.raises(StoreUnavailable):
                    await through.put("k", 1)
                with pytest.raises(StoreUnavailable, match="the store is down: "):
                    await counts.flush()
                await broken.end()
                await until(lambda: it.state == "up" and counts.open)
                await counts.flush()
                assert await it.stored() == {"early": 1}
        finally:
            server.resume()


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=[pytest.mark.soak, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("fault", [Gone, Still, Full], ids=lambda fault: fault.__name__)
async def test_a_long_outage_takes_bounded_memory_and_loses_nothing(
    seconds: float, fault: type[Fault], redis_server: Server
) -> None:
    """Puts and updates go on all the time, of far more keys than there is room for."""
    loop = asyncio.get_running_loop()
    accepted: dict[str, int] = {}
    refused = 0
    async with rig(fault, redis_server({**KEPT, "requirepass": "right"})) as it:
        await it.fault.begin()
        begun_s, before_bytes = loop.time(), resident_bytes()
        waiting: set[asyncio.Task[None]] = set()
        number = 0
        while loop.time() - begun_s < seconds or it.state == "up" or not refused:
            number += 1
            try:
                it.counts.put_nowait(f"k{number % (3 * MAX_ENTRIES)}", number)
            except StateFull:
                refused += 1
            else:
                accepted[f"k{number % (3 * MAX_ENTRIES)}"] = number
            if len(waiting) < 1000:
                task = asyncio.ensure_future(ignoring(it.through.put(f"k{number}", number)))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            if number % 100 == 0:
                await asyncio.sleep(0)
            statistics = it.counts.statistics()
            assert statistics["entries_now"] <= MAX_ENTRIES
        assert resident_bytes() - before_bytes < QUEUED_BYTES + (32 << 20)
        assert it.vnf.statistics()["store"].get("queued_bytes_now", 0) <= QUEUED_BYTES
        await it.fault.end()
        # Who waits for room has it as soon as there is some.
        await it.counts.put("late", 1)
        await until(lambda: it.state == "up")
        await it.counts.flush()
        assert await it.stored() == {"before": 1, "late": 1, **accepted}
        await asyncio.gather(*waiting)


async def ignoring(call: Any) -> None:
    with suppress(StateError):
        await call
