"""What an author relies on when a connection is closed or waited for, over the model and over the stack."""

import asyncio

import pytest

from libvnf import VNF

both_levels = pytest.mark.parametrize("stack", [False, True], ids=["model", "stack"])


@both_levels
def test_an_answer_given_before_the_question_was_read_arrives(stack: bool) -> None:
    vnf = VNF("b")

    @vnf.session("tcp://:5000")
    async def busy(conn):
        conn.send(b"busy\n")

    async def scenario() -> bytes:
        async with vnf.test(seed=1, stack=stack) as net:
            peer = await net.connect("tcp://b:5000")
            peer.send(b"a question that nobody reads")
            return bytes(await peer.receive(until=b"\n", timeout_s=5))

    assert asyncio.run(scenario()) == b"busy\n"


@both_levels
def test_no_bytes_are_there_at_once(stack: bool) -> None:
    vnf = VNF("b")

    @vnf.session("tcp://:5000")
    async def two_parts(conn):
        length = int(bytes(await conn.receive(until=b"\n")))
        body = await conn.receive(size=length, timeout_s=1)
        conn.send(b"%d" % len(body), b"\n")

    async def scenario() -> list[bytes]:
        async with vnf.test(seed=1, stack=stack) as net:
            answers = []
            for question in (b"0\n", b"3\nabc"):
                peer = await net.connect("tcp://b:5000")
                peer.send(question)
                answers.append(bytes(await peer.receive(until=b"\n")))
            return answers

    assert asyncio.run(scenario()) == [b"0\n", b"3\n"]


@both_levels
def test_who_has_sent_beyond_the_mark_hears_of_room(stack: bool) -> None:
    vnf, heard = VNF("b"), []

    server = vnf.server("tcp://:5000")

    @server.on_data
    def much(conn, request, packet):
        conn.send(bytes(200_000))

    @server.on_writable
    def writable(conn, request):
        heard.append(conn.buffered)

    async def scenario() -> None:
        async with vnf.test(seed=1, stack=stack) as net:
            peer = await net.connect("tcp://b:5000")
            peer.send(b"x")
            got = 0
            while got < 200_000:
                got += len(await peer.receive())

    asyncio.run(scenario())
    assert heard and max(heard) < 65_536


@both_levels
@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_close_handler_knows_who_it_was(stack: bool, how: str) -> None:
    vnf, told = VNF("b"), []
    server = vnf.server("tcp://:5000")

    @server.on_data
    def on_data(conn, request, packet):
        told.append(conn.remote)

    @server.on_close
    def on_close(conn, request, reason):
        told.append(conn.remote)

    async def scenario() -> None:
        async with vnf.test(seed=1, stack=stack) as net:
            peer = await net.connect("tcp://b:5000")
            peer.send(b"x")
            await net.run_for(1)
            getattr(peer, how)()
            await net.run_for(1)

    asyncio.run(scenario())
    assert len(told) == 2 and told[0] and told[0] == told[1]


def test_timers_end_with_their_vnf() -> None:
    ticks = []
    vnf = VNF("clockwork")
    vnf.every(1, lambda: ticks.append("early"))

    async def scenario() -> None:
        async with vnf.test() as net:
            vnf.every(1, lambda: ticks.append("late"))
            await net.run_for(3.5)
            await vnf.close()
            seen = len(ticks)
            await net.run_for(10)
            assert len(ticks) == seen == 6

    asyncio.run(scenario())
