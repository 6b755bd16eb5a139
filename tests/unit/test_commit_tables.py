"""Tables tell requests of their writes: ``commit="before_send"`` and ``on_request_end``, over a store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from libvnf import VNF, Fixed, write_back, write_through
from libvnf.errors import StateConflict

LAZY = write_back(interval_s=1000)


class Site:
    """A VNF with a table, and its store."""

    def __init__(self, durability: Any = LAZY, commit: str | None = "before_send", **options: Any) -> None:
        self.vnf = VNF("b")
        self.table = self.vnf.table("t", key=str, value=int, durability=durability, **options)
        self.server = self.vnf.server("tcp://:5000", framing=Fixed(1), commit=commit)
        self.net: Any = None

    def run(self, scenario: Callable[[Any], Any]) -> None:
        async def whole() -> None:
            async with self.vnf.test(seed=1) as self.net:
                await scenario(await self.net.connect("tcp://b:5000", framing=Fixed(1)))

        asyncio.run(whole())

    def counted(self, name: str) -> int:
        found: int = self.vnf.statistics()["core"][name]
        return found

    def stored(self) -> bool:
        return not self.table.cache.unstored


@pytest.mark.parametrize("how", ["put_nowait", "put", "delete", "write_through", "update"])
@pytest.mark.parametrize("first", ["write", "send"])
def test_a_reply_waits_for_what_its_request_put(how: str, first: str) -> None:
    site = Site()
    table = site.table

    async def write() -> None:
        if how == "put_nowait":
            table.put_nowait("a", 1)
        elif how == "put":
            await table.put("a", 1)
        elif how == "delete":
            table.put_nowait("a", 1)
            assert await table.delete("a")
        elif how == "write_through":
            await table.put("a", 1, durability=write_through)
        else:
            await table.update("a", lambda n: n + 1, default=0)

    @site.server
    async def on_request(conn: Any, request: Any, packet: Any) -> None:
        if first == "send":
            conn.send(packet)
        await write()
        if first == "write":
            conn.send(packet)

    async def scenario(peer: Any) -> None:
        site.net.store.slow(1.0)
        peer.send(b"x")
        await asyncio.sleep(0.9)
        assert peer.take() is None
        await asyncio.sleep(3)
        assert peer.take() == b"x" and site.stored()
        assert site.counted("requests_open") == 0

    site.run(scenario)


@pytest.mark.parametrize("how", ["held.put", "held.delete", "delete", "put", "drop"])
def test_what_was_sent_before_a_call_waits_for_all_of_it(how: str) -> None:
    """Also where the call waits for something else first: a read, room in the cache."""
    site = Site(max_entries=1)
    table, returned_s = site.table, list[float]()

    @site.server
    async def on_request(conn: Any, request: Any, packet: Any) -> None:
        if how.startswith("held"):
            async with table.lock("a") as held:
                await held.put(1)
                site.net.store.slow(1.0)
                conn.send(packet)
                await (held.put(2) if how == "held.put" else held.delete())
                returned_s.append(asyncio.get_running_loop().time())
            return
        await table.put("a", 1, durability=write_through)
        table.put_nowait("b", 1)
        site.net.store.slow(1.0)
        conn.send(packet)
        if how == "delete":
            await table.delete("a")
        elif how == "put":
            await table.put("c", 1)
        else:
            await table.drop()
        returned_s.append(asyncio.get_running_loop().time())

    async def scenario(peer: Any) -> None:
        peer.send(b"x")
        for _ in range(1000):
            await asyncio.sleep(0.01)
            if (reply := peer.take()) is not None:
                break
        assert reply == b"x" and returned_s and site.stored()
        assert asyncio.get_running_loop().time() >= returned_s[0]

    site.run(scenario)


def test_a_change_that_meets_another_fails_the_commit() -> None:
    site, errors = Site(), []

    @site.server.on_data
    async def on_request(conn: Any, request: Any, packet: Any) -> None:
        await site.table.get("a")
        other = site.net.store.client()
        await other.open()
        handle = other.table("t", partitions=site.table.partitions)
        other.write(handle, [site.table.keys.pack("a")], None, 7 << 40, [site.table.values.pack(5)], lambda _: None)
        site.table.put_nowait("a", 1)
        conn.send(packet)

    @site.server.on_error
    def on_error(conn: Any, request: Any, error: BaseException) -> None:
        errors.append(error)

    async def scenario(peer: Any) -> None:
        peer.send(b"x")
        await peer.wait("closed")
        assert [type(error) for error in errors] == [StateConflict]
        assert (site.counted("commits_failed"), site.counted("drop_uncommitted")) == (1, 1)

    site.run(scenario)


@pytest.mark.parametrize("commit", [None, "before_send"])
def test_changes_are_stored_when_their_request_ends(commit: str | None) -> None:
    site, seen = Site(write_back(on_request_end=True), commit), []

    @site.server
    async def on_request(conn: Any, request: Any, packet: Any) -> None:
        site.table.put_nowait("a", 1)
        site.table.put_nowait("b", 2)
        await asyncio.sleep(10)
        seen.append(site.stored())

    async def scenario(peer: Any) -> None:
        peer.send(b"x")
        await asyncio.sleep(11)
        # Where the reply waits for it, the change does not wait for the end.
        assert seen == [commit is not None] and site.stored()
        site.table.put_nowait("c", 1)
        await asyncio.sleep(0.1)
        assert site.stored()

    site.run(scenario)
