"""What rules do to packets, as scapy would have built them: it computes every length and checksum anew, its own way."""

from __future__ import annotations

import random
from typing import Any

import pytest
from scapy.contrib.gtp import GTP_U_Header, GTPPDUSessionContainer
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from libvnf import VNF
from libvnf.flow import Action, Match, decapsulate, encapsulate, forward, reply, rewrite
from tests.byhand import MACS, by_hand

LINK = {"src": "02:00:00:00:00:01", "dst": MACS["a"]}
CLIENT, NAT, SERVER, INSIDE, ROUTER = range(5)
ADDRESSES = {
    IP: ("10.0.0.1", "192.0.2.1", "198.51.100.7", "10.0.0.254", "203.0.113.9"),
    IPv6: ("fd00::1", "2001:db8::1", "2001:db8:9::7", "fd00::ffff", "2001:db8:5::9"),
}
FAMILIES = pytest.mark.parametrize("family", [IP, IPv6], ids=["IPv4", "IPv6"])


def ip(family: type[Packet], src: int, dst: int, **fields: Any) -> Packet:
    return family(src=ADDRESSES[family][src], dst=ADDRESSES[family][dst], **fields)


def ether(**fields: Any) -> Packet:
    return Ether(**{**LINK, **fields})


async def changed(frame: Packet, *actions: Action, match: Match | None = None) -> list[bytes]:
    """What leaves by ``b`` when it came by ``a``; nothing if an action was not possible."""
    vnf = VNF("edits")
    async with by_hand(vnf) as hand:
        vnf.flows.install(match or Match(port="a"), [*actions, forward("b")])
        left = hand.give("a", bytes(frame))
        assert hand.counters("a").get("drop_flow", 0) == (0 if left else 1)
        return left.get("b", [])


@FAMILIES
@pytest.mark.parametrize("upper", [UDP, TCP])
@pytest.mark.parametrize("size", [0, 1, 100, 1400])
async def test_addresses_ports_and_marks_are_rewritten(family: type[Packet], upper: type[Packet], size: int) -> None:
    payload = Raw(random.Random(size).randbytes(size))
    actions = rewrite(
        src_mac="02:00:00:00:00:33",
        dst_mac="02:00:00:00:00:44",
        src_ip=ADDRESSES[family][NAT],
        dst_ip=ADDRESSES[family][ROUTER],
        src_port=40_000,
        dst_port=8080,
        ttl=9,
        dscp=46,
    )
    lifetime, mark = ("ttl", "tos") if family is IP else ("hlim", "tc")
    before = ether() / ip(family, CLIENT, SERVER, **{lifetime: 64, mark: 1}) / upper(sport=5, dport=80) / payload
    link = Ether(src="02:00:00:00:00:33", dst="02:00:00:00:00:44")
    network = ip(family, NAT, ROUTER, **{lifetime: 9, mark: 46 << 2 | 1})
    assert await changed(before, actions) == [bytes(link / network / upper(sport=40_000, dport=8080) / payload)]


@FAMILIES
async def test_headers_may_be_long(family: type[Packet]) -> None:
    def packet(src: int, sport: int) -> Packet:
        network = ip(family, src, SERVER)
        if family is IP:
            network.options = b"\x01" * 40
        else:
            network /= IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
        segment = TCP(sport=sport, dport=80, options=[("NOP", None)] * 40)
        return ether() / Dot1Q(vlan=7, type=0x8100) / Dot1Q(vlan=8) / network / segment / b"abc"

    step = rewrite(src_ip=ADDRESSES[family][NAT], src_port=40_000)
    assert await changed(packet(CLIENT, 5), step) == [bytes(packet(NAT, 40_000))]


@FAMILIES
async def test_an_echo_is_translated_by_its_identifier(family: type[Packet]) -> None:
    def request(src: int, identifier: int) -> Packet:
        echo = ICMP(id=identifier, seq=3) if family is IP else ICMPv6EchoRequest(id=identifier, seq=3)
        return ether() / ip(family, src, SERVER) / echo / b"ping"

    def answer(dst: int, identifier: int) -> Packet:
        echo = ICMP(type=0, id=identifier, seq=3) if family is IP else ICMPv6EchoReply(id=identifier, seq=3)
        return ether() / ip(family, SERVER, dst) / echo / b"ping"

    out = rewrite(src_ip=ADDRESSES[family][NAT], src_port=700)
    back = rewrite(dst_ip=ADDRESSES[family][CLIENT], dst_port=5)
    assert await changed(request(CLIENT, 5), out) == [bytes(request(NAT, 700))]
    assert await changed(answer(NAT, 700), back) == [bytes(answer(CLIENT, 5))]
    assert await changed(answer(NAT, 700), out) == []


async def test_tags_are_put_on_changed_and_taken_off() -> None:
    packet = ip(IP, CLIENT, SERVER) / UDP(sport=5, dport=80) / b"abc"
    tagged = ether() / Dot1Q(vlan=7, prio=5) / packet
    assert await changed(ether() / packet, rewrite(vlan=7)) == [bytes(ether() / Dot1Q(vlan=7) / packet)]
    assert await changed(tagged, rewrite(vlan=9)) == [bytes(ether() / Dot1Q(vlan=9, prio=5) / packet)]
    assert await changed(tagged, rewrite(vlan=0)) == [bytes(ether() / packet)]
    assert await changed(ether() / packet, rewrite(vlan=0)) == [bytes(ether() / packet)]


@FAMILIES
@pytest.mark.parametrize("inner", [IP, IPv6], ids=["of IPv4", "of IPv6"])
async def test_a_packet_goes_into_a_tunnel_and_out_of_it(family: type[Packet], inner: type[Packet]) -> None:
    packet = ip(inner, CLIENT, SERVER) / TCP(sport=5, dport=80) / (b"x" * 1300)
    outer = ip(family, NAT, ROUTER, **({"id": 0, "flags": "DF"} if family is IP else {}))
    tunnel = outer / UDP(sport=4000, dport=2152, chksum=0) / GTP_U_Header(teid=77, gtp_type=255) / packet
    step = encapsulate(77, ADDRESSES[family][NAT], ADDRESSES[family][ROUTER], 4000)
    assert await changed(ether() / packet, step) == [bytes(ether() / tunnel)]
    assert await changed(ether() / tunnel, decapsulate) == [bytes(ether() / packet)]
    assert await changed(ether() / packet, step, decapsulate) == [bytes(ether() / packet)]


@FAMILIES
async def test_a_g_pdu_of_5g_comes_out_of_its_tunnel(family: type[Packet]) -> None:
    packet = ip(family, CLIENT, SERVER) / UDP(sport=5, dport=80) / b"abc"
    header = GTP_U_Header(teid=77, gtp_type=255, E=1, S=1, seq=9, next_ex=0x85) / GTPPDUSessionContainer(type=1, QFI=9)
    tunnel = ip(IP, NAT, ROUTER) / UDP(sport=2152, dport=2152) / header / packet
    match = Match(port="a", teid=77)
    assert await changed(ether() / tunnel, decapsulate, match=match) == [bytes(ether() / packet)]


async def test_a_reply_has_its_link_addresses_exchanged() -> None:
    vnf = VNF("mirror")
    packet = ip(IP, CLIENT, SERVER) / UDP(sport=5, dport=80) / b"abc"
    async with by_hand(vnf) as hand:
        vnf.flows.install(Match(port="a"), [reply])
        back = Ether(src=LINK["dst"], dst=LINK["src"]) / packet
        assert hand.give("a", bytes(ether() / packet)) == {"a": [bytes(back)]}
        assert hand.give("a", bytes(Ether(src=LINK["src"], dst="ff:ff:ff:ff:ff:ff") / packet)) == {}


# --- ICMP errors about translated packets (RFC 5508) ------------------------------------------------------------------

ERRORS = {
    IP: {
        "port unreachable": ICMP(type=3, code=3),
        "fragmentation needed": ICMP(type=3, code=4, nexthopmtu=1400),
        "time exceeded": ICMP(type=11, code=0),
    },
    IPv6: {
        "port unreachable": ICMPv6DestUnreach(code=4),
        "packet too big": ICMPv6PacketTooBig(mtu=1280),
        "time exceeded": ICMPv6TimeExceeded(code=0),
    },
}
CASES = [(family, what) for family, errors in ERRORS.items() for what in errors]


def about(family: type[Packet], what: str, src: int, dst: int, packet: Packet, quoted: int) -> bytes:
    """An error from ``src`` that quotes so many bytes of ``packet`` behind its IP header."""
    quotation = bytes(packet)[: (20 if family is IP else 40) + quoted]
    return bytes(ether() / ip(family, src, dst) / ERRORS[family][what] / Raw(quotation))


@pytest.mark.parametrize(("family", "what"), CASES)
@pytest.mark.parametrize("upper", [UDP, TCP])
@pytest.mark.parametrize("quoted", [8, 28, 500])
async def test_errors_about_translated_packets_reach_who_sent_them(
    family: type[Packet], what: str, upper: type[Packet], quoted: int
) -> None:
    client, nat, server = ADDRESSES[family][:3]
    protocol = upper.__name__.lower()
    outwards = Match(port="a", protocol=protocol, src_ip=client, dst_ip=server, src_port=5, dst_port=80)
    inwards = Match(port="b", protocol=protocol, src_ip=server, dst_ip=nat, src_port=80, dst_port=40_000)

    def question(src: int, sport: int) -> Packet:
        return ip(family, src, SERVER) / upper(sport=sport, dport=80) / (b"q" * 900)

    def answer(dst: int, dport: int) -> Packet:
        return ip(family, SERVER, dst) / upper(sport=80, dport=dport) / (b"a" * 900)

    vnf = VNF("nat")
    async with by_hand(vnf) as hand:
        vnf.flows.install(outwards, [rewrite(src_ip=nat, src_port=40_000), forward("b")])
        vnf.flows.install(inwards, [rewrite(dst_ip=client, dst_port=5), forward("a")])
        # A router outside, about a question: to the client, about what that sent.
        told = about(family, what, ROUTER, NAT, question(NAT, 40_000), quoted)
        meant = about(family, what, ROUTER, CLIENT, question(CLIENT, 5), quoted)
        assert hand.give("b", told) == {"a": [meant]}
        # The client, or a router before it, about an answer: to the server, as if the translator had said it.
        for source in (CLIENT, INSIDE):
            told = about(family, what, source, SERVER, answer(CLIENT, 5), quoted)
            meant = about(family, what, NAT, SERVER, answer(NAT, 40_000), quoted)
            assert hand.give("a", told) == {"b": [meant]}
        # About another flow: nobody's here.
        assert "a" not in hand.give("b", about(family, what, ROUTER, NAT, question(NAT, 40_001), quoted))


@FAMILIES
async def test_an_error_about_an_echo_reaches_who_asked(family: type[Packet]) -> None:
    client, nat, server = ADDRESSES[family][:3]

    def request(src: int, identifier: int) -> Packet:
        echo = ICMP(id=identifier, seq=3) if family is IP else ICMPv6EchoRequest(id=identifier, seq=3)
        return ip(family, src, SERVER) / echo / b"ping"

    protocol = "icmp" if family is IP else "icmp6"
    vnf = VNF("nat")
    async with by_hand(vnf) as hand:
        match = Match(port="b", protocol=protocol, src_ip=server, dst_ip=nat, src_port=0, dst_port=700)
        vnf.flows.install(match, [rewrite(dst_ip=client, dst_port=5), forward("a")])
        told = about(family, "time exceeded", ROUTER, NAT, request(NAT, 700), 64)
        meant = about(family, "time exceeded", ROUTER, CLIENT, request(CLIENT, 5), 64)
        assert hand.give("b", told) == {"a": [meant]}
