"""The firewall of the examples between two kernels."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.bridge import NetNS
from tests.integration.site import site
from tests.peers import DEADLINE_S, Namespace, Process

pytestmark = pytest.mark.needs("ip", "root", "ethtool")

ADDRESSES = {"inside": "10.0.0.9/24", "outside": "10.0.0.1/24"}


def answers(host: Namespace, address: str, port: int, wait_s: float) -> bool:
    """Whether a TCP connection to there is accepted; what is dropped gives no answer at all."""
    with host.socket() as client:
        client.settimeout(wait_s)
        try:
            client.connect((address, port))
        except TimeoutError:
            return False
        return True


@pytest.mark.needs("ping", "curl")
def test_the_outside_reaches_the_services_that_are_allowed_and_no_other(
    tmp_path: Path, netns: NetNS, process: Callable[..., Process]
) -> None:
    with site(tmp_path, netns, "firewall", ADDRESSES, "--set", "tcp=80", "--set", "udp=53") as wall:
        inside, outside = wall.hosts["inside"], wall.hosts["outside"]
        for host in (inside, outside):
            for number in ("80", "81"):
                process([sys.executable, "-u", "-m", "http.server", number], netns=host.name, cwd=tmp_path).wait_for(
                    "Serving"
                )
        outside.pings("10.0.0.9")
        assert b"b.py" in outside.run("curl", "-sS", "http://10.0.0.9/").encode()
        assert not answers(outside, "10.0.0.9", 81, 0.5)
        dropped = wall.window.look()["core"]["drop_verdict"]
        assert dropped > 0
        # From inside everything may be asked, and is answered.
        for number in (80, 81):
            assert answers(inside, "10.0.0.1", number, DEADLINE_S)
        assert wall.window.look()["core"]["drop_verdict"] == dropped
        for number, allowed in ((53, True), (54, False)):
            with inside.socket(kind=socket.SOCK_DGRAM) as server, outside.socket(kind=socket.SOCK_DGRAM) as client:
                server.bind(("10.0.0.9", number))
                server.settimeout(DEADLINE_S if allowed else 0.5)
                client.sendto(b"question", ("10.0.0.9", number))
                if allowed:
                    assert server.recv(100) == b"question"
                else:
                    with pytest.raises(TimeoutError):
                        server.recv(100)
