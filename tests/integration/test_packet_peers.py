"""Frames of ``libvnf.packet`` against two that know them by themselves: scapy and tshark read every layer that is built
here, and what they make is parsed here.
"""

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.contrib.gtp import GTP_U_Header, GTPPDUSessionContainer
from scapy.layers.inet import ICMP as ScapyICMP
from scapy.layers.inet import IP, IPOption_NOP, fragment
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet import UDP as ScapyUDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    fragment6,
)
from scapy.layers.inet6 import IPv6 as ScapyIPv6
from scapy.layers.l2 import ARP as ScapyARP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from libvnf.packet import (
    ARP,
    GTPU,
    ICMP,
    TCP,
    UDP,
    VLAN,
    Ethernet,
    Flags,
    IPv4,
    IPv6,
    Layer,
    build,
    parse,
    parse_ip,
)
from libvnf.testing.capture import Capture

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETHERNET = Ethernet(A, B)
ETHER = Ether(src=A, dst=B)
V4, V6 = IPv4("10.0.0.1", "10.0.0.2"), IPv6("fd00::1", "fd00::2")
SCAPY_V4, SCAPY_V6 = IP(src="10.0.0.1", dst="10.0.0.2", id=0), ScapyIPv6(src="fd00::1", dst="fd00::2")


class Case(NamedTuple):
    layers: tuple[Layer, ...]
    payload: bytes
    theirs: Packet
    fields: dict[str, str]
    """What tshark says; a field that is there more than once has commas."""


CASES = {
    "ethernet": Case(
        (Ethernet(A, B, 0x88B5),),
        b"x" * 46,
        Ether(src=A, dst=B, type=0x88B5) / Raw(b"x" * 46),
        {"eth.src": A, "eth.dst": B, "eth.type": "0x88b5"},
    ),
    "arp": Case(
        (ETHERNET, ARP(1, A, "10.0.0.1", "00:00:00:00:00:00", "10.0.0.2")),
        b"",
        ETHER / ScapyARP(op=1, hwsrc=A, psrc="10.0.0.1", hwdst="00:00:00:00:00:00", pdst="10.0.0.2"),
        {"arp.opcode": "1", "arp.src.hw_mac": A, "arp.src.proto_ipv4": "10.0.0.1", "arp.dst.proto_ipv4": "10.0.0.2"},
    ),
    "arp reply in a vlan": Case(
        (ETHERNET, VLAN(5, 3, True), ARP(2, A, "10.0.0.1", B, "10.0.0.2")),
        b"",
        ETHER / Dot1Q(vlan=5, prio=3, dei=1) / ScapyARP(op=2, hwsrc=A, psrc="10.0.0.1", hwdst=B, pdst="10.0.0.2"),
        {"vlan.id": "5", "vlan.priority": "3", "vlan.dei": "1", "arp.opcode": "2", "arp.dst.hw_mac": B},
    ),
    "two tags": Case(
        (Ethernet(A, B, 0x88A8), VLAN(100), VLAN(4094), V4, UDP(1000, 5353)),
        b"",
        Ether(src=A, dst=B, type=0x88A8)
        / Dot1AD(vlan=100)
        / Dot1Q(vlan=4094)
        / SCAPY_V4
        / ScapyUDP(sport=1000, dport=5353),
        {"ieee8021ad.id": "100", "vlan.id": "4094", "udp.srcport": "1000", "udp.dstport": "5353"},
    ),
    "every field of ipv4": Case(
        (
            ETHERNET,
            IPv4("10.0.0.1", "10.0.0.2", None, 3, 46, 1, 0xBEEF, True, options=b"\1" * 4),
            UDP(1000, 2000),
        ),
        b"odd",
        ETHER
        / IP(
            src="10.0.0.1", dst="10.0.0.2", ttl=3, tos=46 << 2 | 1, id=0xBEEF, flags="DF", options=[IPOption_NOP()] * 4
        )
        / ScapyUDP(sport=1000, dport=2000)
        / Raw(b"odd"),
        {
            "ip.ttl": "3",
            "ip.dsfield.dscp": "46",
            "ip.dsfield.ecn": "1",
            "ip.id": "0xbeef",
            "ip.flags.df": "1",
            "ip.hdr_len": "24",
        },
    ),
    "a fragment": Case(
        (ETHERNET, IPv4("10.0.0.1", "10.0.0.2", 17, identification=9, more_fragments=True, fragment_offset=1480)),
        b"x" * 64,
        ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=17, id=9, flags="MF", frag=185) / Raw(b"x" * 64),
        {"ip.flags.mf": "1", "ip.proto": "17"},
    ),
    "every field of ipv6": Case(
        (
            ETHERNET,
            IPv6(
                "fd00::1",
                "fd00::2",
                hop_limit=3,
                dscp=46,
                ecn=2,
                flow_label=0xABCDE,
                extensions=((0, b"\1\4\0\0\0\0"), (60, b"\1\4\0\0\0\0")),
            ),
            UDP(1000, 2000),
        ),
        b"odd",
        ETHER
        / ScapyIPv6(src="fd00::1", dst="fd00::2", hlim=3, tc=46 << 2 | 2, fl=0xABCDE)
        / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
        / ScapyUDP(sport=1000, dport=2000)
        / Raw(b"odd"),
        {
            "ipv6.hlim": "3",
            "ipv6.tclass.dscp": "46",
            "ipv6.tclass.ecn": "2",
            "ipv6.flow": "0x0abcde",
            "udp.srcport": "1000",
        },
    ),
    "a fragment of ipv6": Case(
        (ETHERNET, IPv6("fd00::1", "fd00::2", 17, extensions=((44, struct.pack("!HI", 1448 | 1, 77)),))),
        b"x" * 64,
        ETHER / SCAPY_V6 / IPv6ExtHdrFragment(nh=17, offset=181, m=1, id=77) / Raw(b"x" * 64),
        {"ipv6.fraghdr.offset": "181", "ipv6.fraghdr.more": "1", "ipv6.fraghdr.ident": "0x0000004d"},
    ),
    "an echo": Case(
        (ETHERNET, V4, ICMP.echo(8, 7, 3)),
        b"ping",
        ETHER / SCAPY_V4 / ScapyICMP(type=8, id=7, seq=3) / Raw(b"ping"),
        {"icmp.type": "8", "icmp.seq": "3"},
    ),
    "an echo reply of ipv6": Case(
        (ETHERNET, V6, ICMP.echo(129, 7, 3)),
        b"pong",
        ETHER / SCAPY_V6 / ICMPv6EchoReply(id=7, seq=3, data=b"pong"),
        {"icmpv6.type": "129", "icmpv6.echo.identifier": "0x0007", "icmpv6.echo.sequence_number": "3"},
    ),
    "fragmentation needed": Case(
        (ETHERNET, V4, ICMP(3, 4, 1400)),
        build(IPv4("10.0.0.2", "10.0.0.1"), UDP(5, 6)),
        ETHER
        / SCAPY_V4
        / ScapyICMP(type=3, code=4, nexthopmtu=1400)
        / IP(src="10.0.0.2", dst="10.0.0.1", id=0)
        / ScapyUDP(sport=5, dport=6),
        {"icmp.type": "3", "icmp.code": "4", "icmp.mtu": "1400", "udp.srcport": "5"},
    ),
    "packet too big": Case(
        (ETHERNET, V6, ICMP(2, 0, 1280)),
        build(IPv6("fd00::2", "fd00::1"), UDP(5, 6)),
        ETHER
        / SCAPY_V6
        / ICMPv6PacketTooBig(mtu=1280)
        / ScapyIPv6(src="fd00::2", dst="fd00::1")
        / ScapyUDP(sport=5, dport=6),
        {"icmpv6.type": "2", "icmpv6.mtu": "1280", "udp.srcport": "5"},
    ),
    "udp without a checksum": Case(
        (ETHERNET, V4, UDP(1000, 2000, checksum=0)),
        b"abc",
        ETHER / SCAPY_V4 / ScapyUDP(sport=1000, dport=2000, chksum=0) / Raw(b"abc"),
        {"udp.checksum": "0x0000", "udp.length": "11"},
    ),
    "every field of tcp": Case(
        (
            ETHERNET,
            V4,
            TCP(1000, 80, 0xDEADBEEF, 0xFEEDF00D, Flags.SYN | Flags.ACK | Flags.ECE | Flags.CWR, 512, 9, b"\2\4\5\xb4"),
        ),
        b"early",
        ETHER
        / SCAPY_V4
        / ScapyTCP(
            sport=1000,
            dport=80,
            seq=0xDEADBEEF,
            ack=0xFEEDF00D,
            flags="SAEC",
            window=512,
            urgptr=9,
            options=[("MSS", 1460)],
        )
        / Raw(b"early"),
        {
            "tcp.srcport": "1000",
            "tcp.seq_raw": str(0xDEADBEEF),
            "tcp.ack_raw": str(0xFEEDF00D),
            "tcp.flags": "0x00d2",
            "tcp.window_size_value": "512",
            "tcp.urgent_pointer": "9",
            "tcp.options.mss_val": "1460",
        },
    ),
    "tcp over ipv6": Case(
        (ETHERNET, V6, TCP(1000, 80, flags=Flags.RST)),
        b"",
        ETHER / SCAPY_V6 / ScapyTCP(sport=1000, dport=80, flags="R", window=65535, ack=0),
        {"tcp.srcport": "1000", "tcp.flags": "0x0004"},
    ),
    "a g-pdu": Case(
        (ETHERNET, V4, UDP(2152, 2152), GTPU(0x01020304), V4, TCP(1000, 80, flags=Flags.ACK)),
        b"inner",
        ETHER
        / SCAPY_V4
        / ScapyUDP(sport=2152, dport=2152)
        / GTP_U_Header(teid=0x01020304, gtp_type=255)
        / SCAPY_V4
        / ScapyTCP(sport=1000, dport=80, flags="A", window=65535)
        / Raw(b"inner"),
        {"gtp.teid": "0x01020304", "gtp.message": "0xff", "ip.src": "10.0.0.1,10.0.0.1", "tcp.dstport": "80"},
    ),
    "a g-pdu of 5g over ipv6": Case(
        (ETHERNET, V6, UDP(2152, 2152), GTPU(9, sequence=5, extensions=((0x85, b"\x10\x09"),)), V6, UDP(1, 2)),
        b"inner",
        ETHER
        / SCAPY_V6
        / ScapyUDP(sport=2152, dport=2152)
        / GTP_U_Header(teid=9, gtp_type=255, E=1, S=1, seq=5, next_ex=0x85)
        / GTPPDUSessionContainer(type=1, QFI=9)
        / SCAPY_V6
        / ScapyUDP(sport=1, dport=2)
        / Raw(b"inner"),
        {
            "gtp.teid": "0x00000009",
            "gtp.seq_number": "0x0005",
            "gtp.ext_hdr.pdu_ses_con.qos_flow_id": "9",
            "udp.srcport": "2152,1",
        },
    ),
    "an end marker": Case(
        (ETHERNET, V4, UDP(2152, 2152), GTPU(9, type=254)),
        b"",
        ETHER / SCAPY_V4 / ScapyUDP(sport=2152, dport=2152) / GTP_U_Header(teid=9, gtp_type=254, length=0),
        {"gtp.teid": "0x00000009", "gtp.message": "0xfe"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scapy_builds_the_same_octets(case: Case) -> None:
    assert build(*case.layers, payload=case.payload).hex() == bytes(case.theirs).hex()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_scapy_built_is_parsed(case: Case) -> None:
    frame = bytes(case.theirs)
    *layers, payload = parse(frame)
    assert [type(layer) for layer in layers] == [type(layer) for layer in case.layers]
    assert payload == case.payload
    for ours, found in zip(case.layers, layers, strict=True):
        for field in ours.__dataclass_fields__:
            if (said := getattr(ours, field)) is not None:
                assert getattr(found, field) == said, field
    assert build(*layers, payload) == frame


def test_tshark_reads_every_field_that_was_built(tmp_path: Path, tshark_check: Callable[[Path], int]) -> None:
    with Capture(tmp_path / "built.pcap") as capture:
        for case in CASES.values():
            capture.write(0.0, build(*case.layers, payload=case.payload))
    assert tshark_check(tmp_path / "built.pcap") == len(CASES)
    names = sorted({name for case in CASES.values() for name in case.fields})
    done = subprocess.run(
        ["tshark", "-n", "-r", tmp_path / "built.pcap", "-Tfields", "-Eseparator=|", *(f"-e{name}" for name in names)],
        capture_output=True,
        text=True,
        check=True,
    )
    for (what, case), line in zip(CASES.items(), done.stdout.splitlines(), strict=True):
        said = dict(zip(names, line.split("|"), strict=True))
        assert {name: said[name] for name in case.fields} == case.fields, what


@pytest.mark.needs("text2pcap")
@pytest.mark.parametrize("ip", [["-4", "10.0.0.1,10.0.0.2"], ["-6", "fd00::1,fd00::2"]], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("transport", ["-u", "-T"], ids=["UDP", "TCP"])
def test_what_wireshark_built_is_parsed(tmp_path: Path, ip: list[str], transport: str) -> None:
    dump = tmp_path / "hex"
    dump.write_text("0000 61 62 63\n")
    output = tmp_path / "out.pcap"
    subprocess.run(
        ["text2pcap", "-q", "-F", "pcap", *ip, transport, "1000,2000", dump, output], check=True, capture_output=True
    )
    ethernet, network, upper, payload = parse(output.read_bytes()[24 + 16 :])
    assert isinstance(ethernet, Ethernet)
    assert isinstance(network, IPv4 | IPv6)
    assert (network.src_ip, network.dst_ip) == tuple(ip[1].split(","))
    assert isinstance(upper, UDP if transport == "-u" else TCP)
    assert (upper.src_port, upper.dst_port, payload) == (1000, 2000, b"abc")
    # It is None when it is right.
    assert upper.checksum is None
    assert not isinstance(network, IPv4) or network.checksum is None


def test_fragments_of_scapy_are_whole_again() -> None:
    datagram = SCAPY_V4 / ScapyUDP(sport=1, dport=2) / Raw(random.Random(1).randbytes(4000))
    pieces = [parse_ip(bytes(piece)) for piece in fragment(datagram, 1480)]
    assert all(isinstance(piece[0], IPv4) and len(piece) == 2 for piece in pieces)
    offsets = [piece[0].fragment_offset for piece in pieces]
    assert offsets == [0, 1480, 2960]
    whole = build(IPv4("10.0.0.1", "10.0.0.2", 17), payload=b"".join(piece[1] for piece in pieces))
    _, udp, payload = parse_ip(whole)
    assert udp == UDP(1, 2)
    assert payload == bytes(datagram[Raw])
    fragments = fragment6(SCAPY_V6 / IPv6ExtHdrFragment(id=5) / ScapyUDP(sport=1, dport=2) / Raw(b"x" * 2000), 1280)
    for piece in fragments:
        network, _ = parse_ip(bytes(piece))
        assert network.next_header == 17
        assert [number for number, _ in network.extensions] == [44]


def test_wrong_checksums_of_scapy_are_told() -> None:
    packet = ETHER / IP(src="10.0.0.1", dst="10.0.0.2", chksum=1) / ScapyTCP(sport=1, dport=2, chksum=2) / Raw(b"abc")
    _, ip, tcp, _ = parse(bytes(packet))
    assert (ip.checksum, tcp.checksum) == (1, 2)
    echo = ETHER / SCAPY_V6 / ICMPv6EchoRequest(cksum=3)
    assert parse(bytes(echo))[2].checksum == 3
