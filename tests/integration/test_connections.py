"""Connections between VNFs, the same over every transport that carries TCP: kernel sockets and bypass ports, whichever
end of the memif the server is on. What needs the other side to be no VNF stands in test_kernel.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libvnf import VNF, BufferFull, Connection, Field, Fixed, LengthPrefixed, Limits, Request
from libvnf.config import PortConfig
from tests.integration.inside import echo_server, until


class Net:
    """VNFs in a row, each linked to the next one: ``url(0)`` is where the first serves the second."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self._folder = kind, folder

    def url(self, link: int = 0, number: int = 5000, scheme: str = "tcp") -> str:
        if self.kind == "kernel":
            return f"{scheme}://127.0.0.1:0"
        return f"{scheme}://10.0.{link}.2:{number}?port=far{link}"

    def nobody(self) -> str:
        """Where nobody listens."""
        return "tcp://127.0.0.1:1" if self.kind == "kernel" else "tcp://10.0.0.2:1"

    def _port(self, link: int, far: bool) -> PortConfig:
        role = "server" if far is (self.kind == "memif") else "client"
        end = 2 if far else 1
        addresses = [f"10.0.{link}.{end}/24", f"fd00:{link}::{end}/64"]
        options = {"path": f"{self._folder}/{link}.sock", "role": role, "address": addresses}
        return PortConfig(f"far{link}" if far else f"near{link}", "memif", options)

    @asynccontextmanager
    async def up(self, *vnfs: VNF) -> AsyncIterator[None]:
        try:
            for place, vnf in enumerate(vnfs):
                ports = [self._port(place, True)] if place < len(vnfs) - 1 else []
                ports += [self._port(place - 1, False)] if place else []
                await vnf.start([PortConfig("kernel", "kernel")] if self.kind == "kernel" else ports)
            yield
        finally:
            for vnf in reversed(vnfs):
                await vnf.close()


@pytest.fixture(params=["kernel", "memif", "memif the other way round"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Net:
    return Net(request.param, tmp_path)


def place(server: Any) -> str:
    """Where others reach it."""
    url: str = server.listening[0]
    return url.partition("?")[0]


@pytest.mark.parametrize("shape", ["def", "async", "session"])
async def test_every_shape_of_handler_serves_streams(net: Net, shape: str) -> None:
    far, near = VNF("far"), VNF("near")
    server = echo_server(far, net.url(), shape)
    async with net.up(far, near):
        peers = [await near.connect(place(server), framing=Fixed(4)) for _ in range(3)]
        for number in range(30):
            message = number.to_bytes(4, "big")
            assert await peers[number % 3].ask(message) == message
        assert [peer.remote for peer in peers] == [place(server).removeprefix("tcp://")] * 3
        for peer in peers:
            peer.close()
        await until(lambda: far.core.open_connections == near.core.open_connections == 0)
        assert far.statistics()["core"]["messages_in"] == 30


async def test_ipv6_carries_streams_too(tmp_path: Path) -> None:
    net, far, near = Net("memif", tmp_path), VNF("far"), VNF("near")
    server = echo_server(far, "tcp://[fd00:0::2]:5000")
    async with net.up(far, near):
        peer = await near.connect(place(server), framing=Fixed(4))
        assert await peer.ask(b"ping") == b"ping"
        assert peer.remote == "[fd00::2]:5000"


# --- the papers' chain: B asks C and answers A


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
@pytest.mark.parametrize("pool", [0, 4])
async def test_b_asks_c_and_answers_a(net: Net, scheme: str, pool: int) -> None:
    c, b, a = VNF("c"), VNF("b"), VNF("a")
    c_server = c.server(net.url(0, scheme=scheme), framing=Fixed(4))

    @c_server
    def answer(conn: Connection, request: Request, packet: Any) -> None:
        conn.send(bytes(packet)[::-1])

    b_server = b.server(net.url(1, scheme=scheme), framing=Fixed(4))

    @b_server
    async def on_request(asker: Connection, request: Request, packet: Any) -> None:
        async with asker.connect(place(c_server), framing=Fixed(4), pool=pool) as peer:
            reply = await peer.ask(packet)
        asker.send(reply)

    async with net.up(c, b, a):
        for message in (b"abcd", b"1234", b"wxyz"):
            peer = await a.connect(place(b_server), framing=Fixed(4))
            assert await peer.ask(message) == message[::-1]
            peer.close()
        if scheme == "tcp":
            # A pooled connection is the same one each time.
            assert c_server.endpoint.opened == (1 if pool else 3)


async def test_the_callback_shape_carries_the_request_along(net: Net) -> None:
    c, b, a = VNF("c"), VNF("b"), VNF("a")
    c_server = echo_server(c, net.url(0))
    b_server = b.server(net.url(1), framing=Fixed(4))
    seen: list[Any] = []

    @b_server
    def on_request(asker: Connection, request: Request, packet: Any) -> None:
        request.asker, request.data = asker, packet
        peer = asker.connect(place(c_server), framing=Fixed(4))
        peer.on_data(on_reply)
        peer.send(packet)

    def on_reply(peer: Connection, request: Request, packet: Any) -> None:
        seen.append(request)
        request.asker.send(packet)
        peer.close()

    async with net.up(c, b, a):
        peer = await a.connect(place(b_server), framing=Fixed(4))
        assert await peer.ask(b"ping") == b"ping"
        assert seen[0].data == b"ping"
        await until(lambda: b.core.open_requests == 0)
        assert seen[0].ended


async def test_a_pooled_connection_that_the_peer_ends_is_not_used_again(net: Net) -> None:
    c, b, a = VNF("c"), VNF("b"), VNF("a")
    c_server = echo_server(c, net.url(0))
    b_server = b.server(net.url(1), framing=Fixed(4))

    @b_server
    async def on_request(asker: Connection, request: Request, packet: Any) -> None:
        async with asker.connect(place(c_server), framing=Fixed(4), pool=1) as peer:
            reply = await peer.ask(packet)
        asker.send(reply)

    async with net.up(c, b, a):
        peer = await a.connect(place(b_server), framing=Fixed(4))
        for _ in range(3):
            assert await peer.ask(b"ping") == b"ping"
        assert c_server.endpoint.opened == 1
        for conn in c.core.connections():
            conn.close()
        await until(lambda: c.core.open_connections == 0)
        assert await peer.ask(b"ping") == b"ping"
        assert c_server.endpoint.opened == 2


# --- clients


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
async def test_a_client_matches_replies_by_id(net: Net, scheme: str) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.server(net.url(scheme=scheme), framing=Fixed(8))
    held: list[tuple[Connection, Any]] = []

    @server
    def backwards(conn: Connection, request: Request, packet: Any) -> None:
        held.append((conn, packet))
        if len(held) == 10:
            for one, message in reversed(held):
                one.send(message)

    async with net.up(far, near):
        client = near.client(place(server), framing=Fixed(8), request_id=Field(0, 4), pool=2, timeout_s=30)
        asked = [client.ask(b"\0\0\0\7" + number.to_bytes(4, "big")) for number in range(10)]
        replies = await asyncio.gather(*asked)
        assert [bytes(reply) for reply in replies] == [b"\0\0\0\7" + n.to_bytes(4, "big") for n in range(10)]
        assert client.outstanding == 0


async def test_a_client_shakes_hands_before_it_takes_requests(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.session(net.url(), framing=Fixed(4))
    heard: list[bytes] = []

    @server
    async def session(conn: Connection) -> None:
        async for message in conn:
            heard.append(bytes(message))
            conn.send(message)

    async with net.up(far, near):
        client = near.client(place(server), framing=Fixed(4), request_id=Field(0, 4))

        @client.on_connect
        async def hello(conn: Connection) -> None:
            assert await conn.ask(b"helo") == b"helo"

        assert await client.ask(b"ping") == b"ping"
        assert heard[0] == b"helo"


# --- how connections begin and end


async def test_a_connection_that_is_refused_raises_where_it_is_awaited(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    url = net.nobody()
    async with net.up(far, near):
        with pytest.raises(ConnectionRefusedError, match=f"{url}: Connection refused"):
            await near.connect(url)
        with pytest.raises(ConnectionRefusedError):
            async with near.connect(url, framing=Fixed(4)) as peer:
                await peer.ask(b"ping")
        errors: list[BaseException] = []
        failed = near.connect(url)
        failed.on_error(lambda conn, request, error: errors.append(error))
        await failed.wait("closed")
        assert isinstance(errors[0], ConnectionRefusedError)
        assert near.statistics()["core"]["connections_failed"] == 3
        assert near.core.open_connections == 0


async def test_events_are_told_in_order(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.server(net.url(), framing=Fixed(4))
    told: list[str] = []
    closed = asyncio.Event()
    server.on_accept(lambda conn, request: told.append("accept"))
    server.on_sent(lambda conn, request: told.append("sent"))
    server.on_end(lambda conn, request: (told.append("end"), conn.close()))

    @server.on_data
    def data(conn: Connection, request: Request, packet: Any) -> None:
        told.append("data")
        conn.send(packet)

    @server.on_close
    def close(conn: Connection, request: Request, reason: str) -> None:
        told.append(f"close: {reason}")
        closed.set()

    async with net.up(far, near):
        peer = await near.connect(place(server))
        peer.send(b"ping")
        assert await peer.receive(size=4) == b"ping"
        peer.end()
        assert [piece async for piece in peer] == []
        await closed.wait()
    assert told == ["accept", "data", "sent", "end", "close: closed"]


async def test_after_its_end_a_peer_still_hears_the_answer(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.session(net.url())

    @server
    async def upper(conn: Connection) -> None:
        whole = b"".join([bytes(piece) async for piece in conn])
        conn.send(whole.upper())

    async with net.up(far, near):
        peer = await near.connect(place(server))
        message = os.urandom(500_000).hex().encode()
        peer.send(message)
        peer.end()
        answer = b"".join([bytes(piece) async for piece in peer])
        assert answer == message.upper()


async def test_an_abort_is_seen_as_a_reset(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.server(net.url(), framing=Fixed(4))
    reasons: list[str] = []

    @server
    def abort(conn: Connection, request: Request, packet: Any) -> None:
        conn.abort("enough")

    server.on_close(lambda conn, request, reason: reasons.append(reason))
    async with net.up(far, near):
        peer = await near.connect(place(server), framing=Fixed(4))
        with pytest.raises(ConnectionError, match=r"reset: .*Connection reset by peer"):
            await peer.ask(b"ping")
        assert peer.closed and "reset" in str(peer.close_reason)
        await until(lambda: reasons)
        assert reasons == ["enough"]


async def test_what_is_queued_at_close_still_arrives(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.server(net.url(), framing=Fixed(4))
    whole = os.urandom(4 << 20)

    @server
    def send_and_close(conn: Connection, request: Request, packet: Any) -> None:
        conn.send(whole)
        conn.close()

    async with net.up(far, near):
        peer = await near.connect(place(server))
        peer.send(b"send")
        assert b"".join([bytes(piece) async for piece in peer]) == whole


async def test_connections_over_the_limit_are_refused_and_counted(net: Net) -> None:
    far, near = VNF("far", limits=Limits(max_connections=1)), VNF("near")
    server = echo_server(far, net.url())
    async with net.up(far, near):
        first = await near.connect(place(server), framing=Fixed(4))
        assert await first.ask(b"ping") == b"ping"
        with pytest.raises(ConnectionError):
            second = await near.connect(place(server), framing=Fixed(4))
            await second.ask(b"ping")
        assert far.statistics()["core"]["connections_refused"] == 1
        first.close()
        await until(lambda: far.core.open_connections == 0)
        third = await near.connect(place(server), framing=Fixed(4))
        assert await third.ask(b"ping") == b"ping"


async def test_who_drains_takes_no_new_connections_and_serves_the_old(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = echo_server(far, net.url())
    async with net.up(far, near):
        peer = await near.connect(place(server), framing=Fixed(4))
        assert await peer.ask(b"ping") == b"ping"
        far.refuse()
        with pytest.raises(ConnectionRefusedError):
            await near.connect(place(server), framing=Fixed(4))
        assert await peer.ask(b"pong") == b"pong"


async def test_a_vnf_that_stops_resets_what_is_open(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = echo_server(far, net.url())
    async with net.up(far, near):
        peer = await near.connect(place(server), framing=Fixed(4))
        assert await peer.ask(b"ping") == b"ping"
        await far.close()
        await peer.wait("closed")
        assert "reset" in str(peer.close_reason)


# --- more than fits


async def test_large_messages_arrive_intact_both_ways(net: Net) -> None:
    size = 10_000_000
    limits = Limits(max_buffered_bytes=4 * size, max_kept_bytes=8 * size, max_kept_bytes_per_connection=4 * size)
    far, near = VNF("far", limits=limits), VNF("near", limits=limits)
    framing = LengthPrefixed(4, limit=size + 4)
    server = far.server(net.url(), framing=framing)

    @server
    def backwards(conn: Connection, request: Request, packet: Any) -> None:
        conn.send(packet[:4], bytes(packet)[:3:-1])

    async with net.up(far, near):
        peer = await near.connect(place(server), framing=framing)
        body = os.urandom(size)
        answer = bytes(await peer.ask(size.to_bytes(4, "big") + body, timeout_s=60))
        assert answer[4:] == body[::-1]


async def test_a_slow_reader_holds_the_sender_back_and_nobody_else(net: Net) -> None:
    far, near = VNF("far", limits=Limits(max_buffered_bytes=1 << 20)), VNF("near")
    server = far.session(net.url())
    total, piece = 16 << 20, bytes(64 << 10)
    highest = 0

    @server
    async def session(conn: Connection) -> None:
        nonlocal highest
        if await conn.receive(size=1) == b"e":
            async for message in conn:
                conn.send(message)
            return
        for _ in range(total // len(piece)):
            conn.send(piece)
            highest = max(highest, conn.buffered)
            await conn.drain()

    async with net.up(far, near):
        slow = await near.connect(place(server))
        slow.pause()
        slow.send(b"s")
        other = await near.connect(place(server))
        other.send(b"e")
        await until(lambda: highest)
        for _ in range(100):
            other.send(b"ping")
            assert await other.receive(size=4) == b"ping"
        sent_meanwhile = far.statistics()["core"]["messages_out"] - 100
        assert sent_meanwhile < total // len(piece)
        slow.resume()
        size = 0
        async for data in slow:
            size += len(data)
        assert size == total
    assert highest <= 1 << 20


async def test_without_drain_the_buffer_is_full_at_its_limit_and_room_is_told(net: Net) -> None:
    far, near = VNF("far", limits=Limits(max_buffered_bytes=1 << 20)), VNF("near")
    server = far.server(net.url(), framing=Fixed(4))
    told: list[str] = []

    @server
    async def fill(conn: Connection, request: Request, packet: Any) -> None:
        try:
            while True:
                conn.send(bytes(64 << 10))
                await asyncio.sleep(0)
        except BufferFull:
            told.append("full")

    server.on_writable(lambda conn, request: told.append("room"))
    async with net.up(far, near):
        peer = await near.connect(place(server))
        peer.pause()
        peer.send(b"fill")
        await until(lambda: told == ["full"])
        peer.resume()
        await peer.receive()
        while told == ["full"]:
            await peer.receive()
        assert told == ["full", "room"]


async def test_paused_connections_lose_nothing(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.server(net.url(), framing=Fixed(4))
    got: list[int] = []
    conns: list[Connection] = []

    @server
    def stop_at_seven(conn: Connection, request: Request, packet: Any) -> None:
        got.append(int.from_bytes(packet, "big"))
        conns.append(conn)
        if got[-1] % 1000 == 7:
            conn.pause()

    async with net.up(far, near):
        peer = await near.connect(place(server))
        count = 200_000
        peer.send(b"".join(number.to_bytes(4, "big") for number in range(count)))
        for stop in range(7, count, 1000):
            await until(lambda stop=stop: len(got) == stop + 1)
            await asyncio.sleep(0)
            assert len(got) == stop + 1
            conns[-1].resume()
        await until(lambda: len(got) == count)
        assert got == list(range(count))


async def test_kept_packets_stop_their_stream_until_they_are_let_go(net: Net) -> None:
    far, near = VNF("far", limits=Limits(max_kept_bytes_per_connection=64 << 10)), VNF("near")
    server = far.server(net.url(), framing=Fixed(1024))
    kept: list[Any] = []
    count = 0

    @server
    def keep(conn: Connection, request: Request, packet: Any) -> None:
        nonlocal count
        count += 1
        kept.append(packet)

    async with net.up(far, near):
        peer = await near.connect(place(server))
        peer.send(bytes(1024) * 1000)
        await until(lambda: far.core.throttled == 1)
        assert len(kept) < 200
        while count < 1000:
            kept.clear()
            await asyncio.sleep(0.001)
        assert far.statistics()["core"]["streams_throttled"] >= 1


async def test_many_connections_at_once_are_all_served(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = echo_server(far, net.url())

    async def one(number: int) -> None:
        async with near.connect(place(server), framing=Fixed(4)) as peer:
            message = number.to_bytes(4, "big")
            assert await peer.ask(message) == message

    async with net.up(far, near):
        for start in range(0, 2000, 200):
            await asyncio.gather(*(one(number) for number in range(start, start + 200)))
        await until(lambda: far.core.open_connections == near.core.open_connections == 0)
        assert far.statistics()["core"]["messages_in"] == 2000


async def test_a_handler_may_stop_its_own_vnf(net: Net) -> None:
    far, near = VNF("far"), VNF("near")
    server = far.server(net.url(), framing=Fixed(4))

    @server
    async def stop(conn: Connection, request: Request, packet: Any) -> None:
        await far.close()

    async with net.up(far, near):
        peers = [await near.connect(place(server)) for _ in range(2)]
        peers[0].send(b"stop")
        for peer in peers:
            await peer.wait("closed")
            assert "reset" in str(peer.close_reason)
