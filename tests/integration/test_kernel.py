"""A VNF on real sockets, in this process: every handler shape, every kind of socket, both ends of each rule."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libvnf import (
    VNF,
    AddressInUse,
    BufferFull,
    Connection,
    Delimiter,
    Field,
    Fixed,
    LengthPrefixed,
    Limits,
    MessageTooLong,
    Request,
    TransportError,
)
from libvnf.config import EndpointURL
from libvnf.runtime import drain
from tests.integration.inside import echo_server, until


@asynccontextmanager
async def started(vnf: VNF) -> AsyncIterator[VNF]:
    await vnf.start()
    try:
        yield vnf
    finally:
        await vnf.close()


async def stream(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parsed = EndpointURL.parse(url)
    if parsed.scheme == "unix":
        return await asyncio.open_unix_connection(parsed.path)
    return await asyncio.open_connection(parsed.host, parsed.port)


async def close(writer: asyncio.StreamWriter) -> None:
    """A reset by the other side is an end too."""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def udp(url: str) -> socket.socket:
    parsed = EndpointURL.parse(url)
    sock = socket.socket(socket.AF_INET6 if ":" in parsed.host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((parsed.host, parsed.port))
    sock.setblocking(False)
    return sock


async def echoes(url: str) -> bool:
    """One 4-byte message there and back."""
    if url.startswith("udp:"):
        with udp(url) as sock:
            sock.send(b"ping")
            return await asyncio.get_running_loop().sock_recv(sock, 100) == b"ping"
    reader, writer = await stream(url)
    writer.write(b"ping")
    try:
        return await reader.readexactly(4) == b"ping"
    finally:
        await close(writer)


@pytest.mark.parametrize("shape", ["def", "async", "session"])
@pytest.mark.parametrize("url", ["tcp://:0", "udp://:0", "tcp://[::1]:0", "udp://[::1]:0", "tcp://localhost:0", "unix"])
async def test_every_shape_of_handler_serves_every_kind_of_socket(tmp_path: Path, url: str, shape: str) -> None:
    vnf = VNF("b")
    server = echo_server(vnf, f"unix://{tmp_path}/s" if url == "unix" else url, shape)
    async with started(vnf):
        for place in server.listening:
            assert await echoes(place)
            assert await echoes(place)


async def test_an_empty_host_is_loopback_on_both_families_with_one_port() -> None:
    vnf = VNF("b")
    server = echo_server(vnf, "tcp://:0", "def")
    async with started(vnf):
        urls = [EndpointURL.parse(place) for place in server.listening]
        assert [url.host for url in urls] == ["127.0.0.1", "::1"]
        assert len({url.port for url in urls}) == 1


async def test_an_address_in_use_is_refused_and_nothing_is_left() -> None:
    vnf = VNF("b")
    server = echo_server(vnf, "tcp://127.0.0.1:0", "def")
    async with started(vnf):
        second = VNF("second")
        kept = echo_server(second, "udp://127.0.0.1:0", "def")
        echo_server(second, server.listening[0], "def")
        with pytest.raises(AddressInUse, match="another process listens there"):
            await second.start()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", EndpointURL.parse(kept.listening[0]).port))


async def test_a_name_that_does_not_resolve_is_refused() -> None:
    vnf = VNF("b")
    echo_server(vnf, "tcp://does-not-exist.invalid:0", "def")
    with pytest.raises(TransportError, match="the system cannot resolve this name"):
        await vnf.start()


async def test_tcp_sockets_do_not_wait_to_send() -> None:
    vnf = VNF("b")
    server = vnf.server("tcp://127.0.0.1:0", framing=Fixed(4))
    options: list[int] = []

    @server
    def handler(conn: Connection, request: Request, packet: Any) -> None:
        sock = conn.transport.get_extra_info("socket")
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        conn.send(packet)

    async with started(vnf):
        assert await echoes(server.listening[0])
        peer = await vnf.connect(server.listening[0], framing=Fixed(4))
        assert await peer.ask(b"ping") == b"ping"
        options.append(peer.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    assert all(options) and len(options) == 3


# --- events and limits


async def test_udp_to_a_closed_port_is_an_error_not_a_hang() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as once:
        once.bind(("127.0.0.1", 0))
        url = f"udp://127.0.0.1:{once.getsockname()[1]}"
    async with started(VNF("b")) as vnf:
        peer = await vnf.connect(url, framing=Fixed(4))
        with pytest.raises((ConnectionError, TimeoutError)):
            await peer.ask(b"ping", timeout_s=5)


async def test_an_ask_that_times_out_closes_its_connection() -> None:
    vnf = VNF("b")
    server = vnf.server("tcp://127.0.0.1:0", framing=Fixed(4))
    server(lambda conn, request, packet: None)
    async with started(vnf):
        peer = await vnf.connect(server.listening[0], framing=Fixed(4))
        with pytest.raises(TimeoutError):
            await peer.ask(b"ping", timeout_s=0.01)
        assert peer.closed


async def test_a_second_ask_at_a_time_is_refused() -> None:
    vnf = VNF("b")
    server = echo_server(vnf, "tcp://127.0.0.1:0", "def")
    async with started(vnf):
        peer = await vnf.connect(server.listening[0], framing=Fixed(4))
        first = asyncio.create_task(peer.ask(b"ping"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="still waits for an answer"):
            await peer.ask(b"pong")
        assert await first == b"ping"
        assert await peer.ask(b"pong") == b"pong"


async def test_receive_reads_to_a_mark_by_size_and_within_a_limit() -> None:
    vnf = VNF("b")
    server = vnf.session("tcp://127.0.0.1:0")
    got: list[Any] = []

    @server
    async def session(conn: Connection) -> None:
        got.append(bytes(await conn.receive(until=b"\r\n")))
        got.append(bytes(await conn.receive(size=3)))
        with pytest.raises(TimeoutError):
            await conn.receive(size=100, timeout_s=0.01)
        conn.send(b"ok")
        try:
            await conn.receive(until=b"\n", limit=10)
        except MessageTooLong:
            got.append("too long")

    async with started(vnf):
        reader, writer = await stream(server.listening[0])
        writer.write(b"li")
        await asyncio.sleep(0)
        writer.write(b"ne\r\nabcd")
        assert await reader.readexactly(2) == b"ok"
        writer.write(b"x" * 100)
        assert await reader.read() == b""
        await close(writer)
    assert got == [b"line\r\n", b"abc", "too long"]


async def test_an_empty_message_is_not_the_end() -> None:
    vnf = VNF("b")
    server = vnf.session("tcp://127.0.0.1:0", framing=Delimiter(b"\n"))

    @server
    async def session(conn: Connection) -> None:
        conn.send(b"|".join([bytes(line) async for line in conn]))

    async with started(vnf):
        reader, writer = await stream(server.listening[0])
        writer.write(b"a\n\nb\n")
        writer.write_eof()
        assert await reader.read() == b"a||b"
        await close(writer)


async def test_a_slow_reader_holds_the_sender_back() -> None:
    vnf = VNF("b", limits=Limits(max_buffered_bytes=1 << 20))
    server = vnf.session("tcp://127.0.0.1:0")
    total, piece = 32 << 20, bytes(64 << 10)
    highest = 0

    @server
    async def session(conn: Connection) -> None:
        nonlocal highest
        for _ in range(total // len(piece)):
            conn.send(piece)
            highest = max(highest, conn.buffered)
            await conn.drain()

    async with started(vnf):
        reader, writer = await stream(server.listening[0])
        size = 0
        while data := await reader.read(1 << 20):
            size += len(data)
        assert size == total
        await close(writer)
    assert highest <= 1 << 20


async def test_without_drain_the_buffer_is_full_at_its_limit() -> None:
    vnf = VNF("b", limits=Limits(max_buffered_bytes=1 << 20))
    server = vnf.session("tcp://127.0.0.1:0")
    raised = asyncio.Event()

    @server
    async def session(conn: Connection) -> None:
        try:
            while True:
                conn.send(bytes(64 << 10))
                await asyncio.sleep(0)
        except BufferFull:
            raised.set()

    async with started(vnf):
        _, writer = await stream(server.listening[0])
        await raised.wait()
        await close(writer)


async def test_connections_over_the_limit_are_refused_and_counted() -> None:
    vnf = VNF("b", limits=Limits(max_connections=1))
    server = echo_server(vnf, "tcp://127.0.0.1:0", "def")
    async with started(vnf):
        first, first_writer = await stream(server.listening[0])
        first_writer.write(b"ping")
        assert await first.readexactly(4) == b"ping"
        # The reset may come before asyncio has seen the connection made.
        with contextlib.suppress(ConnectionResetError):
            second, second_writer = await stream(server.listening[0])
            try:
                assert await second.read() == b""
            finally:
                await close(second_writer)
        assert vnf.statistics()["core"]["connections_refused"] == 1
        await close(first_writer)


async def test_a_message_over_its_framing_limit_closes_the_connection() -> None:
    vnf = VNF("b")
    server = vnf.server("tcp://127.0.0.1:0", framing=LengthPrefixed(4, limit=100))
    reasons: list[str] = []
    server(lambda conn, request, packet: conn.send(packet))
    server.on_close(lambda conn, request, reason: reasons.append(reason))
    async with started(vnf):
        reader, writer = await stream(server.listening[0])
        writer.write(b"\xff\xff\xff\xff")
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        await until(lambda: reasons)
        assert "framing" in reasons[0]
        await close(writer)


# --- clients


async def test_a_client_retransmits_datagrams_and_gives_up() -> None:
    vnf = VNF("b")
    server = vnf.server("udp://127.0.0.1:0", framing=Fixed(4))
    seen = 0

    @server
    def third_time(conn: Connection, request: Request, packet: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            conn.send(packet)

    async with started(vnf):
        client = vnf.client(server.listening[0], framing=Fixed(4), request_id=Field(0, 4), timeout_s=0.05, retries=3)
        assert await client.ask(b"ping") == b"ping"
        assert seen == 3
        with pytest.raises(TimeoutError):
            await client.ask(b"pong")
        assert seen == 7


async def test_a_client_comes_back_after_its_server() -> None:
    with socket.socket() as reserve:
        reserve.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{reserve.getsockname()[1]}"
    vnf = VNF("a")
    client = vnf.client(url, framing=Fixed(4), request_id=Field(0, 4))
    async with started(vnf):
        for _ in range(2):
            server = VNF("b")
            echo_server(server, url, "def")
            async with started(server):
                assert await client.ask(b"ping") == b"ping"
            await until(lambda: client.connected == 0)


async def test_a_client_that_is_not_connected_says_so() -> None:
    vnf = VNF("b", limits=Limits(ask_s=0.01))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = vnf.client(f"tcp://127.0.0.1:{taken.getsockname()[1]}", framing=Fixed(4), request_id=Field(0, 4))
        async with started(vnf):
            with pytest.raises(ConnectionError, match="not connected"):
                await client.ask(b"ping")
            with pytest.raises(ConnectionError, match="not connected"):
                client.send(b"ping", None, lambda conn, request, packet: None)


async def test_the_callback_form_of_a_client_carries_the_request() -> None:
    c, b = VNF("c"), VNF("b")
    c_server = echo_server(c, "tcp://127.0.0.1:0", "def")
    async with started(c):
        client = b.client(c_server.listening[0], framing=Fixed(4), request_id=Field(0, 4))
        server = b.server("tcp://127.0.0.1:0", framing=Fixed(4))

        @server
        def on_request(a: Connection, request: Request, packet: Any) -> None:
            request.a = a
            client.send(packet, request, on_reply)

        def on_reply(conn: Connection, request: Request, packet: Any) -> None:
            request.a.send(packet)

        async with started(b):
            await until(lambda: client.connected)
            assert await echoes(server.listening[0])
            await until(lambda: b.core.open_requests == 0)


# --- timers, threads, draining, splicing


async def test_timers_run_repeat_and_stop() -> None:
    vnf = VNF("b")
    order: list[str] = []
    done = asyncio.Event()
    early = vnf.every(0.001, lambda: order.append("early"))

    async def later(word: str) -> None:
        await asyncio.sleep(0)
        order.append(word)
        done.set()

    vnf.after(0.01, later, "later")
    async with started(vnf):
        cancelled = vnf.after(0.001, order.append, "never")
        cancelled.cancel()
        await done.wait()
        early.cancel()
        await asyncio.sleep(0)
        count = len(order)
        await asyncio.sleep(0.01)
        assert len(order) == count
    assert "early" in order and "later" in order and "never" not in order


async def test_a_requests_timer_carries_it_and_dies_with_it() -> None:
    vnf = VNF("b")
    server = vnf.server("tcp://127.0.0.1:0", framing=Fixed(4))
    requests: list[Request] = []

    @server
    def handler(conn: Connection, request: Request, packet: Any) -> None:
        requests.append(request)
        if packet == b"ping":
            request.after(0.01, conn.send, packet)
        else:
            request.after(0.01, conn.send, b"late")
            request.end()
            conn.send(packet)

    async with started(vnf):
        reader, writer = await stream(server.listening[0])
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        await until(lambda: requests[0].ended)
        writer.write(b"ends")
        assert await reader.readexactly(4) == b"ends"
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        await close(writer)


async def test_another_thread_gets_a_clear_error_and_a_way_in() -> None:
    vnf = VNF("b")
    server = echo_server(vnf, "tcp://127.0.0.1:0", "def")
    async with started(vnf):
        peer = await vnf.connect(server.listening[0], framing=Fixed(4))
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                peer.send(b"ping")
            except RuntimeError as error:
                errors.append(error)
            vnf.call_threadsafe(peer.send, b"pong")

        thread = threading.Thread(target=elsewhere)
        thread.start()
        assert await peer.receive() == b"pong"
        thread.join()
        assert "call_threadsafe" in str(errors[0])


async def test_draining_waits_for_what_is_in_flight() -> None:
    vnf = VNF("b", limits=Limits(grace_s=0))
    server = vnf.server("tcp://127.0.0.1:0", framing=Fixed(4))
    go, began = asyncio.Event(), asyncio.Event()

    @server
    async def handler(conn: Connection, request: Request, packet: Any) -> None:
        began.set()
        await go.wait()
        conn.send(packet)

    async with started(vnf):
        reader, writer = await stream(server.listening[0])
        idle, idle_writer = await stream(server.listening[0])
        writer.write(b"ping")
        await began.wait()
        draining = asyncio.create_task(drain(vnf, asyncio.get_running_loop().create_future()))
        assert await idle.read() == b""
        assert not draining.done()
        go.set()
        assert await reader.read() == b"ping"
        assert await draining == 0
        await close(writer)
        await close(idle_writer)


@pytest.mark.parametrize("kinds", [("tcp", "tcp"), ("tcp", "unix"), ("unix", "tcp")])
async def test_a_splice_proxy_keeps_bytes_and_half_closes(tmp_path: Path, kinds: tuple[str, str]) -> None:
    urls = [f"unix://{tmp_path}/{n}" if kind == "unix" else "tcp://127.0.0.1:0" for n, kind in enumerate(kinds)]
    back, proxy = VNF("back"), VNF("proxy")
    back_server = back.session(urls[1])

    @back_server
    async def upper(conn: Connection) -> None:
        whole = b"".join([bytes(piece) async for piece in conn])
        conn.send(whole.upper())

    proxy_server = proxy.session(urls[0])

    @proxy_server
    async def join(a: Connection) -> None:
        head = await a.receive(until=b"\n")
        b = a.connect(back_server.listening[0])
        b.send(head)
        moved.append(await a.splice(b))

    moved: list[tuple[int, int]] = []
    message = b"head\n" + os.urandom(3 << 20).hex().encode()
    async with started(back), started(proxy):
        reader, writer = await stream(proxy_server.listening[0])
        writer.write(message)
        writer.write_eof()
        assert await reader.read() == message.upper()
        await close(writer)
        await until(lambda: moved)
    assert moved == [(len(message) - 5, len(message))]


async def test_statistics_name_every_counter() -> None:
    vnf = VNF("b")
    server = echo_server(vnf, "tcp://127.0.0.1:0", "def")
    async with started(vnf):
        assert await echoes(server.listening[0])
        counters = vnf.statistics()
        assert counters["core"]["messages_in"] == counters["core"]["messages_out"] == 1
        assert counters["servers"]["tcp://127.0.0.1:0"]["open_connections"] in (0, 1)
        assert counters["pool"]
