"""A host of scapy's making on a memif interface: it answers ARP, sends what it is told, and says what comes back.

Its packets are built and read by scapy, so that what the stack under test writes is judged by somebody else's rules.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tests.integration.memif import Interface

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, UDP  # noqa: E402
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402


class Station:
    """``address`` on ``interface``, talking to ``peer`` (whose MAC is asked for first)."""

    def __init__(self, interface: Interface, address: str, peer: str, mac: str = "02:00:00:00:00:99") -> None:
        self.interface, self.address, self.peer, self.mac = interface, address, peer, mac
        self.peer_mac = "ff:ff:ff:ff:ff:ff"
        self.send(self.ether(type=0x0806) / ARP(op=1, hwsrc=mac, psrc=address, pdst=peer))
        reply = self.wait(lambda packet: ARP in packet and packet[ARP].op == 2)
        self.peer_mac = reply[ARP].hwsrc

    def ether(self, **fields: Any) -> Ether:
        return Ether(src=self.mac, dst=self.peer_mac, **fields)

    def ip(self, **fields: Any) -> Packet:
        return self.ether() / IP(**{"src": self.address, "dst": self.peer, **fields})

    def udp(self, port: int, payload: bytes, source: int = 4000) -> Packet:
        return self.ip() / UDP(sport=source, dport=port) / Raw(payload)

    def send(self, packet: Packet | bytes) -> None:
        self.interface.send(bytes(packet))

    def wait(self, wanted: Callable[[Packet], bool]) -> Packet:
        """The next packet that is ``wanted``; ARP requests for the own address are answered meanwhile."""
        while True:
            packet = Ether(self.interface.receive())
            if ARP in packet and packet[ARP].op == 1 and packet[ARP].pdst == self.address:
                reply = ARP(op=2, hwsrc=self.mac, psrc=self.address, hwdst=packet.src, pdst=packet[ARP].psrc)
                self.send(Ether(src=self.mac, dst=packet.src) / reply)
            if wanted(packet):
                return packet

    def ask(self, port: int, payload: bytes, source: int = 4000) -> bytes:
        """Sends a datagram; the next one that comes back to ``source``."""
        self.send(self.udp(port, payload, source))
        reply = self.wait(lambda packet: UDP in packet and packet[UDP].dport == source)
        return bytes(reply[UDP].payload)

    def ping(self, payload: bytes = b"ping") -> bool:
        self.send(self.ip() / ICMP(type=8, id=1, seq=1) / Raw(payload))
        reply = self.wait(lambda packet: ICMP in packet and packet[ICMP].type == 0)
        return bytes(reply[ICMP].payload) == payload
