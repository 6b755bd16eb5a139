"""Many bytes, whose order shows in their digest, and a VNF that sends, takes and holds them.

The VNF ``BULK`` is asked in lines: ``send N``, ``take``, ``hold`` (take, but not before somebody said ``release``). It
is asked on tcp://:47000 by who connects there (a port that no dissector of tshark's believes to be its own); and on a
Unix socket, as ``send N URL``, to connect to a kernel's server itself. ``take`` and ``hold`` answer with the digest: on
the stream itself, and to who asked by the Unix socket. The kernel's side of all that is :func:`send` and :func:`take`,
with sockets that block.
"""

from __future__ import annotations

import hashlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests.peers import DEADLINE_S

MB = 1_000_000
_BLOCK = random.Random(1).randbytes(65_536 - 8)

BULK = """
import asyncio
import hashlib

from libvnf import VNF
from tests.integration.bulk import pieces
from tests.integration.inspection import open_window

vnf = VNF("bulk")
open_window(vnf)
released = asyncio.Event()

async def work(conn, verb, size=0):
    if verb == b"send":
        for piece in pieces(size):
            conn.send(piece)
            await conn.drain()
        conn.end()
        return bytes(await conn.receive(until=b"\\n", timeout_s=600)).strip()
    if verb == b"hold":
        await released.wait()
    seen = hashlib.sha256()
    async for piece in conn:
        seen.update(piece)
    return seen.hexdigest().encode()

@vnf.session("tcp://:47000")
async def serve(conn):
    verb, *size = bytes(await conn.receive(until=b"\\n")).split()
    answer = await work(conn, verb, *map(int, size))
    if verb != b"send":
        conn.send(answer, b"\\n")

@vnf.session(f"unix://{vnf.setting('orders', 'orders.sock')}")
async def orders(boss):
    while line := bytes(await boss.receive(until=b"\\n")):
        verb, *rest = line.split()
        if verb == b"release":
            released.set()
            boss.send(b"released\\n")
            continue
        *size, url = rest
        try:
            async with vnf.connect(url.decode()) as conn:
                answer = await work(conn, verb, *map(int, size))
                if verb != b"send":
                    conn.send(answer, b"\\n")
                    await conn.drain()
        except (OSError, ConnectionError) as error:
            answer = f"{type(error).__name__}: {error}".encode()
        boss.send(answer, b"\\n")
"""


def pieces(size: int) -> Iterator[bytes]:
    """``size`` bytes, in pieces of 64 KiB, none like another."""
    for number in range(size // 65_536):
        yield number.to_bytes(8, "big") + _BLOCK
    if rest := size % 65_536:
        yield _BLOCK[:rest]


def digest(size: int) -> str:
    seen = hashlib.sha256()
    for piece in pieces(size):
        seen.update(piece)
    return seen.hexdigest()


def send(sock: socket.socket, size: int) -> str:
    """Sends them and our end; the digest that the other side answers."""
    for piece in pieces(size):
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)
    return _line(sock)


def take(sock: socket.socket, begun: bytes = b"") -> tuple[int, str]:
    """How many bytes came up to the other side's end (``begun`` before), and their digest, which is also the answer."""
    seen, size = hashlib.sha256(begun), len(begun)
    while piece := sock.recv(1 << 18):
        seen.update(piece)
        size += len(piece)
    sock.sendall(seen.hexdigest().encode() + b"\n")
    return size, seen.hexdigest()


def ask(sock: socket.socket, host: str, order: str) -> socket.socket:
    """Connects to the VNF and asks."""
    sock.connect((host, 47000))
    sock.sendall(order.encode() + b"\n")
    return sock


def _line(sock: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(4096)
        assert piece, f"it ended after {line!r}"
        line += piece
    return line.decode().strip()


class Orders:
    """Tells the VNF what to do."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))

    def give(self, order: str) -> None:
        self._socket.sendall(order.encode() + b"\n")

    def answer(self, deadline_s: float = DEADLINE_S) -> str:
        self._socket.settimeout(deadline_s)
        return _line(self._socket)

    def close(self) -> None:
        self._socket.close()


class Rate:
    """``with Rate("what", size): …`` prints how fast it went."""

    def __init__(self, what: str, size: int) -> None:
        self.what, self.size, self.mbit_s = what, size, 0.0

    def __enter__(self) -> Rate:
        self._begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.mbit_s = self.size * 8 / 1e6 / (time.monotonic() - self._begun)
        print(f"{self.what}: {self.size / MB:,.0f} MB, {self.mbit_s:,.0f} Mbit/s")
