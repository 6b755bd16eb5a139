"""memif spoken from Python, in either role: honest as it stands, and easily made to lie, because every message is bytes
that a test may change before they leave and every ring is memory that a test may write to.

Offsets are those of memif.h 2.0. Little endian; one ring per direction: 0 client → server, 1 server → client.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from tests.peers import DEADLINE_S

ACK, HELLO, INIT, ADD_REGION, ADD_RING, CONNECT, CONNECTED, DISCONNECT = range(1, 9)
COOKIE = 0x3E31F20
VERSION = 0x0200
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


class Refused(Exception):
    """The other side said DISCONNECT, or closed; the text is its reason."""


def message(kind: int, form: str = "", *fields: object) -> bytearray:
    """128 bytes: the type, and packed fields behind it."""
    return bytearray(struct.pack("<H" + form, kind, *fields).ljust(128, b"\0"))


class Control:
    """The control socket: a message of 128 bytes with at most one descriptor at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(DEADLINE_S)

    def send(self, data: bytes, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self.socket.sendmsg([data], rights)
        except (BrokenPipeError, ConnectionResetError):
            raise Refused(self.farewell()) from None

    def receive(self) -> tuple[bytes, list[int]]:
        """Raises :class:`Refused` when the other side has gone, or goes with this message."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 256, 4)
        except ConnectionResetError:
            data, descriptors = b"", []
        if not data:
            raise Refused("closed")
        if data[0] == DISCONNECT:
            raise Refused(data[6:102].partition(b"\0")[0].decode())
        return data, descriptors

    def expect(self, kind: int) -> tuple[bytes, list[int]]:
        data, descriptors = self.receive()
        assert data[0] == kind, f"message of type {data[0]}, {kind} wanted"
        return data, descriptors

    def farewell(self) -> str:
        """Why the other side ends it."""
        try:
            while True:
                self.receive()
        except Refused as reason:
            return str(reason)


class Ring:
    """One ring in mapped memory. ``view`` is everything that a liar may write to."""

    def __init__(self, memory: mmap.mmap, offset: int, log2: int) -> None:
        self.memory, self.offset, self.slots = memory, offset, 1 << log2

    def u16(self, at: int) -> int:
        value: int = struct.unpack_from("<H", self.memory, self.offset + at)[0]
        return value

    def put_u16(self, at: int, value: int) -> None:
        # Not pack_into, which clears what it is about to write: the other side may look in between.
        self.memory[self.offset + at : self.offset + at + 2] = (value & 0xFFFF).to_bytes(2, "little")

    @property
    def head(self) -> int:
        return self.u16(6)

    @head.setter
    def head(self, value: int) -> None:
        self.put_u16(6, value)

    @property
    def tail(self) -> int:
        return self.u16(64)

    @tail.setter
    def tail(self, value: int) -> None:
        self.put_u16(64, value)

    def describe(self, index: int, *, flags: int = 0, region: int = 0, length: int = 0, offset: int = 0) -> None:
        where = self.offset + 128 + 16 * (index % self.slots)
        struct.pack_into("<HHIII", self.memory, where, flags, region, length, offset, 0)

    def descriptor(self, index: int) -> tuple[int, int, int, int]:
        """flags, region, length, offset"""
        found = struct.unpack_from("<HHII", self.memory, self.offset + 128 + 16 * (index % self.slots))
        return found  # type: ignore[return-value]


Change = Callable[[int, bytearray, list[int]], object]
"""Called with each message of a handshake before it leaves: its number from 0, its bytes, its descriptors."""


class Interface:
    """What both roles have in common: two rings with their eventfds, frames in and out."""

    control: Control
    memory: mmap.mmap
    out: Ring
    into: Ring
    kick_fd: int
    wake_fd: int

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def send(self, frame: bytes) -> None:
        raise NotImplementedError

    def take(self) -> bytes | None:
        """The next frame, or None."""
        raise NotImplementedError

    def receive(self) -> bytes:
        """The next frame; AssertionError when none comes."""
        while (frame := self.take()) is None:
            ready, _, _ = select.select([self.wake_fd, self.control.socket], [], [], DEADLINE_S)
            assert ready, f"no frame within {DEADLINE_S} s"
            if self.control.socket in ready:
                raise Refused(self.control.farewell())
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.wake_fd)
        return frame


class Client(Interface):
    """Allocates the memory and shares it. ``connect()`` shakes hands."""

    def __init__(
        self, path: Path, *, id: int = 0, secret: bytes = b"", log2: int = 6, buffer: int = 2048, seal: bool = True
    ) -> None:
        self.path, self.id, self.secret, self.log2, self.buffer = path, id, secret, log2, buffer
        self.ring_bytes = 128 + (16 << log2)
        self.region_bytes = 2 * self.ring_bytes + (2 << log2) * buffer
        self.memfd = os.memfd_create("peer", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, self.region_bytes)
        if seal:
            fcntl.fcntl(self.memfd, F_ADD_SEALS, F_SEAL_SHRINK)
        self.memory = mmap.mmap(self.memfd, self.region_bytes)
        self.out, self.into = Ring(self.memory, 0, log2), Ring(self.memory, self.ring_bytes, log2)
        for ring in (self.out, self.into):
            struct.pack_into("<I", self.memory, ring.offset, COOKIE)
        self.kick_fd, self.wake_fd = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        self.control = Control(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    def steps(self) -> list[tuple[bytearray, list[int]]]:
        """INIT, ADD_REGION, ADD_RING twice, CONNECT."""
        rings = [(1, 0, self.kick_fd), (0, self.ring_bytes, self.wake_fd)]
        return [
            (message(INIT, "HIB24s32s", VERSION, self.id, 0, self.secret, b"peer"), []),
            (message(ADD_REGION, "HQ", 0, self.region_bytes), [self.memfd]),
            *((message(ADD_RING, "HHHIBH", flags, 0, 0, at, self.log2, 0), [fd]) for flags, at, fd in rings),
            (message(CONNECT, "32s", b"peer"), []),
        ]

    def call(self) -> None:
        """Connects; waits where a listener's queue is full, which a socket with a time limit would not."""
        self.control.socket.settimeout(None)
        self.control.socket.connect(str(self.path))
        self.control.socket.settimeout(DEADLINE_S)

    def dial(self) -> None:
        self.call()
        self.control.expect(HELLO)

    def connect(self, change: Change | None = None) -> Client:
        """The whole handshake; Refused when the server ends it."""
        self.dial()
        for number, (data, descriptors) in enumerate(self.steps()):
            if change is not None:
                change(number, data, descriptors)
            self.control.send(bytes(data), *descriptors)
            self.control.expect(CONNECTED if number == 4 else ACK)
        for index in range(self.into.slots):
            self.offer(index)
        self.into.head = self.into.slots
        return self

    def place(self, ring: Ring, index: int) -> int:
        """Where the buffer of a slot begins."""
        return 2 * self.ring_bytes + ((ring is self.into) * ring.slots + index % ring.slots) * self.buffer

    def offer(self, index: int) -> None:
        self.into.describe(index, length=self.buffer, offset=self.place(self.into, index))

    def write(self, frame: bytes) -> int:
        """Puts a frame and its descriptor in place without telling; its index."""
        index, at = self.out.head, self.place(self.out, self.out.head)
        self.memory[at : at + len(frame)] = frame
        self.out.describe(index, length=len(frame), offset=at)
        return index

    def send(self, frame: bytes) -> None:
        assert self.out.head - self.out.tail & 0xFFFF < self.out.slots, "the ring is full"
        self.out.head = self.write(frame) + 1
        self.kick()

    def take(self) -> bytes | None:
        index = self.into.head - self.into.slots & 0xFFFF
        if index == self.into.tail:
            return None
        _, _, length, at = self.into.descriptor(index)
        frame = self.memory[at : at + length]
        self.offer(index)
        self.into.head += 1
        return frame

    def close(self) -> None:
        self.control.socket.close()
        self.memory.close()
        for fd in (self.memfd, self.kick_fd, self.wake_fd):
            with contextlib.suppress(OSError):
                os.close(fd)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server(Interface):
    """Listens; maps what the client brings. ``accept()`` shakes hands."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.settimeout(DEADLINE_S)
        self.path, self._fds = path, list[int]()

    def hello(self) -> bytearray:
        return message(HELLO, "32sHHHHHB", b"peer", VERSION, VERSION, 255, 255, 255, 14)

    def accept(self, change: Change | None = None) -> Server:
        """The whole handshake; ``change`` sees HELLO as 0, the ACKs as 1 to 4 and CONNECTED as 5."""
        self.control = Control(self.listener.accept()[0])
        answers = [self.hello(), *(message(ACK) for _ in range(4)), message(CONNECTED, "32s", b"peer")]
        wanted = [INIT, ADD_REGION, ADD_RING, ADD_RING, CONNECT]
        for number, answer in enumerate(answers):
            if number:
                self._note(*self.control.expect(wanted[number - 1]))
            descriptors: list[int] = []
            if change is not None:
                change(number, answer, descriptors)
            self.control.send(bytes(answer), *descriptors)
        return self

    def _note(self, data: bytes, descriptors: list[int]) -> None:
        self._fds += descriptors
        if data[0] == ADD_REGION:
            self.memory = mmap.mmap(descriptors[0], struct.unpack_from("<Q", data, 4)[0])
        elif data[0] == ADD_RING:
            flags, _, _, offset, log2 = struct.unpack_from("<HHHIB", data, 2)
            ring = Ring(self.memory, offset, log2)
            if flags & 1:
                self.into, self.wake_fd = ring, descriptors[0]
            else:
                self.out, self.kick_fd = ring, descriptors[0]

    def offered(self) -> Server:
        """Once the client has offered buffers, which it does after CONNECTED and without a word."""
        until = time.monotonic() + DEADLINE_S
        while self.out.head == self.out.tail:
            assert time.monotonic() < until, "the client offers no buffer"
            os.sched_yield()
        return self

    def send(self, frame: bytes) -> None:
        index = self.offered().out.tail
        _, region, length, at = self.out.descriptor(index)
        assert len(frame) <= length
        self.memory[at : at + len(frame)] = frame
        self.out.describe(index, region=region, length=len(frame), offset=at)
        self.out.tail = index + 1
        self.kick()

    def take(self) -> bytes | None:
        index = self.into.tail
        if index == self.into.head:
            return None
        _, _, length, at = self.into.descriptor(index)
        frame = self.memory[at : at + length]
        self.into.tail = index + 1
        return frame

    def hang_up(self) -> None:
        """Ends the connection, as a peer that dies does; goes on listening."""
        self.control.socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def close(self) -> None:
        self.hang_up()
        self.listener.close()
        self.path.unlink()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
