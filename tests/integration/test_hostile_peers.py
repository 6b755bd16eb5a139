"""Peers and handlers that do what nobody should, on real sockets: nothing grows, is mixed up or is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from libvnf import VNF, BufferFull, Connection, Field, Fixed, Request
from libvnf.config import EndpointURL
from tests.integration.inside import until


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


def resident() -> int:
    """Bytes of memory this process occupies."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
            assert conn.closed
            before = resident()
            for _ in range(64):
                await loop.sock_sendall(sock, bytes(1 << 20))
            assert resident() - before < 32 << 20
            assert not conn.core.statistics()["messages_in"]


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
            got.extend([bytes(packet) async for packet in conn])
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


@asynccontextmanager
async def slow_upstream(late: asyncio.Event) -> AsyncIterator[str]:
    """Echoes messages of four bytes; ``slow`` not before ``late``."""
    open_ones = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_ones
        open_ones += 1
        with contextlib.suppress(ConnectionError):
            while len(message := await reader.read(4)) == 4:
                if message == b"slow":
                    await late.wait()
                writer.write(message)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        open_ones -= 1

    upstream = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"tcp://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    upstream.close()
    late.set()
    await until(lambda: not open_ones)


@pytest.mark.parametrize("way", ["ask", "receive"])
async def test_an_answer_nobody_waited_for_answers_nobody_else(way: str) -> None:
    vnf, late = VNF("test"), asyncio.Event()
    server, done = vnf.server("udp://:0"), asyncio.Event()
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

    # The upstream ends last, and only when the VNF has closed what it had in its pool.
    async with slow_upstream(late) as url, started(vnf):
        with peer(server.listening[0]) as sock:
            sock.send(b"go")
            await asyncio.wait_for(done.wait(), 10)
    assert answers == [b"fast"]


async def test_a_cancelled_ask_closes_its_connection() -> None:
    vnf, late = VNF("test"), asyncio.Event()
    async with slow_upstream(late) as url, started(vnf):
        conn = vnf.connect(url, framing=Fixed(4))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await conn.ask(b"slow")
        assert conn.closed and conn.close_reason == "ask cancelled"
        with pytest.raises(ConnectionError):
            await conn.ask(b"fast")


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


async def test_no_request_finds_what_another_left() -> None:
    vnf = VNF("test")
    server = vnf.server("udp://:0")
    seen: list[dict[str, Any]] = []

    @server.on_data
    def handler(conn: Connection, request: Request, packet: Any) -> None:
        seen.append(dict(vars(request)))
        vars(request)["user"] = bytes(packet)
        assert request.user == bytes(packet)
        with pytest.raises(TypeError, match="weak reference"):
            weakref.ref(request)

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            for _ in range(3):
                sock.send(b"me")
            await until(lambda: len(seen) == 3)
            assert seen == [{}, {}, {}] and not vnf.core.statistics()["handler_errors"]


async def test_a_request_is_not_ended_from_another_thread() -> None:
    vnf = VNF("test")
    server = vnf.server("udp://:0")
    ended: list[bool] = []

    @server.on_data
    async def handler(conn: Connection, request: Request, packet: Any) -> None:
        for call in (request.end, request.hold, request.release):
            with pytest.raises(RuntimeError, match="event loop's thread"):
                await asyncio.to_thread(call)
        ended.append(request.ended)

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            sock.send(b"x")
            await until(lambda: ended)
    assert ended == [False]


async def test_a_timer_that_cannot_be_set_carries_no_request() -> None:
    vnf = VNF("test")
    server = vnf.server("udp://:0")

    @server.on_data
    def handler(conn: Connection, request: Request, packet: Any) -> None:
        with pytest.raises(TypeError):
            request.after("soon", print)  # type: ignore[arg-type]

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            sock.send(b"x")
            await until(lambda: vnf.core.statistics()["requests_ended"] == 1)
            assert not vnf.core.open_requests


@pytest.mark.parametrize("waits", [True, False])
async def test_a_handler_that_cancels_itself_cancels_no_other(waits: bool) -> None:
    vnf = VNF("test")
    server = vnf.server("udp://:0")
    told: list[str] = []

    @server.on_data
    async def handler(conn: Connection, request: Request, packet: Any) -> None:
        try:
            if packet == b"cancel":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                del task
                if waits:
                    await asyncio.sleep(0)
            else:
                async with asyncio.timeout(10):
                    await asyncio.sleep(0)
            told.append(f"{bytes(packet).decode()}: done")
        except asyncio.CancelledError:
            told.append(f"{bytes(packet).decode()}: cancelled")
            raise

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            sock.send(b"cancel")
            await until(lambda: told)
            sock.send(b"other")
            await until(lambda: len(told) == 2)
    assert told == [f"cancel: {'cancelled' if waits else 'done'}", "other: done"]


async def test_a_close_handler_that_connects_opens_nothing_while_the_vnf_stops() -> None:
    vnf = VNF("test")
    server = vnf.server("udp://:0")
    accepted: list[Connection] = []
    errors: list[BaseException] = []

    @server.on_accept
    def accept(conn: Connection, request: Request) -> None:
        accepted.append(conn)

    @server.on_close
    def close(conn: Connection, request: Request, reason: str) -> None:
        again = conn.connect("udp://127.0.0.1:9")
        again.on("error", lambda conn, request, error: errors.append(error))

    async with started(vnf):
        with peer(server.listening[0]) as sock:
            before = descriptors()
            sock.send(b"x")
            await until(lambda: accepted)
    # The server's socket and the peer's have gone.
    await until(lambda: errors and descriptors() <= before - 2)
    assert [str(error) for error in errors] == ["the VNF stops"]
