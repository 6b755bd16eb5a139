"""A window into a VNF that runs as a process of its own: ``open_window(vnf)`` in its file, :class:`Window` in the test.

What it shows is for comparing: a peer that came, misbehaved and went must leave the figures as they were.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from libvnf import VNF
from tests.peers import DEADLINE_S

PAGE = os.sysconf("SC_PAGE_SIZE")


def open_window(vnf: VNF) -> None:
    """Answers each line with the VNF's figures as a line of JSON, at the path of the setting ``window``."""

    @vnf.session(f"unix://{vnf.setting('window', 'window.sock')}")
    async def look(conn: Any) -> None:
        while await conn.receive(until=b"\n"):
            gc.collect()
            conn.send(json.dumps(figures(vnf), default=dict).encode(), b"\n")


def figures(vnf: VNF) -> dict[str, Any]:
    with open("/proc/self/statm") as stream:
        resident = int(stream.read().split()[1]) * PAGE
    return {
        **vnf.statistics(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "resident_bytes": resident,
        "blocks": sys.getallocatedblocks(),
    }


class Window:
    """The test's side; it stays connected, so it does not change what it looks at."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rb")

    def look(self) -> dict[str, Any]:
        self._socket.sendall(b"\n")
        found: dict[str, Any] = json.loads(self._stream.readline())
        return found

    def wait(self, enough: Callable[[Mapping[str, Any]], object]) -> dict[str, Any]:
        """Looks again until ``enough(figures)``."""
        until = time.monotonic() + DEADLINE_S
        while not enough(now := self.look()):
            assert time.monotonic() < until, f"after {DEADLINE_S} s: {json.dumps(now, indent=1)}"
        return now

    def counters(self, port: str) -> dict[str, int]:
        """The counters of one bypass port."""
        found: dict[str, int] = self.look()["transports"][port]["counters"]
        return found

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def in_use(figures: Mapping[str, Any]) -> dict[str, int]:
    """Buffers of each size class that are not free."""
    return {name: row["slots"] - row["free"] for name, row in figures["pool"].items()}
