"""The monitor of the examples on a wire between two kernels."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.integration.bridge import NetNS
from tests.integration.site import site

pytestmark = pytest.mark.needs("ip", "root", "ethtool")

ADDRESSES = {"left": "10.0.0.1/24", "right": "10.0.0.2/24"}


@pytest.mark.needs("ping")
def test_who_sends_most_stands_first(tmp_path: Path, netns: NetNS) -> None:
    with site(tmp_path, netns, "monitor", ADDRESSES, "--set", "every_s=0.5") as wire:
        left, right = wire.hosts["left"], wire.hosts["right"]
        left.pings("10.0.0.2")
        right.run("ip", "address", "add", "10.0.0.3/24", "dev", "eth")
        with left.socket(kind=socket.SOCK_DGRAM) as loud, right.socket(kind=socket.SOCK_DGRAM) as quiet:
            quiet.bind(("10.0.0.3", 7))
            for _ in range(50):
                loud.sendto(bytes(1000), ("10.0.0.2", 9))
            quiet.sendto(bytes(100), ("10.0.0.1", 9))
            first = wire.program.line(r"^ +(10\.0\.0\.\d) +([0-9.]+)$")
            rows = [first[1]]
            while "10.0.0.3" not in rows:
                row = wire.program.line(r"^ +(10\.0\.0\.\d) +([0-9.]+)$")
                rows.append(row[1])
        assert rows.index("10.0.0.1") < rows.index("10.0.0.3")
        assert re.search(r"sender +Mbit/s", "\n".join(wire.program.output))
