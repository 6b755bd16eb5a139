"""What the virtual Ethernet reads of a frame, and the two it writes itself: a TCP reset, and "too big".

Pure. Frames come from our own stack, but a corrupted one is read as well: what is not understood is no error, it has
no flow.
"""

import ipaddress
import struct
from typing import NamedTuple

__all__ = ["ARP", "HEADER", "TCP", "UDP", "Frame", "reset", "too_big"]

HEADER = 14
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
TCP, UDP, ICMP, FRAGMENT, ICMPV6 = 6, 17, 1, 44, 58
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}
_FLAGS = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"))


class Frame(NamedTuple):
    """The headers of a frame. Ports are 0 where there are none: in ICMP, and in fragments but the first."""

    destination_mac: bytes
    source_mac: bytes
    ethertype: int
    protocol: int = 0
    source: tuple[str, int] = ("", 0)
    destination: tuple[str, int] = ("", 0)
    fragment: bool = False
    may_be_cut: bool = False  # by a router: IPv4 without DF
    flags: int = 0
    sequence: int = 0
    acknowledgement: int = 0

    @classmethod
    def read(cls, frame: bytes) -> "Frame":
        macs_only = cls(frame[:6], frame[6:12], int.from_bytes(frame[12:14], "big"))
        try:
            return macs_only._packet(frame)
        except (struct.error, IndexError, ValueError):
            return macs_only

    def _packet(self, frame: bytes) -> "Frame":
        may_be_cut = False
        if self.ethertype == IPV4:
            at = HEADER + (frame[HEADER] & 0x0F) * 4
            protocol, offset = frame[HEADER + 9], struct.unpack_from("!H", frame, HEADER + 6)[0]
            fragment, first, may_be_cut = bool(offset & 0x3FFF), not offset & 0x1FFF, not offset & 0x4000
            addresses = frame[HEADER + 12 : HEADER + 16], frame[HEADER + 16 : HEADER + 20]
        elif self.ethertype == IPV6:
            at, protocol, fragment, first = HEADER + 40, frame[HEADER + 6], False, True
            if protocol == FRAGMENT:  # the only extension header the stack sends (RFC 8200 §4.5)
                protocol, offset = struct.unpack_from("!BxH", frame, at)
                at, fragment, first = at + 8, True, not offset & 0xFFF8
            addresses = frame[HEADER + 8 : HEADER + 24], frame[HEADER + 24 : HEADER + 40]
        else:
            return self
        ports, flags, sequence, acknowledgement = (0, 0), 0, 0, 0
        if first and protocol in (TCP, UDP):
            ports = struct.unpack_from("!HH", frame, at)
        if first and protocol == TCP:
            sequence, acknowledgement, flags = struct.unpack_from("!IIxB", frame, at + 4)
        source, destination = (str(ipaddress.ip_address(address)) for address in addresses)
        return self._replace(
            protocol=protocol,
            source=(source, ports[0]),
            destination=(destination, ports[1]),
            fragment=fragment,
            may_be_cut=may_be_cut,
            flags=flags,
            sequence=sequence,
            acknowledgement=acknowledgement,
        )

    @property
    def kind(self) -> str:
        """For people: ``tcp``, ``arp``."""
        if self.ethertype == ARP:
            return "arp"
        return _NAMES.get(self.protocol, f"ethertype {self.ethertype:#06x}" if not self.protocol else "ip")

    @property
    def remark(self) -> str:
        """What deserves mention: `` [SYN]``, `` (fragment)``."""
        flags = " ".join(name for flag, name in _FLAGS if self.flags & flag)
        return (f" [{flags}]" if flags else "") + (" (fragment)" if self.fragment else "")


def reset(to: Frame) -> bytes:
    """The reset that a closed port sends in answer to a segment with an ACK (RFC 9293 §3.10.7.1)."""
    ports = struct.pack("!HH", to.destination[1], to.source[1])
    source, destination = (ipaddress.ip_address(place[0]).packed for place in (to.destination, to.source))
    segment = ports + struct.pack("!IIBBHHH", to.acknowledgement, 0, 5 << 4, RST, 0, 0, 0)
    pseudo = source + destination + struct.pack("!II", len(segment), TCP)
    return _answer(to, TCP, segment[:16] + _checksum(pseudo + segment) + segment[18:])


def too_big(to: Frame, data: bytes, mtu: int) -> bytes:
    """What a router says of a packet that does not fit its next link (RFC 1191 §4, RFC 4443 §3.2), as if it had the
    address that the packet was for.
    """
    if to.ethertype == IPV4:
        message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + data[HEADER : HEADER + 548]
        return _answer(to, ICMP, message[:2] + _checksum(message) + message[4:])
    message = struct.pack("!BBHI", 2, 0, 0, mtu) + data[HEADER : HEADER + 1280 - 40 - 8]
    source, destination = (ipaddress.ip_address(place[0]).packed for place in (to.destination, to.source))
    pseudo = source + destination + struct.pack("!II", len(message), ICMPV6)
    return _answer(to, ICMPV6, message[:2] + _checksum(pseudo + message) + message[4:])


def _answer(to: Frame, protocol: int, payload: bytes) -> bytes:
    source, destination = (ipaddress.ip_address(place[0]).packed for place in (to.destination, to.source))
    if to.ethertype == IPV4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0) + source + destination
        ip = ip[:10] + _checksum(ip) + ip[12:]
    else:
        ip = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source + destination
    return to.source_mac + to.destination_mac + to.ethertype.to_bytes(2, "big") + ip + payload


def _checksum(data: bytes) -> bytes:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
