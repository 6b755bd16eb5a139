"""What a connection tells its author: room after BufferFull, who has left; and what a client no longer asks."""

import asyncio

from libvnf import VNF, BufferFull, Connection, Field, Limits, Request
from libvnf.config import parse_transport
from libvnf.testing import Network


async def test_who_met_buffer_full_hears_when_there_is_room() -> None:
    vnf = VNF("b", Limits(max_buffered_bytes=10_000))
    heard: list[str] = []
    server = vnf.server("tcp://:1")

    @server
    def fill(conn: Connection, request: Request, packet: object) -> None:
        try:
            while True:
                conn.send(bytes(1_000))
        except BufferFull:
            heard.append("full")

    @server.on_writable
    def room(conn: Connection, request: Request) -> None:
        heard.append("room")

    async with Network(vnf) as net:
        a = await net.connect("tcp://b:1")
        a.send(b"go")
        await net.run_for(1)
    assert heard == ["full", "room"]


async def test_a_close_handler_knows_who_has_left() -> None:
    vnf = VNF("b")
    left: list[str] = []
    server = vnf.server("tcp://:1")
    server(lambda conn, request, packet: left.append(conn.remote))

    @server.on_close
    def close(conn: Connection, request: Request, reason: str) -> None:
        left.append(conn.remote)

    async with Network(vnf) as net:
        a = await net.connect("tcp://b:1")
        a.send(b"x")
        await net.run_for(1)
        a.close()
        await net.run_for(1)
    assert len(left) == 2
    assert left[0] == left[1] != ""


async def test_a_cancelled_question_is_not_asked_again() -> None:
    vnf = VNF("b")
    client = vnf.client("udp://c:1", request_id=Field(0, 1), timeout_s=1.0, retries=3)
    asked: list[bytes] = []
    async with Network(vnf) as net:
        await net.serve("udp://c:1", lambda conn, request, packet: asked.append(bytes(packet)))
        await net.run_for(1)
        try:
            async with asyncio.timeout(0.1):
                await client.ask(b"?")
        except TimeoutError:
            await net.run_for(10)
        assert len(asked) == 1
        assert client.outstanding == 0
        assert vnf.statistics()["core"]["client_timeouts"] == 0


async def test_an_address_of_a_ports_network_goes_there_whatever_the_order(tmp_path: object) -> None:
    vnf = VNF("b")
    ports = [parse_transport(text, {}) for text in ("kernel", f"memif:{tmp_path}/b.sock,address=10.9.0.2/24")]
    await vnf.start(ports)
    try:
        assert type(vnf.resolve("udp://10.9.0.3:1")).__name__ == "Target"
        assert type(vnf.resolve("udp://127.0.0.1:1")).__name__ == "SocketTarget"
    finally:
        await vnf.close()
