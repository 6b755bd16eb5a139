"""Frames as values: built from layers, and parsed into them, with types, lengths and checksums seen to.

::

    frame = build(Ethernet(mac, peer), IPv4("10.0.0.1", "10.0.0.2"), UDP(1000, 53), payload=question)

    match parse(frame):
        case (Ethernet(), IPv4(src_ip=who), UDP(dst_port=53), question):
            ...

This is for frames that are made or taken apart one by one; handlers of frames read fields without it, and flows rewrite
millions of packets a second. The work is done natively.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, TypeAlias

from . import _native

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "ARP",
    "GTPU",
    "ICMP",
    "TCP",
    "UDP",
    "VLAN",
    "Ethernet",
    "Flags",
    "IPv4",
    "IPv6",
    "Layer",
    "build",
    "parse",
    "parse_ip",
    "parse_quoted",
]


@dataclass(frozen=True, slots=True)
class Ethernet:
    """An Ethernet II header. Without ``ethertype`` it has the next layer's."""

    src_mac: str
    dst_mac: str
    ethertype: int | None = None


@dataclass(frozen=True, slots=True)
class VLAN:
    """A tag (IEEE 802.1Q). Its own type is the ``ethertype`` of the layer below: 0x88A8 for the outer of two."""

    id: int
    priority: int = 0
    drop_eligible: bool = False
    ethertype: int | None = None


@dataclass(frozen=True, slots=True)
class ARP:
    """An ARP message for IPv4 (RFC 826): 1 asks who has ``dst_ip``, 2 tells that ``src_ip`` is at ``src_mac``."""

    operation: int
    src_mac: str
    src_ip: str
    dst_mac: str
    dst_ip: str


@dataclass(frozen=True, slots=True)
class IPv4:
    """An IPv4 header (RFC 791). ``fragment_offset`` counts bytes; ``options`` are as they stand in the header."""

    src_ip: str
    dst_ip: str
    protocol: int | None = None
    ttl: int = 64
    dscp: int = 0
    ecn: int = 0
    identification: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    fragment_offset: int = 0
    options: bytes = b""
    checksum: int | None = None


@dataclass(frozen=True, slots=True)
class IPv6:
    """An IPv6 header (RFC 8200) and its extension headers: each one's number, and its bytes behind the first two.

    ``next_header`` is what follows the last of them. A fragment's is ``(44, …)``: offset and flag, identification.
    """

    src_ip: str
    dst_ip: str
    next_header: int | None = None
    hop_limit: int = 64
    dscp: int = 0
    ecn: int = 0
    flow_label: int = 0
    extensions: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class ICMP:
    """ICMP (RFC 792) over :class:`IPv4`, ICMPv6 (RFC 4443) over :class:`IPv6`.

    ``data`` are the four bytes behind the checksum. What an error quotes is its payload, for :func:`parse_quoted`.
    """

    type: int
    code: int = 0
    data: int = 0
    checksum: int | None = None

    @property
    def identifier(self) -> int:
        """Of an echo, the upper half of ``data``."""
        return self.data >> 16

    @property
    def sequence(self) -> int:
        """Of an echo, the lower half of ``data``."""
        return self.data & 0xFFFF

    @classmethod
    def echo(cls, type: int, identifier: int, sequence: int) -> ICMP:
        """A request (8; 128 over IPv6) or a reply (0; 129)."""
        return cls(type, 0, identifier << 16 | sequence)


@dataclass(frozen=True, slots=True)
class UDP:
    """A UDP header (RFC 768). ``checksum=0`` sends none."""

    src_port: int
    dst_port: int
    checksum: int | None = None


class Flags(IntFlag):
    """Of TCP (RFC 9293, RFC 3168)."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16
    URG = 32
    ECE = 64
    CWR = 128


@dataclass(frozen=True, slots=True)
class TCP:
    """A TCP header (RFC 9293). ``flags`` are :class:`Flags`; ``options`` are as they stand in the header."""

    src_port: int
    dst_port: int
    sequence: int = 0
    acknowledgement: int = 0
    flags: int = 0
    window: int = 65535
    urgent: int = 0
    options: bytes = b""
    checksum: int | None = None


@dataclass(frozen=True, slots=True)
class GTPU:
    """A GTP-U header (3GPP TS 29.281), by default of a G-PDU: an IP packet follows, a layer like others.

    Extension headers are pairs of their type and their content: a PDU session container of 5G is ``(0x85, bytes)``.
    """

    teid: int
    type: int = 255
    sequence: int | None = None
    n_pdu: int | None = None
    extensions: tuple[tuple[int, bytes], ...] = ()


Layer: TypeAlias = Ethernet | VLAN | ARP | IPv4 | IPv6 | ICMP | UDP | TCP | GTPU


def build(*layers: Layer | Buffer, payload: Buffer | None = None) -> bytes:
    """The frame, or packet, of these layers from the outside in. Lengths are right, and so are the types and checksums
    that are ``None``; a checksum that is a number stands as it is.

    The last of ``layers`` may be the payload: ``build(*parse(frame))`` is the frame again, without its padding.
    A field that cannot be so is a ``ValueError`` or ``TypeError`` that names it.
    """
    if not layers or isinstance(last := layers[-1], Layer):
        return _native.build_frame(layers, b"" if payload is None else payload)
    if payload is not None:
        raise TypeError("build: the payload is given twice")
    return _native.build_frame(layers[:-1], last)


def parse(frame: Buffer) -> tuple[Layer | bytes, ...]:
    """The layers of an Ethernet frame, as far as they are well-formed, and then what they carry.

    Types are always told. A checksum is ``None`` if it is right, else what was found: 0 for UDP without one. What a
    fragment carries is payload; what is behind the end of an IP packet is padding, and left out.
    """
    return _native.parse_frame(frame, 0)


def parse_ip(packet: Buffer) -> tuple[Layer | bytes, ...]:
    """The same of a packet that begins with its IP header: out of a TUN device or a tunnel."""
    return _native.parse_frame(packet, 1)


def parse_quoted(packet: Buffer) -> tuple[Layer | bytes, ...]:
    """The same of what an ICMP error quotes, whose end may be missing: checksums of TCP, UDP and ICMP are as found."""
    return _native.parse_frame(packet, 2)
