"""Two connections joined: kernel sockets by the thread, any other pair by the native connections themselves.

All four ends are in this process: ``Side.near`` is the VNF's connection, ``reader`` and ``writer`` are its peer's.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from libvnf import VNF, Connection, LengthPrefixed, Limits, _native
from libvnf.config import EndpointURL, parse_transport
from libvnf.testing.fabric import Fabric
from libvnf.testing.faults import Faults
from libvnf.testing.transport import MemoryTransport
from libvnf.transport import splice
from libvnf.transport.bypass import BypassTransport, EngineDriver
from libvnf.transport.kernel import KernelTransport

# What the two are, and who joins them: the thread moves bytes inside the kernel, a relay is in the connections.
PAIRS = [
    ("tcp", "tcp", "thread"),
    ("tcp", "tcp", "relay"),
    ("unix", "tcp", "relay"),
    ("memory", "memory", "relay"),
    ("memory", "tcp", "relay"),
    ("tcp", "memory", "relay"),
    ("memif", "memif", "relay"),
    ("memif", "tcp", "relay"),
    ("tcp", "memif", "relay"),
]
RELAYS = [pair for pair in PAIRS if pair[2] == "relay"]
RESETTING = [pair for pair in PAIRS if "unix" not in pair]  # a Unix stream knows no reset
Open = Callable[..., Awaitable["Side"]]
pairs = pytest.mark.parametrize("pair", PAIRS, ids="-".join)
relays = pytest.mark.parametrize("pair", RELAYS, ids="-".join)


class Far:
    """A connection of another VNF, with what the tests use of asyncio's streams."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.transport: Any = self
        self.write, self.drain, self.write_eof = conn.send, conn.drain, conn.end
        self.abort, self.pause_reading, self.resume_reading = conn.abort, conn.pause, conn.resume

    def get_extra_info(self, name: str) -> None:
        return None

    async def read(self, size: int = -1) -> bytes:
        return bytes(await self.conn.receive()) if size > 0 else b"".join([bytes(piece) async for piece in self.conn])

    async def readexactly(self, size: int) -> bytes:
        return bytes(await self.conn.receive(size=size))


@dataclass
class Side:
    near: Connection
    reader: asyncio.StreamReader | Far
    writer: asyncio.StreamWriter | Far

    def reset(self) -> None:
        if (sock := self.writer.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def stay(conn: Connection) -> None:
    await conn.wait("closed")


async def until(fact: Callable[[], bool]) -> None:
    """The loop turns until ``fact``; the test's own time limit ends it otherwise."""
    while not fact():  # noqa: ASYNC110 - queues of the native core have no event
        await asyncio.sleep(0)


@asynccontextmanager
async def proxy(path: Path, **limits: int) -> AsyncIterator[tuple[VNF, Open]]:
    """A VNF, and what opens connections to it."""
    vnf, fabric = VNF("proxy", limits=Limits(**limits)), Fabric(0, Faults())
    beyond = VNF("beyond")  # the link
    accepted: asyncio.Queue[Connection] = asyncio.Queue()
    writers: list[asyncio.StreamWriter | Far] = []

    def keep(conn: Connection, request: Any) -> None:
        accepted.put_nowait(conn)

    async def side(kind: str, idle_s: float | None = None, framing: Any = None, handler: Any = None) -> Side:
        endpoint = _native.Endpoint(vnf.core, kind, framing=framing)
        endpoint.handler, endpoint.session = handler, None if handler else stay
        endpoint.idle_s = idle_s
        endpoint.on("accept", keep)
        number = len(writers) + 1
        wanted = {
            "memory": f"tcp://proxy:{number}",
            "unix": f"unix://{path}/{number}",
            "tcp": "tcp://127.0.0.1:0",
            "memif": f"tcp://10.0.0.2:{number}",
        }
        [url] = await transports.get(kind, transports["kernel"]).listen(EndpointURL.parse(wanted[kind]), endpoint)
        place = EndpointURL.parse(url)
        reader: asyncio.StreamReader | Far
        writer: asyncio.StreamWriter | Far
        if kind == "memif":
            await until(lambda: beyond.statistics()["transports"]["port0"]["link"] == "up")
            reader = writer = Far(await beyond.connect(url))
        elif kind == "memory":
            reader = stream = asyncio.StreamReader()
            transport, protocol = await fabric.host("peer").create_connection(
                lambda: asyncio.StreamReaderProtocol(stream), url
            )
            writer = asyncio.StreamWriter(transport, protocol, stream, asyncio.get_running_loop())
        elif kind == "unix":
            reader, writer = await asyncio.open_unix_connection(place.path)
        else:
            reader, writer = await asyncio.open_connection(place.host, place.port)
        writers.append(writer)
        return Side(await accepted.get(), reader, writer)

    transports: dict[str, Any] = {}

    def made(core: _native.Core) -> list[Any]:
        transports.update(kernel=KernelTransport(core), memory=MemoryTransport(core, fabric.host("proxy")))
        port = parse_transport(f"memif:{path}/m,role=server,address=10.0.0.2/24", {})
        transports["memif"] = BypassTransport(EngineDriver(core), port)
        return list(transports.values())

    await vnf.start(transports=made)
    await beyond.start(ports=[parse_transport(f"memif:{path}/m,role=client,address=10.0.0.1/24", {})])
    try:
        yield vnf, side
    finally:
        for writer in writers:
            writer.transport.abort()
        await vnf.close()
        await beyond.close()
        fabric.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def spliced(
    path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str], **limits: int
) -> AsyncIterator[tuple[Side, Side, asyncio.Task[tuple[int, int]]]]:
    """A pair that has been joined: a byte has passed each way."""
    if pair[2] == "relay":
        monkeypatch.setattr(splice, "_kernel", lambda connection: False)
    async with proxy(path, **limits) as (_, side):
        a, b = await side(pair[0]), await side(pair[1])
        task = asyncio.create_task(a.near.splice(b.near))
        await pass_a_byte(a, b)
        await pass_a_byte(b, a)
        yield a, b, task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def pass_a_byte(source: Side, sink: Side) -> None:
    source.writer.write(b"!")
    assert await sink.reader.readexactly(1) == b"!"


BLOCK = bytes(range(251)) * 4177  # about a megabyte, and prime to every buffer's size
MANY = 50


async def pour(side: Side) -> None:
    for number in range(MANY):
        side.writer.write(number.to_bytes(4) + BLOCK)
        await side.writer.drain()
    side.writer.write_eof()


async def gather(side: Side, piece: int) -> tuple[int, bytes]:
    digest, count = hashlib.sha256(), 0
    while data := await side.reader.read(piece):
        digest.update(data)
        count += len(data)
        await asyncio.sleep(0)
    return count, digest.digest()


@pairs
async def test_fifty_megabytes_pass_both_ways_to_a_slow_and_a_fast_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str]
) -> None:
    whole = hashlib.sha256(b"".join(number.to_bytes(4) + BLOCK for number in range(MANY))).digest()
    size = MANY * (len(BLOCK) + 4)
    async with spliced(tmp_path, monkeypatch, pair) as (a, b, task):
        found = await asyncio.gather(gather(a, 5_000), gather(b, 1 << 20), pour(a), pour(b))
        assert list(found[:2]) == [(size, whole), (size, whole)]
        assert await task == (size + 1, size + 1)
        assert (a.near.closed, b.near.closed) == (True, True)


@pairs
@pytest.mark.parametrize("turned", [False, True], ids=["forth", "back"])
async def test_one_direction_ends_and_the_other_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str], turned: bool
) -> None:
    async with spliced(tmp_path, monkeypatch, pair) as (a, b, task):
        first, second = (b, a) if turned else (a, b)
        first.writer.write(b"question")
        first.writer.write_eof()
        assert await second.reader.read() == b"question"
        for _ in range(3):
            await pass_a_byte(second, first)
        assert not task.done()
        second.writer.write_eof()
        assert await first.reader.read() == b""
        assert await task == ((4, 9) if turned else (9, 4))


@pytest.mark.parametrize("pair", RESETTING, ids="-".join)
@pytest.mark.parametrize("turned", [False, True], ids=["first", "second"])
async def test_a_reset_of_one_side_is_a_reset_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str], turned: bool
) -> None:
    async with spliced(tmp_path, monkeypatch, pair) as (a, b, task):
        broken, other = (b, a) if turned else (a, b)
        broken.reset()
        with pytest.raises(ConnectionError, match=r"(?i)reset"):
            await other.reader.read()
        with pytest.raises(ConnectionError, match="reset"):
            await task
        assert "reset" in str(other.near.close_reason)


@pairs
async def test_a_connection_that_is_closed_under_way_takes_the_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str]
) -> None:
    async with spliced(tmp_path, monkeypatch, pair) as (a, b, task):
        b.near.close()
        with pytest.raises(ConnectionError, match="splice: the second connection closed: closed"):
            await task
        assert a.near.close_reason == "splice: the second connection closed: closed"


@pytest.mark.parametrize(
    ("pair", "bound"),
    [
        (("tcp", "tcp", "relay"), 100_000),
        (("memory", "tcp", "relay"), 200_000),  # its pieces come whole, of 64 KiB
        (("tcp", "memory", "relay"), 100_000),
        (("memif", "tcp", "relay"), 100_000),
        (("tcp", "memif", "relay"), 100_000),
    ],
    ids=str,
)
async def test_a_reader_that_stops_stops_its_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str], bound: int
) -> None:
    async with spliced(tmp_path, monkeypatch, pair, max_buffered_bytes=bound) as (a, b, _):
        most, receiver = 0, cast(Any, b.writer.transport)

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, b.near.buffered)
                await asyncio.sleep(0)

        watcher = asyncio.create_task(watch())
        receiver.pause_reading()
        pouring = asyncio.create_task(pour(a))
        await until(lambda: b.near.buffered >= 65_536)
        receiver.resume_reading()
        count, _ = await gather(b, 100_000)
        await pouring
        watcher.cancel()
        assert count == MANY * (len(BLOCK) + 4)
        assert 65_536 <= most <= bound


@pairs
async def test_what_is_unread_goes_first_and_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str]
) -> None:
    if pair[2] == "relay":
        monkeypatch.setattr(splice, "_kernel", lambda connection: False)
    async with proxy(tmp_path) as (_, side):
        framing = LengthPrefixed(2)
        a, b = await side(pair[0], framing=framing), await side(pair[1], framing=framing)
        a.writer.write(b"\0\3one\0\3two\0\5th")
        assert await a.near.receive() == b"\0\3one"
        b.writer.write(b"\0\2ok\0")
        b.writer.write_eof()
        assert await b.near.receive() == b"\0\2ok"
        await b.near.wait("readable")
        task = asyncio.create_task(a.near.splice(b.near))
        assert await a.reader.read() == b"\0"
        a.writer.write(b"ree")
        a.writer.write_eof()
        assert await b.reader.read() == b"\0\3two\0\5three"
        assert await task == (12, 1)


async def test_a_handler_of_messages_can_splice_what_follows_its_message(tmp_path: Path) -> None:
    async with proxy(tmp_path) as (vnf, side):
        b = await side("tcp")
        moved: list[tuple[int, int]] = []

        async def handler(conn: Connection, request: Any, packet: Any) -> None:
            assert packet == b"\0\2go"
            moved.append(await conn.splice(b.near))

        a = await side("memory", framing=LengthPrefixed(2), handler=handler)
        a.writer.write(b"\0\2gofirst, ")
        assert await b.reader.readexactly(7) == b"first, "
        a.writer.write(b"then")
        a.writer.write_eof()
        assert await b.reader.read() == b"then"
        b.writer.write(b"back")
        b.writer.write_eof()
        assert await a.reader.read() == b"back"
        await until(lambda: bool(moved))
        assert (moved, vnf.core.open_requests) == ([(11, 4)], 0)


@relays
async def test_a_pair_whose_sides_have_both_ended_is_done_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str]
) -> None:
    monkeypatch.setattr(splice, "_kernel", lambda connection: False)
    async with proxy(tmp_path) as (_, side):
        a, b = await side(pair[0]), await side(pair[1])
        for one in (a, b):
            one.writer.write_eof()
            assert await one.near.receive() == b""
        assert await a.near.splice(b.near) == (0, 0)
        assert (await a.reader.read(), await b.reader.read()) == (b"", b"")


@pairs
async def test_cancelling_the_wait_closes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str]
) -> None:
    async with spliced(tmp_path, monkeypatch, pair) as (a, b, task):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (a.near.closed, b.near.closed) == (True, True)
        for one in [side for side, kind in ((a, pair[0]), (b, pair[1])) if kind != "unix"]:
            with pytest.raises(ConnectionError, match=r"(?i)reset"):
                await one.reader.read()


@pairs
async def test_a_pair_is_idle_when_neither_side_says_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str, str]
) -> None:
    if pair[2] == "relay":
        monkeypatch.setattr(splice, "_kernel", lambda connection: False)
    async with proxy(tmp_path) as (vnf, side):
        a, b = await side(pair[0]), await side(pair[1], idle_s=100)
        task = asyncio.create_task(a.near.splice(b.near))
        for _ in range(5):  # b's own peer is silent for 300 s
            await pass_a_byte(a, b)
            for _ in range(60):
                vnf.core.tick()
        assert not b.near.closed
        for _ in range(110):
            vnf.core.tick()
        assert b.near.close_reason == "idle"
        with pytest.raises(ConnectionError, match="splice: the second connection closed: idle"):
            await task
        assert a.near.close_reason == "splice: the second connection closed: idle"


async def test_what_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    async with proxy(tmp_path) as (vnf, side):
        a, b, c, d = [await side("memory") for _ in range(4)]
        with pytest.raises(ValueError, match="with itself"):
            await a.near.splice(a.near)
        with pytest.raises(ValueError, match="with itself"):
            _native.relay(a.near, a.near)
        task = asyncio.create_task(a.near.splice(b.near))
        await pass_a_byte(a, b)
        with pytest.raises(RuntimeError, match="spliced already"):
            await c.near.splice(b.near)
        with pytest.raises(RuntimeError, match="spliced already"):
            _native.relay(c.near, b.near)
        await pass_a_byte(b, a)
        assert not (task.done() or c.near.closed)

        datagrams = await vnf.connect("udp://127.0.0.1:9")
        with pytest.raises(ValueError, match="datagrams cannot"):
            await c.near.splice(datagrams)
        assert (c.near.closed, datagrams.closed) == (True, True)
        with pytest.raises(ConnectionError, match="closed"):
            await d.near.splice(c.near)
        assert d.near.closed
        a.near.abort()
        with pytest.raises(ConnectionError, match="aborted"):
            await task


async def test_bytes_for_a_connection_after_its_end_break_the_pair(tmp_path: Path) -> None:
    async with proxy(tmp_path) as (_, side):
        a, b = await side("memory"), await side("memory")
        b.near.end()
        task = asyncio.create_task(a.near.splice(b.near))
        await pass_a_byte(b, a)
        assert await b.reader.read() == b""
        a.writer.write(b"too late")
        with pytest.raises(ConnectionError, match=r"after its end\(\)"):
            await task


async def test_a_pair_that_has_ended_or_broken_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.disable()
    try:
        async with proxy(tmp_path) as (_, side):
            for breaks in (False, True):
                a, b = await side("memory"), await side("memory")
                kept = [weakref.ref(a.near), weakref.ref(b.near)]
                task = asyncio.create_task(a.near.splice(b.near))
                await pass_a_byte(a, b)
                if breaks:
                    a.reset()
                    await asyncio.gather(task, return_exceptions=True)
                else:
                    a.writer.write_eof()
                    b.writer.write_eof()
                    await task
                del a, b, task
                await until(lambda kept=kept: all(one() is None for one in kept))  # type: ignore[misc]
    finally:
        gc.enable()
