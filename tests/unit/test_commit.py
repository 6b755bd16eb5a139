"""What a request sends is held until what it wrote is durable, over the model and over the stack. The writes are the
tests' own: tables say the same to a request when they write."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from libvnf import VNF, BufferFull, ConfigError, Field, Fixed, Limits, Request, StateError

both_levels = pytest.mark.parametrize("stack", [False, True], ids=["model", "stack"])


class Writes:
    """Writes of requests that are durable when a test says so, by what was written."""

    def __init__(self, vnf: VNF) -> None:
        self.vnf, self.under_way = vnf, {}

    def write(self, what: bytes) -> bool:
        request = self.vnf.core.current_request()
        if request is None or not request.await_commit():
            return False
        self.under_way[bytes(what)] = request
        return True

    def durable(self, what: bytes) -> None:
        self.under_way.pop(what).committed()

    def fail(self, what: bytes) -> None:
        self.under_way.pop(what).commit_failed(StateError("the store is full"))


def counted(vnf: VNF, name: str) -> int:
    return vnf.statistics()["core"][name]


def run(vnf: VNF, scenario: Callable[..., Any], stack: bool = False) -> Any:
    async def whole() -> Any:
        async with vnf.test(seed=1, stack=stack) as net:
            return await scenario(net)

    return asyncio.run(whole())


@both_levels
@pytest.mark.parametrize("url", ["tcp://:5000", "udp://:5000"])
@pytest.mark.parametrize("first", ["write", "send"])
def test_a_reply_leaves_when_its_write_is_durable(stack: bool, url: str, first: str) -> None:
    vnf = VNF("b")
    writes = Writes(vnf)

    @vnf.server(url, framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        if first == "send":
            conn.send(packet)
        assert writes.write(packet)
        if first == "write":
            conn.send(packet)

    async def scenario(net):
        peer = await net.connect(url.replace("://", "://b"), framing=Fixed(1))
        peer.send(b"x")
        await net.run_for(1)
        assert peer.take() is None and counted(vnf, "requests_open") == 1
        writes.durable(b"x")
        assert await peer.receive() == b"x"
        assert counted(vnf, "requests_open") == counted(vnf, "drop_uncommitted") == 0

    run(vnf, scenario, stack)


@both_levels
@pytest.mark.parametrize("url", ["tcp://:5000", "udp://:5000"])
def test_who_wrote_nothing_is_not_held_up(stack: bool, url: str) -> None:
    vnf = VNF("b")
    server = vnf.server(url, framing=Fixed(1), commit="before_send")

    @server.on_data
    async def on_request(conn, request, packet):
        conn.send(packet)
        await asyncio.sleep(1)
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect(url.replace("://", "://b"), framing=Fixed(1))
        peer.send(b"x")
        assert await peer.receive(timeout_s=0.5) == b"x"
        assert await peer.receive(timeout_s=2) == b"x"

    run(vnf, scenario, stack)


@both_levels
def test_replies_of_one_stream_keep_their_order_and_other_connections_go_on(stack: bool) -> None:
    vnf = VNF("b")
    writes = Writes(vnf)

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        if packet != b"r":
            writes.write(packet)
        conn.send(packet)

    async def scenario(net):
        peer, other = [await net.connect("tcp://b:5000", framing=Fixed(1)) for _ in range(2)]
        for message in (b"1", b"r", b"2", b"r"):
            peer.send(message)
        await net.run_for(1)
        writes.durable(b"2")
        other.send(b"r")
        assert await other.receive() == b"r"
        assert peer.take() is None
        writes.durable(b"1")
        assert [bytes(await peer.receive()) for _ in range(4)] == [b"1", b"r", b"2", b"r"]

    run(vnf, scenario, stack)


def test_a_reply_that_waits_its_turn_does_not_wait_for_what_its_request_writes_later() -> None:
    vnf, kept = VNF("b"), []
    writes = Writes(vnf)

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        if packet == b"1":
            writes.write(packet)
        else:
            request.hold()
            kept.append(request)
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000", framing=Fixed(1))
        peer.send(b"1")
        peer.send(b"2")
        await net.run_for(1)
        assert kept[0].await_commit()
        writes.durable(b"1")
        assert [bytes(await peer.receive()) for _ in range(2)] == [b"1", b"2"]
        kept[0].committed()
        kept[0].release()

    run(vnf, scenario)


@both_levels
@pytest.mark.parametrize("kind", ["ids", "datagrams"])
def test_where_no_order_is_promised_one_commit_holds_up_nobody_else(stack: bool, kind: str) -> None:
    vnf = VNF("b")
    writes = Writes(vnf)
    url = "tcp://:5000" if kind == "ids" else "udp://:5000"
    request_id = Field(0, 1) if kind == "ids" else None

    @vnf.server(url, framing=Fixed(2), request_id=request_id, commit="before_send")
    def on_request(conn, request, packet):
        if packet.u8(1):
            writes.write(packet)
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect(url.replace("://", "://b"), framing=Fixed(2))
        for message in (b"a\1", b"b\1", b"c\0"):
            peer.send(message)
        assert await peer.receive() == b"c\0"
        writes.durable(b"b\1")
        assert await peer.receive() == b"b\1"
        writes.durable(b"a\1")
        assert await peer.receive() == b"a\1"

    run(vnf, scenario, stack)


def test_every_write_must_be_durable() -> None:
    vnf = VNF("b")
    writes = Writes(vnf)

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    async def on_request(conn, request, packet):
        writes.write(b"one")
        conn.send(packet)
        await asyncio.sleep(1)
        writes.write(b"two")
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000", framing=Fixed(1))
        peer.send(b"x")
        await net.run_for(2)
        writes.durable(b"one")
        await net.run_for(1)
        assert peer.take() is None
        writes.durable(b"two")
        assert [bytes(await peer.receive()) for _ in range(2)] == [b"x", b"x"]

    run(vnf, scenario)


@both_levels
@pytest.mark.parametrize("scheme", ["tcp", "udp"])
def test_questions_to_others_are_held_too(stack: bool, scheme: str) -> None:
    vnf, c, asked = VNF("b"), VNF("c"), []
    writes = Writes(vnf)
    client = vnf.client(f"{scheme}://c:6000", framing=Fixed(2), request_id=Field(0, 1), timeout_s=0.5, retries=9)

    @c.server(f"{scheme}://:6000", framing=Fixed(2))
    def answer(conn, request, packet):
        asked.append(bytes(packet))
        conn.send(packet)

    @vnf.server("tcp://:5000", framing=Fixed(2), commit="before_send")
    async def on_request(conn, request, packet):
        writes.write(b"w")
        conn.send(await client.ask(packet, timeout_s=0.5 if scheme == "udp" else 5))

    async def scenario(net):
        await net.start(c)
        peer = await net.connect("tcp://b:5000", framing=Fixed(2))
        peer.send(b"qu")
        await net.run_for(2.2)
        assert asked == []
        writes.durable(b"w")
        assert await peer.receive() == b"qu"
        assert len(asked) == 1

    run(vnf, scenario, stack)


@pytest.mark.parametrize("how", ["task", "timer", "connection", "event"])
def test_what_a_request_has_begun_is_held_with_it(how: str) -> None:
    vnf = VNF("b")
    writes = Writes(vnf)

    def write_and_send(conn):
        assert writes.write(b"w")
        conn.send(b"x")

    async def later(conn):
        await asyncio.sleep(0.1)
        write_and_send(conn)
        await asyncio.sleep(0.1)
        conn.send(b"y")

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    async def on_request(conn, request, packet):
        if how == "task":
            async with asyncio.TaskGroup() as group:
                group.create_task(later(conn))
        elif how == "timer":
            request.after(0.1, later, conn)
        else:
            peer = conn.connect("tcp://b:5001", framing=Fixed(1))
            peer.on_data(lambda peer, request, packet: (write_and_send(conn), peer.close()))
            if how == "event":
                peer.on_data(lambda peer, request, packet: peer.close())
                peer.on_close(lambda peer, request, reason: write_and_send(conn))
            peer.send(packet)

    @vnf.server("tcp://:5001", framing=Fixed(1))
    def echo(conn, request, packet):
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000", framing=Fixed(1))
        peer.send(b"x")
        await net.run_for(1)
        assert peer.take() is None
        writes.durable(b"w")
        assert await peer.receive() == b"x"
        if how in ("task", "timer"):
            assert await peer.receive() == b"y"
        await net.run_for(1)
        assert counted(vnf, "requests_open") == 0

    run(vnf, scenario)


@both_levels
@pytest.mark.parametrize("ids", [False, True])
def test_a_failed_commit_drops_what_is_held_and_ends_the_request(stack: bool, ids: bool) -> None:
    vnf, errors, ends = VNF("b"), [], []
    writes = Writes(vnf)
    request_id = Field(0, 1) if ids else None
    server = vnf.server("tcp://:5000", framing=Fixed(1), request_id=request_id, commit="before_send")

    @server.on_data
    async def on_request(conn, request, packet):
        request.on_end(lambda: ends.append(request))
        writes.write(packet)
        conn.send(packet)
        await asyncio.sleep(5)
        if not conn.closed:
            conn.send(packet)

    @server.on_error
    def on_error(conn, request, error):
        errors.append((request, str(error)))
        if ids:
            conn.send(b"!")

    async def scenario(net):
        peer = await net.connect("tcp://b:5000", framing=Fixed(1))
        peer.send(b"x")
        await net.run_for(1)
        writes.fail(b"x")
        assert errors == [(ends[0], "the store is full")] and ends[0].ended
        if ids:
            assert await peer.receive() == b"!"
            peer.send(b"x")  # the id is free again
            await net.run_for(1)
            writes.durable(b"x")
            assert await peer.receive() == b"x"
            await net.run_for(5)
            assert peer.take() == b"x" and peer.take() is None
        else:
            await peer.wait("closed")
            await net.run_for(5)
        assert counted(vnf, "commits_failed") == 1
        assert counted(vnf, "drop_uncommitted") == (2 if ids else 1)
        assert counted(vnf, "requests_open") == 0

    run(vnf, scenario, stack)


def test_what_stands_behind_a_failed_commit_of_another_connection_leaves() -> None:
    vnf, conns = VNF("b"), []
    writes = Writes(vnf)

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        conns.append(conn)
        if len(conns) == 2:
            writes.write(b"w")
            conns[0].send(b"d")

    async def scenario(net):
        first, second = [await net.connect("tcp://b:5000", framing=Fixed(1)) for _ in range(2)]
        first.send(b"1")
        await net.run_for(1)
        second.send(b"2")
        await net.run_for(1)
        conns[0].send(b"e")
        await net.run_for(1)
        assert first.take() is None
        writes.fail(b"w")
        assert await first.receive() == b"e"
        await second.wait("closed")

    run(vnf, scenario)


@both_levels
@pytest.mark.parametrize("url", ["tcp://:5000", "udp://:5000"])
def test_closing_waits_for_what_is_held(stack: bool, url: str) -> None:
    vnf, closed = VNF("b"), []
    writes = Writes(vnf)
    server = vnf.server(url, framing=Fixed(1), commit="before_send")

    @server.on_data
    def on_request(conn, request, packet):
        writes.write(packet)
        conn.send(packet)
        conn.close()

    @server.on_close
    def on_close(conn, request, reason):
        closed.append(reason)

    async def scenario(net):
        peer = await net.connect(url.replace("://", "://b"), framing=Fixed(1))
        peer.send(b"x")
        await net.run_for(1)
        assert closed == []
        writes.durable(b"x")
        assert await peer.receive() == b"x"
        await net.run_for(1)
        assert closed == ["closed"]

    run(vnf, scenario, stack)


def test_a_half_close_waits_for_what_is_held() -> None:
    vnf = VNF("b")
    writes = Writes(vnf)

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        writes.write(packet)
        conn.send(packet)
        conn.end()

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        peer.send(b"x")
        await net.run_for(1)
        assert not peer.ended and peer.take() is None
        writes.durable(b"x")
        assert await peer.receive() == b"x"
        assert await peer.receive() == b""

    run(vnf, scenario)


def test_a_peer_that_has_said_everything_still_gets_the_held_reply() -> None:
    vnf = VNF("b")
    writes = Writes(vnf)

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        writes.write(packet)
        conn.send(packet)
        request.end()

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        peer.send(b"x")
        peer.end()
        await net.run_for(1)
        writes.durable(b"x")
        assert await peer.receive() == b"x"
        assert await peer.receive() == b""

    run(vnf, scenario)


@pytest.mark.parametrize("url", ["tcp://:5000", "udp://:5000"])
def test_held_bytes_are_buffered_bytes(url: str) -> None:
    vnf, refused = VNF("b", Limits(max_buffered_bytes=1000)), []
    writes = Writes(vnf)

    @vnf.server(url, framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        writes.write(packet)
        conn.send(bytes(800))
        try:
            conn.send(bytes(800))
        except BufferFull as error:
            refused.append((conn.buffered >= 800, str(error)))

    async def scenario(net):
        peer = await net.connect(url.replace("://", "://b"), framing=Fixed(800))
        peer.send(b"x")
        await net.run_for(1)
        assert len(refused) == 1 and refused[0][0] and "max_buffered_bytes (1000)" in refused[0][1]
        writes.durable(b"x")
        assert len(await peer.receive()) == 800

    run(vnf, scenario)


def test_what_is_held_for_a_peer_that_goes_is_dropped_and_counted() -> None:
    vnf = VNF("b")
    writes = Writes(vnf)

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        writes.write(packet)
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        peer.send(b"x")
        await net.run_for(1)
        peer.abort()
        await net.run_for(1)
        assert counted(vnf, "drop_uncommitted") == 1
        writes.durable(b"x")
        assert counted(vnf, "requests_open") == 0

    run(vnf, scenario)


def test_without_commit_nobody_waits() -> None:
    vnf, tried = VNF("b"), []

    @vnf.server("tcp://:5000", framing=Fixed(1))
    def on_request(conn, request, packet):
        tried.append(request.await_commit())
        assert vnf.core.current_request() is request
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        peer.send(b"x")
        assert await peer.receive() == b"x"
        assert tried == [False] and vnf.core.current_request() is None

    run(vnf, scenario)


def test_a_write_ends_once() -> None:
    vnf, kept = VNF("b"), []

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        request.await_commit()
        kept.append(request)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        peer.send(b"x")
        await net.run_for(1)
        kept[0].committed()
        with pytest.raises(RuntimeError, match="no write of this request is under way"):
            kept[0].committed()
        with pytest.raises(RuntimeError, match="no write of this request is under way"):
            kept[0].commit_failed(StateError("late"))
        assert kept[0].ended and counted(vnf, "commits_failed") == 0

    run(vnf, scenario)


def test_one_of_two_writes_that_fail_is_told() -> None:
    vnf, kept = VNF("b"), []

    @vnf.server("tcp://:5000", framing=Fixed(1), commit="before_send")
    def on_request(conn, request, packet):
        assert request.await_commit() and request.await_commit() and request.await_commit()
        kept.append(request)
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        peer.send(b"x")
        await net.run_for(1)
        kept[0].commit_failed(StateError("one"))
        assert not kept[0].await_commit()
        kept[0].commit_failed(StateError("two"))
        kept[0].committed()
        await peer.wait("closed")
        assert (counted(vnf, "commits_failed"), counted(vnf, "drop_uncommitted")) == (1, 1)

    run(vnf, scenario)


@pytest.mark.parametrize("how", ["returns", "end", "carried"])
def test_the_end_of_a_request_is_told_once(how: str) -> None:
    vnf, told = VNF("b"), []

    class Mine(Request):
        n: int = 0

    def ended() -> None:
        told.append(1)

    @vnf.server("tcp://:5000", framing=Fixed(1))
    def on_request(conn, request: Mine, packet):
        assert request.on_end(ended) and request.on_end(ended)
        if how == "end":
            request.end()
            request.end()
            assert told == [1] and not request.on_end(ended)
        elif how == "carried":
            request.after(1, int)
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        peer.send(b"x")
        await peer.receive()
        assert told == ([] if how == "carried" else [1])
        await net.run_for(2)
        assert told == [1]

    run(vnf, scenario)


def test_what_is_called_at_the_end_may_raise() -> None:
    vnf, told = VNF("b"), []

    @vnf.server("tcp://:5000", framing=Fixed(1))
    def on_request(conn, request, packet):
        request.on_end(lambda: 1 / 0)
        request.on_end(lambda: told.append(1))
        conn.send(packet)

    async def scenario(net):
        peer = await net.connect("tcp://b:5000")
        for _ in range(2):
            peer.send(b"x")
            await peer.receive()
        assert told == [1, 1] and counted(vnf, "handler_errors") == 2

    run(vnf, scenario)


def test_another_word_for_commit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"commit='always': expected None or 'before_send'"):
        VNF("b").server("tcp://:0", commit="always")
