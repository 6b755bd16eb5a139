"""A memif client that shares its memory in as many regions as there may be, as zero-copy clients do: the rings in the
first, and the buffers spread over all others.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from pathlib import Path

from tests.integration.memif import ACK, ADD_REGION, CONNECTED, F_ADD_SEALS, F_SEAL_SHRINK, Client, message
from tests.integration.replica import FreePort, attack
from tests.integration.station import Station

OTHERS = 255
"""Beside the first: HELLO allows indices up to 255."""


class Scattered(Client):
    """Its buffers lie in regions 1 to 255, one page each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.pages: list[tuple[int, mmap.mmap]] = []
        for _ in range(OTHERS):
            memfd = os.memfd_create("page", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
            os.ftruncate(memfd, mmap.PAGESIZE)
            fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK)
            self.pages.append((memfd, mmap.mmap(memfd, mmap.PAGESIZE)))

    def connect(self, change: object = None) -> Scattered:
        self.dial()
        first, region, *rest = self.steps()
        more = [
            (message(ADD_REGION, "HQ", number, mmap.PAGESIZE), [fd]) for number, (fd, _) in enumerate(self.pages, 1)
        ]
        *asked, last = [first, region, *more, *rest]
        for data, descriptors in asked:
            self.control.send(bytes(data), *descriptors)
            self.control.expect(ACK)
        self.control.send(bytes(last[0]))
        self.control.expect(CONNECTED)
        for index in range(self.into.slots):
            self.offer(index)
        self.into.head = self.into.slots
        return self

    def page(self, index: int, sending: bool) -> int:
        return (index + (0 if sending else 64)) % OTHERS

    def offer(self, index: int) -> None:
        self.into.describe(index, region=1 + self.page(index, False), length=2048, offset=1024)

    def write(self, frame: bytes) -> int:
        index = self.out.head
        page = self.page(index, True)
        self.pages[page][1][512 : 512 + len(frame)] = frame
        self.out.describe(index, region=1 + page, length=len(frame), offset=512)
        return index

    def take(self) -> bytes | None:
        index = self.into.head - self.into.slots & 0xFFFF
        if index == self.into.tail:
            return None
        _, region, length, at = self.into.descriptor(index)
        frame = self.pages[region - 1][1][at : at + length]
        self.offer(index)
        self.into.head += 1
        return frame

    def close(self) -> None:
        super().close()
        for memfd, page in self.pages:
            page.close()
            os.close(memfd)


def test_buffers_may_lie_in_256_regions(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Scattered(victim.attacked).connect() as peer:
        station = Station(peer, "10.0.0.1", "10.0.0.2")
        for number in range(600):
            payload = struct.pack(">I", number) * 300
            assert station.ask(victim.port, payload) == payload
