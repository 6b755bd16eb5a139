"""Peers and handlers that do what nobody should, on real sockets: nothing grows, nothing is mixed up, nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from libvnf import VNF, BufferFull, Connection, Field, Fixed, Request
from libvnf.config import EndpointURL


@asynccontextmanager
async def started(vnf: VNF) -> AsyncIterator[VNF]:
    await vnf.start()
    try:
        yield vnf
    finally:
        await vnf.close()


def peer(url: str) -> socket.socket:
    parsed = EndpointURL.parse(url)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if parsed.datagram else socket.SOCK_STREAM)
    sock.connect((parsed.host, parsed.port))
    sock.setblocking(False)
    return sock


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def fill(conn: Connection) -> None:
    """Sends what the socket and the queue behind it take."""
    while True:
        try:
            conn.send(bytes(1 << 20))
        except BufferFull:
            return
        conn.core.flush()


async def test_what_a_peer_sends_to_a_closing_connection_is_not_kept() -> None:
    vnf = VNF("test")
    server = vnf.server("tcp://:0", framing=Fixed(4))
    made: list[Connection] = []

    @server.on_accept
    def accept(conn: Connection, request: Request) -> None:
        made.append(conn)

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            loop = asyncio.get_running_loop()
            await until(lambda: made)
            (conn,) = made
            fill(conn)
            conn.close()
            before = sys.getsizeof(b"")
            assert conn.closed and conn.buffered > before
            sent, deadline = 0, 32 << 20
            while sent < deadline:
                await loop.sock_sendall(sock, bytes(1 << 20))
                sent += 1 << 20
            # What it was sent before it was closed still reaches it.
            got = 0
            while data := await loop.sock_recv(sock, 1 << 20):
                got += len(data)
            assert got % (1 << 20) == 0 and got >= 4 << 20


async def test_a_connection_that_was_silent_has_its_time_to_send_what_is_queued() -> None:
    vnf = VNF("test")
    server = vnf.server("tcp://:0", framing=Fixed(4))
    made: list[Connection] = []

    @server.on_accept
    def accept(conn: Connection, request: Request) -> None:
        made.append(conn)

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            await until(lambda: made)
            (conn,) = made
            for _ in range(30):
                conn.core.tick()
            fill(conn)
            conn.close()
            conn.core.tick()
            got = 0
            while data := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
                got += len(data)
            assert got % (1 << 20) == 0 and got >= 4 << 20
            assert conn.close_reason == "closed"


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
async def test_messages_that_wait_for_their_request_id_are_all_of_one_request(scheme: str) -> None:
    vnf = VNF("test")
    server = vnf.server(f"{scheme}://:0", framing=Fixed(4), request_id=Field(0, 2))
    seen: list[tuple[bytes, int]] = []

    @server.on_data
    async def handler(conn: Connection, request: Request, packet: Any) -> None:
        request.count = getattr(request, "count", 0) + 1
        await asyncio.sleep(0)
        seen.append((bytes(packet), request.count))

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            wanted = [b"id%02d" % n for n in range(50)]
            for message in wanted:
                sock.send(message)
            await until(lambda: len(seen) == 50)
            assert seen == [(message, n) for n, message in enumerate(wanted, 1)]
            assert vnf.core.open_requests == 0 and vnf.core.statistics()["messages_in"] == 50


async def test_a_message_whose_handler_raises_takes_none_that_wait_along() -> None:
    vnf = VNF("test")
    server = vnf.server("udp://:0", framing=Fixed(4), request_id=Field(0, 2))
    seen: list[bytes] = []

    # Not every call waits: some end at once, some raise at once, some later.
    @server.on_data
    def handler(conn: Connection, request: Request, packet: Any) -> Any:
        seen.append(bytes(packet))
        kind = packet[3] % 3
        if kind == 0:
            raise ValueError("at once")
        return wait(kind) if kind == 1 else None

    async def wait(kind: int) -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            wanted = [b"id%02d" % n for n in range(1, 50)]
            for message in wanted:
                sock.send(message)
            await until(lambda: len(seen) == 49)
            assert seen == wanted and vnf.core.open_requests == 0


@pytest.mark.parametrize("pulled", [False, True])
async def test_a_framing_function_is_not_shown_all_that_a_peer_has_sent_for_every_small_message(pulled: bool) -> None:
    shown = 0

    def framing(data: bytes) -> int:
        nonlocal shown
        shown += len(data)
        return 4 if data[:1] == b"s" else 0 if len(data) < 4 else int.from_bytes(data[1:4])

    vnf = VNF("test")
    small, large = [b"s%03d" % (n % 1000) for n in range(20_000)], [b"L" + (50_000).to_bytes(3) + bytes(49_996)] * 4
    got: list[bytes] = []
    if pulled:
        server: Any = vnf.session("tcp://:0", framing=framing)

        @server.on_session
        async def session(conn: Connection) -> None:
            async for packet in conn:
                got.append(bytes(packet))
    else:
        server = vnf.server("tcp://:0", framing=framing)

        @server.on_data
        def handler(conn: Connection, request: Request, packet: Any) -> None:
            got.append(bytes(packet))

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            await asyncio.get_running_loop().sock_sendall(sock, b"".join(small + large))
            sock.shutdown(socket.SHUT_WR)
            await until(lambda: len(got) == len(small) + len(large))
    assert got == small + large
    assert shown < 30 << 20


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("turns", range(12))
async def test_a_connection_aborted_while_it_is_made_leaves_no_socket(turns: int) -> None:
    vnf = VNF("test")
    server = vnf.server("tcp://:0", framing=Fixed(4))
    async with started(vnf):
        before = descriptors()
        for _ in range(5):
            conn = vnf.connect(server.listening[0])
            for _ in range(turns):
                await asyncio.sleep(0)
            conn.abort()
        await until(lambda: descriptors() == before and not vnf.core.open_connections)


async def slow_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: asyncio.Event) -> None:
    while len(message := await reader.read(4)) == 4:
        if message == b"slow":
            await late.wait()
        writer.write(message)
    writer.close()


@pytest.mark.parametrize("way", ["ask", "receive"])
async def test_an_answer_nobody_waited_for_answers_nobody_else(way: str) -> None:
    vnf, late = VNF("test"), asyncio.Event()
    server, done = vnf.server("udp://:0"), asyncio.Event()
    upstream = await asyncio.start_server(lambda r, w: slow_once(r, w, late), "127.0.0.1", 0)
    url = f"tcp://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    answers: list[bytes] = []

    @server.on_data
    async def handler(conn: Connection, request: Request, packet: Any) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), conn.connect(url, framing=Fixed(4), pool=2) as peer:
                if way == "ask":
                    await peer.ask(b"slow")
                else:
                    peer.send(b"slow")
                    await peer.receive()
        async with conn.connect(url, framing=Fixed(4), pool=2) as peer:
            late.set()
            answers.append(bytes(await peer.ask(b"fast")))
        done.set()

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            sock.send(b"go")
            await asyncio.wait_for(done.wait(), 10)
    upstream.close()
    assert answers == [b"fast"]


async def test_a_cancelled_ask_closes_its_connection() -> None:
    vnf, late = VNF("test"), asyncio.Event()
    upstream = await asyncio.start_server(lambda r, w: slow_once(r, w, late), "127.0.0.1", 0)
    async with started(vnf):
        conn = vnf.connect(f"tcp://127.0.0.1:{upstream.sockets[0].getsockname()[1]}", framing=Fixed(4))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await conn.ask(b"slow")
        assert conn.closed and conn.close_reason == "ask cancelled"
        with pytest.raises(ConnectionError):
            await conn.ask(b"fast")
        late.set()
    upstream.close()


async def test_waits_that_timed_out_are_not_collected() -> None:
    vnf = VNF("test")
    server = vnf.session("tcp://:0")
    grown: list[int] = []

    @server.on_session
    async def session(conn: Connection) -> None:
        for _ in range(2):
            gc.collect()
            grown.append(sys.getallocatedblocks())
            for _ in range(2_000):
                with pytest.raises(TimeoutError):
                    await conn.receive(timeout_s=0)

    async with started(vnf):
        with peer(server.listening[0]):
            await until(lambda: len(grown) == 2 and not vnf.core.open_connections)
    assert grown[1] - grown[0] < 2_000
