"""The same file, any transport, the same bytes: every B of the papers' chain runs on kernel sockets, memif (behind
DPDK's testpmd), TAP, TUN and AF_XDP, between an A and a C that are plain sockets of a kernel. What A is answered is the
same everywhere.

A and C are 10.0.0.1 (C also 10.0.0.3, where the papers' listing has it), B is 10.0.0.2.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import pytest

from tests.integration.bridge import Bridge, NetNS, Start
from tests.integration.cable import Cable
from tests.integration.programs import QUICK, inside, running
from tests.integration.tap import DEVICE
from tests.integration.test_abc import EXAMPLES, OURS
from tests.peers import DEADLINE_S, Namespace

pytestmark = pytest.mark.needs("ip", "root", "dpdk-testpmd", "ethtool")

SIZE, COUNT = 128, 48
_chance = random.Random(3)
REQUESTS = [number.to_bytes(8, "big") + _chance.randbytes(SIZE - 8) for number in range(COUNT)]
HOST = "address=10.0.0.2/24,name=data0"
KERNEL = """
[port.data0]
type = "kernel"
map = { "10.0.0.2:5000" = "10.0.0.2:5000", "10.0.0.3:5000" = "10.0.0.3:5000" }
"""
Place = Callable[[Path, str, list[str], NetNS, Start], Iterator[Namespace]]


def answer(request: bytes) -> bytes:
    """C's: the same id, other bytes."""
    return request[:8] + bytes(255 - byte for byte in request[8:])


# --- where B runs: each yields the namespace that A and C are in, with B ready ----------------------------------------


@contextmanager
def on_kernel(tmp_path: Path, source: str, sets: list[str], netns: NetNS, testpmd: Start) -> Iterator[Namespace]:
    namespace = netns()
    for last in (1, 2, 3):
        namespace.run("ip", "address", "add", f"10.0.0.{last}/32", "dev", "lo")
    (tmp_path / "vnf.toml").write_text(KERNEL)
    options = ["--config", str(tmp_path / "vnf.toml"), "--transport", "data0", *sets]
    with running(tmp_path, source, *options, command=inside(namespace)):
        yield namespace


@contextmanager
def on_memif(tmp_path: Path, source: str, sets: list[str], netns: NetNS, testpmd: Start) -> Iterator[Namespace]:
    wire = Bridge(tmp_path, netns(), testpmd, "server", keys="name=data0")
    with wire.vnf(source, *sets):
        wire.begin_testpmd()
        wire.namespace.run("ip", "address", "add", "10.0.0.3/24", "dev", "dtap")
        yield wire.namespace


def on_tap(layer: str) -> Callable[..., object]:
    @contextmanager
    def place(tmp_path: Path, source: str, sets: list[str], netns: NetNS, testpmd: Start) -> Iterator[Namespace]:
        namespace = netns()
        options = ["--transport", f"tap:{DEVICE},layer={layer},{HOST}", *QUICK, *sets]
        with running(tmp_path, source, *options, command=inside(namespace)):
            for last in (1, 3):
                namespace.run("ip", "address", "add", f"10.0.0.{last}/24", "dev", DEVICE)
            yield namespace

    return place


@contextmanager
def on_af_xdp(tmp_path: Path, source: str, sets: list[str], netns: NetNS, testpmd: Start) -> Iterator[Namespace]:
    cable = Cable(tmp_path, netns)
    cable.near.run("ip", "address", "flush", "dev", "eth1")
    cable.far.run("ip", "address", "add", "10.0.0.3/24", "dev", "far")
    options = ["--transport", f"af_xdp:eth1,{HOST}", *QUICK, *sets]
    with running(tmp_path, source, *options, command=inside(cable.near)):
        yield cable.far


PLACES = {
    "kernel": on_kernel,
    "memif": on_memif,
    "tap": on_tap("ethernet"),
    "tun": on_tap("ip"),
    "af_xdp": on_af_xdp,
}


# --- C and A ----------------------------------------------------------------------------------------------------------


class Datagrams(asyncio.DatagramProtocol):
    """C over UDP."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, peer: object) -> None:
        self.transport.sendto(answer(data), peer)  # type: ignore[arg-type]


class Stream(asyncio.Protocol):
    """C over TCP, one connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.unread = b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.unread += data
        while len(self.unread) >= SIZE:
            self.transport.write(answer(self.unread[:SIZE]))
            self.unread = self.unread[SIZE:]

    def connection_lost(self, error: Exception | None) -> None:
        self.over.set_result(None)


@asynccontextmanager
async def answering(
    namespace: Namespace, kind: socket.SocketKind, host: str, port: int
) -> AsyncIterator[asyncio.Event]:
    """C; set when B has connected."""
    connected = asyncio.Event()
    sock = namespace.socket(kind=kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    if kind == socket.SOCK_DGRAM:
        endpoint, _ = await asyncio.get_running_loop().create_datagram_endpoint(Datagrams, sock=sock)
        connected.set()
        try:
            yield connected
        finally:
            endpoint.close()
        return

    streams: list[Stream] = []

    def accepted() -> Stream:
        streams.append(Stream())
        connected.set()
        return streams[-1]

    server = await asyncio.get_running_loop().create_server(accepted, sock=sock)
    try:
        yield connected
    finally:
        server.close()
        for stream in streams:
            stream.transport.abort()
        await asyncio.gather(*(stream.over for stream in streams))


async def ask(namespace: Namespace, requests: list[bytes]) -> list[bytes]:
    """A over TCP: all on one connection; the replies, by their ids."""
    sock = namespace.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("10.0.0.2", 5000))
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.writelines(requests)
    replies = [await reader.readexactly(SIZE) for _ in requests]
    writer.close()
    await writer.wait_closed()
    return sorted(replies)


async def ask_by_datagrams(namespace: Namespace, requests: list[bytes]) -> list[bytes]:
    """A over UDP: again, what is not answered in time (a neighbour may be unknown yet)."""
    with namespace.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("10.0.0.2", 5000))
        replies: dict[bytes, bytes] = {}
        while missing := [request for request in requests if request[:8] not in replies]:
            for request in missing:
                sock.send(request)
            try:
                async with asyncio.timeout(1):
                    while len(replies) < len(requests):
                        reply = await asyncio.get_running_loop().sock_recv(sock, 65535)
                        assert replies.setdefault(reply[:8], reply) == reply, "two answers to one request"
            except TimeoutError:
                pass
        return sorted(replies.values())


async def talk(
    transport: str, file: str, scheme: str, tmp_path: Path, netns: NetNS, testpmd: Start
) -> list[list[bytes]]:
    """What A is answered by B on this transport."""
    name, *settings = file.split()
    sets = [
        *QUICK,
        "--set",
        f"listen={scheme}://10.0.0.2:5000?port=data0",
        "--set",
        f"c={scheme}://10.0.0.1:6000?port=data0",
    ]
    sets += [word for setting in settings for word in ("--set", setting)]
    c = ("10.0.0.1", 6000)
    if name == "b_papers.py":
        sets, c = QUICK, ("10.0.0.3", 5000)
    directory = tmp_path / transport
    directory.mkdir()
    kind = socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM
    with PLACES[transport](directory, (EXAMPLES / name).read_text(), sets, netns, testpmd) as namespace:  # type: ignore[attr-defined]
        async with asyncio.timeout(4 * DEADLINE_S), answering(namespace, kind, *c) as connected:
            if name == "b_pooled.py":
                await connected.wait()  # it refuses what comes before
            if scheme == "udp":
                return [await ask_by_datagrams(namespace, REQUESTS)]
            alone = [await ask(namespace, [request]) for request in REQUESTS[:5]]
            # The papers' B reads what came, however many messages that is.
            return alone if name == "b_papers.py" else [*alone, await ask(namespace, REQUESTS)]


CASES = [(file, scheme) for file in OURS for scheme in ("tcp", "udp")] + [("b_papers.py", "tcp")]


@pytest.mark.parametrize(("file", "scheme"), CASES)
async def test_every_b_gives_byte_identical_replies_on_every_transport(
    tmp_path: Path, netns: NetNS, testpmd: Start, file: str, scheme: str
) -> None:
    replies = {transport: await talk(transport, file, scheme, tmp_path, netns, testpmd) for transport in PLACES}
    expected = [request if file == "b_papers.py" else answer(request) for request in REQUESTS]
    assert (
        sorted({reply for some in replies["kernel"] for reply in some})
        == expected[: 5 if file == "b_papers.py" else COUNT]
    )
    for transport, found in replies.items():
        assert found == replies["kernel"], f"{transport} and kernel differ"
