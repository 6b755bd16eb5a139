"""Replies that wait for writes, over kernel sockets and memif: the fast ways out that the in-memory network has not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from libvnf import VNF, Connection, Field, Fixed, Request, StateError
from tests.integration.inside import until
from tests.integration.test_connections import Net, net, place

__all__ = ["net"]


class Late:
    """A write that is durable when its future is done."""

    def __init__(self, vnf: VNF) -> None:
        self._vnf = vnf
        self.writes: list[asyncio.Future[None]] = []

    def write(self) -> None:
        request = self._vnf.core.current_request()
        if request is not None and request.await_commit():
            future = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda future: self._done(request, future.exception()))
            self.writes.append(future)

    @staticmethod
    def _done(request: Any, error: BaseException | None) -> None:
        if error is None:
            request.committed()
        else:
            request.commit_failed(error)


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
async def test_replies_leave_when_their_writes_are_durable(net: Net, scheme: str) -> None:
    far, near = VNF("far"), VNF("near")
    late, count = Late(far), 500
    server = far.server(net.url(scheme=scheme), framing=Fixed(4), commit="before_send")

    @server
    def on_request(conn: Connection, request: Request, packet: Any) -> None:
        conn.send(packet)
        if packet.u32(0) % 2:
            late.write()

    async with net.up(far, near):
        peer = await near.connect(place(server), framing=Fixed(4))
        got: list[int] = []
        peer.on_data(lambda conn, request, packet: got.append(packet.u32(0)))
        for number in range(count):
            peer.send(number.to_bytes(4, "big"))
            if scheme == "udp":  # no more of them than a socket holds
                await until(lambda number=number: far.core.statistics()["messages_in"] > number)
        await until(lambda: len(late.writes) == count // 2)
        if scheme == "tcp":
            await until(lambda: len(got) == 1)  # the first wrote nothing, and stands before all others
        else:
            await until(lambda: got == [number for number in range(count) if number % 2 == 0])
        for write in late.writes:
            write.set_result(None)
            if scheme == "udp":
                await until(write.done)
        await until(lambda: len(got) == count)
        assert (got if scheme == "tcp" else sorted(got)) == list(range(count))
        await until(lambda: far.core.open_requests == 0)
        assert far.statistics()["core"]["drop_uncommitted"] == 0


@pytest.mark.parametrize("scheme", ["tcp", "udp"])
async def test_what_is_asked_of_others_waits_too(net: Net, scheme: str) -> None:
    c, b, a = VNF("c"), VNF("b"), VNF("a")
    late, asked = Late(b), []
    c_server = c.server(net.url(0, scheme=scheme), framing=Fixed(4))

    @c_server
    def answer(conn: Connection, request: Request, packet: Any) -> None:
        asked.append(bytes(packet))
        conn.send(bytes(packet)[::-1])

    b_server = b.server(net.url(1, scheme=scheme), framing=Fixed(4), commit="before_send")

    @b_server
    async def on_request(asker: Connection, request: Request, packet: Any) -> None:
        late.write()
        async with asker.connect(place(c_server), framing=Fixed(4), pool=4) as peer:
            reply = await peer.ask(packet)
        asker.send(reply)

    async with net.up(c, b, a):
        for message in (b"abcd", b"1234"):
            peer = await a.connect(place(b_server), framing=Fixed(4))
            peer.send(message)
            await until(lambda: late.writes and not late.writes[-1].done())
            for _ in range(20):
                await asyncio.sleep(0)
            assert message not in asked
            late.writes[-1].set_result(None)
            assert await peer.receive() == message[::-1]
            peer.close()


@pytest.mark.parametrize("ids", [False, True])
async def test_a_write_that_fails_is_told_and_answers_nothing(net: Net, ids: bool) -> None:
    far, near = VNF("far"), VNF("near")
    late, errors = Late(far), []
    server = far.server(net.url(), framing=Fixed(4), request_id=Field(0, 4) if ids else None, commit="before_send")

    @server.on_data
    def on_request(conn: Connection, request: Request, packet: Any) -> None:
        late.write()
        conn.send(packet)

    @server.on_error
    def on_error(conn: Connection, request: Request, error: BaseException) -> None:
        errors.append(str(error))
        if ids:
            conn.send(b"fail")

    async with net.up(far, near):
        peer = await near.connect(place(server), framing=Fixed(4))
        peer.send(b"abcd")
        await until(lambda: late.writes)
        late.writes[0].set_exception(StateError("the store is full"))
        if ids:
            assert await peer.receive() == b"fail"
        else:
            await peer.wait("closed")
        assert errors == ["the store is full"]
        counters = far.statistics()["core"]
        assert (counters["commits_failed"], counters["drop_uncommitted"], counters["requests_open"]) == (1, 1, 0)
