"""Two kernels with something of ours between them: namespaces ``left`` and ``right``, and a third in which a program
has two TAP interfaces of these names, each joined to its namespace by a bridge of the kernel's.

Left is 10.0.0.1 and fd00::1. Right is 10.1.0.1 and fd01::1 behind a router, 10.0.0.9 and fd00::9 behind a switch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.bridge import NetNS, without_offload
from tests.integration.inspection import Window
from tests.integration.programs import QUICK, Program, inside, running

ROUTER_PORTS = (
    "tap:left,name=left,address=10.0.0.2/24,address=fd00::2/64",
    "tap:right,name=right,address=10.1.0.2/24,address=fd01::2/64",
)
BESIDE, BEHIND = ("10.0.0.9/24", "fd00::9/64"), ("10.1.0.1/24", "fd01::1/64")


class Between:
    """``left`` and ``right`` are namespaces, ``middle`` the one of our program."""

    def __init__(self, netns: NetNS) -> None:
        self.left, self.middle, self.right = netns(), netns(), netns()
        self.program: Program
        self.window: Window

    def join(self, right: tuple[str, ...]) -> None:
        """Once the interfaces are there."""
        sides = (("left", self.left, ("10.0.0.1/24", "fd00::1/64")), ("right", self.right, right))
        for name, host, addresses in sides:
            ip = self.middle.run
            ip("ip", "link", "add", f"br-{name}", "type", "bridge")
            ip("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "eth", "netns", host.name)
            mtu = ip("cat", f"/sys/class/net/{name}/mtu").strip()
            for device in (name, f"to-{name}"):
                ip("ip", "link", "set", device, "master", f"br-{name}", "up", "mtu", mtu)
            ip("ip", "link", "set", f"br-{name}", "up")
            without_offload(host, "eth")
            for address in addresses:
                host.run("ip", "address", "add", address, "dev", "eth", *(["nodad"] if ":" in address else []))
            host.run("ip", "link", "set", "eth", "up")

    def routed(self) -> None:
        self.left.run("ip", "route", "add", "default", "via", "10.0.0.2")
        self.left.run("ip", "-6", "route", "add", "default", "via", "fd00::2")
        self.right.run("ip", "route", "add", "default", "via", "10.1.0.2")
        self.right.run("ip", "-6", "route", "add", "default", "via", "fd01::2")


@contextmanager
def between(tmp_path: Path, netns: NetNS, source: str, *keys: str) -> Iterator[Between]:
    """A router's program. ``keys`` are further ones of the port on the right."""
    made = Between(netns)
    window = tmp_path / "window.sock"
    left, right = ROUTER_PORTS
    options = ["--transport", left, "--transport", ",".join((right, *keys)), "--set", f"window={window}", *QUICK]
    with running(tmp_path, source, *options, command=inside(made.middle)) as made.program:
        made.join(BEHIND)
        made.routed()
        made.window = Window(window)
        try:
            yield made
        finally:
            made.window.close()
