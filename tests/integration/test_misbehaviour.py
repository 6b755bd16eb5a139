"""A handler that raises, blocks, closes its own connection or keeps whatever it gets harms itself: on every transport
the others are served, before, meanwhile where that can be, and after. And when everything that can be full is full,
what does not fit waits or is a counted drop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.inspection import Window, in_use
from tests.integration.memif import Client
from tests.integration.programs import running
from tests.integration.station import Station
from tests.peers import DEADLINE_S

SOURCE = """
import time
from libvnf import VNF, Fixed
from tests.integration.inspection import open_window

vnf = VNF("b")
open_window(vnf)
kept = []

@vnf.session("unix://release.sock")
async def release(conn):
    kept.clear()
    conn.send(b"done")

@vnf.server(vnf.setting("url", default="udp://:5000"), framing=Fixed(8))
SHAPE on_message(conn, request, packet):
    if packet == b"raise!!!":
        raise ValueError("as it was asked to")
    if packet == b"block!!!":
        until = time.monotonic() + 1
        while time.monotonic() < until:
            pass
    if packet == b"close!!!":
        conn.send(packet)
        conn.close()
        conn.close()
        return
    if packet == b"abort!!!":
        conn.abort()
        return
    if packet == b"twice!!!":
        conn.send(packet)
        conn.close()
        conn.send(packet)
    if packet == b"release!":
        kept.clear()
    if packet == b"keep it!":
        kept.append(packet)
        return
    conn.send(packet)
"""


class Peers:
    """Anybody number ``n`` may ask; each has a connection, or a source port, of its own."""

    def __init__(self, url: str, station: Station | None, stack: ExitStack) -> None:
        self.url, self.station, self._stack = url, station, stack
        self._sockets: dict[int, socket.socket] = {}

    @property
    def streams(self) -> bool:
        return not self.url.startswith("udp")

    def socket(self, number: int) -> socket.socket:
        if number not in self._sockets:
            scheme, _, place = self.url.partition("://")
            if scheme == "unix":
                sock = socket.socket(socket.AF_UNIX)
            else:
                sock = socket.socket(type=socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM)
            self._stack.callback(sock.close)
            sock.settimeout(DEADLINE_S)
            sock.connect(place if scheme == "unix" else ("127.0.0.1", int(place.rpartition(":")[2])))
            self._sockets[number] = sock
        return self._sockets[number]

    def send(self, number: int, message: bytes) -> None:
        if self.station is not None:
            self.station.send(self.station.udp(5000, message, source=6000 + number))
        else:
            self.socket(number).sendall(message)

    def ask(self, number: int, message: bytes) -> bytes:
        if self.station is not None:
            return self.station.ask(5000, message, source=6000 + number)
        self.send(number, message)
        return self.receive(number)

    def receive(self, number: int) -> bytes:
        """The next message; empty when the connection has ended."""
        sock = self.socket(number)
        try:
            return sock.recv(8, socket.MSG_WAITALL if self.streams else 0)
        except ConnectionResetError:
            return b""

    def forget(self, number: int) -> None:
        if number in self._sockets:
            self._sockets.pop(number).close()


@contextmanager
def served(
    tmp_path: Path, free_port: Callable[[], int], transport: str, shape: str = "def", *more: str
) -> Iterator[tuple[Peers, Window]]:
    port, window = free_port(), tmp_path / "window.sock"
    url = {"tcp": f"tcp://:{port}", "udp": f"udp://:{port}", "unix": f"unix://{tmp_path / 'b.sock'}"}
    options = ["--set", f"window={window}", "--set", f"url={url.get(transport, 'udp://:5000')}", *more]
    if transport == "memif":
        options += ["--transport", f"memif:{tmp_path / 'm.sock'},address=10.0.0.2/24"]
    with ExitStack() as stack:
        stack.enter_context(running(tmp_path, SOURCE.replace("SHAPE", shape), *options))
        look = Window(window)
        stack.callback(look.close)
        station = None
        if transport == "memif":
            client = stack.enter_context(Client(tmp_path / "m.sock", log2=10)).connect()
            station = Station(client, "10.0.0.1", "10.0.0.2")
        yield Peers(url.get(transport, "udp"), station, stack), look


every_transport = pytest.mark.parametrize("transport", ["tcp", "unix", "udp", "memif"])
both_shapes = pytest.mark.parametrize("shape", ["def", "async def"])


@every_transport
@both_shapes
@pytest.mark.parametrize("message", [b"raise!!!", b"abort!!!", b"close!!!", b"twice!!!"])
def test_a_handler_that_fails_fails_alone(
    tmp_path: Path, free_port: Callable[[], int], transport: str, shape: str, message: bytes
) -> None:
    with served(tmp_path, free_port, transport, shape) as (peers, look):
        assert peers.ask(0, b"I listen") == b"I listen"
        for number in range(1, 20):
            peers.send(number, message)
            if peers.streams:
                # An exception resets the connection, and with it what was not sent yet.
                assert peers.receive(number) == (message if message == b"close!!!" else b"")
                peers.forget(number)
            assert peers.ask(0, b"and you?") == b"and you?"
        found = look.wait(lambda now: now["core"]["requests_open"] == 0)
        assert found["core"]["handler_errors"] == (19 if message in (b"raise!!!", b"twice!!!") else 0)
        if peers.streams:
            look.wait(lambda now: now["core"]["connections_open"] == 2)  # the listener and the window


@every_transport
def test_a_handler_that_blocks_for_a_second_delays_the_others_and_loses_nothing(
    tmp_path: Path, free_port: Callable[[], int], transport: str
) -> None:
    with served(tmp_path, free_port, transport) as (peers, _):
        assert peers.ask(0, b"I listen") == b"I listen"
        peers.send(1, b"block!!!")
        for number in range(2, 40):
            peers.send(number, b"%8d" % number)
        if peers.station is None:
            assert [peers.receive(number) for number in range(2, 40)] == [b"%8d" % number for number in range(2, 40)]
            assert peers.receive(1) == b"block!!!"
        else:
            answers = [peers.station.wait(lambda packet: packet.haslayer("UDP"))["UDP"] for _ in range(39)]
            assert {answer.dport for answer in answers} == {6000 + number for number in range(1, 40)}
        assert peers.ask(0, b"and you?") == b"and you?"


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_who_keeps_every_message_of_a_stream_is_held_back(
    tmp_path: Path, free_port: Callable[[], int], transport: str
) -> None:
    limit = ("--set", "limits.max_kept_bytes_per_connection=1000000")
    with served(tmp_path, free_port, transport, "def", *limit) as (peers, look):
        hoarder, sent = peers.socket(1), 0
        hoarder.setblocking(False)
        hoard = b"keep it!" * 8192
        while look.look()["core"]["streams_throttled"] == 0:
            try:
                sent += hoarder.send(hoard[sent % 8 :])
            except BlockingIOError:
                pass
            assert sent < 1 << 28
            assert peers.ask(0, b"and you?") == b"and you?"
        # What the kernel still takes fills up, and then the sender waits.
        full = 0
        while full < 3:
            try:
                sent += hoarder.send(hoard[sent % 8 :])
                full = 0
            except BlockingIOError:
                full += 1
            assert sent < 1 << 28
            assert peers.ask(0, b"and you?") == b"and you?"
        assert look.look()["core"]["kept_bytes"] < 3_000_000
        # Once it lets go, what waited comes in, in order, to the last byte.
        rest, answer = b"keep it!"[sent % 8 :] + b"the end!", b""
        while len(answer) < 8:
            assert peers.ask(0, b"release!") == b"release!"
            with suppress(BlockingIOError):
                rest = rest[hoarder.send(rest) :] if rest else rest
                answer += hoarder.recv(8 - len(answer))
        assert answer == b"the end!"


@pytest.mark.parametrize("transport", ["udp", "memif"])
def test_who_keeps_every_datagram_loses_the_next_ones_and_they_are_counted(
    tmp_path: Path, free_port: Callable[[], int], transport: str
) -> None:
    limit = ("--set", "limits.max_kept_bytes_per_connection=10000")
    with served(tmp_path, free_port, transport, "def", *limit) as (peers, look):
        assert peers.ask(0, b"I listen") == b"I listen"
        for _ in range(40):
            for _ in range(50):
                peers.send(1, b"keep it!")
            assert peers.ask(0, b"and you?") == b"and you?"
        found = look.look()["core"]
        assert found["drop_kept_quota"] > 0, found
        assert found["kept_bytes"] <= 10_512
        assert peers.ask(0, b"release!") == b"release!"
        assert peers.ask(1, b"and now?") == b"and now?"
        assert look.look()["core"]["kept_bytes"] == 0


def test_a_pool_that_is_empty_drops_and_recovers(tmp_path: Path, free_port: Callable[[], int]) -> None:
    limits = ("--set", "limits.max_kept_bytes_per_connection=1000000000", "--set", "limits.max_kept_bytes=1000000000")
    with served(tmp_path, free_port, "memif", "def", *limits) as (peers, look):
        assert peers.ask(0, b"I listen") == b"I listen"
        assert peers.station is not None and isinstance(peers.station.interface, Client)
        client = peers.station.interface
        frame = bytes(peers.station.udp(5000, b"keep it!", source=6001))
        for index in range(client.out.slots):
            at = client.place(client.out, index)
            client.memory[at : at + len(frame)] = frame
            client.out.describe(index, length=len(frame), offset=at)
        full = look.wait(lambda now: refill(client) and now["transports"]["port0"]["counters"]["rx_pool_dry"])
        assert any(row["exhausted"] for row in full["pool"].values())
        look.wait(lambda now: client.out.head == client.out.tail)
        # A stream needs none of these buffers: it is served, and lets them go.
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE_S)
            sock.connect(str(tmp_path / "release.sock"))
            assert sock.recv(4) == b"done"
        look.wait(lambda now: not any(in_use(now).values()))
        assert peers.ask(0, b"and now?") == b"and now?"


def refill(client: Client) -> bool:
    """Offers every frame that was taken once more."""
    client.out.head += client.out.slots - (client.out.head - client.out.tail & 0xFFFF)
    client.kick()
    return True
