"""What AF_XDP takes from an interface, and that all the rest stays with the kernel that shares it."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bridge import ECHO, NetNS
from tests.integration.cable import OWN, Cable
from tests.peers import Process

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment  # noqa: E402
from scapy.layers.l2 import ARP, Dot1Q, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

pytestmark = pytest.mark.needs("ip", "root", "ethtool")

ETH_P_ALL = 3

V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
OTHER4, OTHER6 = IP(src="10.0.0.1", dst="10.0.0.3"), IPv6(src="fd00::1", dst="fd00::3")
GROUP = IPv6(src="fd00::1", dst="ff02::1:ff00:2")
# By its name: the packet, and by which rule it is taken besides `all`.
PACKETS: dict[str, tuple[Packet, set[str]]] = {
    "to our address": (V4 / ICMP() / Raw(b"x" * 40), {"addresses"}),
    "to our address, IPv6": (V6 / UDP(sport=9, dport=9) / Raw(b"x" * 40), {"addresses"}),
    "to our address, with options": (
        IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x01\x01\x01\x00") / UDP(sport=9, dport=53) / Raw(b"x" * 40),
        {"addresses", "udp:53"},
    ),
    "a fragment to our address": (
        IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP(sport=9, dport=53) / Raw(b"x" * 40),
        {"addresses"},
    ),
    "ARP for ours": (ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2"), {"addresses"}),
    "ARP answering ours": (ARP(op=2, psrc="10.0.0.1", pdst="10.0.0.2"), {"addresses"}),
    "a solicitation of ours": (GROUP / ICMPv6ND_NS(tgt="fd00::2"), {"addresses"}),
    "to the kernel's": (OTHER4 / ICMP() / Raw(b"x" * 40), set()),
    "to the kernel's, IPv6": (OTHER6 / TCP(sport=9, dport=443) / Raw(b"x" * 40), set()),
    "ARP for the kernel's": (ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.3"), set()),
    "a solicitation of another": (GROUP / ICMPv6ND_NS(tgt="fd00::3"), set()),
    "datagram to the port": (OTHER4 / UDP(sport=9, dport=53) / Raw(b"x" * 40), {"udp:53"}),
    "datagram to the port, IPv6": (OTHER6 / UDP(sport=9, dport=53) / Raw(b"x" * 40), {"udp:53"}),
    "segment to the datagrams' port": (OTHER4 / TCP(sport=9, dport=53) / Raw(b"x" * 40), set()),
    "segment to the port": (OTHER4 / TCP(sport=9, dport=80) / Raw(b"x" * 40), {"tcp:80"}),
    "segment to the port, IPv6": (OTHER6 / TCP(sport=9, dport=80) / Raw(b"x" * 40), {"tcp:80"}),
    "a fragment to the port, IPv6": (
        OTHER6 / IPv6ExtHdrFragment(nh=17, m=1) / UDP(sport=9, dport=53) / Raw(b"x" * 40),
        set(),
    ),
    "broadcast": (IP(src="10.0.0.1", dst="255.255.255.255") / UDP(sport=9, dport=67) / Raw(b"x" * 40), set()),
    "tagged, to our address": (Dot1Q(vlan=5) / V4 / UDP(sport=9, dport=53) / Raw(b"x" * 40), set()),
}


@contextmanager
def packet_socket(namespace: Any, device: str) -> Iterator[socket.socket]:
    with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        made.bind((device, ETH_P_ALL))
        yield made


@pytest.mark.parametrize("attach", ["native", "generic"])
@pytest.mark.parametrize(
    ("keys", "rules"),
    [
        ("", {"addresses"}),
        ("take=udp:53,take=tcp:80", {"udp:53", "tcp:80"}),
        ("take=udp:53,take=addresses", {"udp:53", "addresses"}),
        ("take=all", {"all"}),
    ],
)
def test_each_packet_goes_to_the_vnf_or_to_the_kernel(
    tmp_path: Path, netns: NetNS, keys: str, rules: set[str], attach: str
) -> None:
    cable = Cable(tmp_path, netns)
    mac = cable.near.run("cat", "/sys/class/net/eth1/address").strip()
    with (
        cable.vnf(f"attach={attach},{keys}".rstrip(",")),
        packet_socket(cable.far, "far") as sender,
        packet_socket(cable.near, "eth1") as kernels,
    ):
        ours: list[str] = []
        theirs: list[str] = []
        for number, (name, (packet, takers)) in enumerate(PACKETS.items()):
            # The sender's address says which one it is, and that it is of this test.
            frame = bytes(Ether(src=f"02:00:00:00:ab:{number:02x}", dst=mac) / packet)
            sender.send(frame)
            (ours if rules & {"all", *takers} else theirs).append(name)
        seen = []
        last = bytes(Ether(src="02:00:00:00:ab:ff", dst=mac, type=0x88B5) / Raw(b"x" * 40))
        if rules == {"all"}:
            cable.window.wait(lambda now: now["transports"]["port0"]["counters"]["rx_frames"] >= len(PACKETS))
            kernels.settimeout(0)
        else:
            sender.send(last)
        while True:
            try:
                frame = kernels.recv(2048)
            except BlockingIOError:
                break
            if frame[6:11] == b"\x02\0\0\0\xab":
                if frame[11] == 0xFF:
                    break
                seen.append(list(PACKETS)[frame[11]])
        assert seen == theirs
        # Neither is there any that both got. The kernel's own neighbour discovery may come on top.
        assert cable.window.counters("port0")["rx_frames"] >= len(ours)
        if "all" not in rules:
            assert cable.window.counters("port0")["rx_frames"] <= len(ours) + 4


@pytest.mark.needs("ping", "nc")
def test_the_kernel_goes_on_using_the_interface(tmp_path: Path, netns: NetNS, process: Any) -> None:
    cable = Cable(tmp_path, netns)
    with cable.vnf():
        for address in ("10.0.0.3", "fd00::3", "10.0.0.2", "fd00::2"):
            assert " 3 received" in cable.far.run("ping", "-c", "3", "-i", "0.05", address)
        # Its own questions are answered to it.
        cable.near.run("ip", "neighbour", "flush", "dev", "eth1")
        for address in ("10.0.0.1", "fd00::1"):
            assert " 3 received" in cable.near.run("ping", "-c", "3", "-i", "0.05", address)
        server: Process = process(["nc", "-l", "-n", "-v", "10.0.0.3", "7000"], netns=cable.near.name)
        server.wait_for("Listening")
        done = subprocess.run(
            ["ip", "netns", "exec", cable.far.name, "nc", "-N", "10.0.0.3", "7000"], input=b"hello\n", timeout=20
        )
        assert done.returncode == 0
        server.wait_for("hello")


@pytest.mark.needs("ping")
def test_one_port_of_the_kernels_own_address_is_served(tmp_path: Path, netns: NetNS) -> None:
    """The address is the kernel's, which answers ARP and ping; datagrams to port 5000 do not reach it."""
    cable = Cable(tmp_path, netns)
    with (
        cable.vnf("take=udp:5000", own="address=10.0.0.3/24,address=fd00::3/64"),
        cable.near.socket(socket.AF_INET, socket.SOCK_DGRAM) as kernels,
    ):
        kernels.bind(("10.0.0.3", 5000))
        kernels.setblocking(False)
        for address in ("10.0.0.3", "fd00::3"):
            assert cable.ask(b"hello", address) == b"hello"
            assert " 2 received" in cable.far.run("ping", "-c", "2", "-i", "0.05", address)
        with pytest.raises(BlockingIOError):
            kernels.recv(100)
        with pytest.raises(ConnectionRefusedError):
            cable.ask(b"anyone?", "10.0.0.3", 5001)
        # Only the first of a datagram's fragments says for which port it is: the kernel gets them all, whole.
        kernels.settimeout(20)
        with cable.far.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x" * 4000, ("10.0.0.3", 5000))
        assert kernels.recv(65535) == b"x" * 4000
        counters = cable.window.counters("port0")
        assert (counters["rx_frames"], counters["rx_icmp_echo"]) == (2, 0)


def test_with_an_address_of_its_own_the_card_is_asked_to_let_it_in(tmp_path: Path, netns: NetNS) -> None:
    """On a veth pair everything comes in; what a real card is told shows in what the kernel counts."""
    cable = Cable(tmp_path, netns)

    def groups() -> str:
        return cable.near.run("ip", "maddress", "show", "dev", "eth1")

    solicited = "33:33:ff:00:12:34"
    assert solicited not in groups()
    own = "address=10.0.0.2/24,address=fd00::1234/64,mac=02:00:00:00:00:77"
    with cable.vnf("", own=own):
        assert solicited in groups()
        assert cable.ask(b"hello", "fd00::1234") == b"hello"
        assert "02:00:00:00:00:77" in cable.far.run("ip", "neighbour", "show", "fd00::1234")
    assert solicited not in groups()
    with cable.vnf("take=all", ECHO):
        assert "promiscuity 1" in cable.near.run("ip", "-details", "link", "show", "eth1")
    assert "promiscuity 0" in cable.near.run("ip", "-details", "link", "show", "eth1")


def test_queues_that_are_not_named_stay_with_the_kernel(tmp_path: Path, netns: NetNS) -> None:
    cable = Cable(tmp_path, netns, queues=2)
    mac = cable.near.run("cat", "/sys/class/net/eth1/address").strip()
    frame = bytes(Ether(src="02:00:00:00:ab:01", dst=mac) / V4 / UDP(sport=9, dport=9) / Raw(b"x" * 40))
    with (
        cable.vnf("queue=1", own=OWN),
        packet_socket(cable.far, "far") as sender,
        packet_socket(cable.near, "eth1") as kernels,
    ):
        # PACKET_QDISC_BYPASS (linux/if_packet.h) and a cpu of the sender choose the queue.
        sender.setsockopt(263, 20, struct.pack("i", 1))
        before = os.sched_getaffinity(0)
        try:
            for cpu in sorted(before)[:2]:
                os.sched_setaffinity(0, {cpu})
                sender.send(frame)
        finally:
            os.sched_setaffinity(0, before)
        while kernels.recv(2048)[6:12] != frame[6:12]:
            pass
        cable.window.wait(lambda now: now["transports"]["port0"]["counters"]["rx_frames"] >= 1)
