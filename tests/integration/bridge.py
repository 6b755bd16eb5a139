"""A kernel on the far side of a memif port: DPDK's testpmd joins our port to a TAP device, ``dtap``, in a namespace.
What comes out of the namespace is Linux's, what carries it is DPDK's, and neither is ours.

The namespace is 10.0.0.1 and fd00::1, the VNF 10.0.0.2 and fd00::2. Behind the namespace there may be another one
(:func:`beyond`, 10.0.1.2 and fd01::2), so that the first is a router, which may lose packets or have a smaller MTU.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.integration.inspection import Window
from tests.integration.programs import QUICK, Program, running
from tests.peers import Namespace, Testpmd

NetNS = Callable[[], Namespace]
Start = Callable[..., Testpmd]
OTHER = {"server": "client", "client": "server"}
ECHO = """
from libvnf import VNF
from tests.integration.inspection import open_window

vnf = VNF("b")
open_window(vnf)

@vnf.server("udp://:5000")
def echo(conn, request, packet):
    conn.send(packet)
"""


class Bridge:
    """A namespace whose device ``dtap`` leads, through testpmd, to the VNF. ``mtu`` is the device's; the port's own is
    among ``keys``, which are further keys of the transport.
    """

    def __init__(
        self,
        tmp_path: Path,
        namespace: Namespace,
        start: Start,
        role: str,
        *,
        secret: str | None = None,
        mtu: int = 1500,
        keys: str = "",
    ) -> None:
        self.path, self.namespace, self.start, self.secret = tmp_path / "m.sock", namespace, start, secret
        self.role = OTHER[role]
        self.mtu = mtu
        self.window: Window
        self.program: Program
        self.pmd: Testpmd
        self.transport = f"memif:{self.path},role={role},address=10.0.0.2/24,address=fd00::2/64"
        self.transport += ",gateway=10.0.0.1,gateway=fd00::1"
        self.transport += f",secret={secret}" if secret else ""
        self.transport += f",{keys}" if keys else ""

    def begin_testpmd(self, secret: str | None = None) -> None:
        memif = Testpmd.memif(self.path, role=self.role, secret=secret or self.secret)
        options, device = "--port-topology=paired", "net_tap0,iface=dtap"
        if self.mtu > 1500:
            # DPDK's TAP device takes no longer frames. A packet socket does; one buffer holds a whole frame.
            pair = ["dtap", "mtu", str(self.mtu), "type", "veth", "peer", "dpmd", "mtu", str(self.mtu)]
            self.namespace.run("ip", "link", "add", *pair)
            self.namespace.run("ip", "link", "set", "dpmd", "up")
            without_offload(self.namespace, "dtap")
            options += " --mbuf-size=10240"
            device = "net_pcap0,rx_iface_in=dpmd,tx_iface=dpmd"
        self.pmd = self.start(memif, device, options=options, cpu=1, netns=self.namespace.name)
        ip = ["ip", "address", "add"]
        self.namespace.run(*ip, "10.0.0.1/24", "dev", "dtap")
        self.namespace.run(*ip, "fd00::1/64", "dev", "dtap", "nodad")
        self.namespace.run("ip", "link", "set", "dtap", "up", "mtu", str(self.mtu))

    @contextmanager
    def vnf(self, source: str = ECHO, *options: str) -> Iterator[Program]:
        """Runs the VNF. A source that opens a window has it looked through by ``self.window``."""
        window = self.path.with_name("window.sock") if "open_window" in source else None
        with ExitStack() as stack:
            sets = ["--set", f"window={window}"] if window else []
            self.program = stack.enter_context(
                running(self.path.parent, source, "--transport", self.transport, *QUICK, *sets, *options)
            )
            if window:
                self.window = Window(window)
                stack.callback(self.window.close)
            yield self.program

    def socket(self, family: int = socket.AF_INET) -> socket.socket:
        """A UDP socket inside the namespace."""
        return self.namespace.socket(family, socket.SOCK_DGRAM)

    def ask(self, payload: bytes, address: str = "10.0.0.2") -> bytes:
        with self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.connect((address, 5000))
            sock.send(payload)
            return sock.recv(65535)

    def wait_up(self) -> None:
        self.window.wait(lambda now: now["transports"]["port0"]["link"] == "up")


@contextmanager
def bridge(
    tmp_path: Path,
    netns: NetNS,
    start: Start,
    role: str = "server",
    *options: str,
    secret: str | None = None,
    source: str = ECHO,
    mtu: int = 1500,
    keys: str = "",
) -> Iterator[Bridge]:
    """``role`` is the VNF's. Whoever listens begins. ``options`` are of ``vnf run``."""
    made = Bridge(tmp_path, netns(), start, role, secret=secret, mtu=mtu, keys=keys)
    with ExitStack() as stack:
        if role == "client":
            made.begin_testpmd()
        stack.enter_context(made.vnf(source, *options))
        if role == "server":
            made.begin_testpmd()
        yield made


def beyond(router: Namespace, netns: NetNS, *, mtu: int = 1500) -> Namespace:
    """A namespace behind ``router``, by a veth pair of that MTU: ``inner`` is the router's end, ``outer`` its own."""
    host = netns()
    router.run("ip", "link", "add", "inner", "mtu", str(mtu), "type", "veth", "peer", "outer", "netns", host.name)
    host.run("ip", "link", "set", "outer", "mtu", str(mtu))
    for namespace, device, last in ((router, "inner", 1), (host, "outer", 2)):
        namespace.run("ip", "address", "add", f"10.0.1.{last}/24", "dev", device)
        namespace.run("ip", "address", "add", f"fd01::{last}/64", "dev", device, "nodad")
        namespace.run("ip", "link", "set", device, "up")
    host.run("ip", "route", "add", "default", "via", "10.0.1.1")
    host.run("ip", "route", "add", "default", "via", "fd01::1")
    router.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    return host


def without_offload(namespace: Namespace, device: str) -> None:
    """One segment, one packet, both ways; and checksums that are computed."""
    namespace.run("ethtool", "-K", device, *"tso off gso off gro off tx off".split())


def losing(namespace: Namespace, device: str, percent: int) -> None:
    """Of what comes in by ``device`` so many packets of a hundred are lost. On the way in, because a sender is told of
    a packet that its own host drops.
    """
    table = (
        "add table netdev loss",
        f"add chain netdev loss in {{ type filter hook ingress device {device} priority 0; }}",
        f"add rule netdev loss in numgen random mod 100 < {percent} counter drop",
    )
    namespace.run("nft", "; ".join(table))
