"""Frames as values: what is built is read back, and what cannot be so is refused by name. Whether others agree is
``tests/integration/test_packet_peers.py``'s.
"""

import ipaddress
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libvnf import Packet
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
    parse_quoted,
)

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"
ETHERNET, V4, V6 = Ethernet(A, B), IPv4("10.0.0.1", "10.0.0.2"), IPv6("fd00::1", "fd00::2")


def up_to(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most)


def padded(unit: int, most: int, less: int = 0) -> st.SearchStrategy[bytes]:
    """Bytes that fill whole units, but for ``less``."""
    return st.integers(1 if less else 0, most).flatmap(
        lambda count: st.binary(min_size=count * unit - less, max_size=count * unit - less)
    )


def extended(kinds: st.SearchStrategy[int], unit: int) -> st.SearchStrategy[tuple[tuple[int, bytes], ...]]:
    return st.lists(st.tuples(kinds, padded(unit, 3, 2)), max_size=3).map(tuple)


macs = st.binary(min_size=6, max_size=6).map(lambda mac: mac.hex(":"))
v4s = up_to(2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number)))


def text_of_v6(number: int) -> str:
    """RFC 5952 §5: a mapped IPv4 address is written as one, which Python before 3.13 does not do."""
    mapped = number >> 32 == 0xFFFF
    return f"::ffff:{ipaddress.IPv4Address(number & 0xFFFF_FFFF)}" if mapped else str(ipaddress.IPv6Address(number))


v6s = up_to(2**128 - 1).map(text_of_v6)
ipv4s = st.builds(
    IPv4,
    v4s,
    v4s,
    ttl=up_to(255),
    dscp=up_to(63),
    ecn=up_to(3),
    identification=up_to(0xFFFF),
    dont_fragment=st.booleans(),
    options=padded(4, 10),
)
ipv6s = st.builds(
    IPv6,
    v6s,
    v6s,
    hop_limit=up_to(255),
    dscp=up_to(63),
    ecn=up_to(3),
    flow_label=up_to(2**20 - 1),
    extensions=extended(st.just(60), 8),
)
icmps = st.builds(ICMP, up_to(255), up_to(255), up_to(2**32 - 1))
# GTP-U's port would make the payload a header.
udps = st.builds(UDP, up_to(1023), up_to(1023))
tcps = st.builds(
    TCP,
    up_to(0xFFFF),
    up_to(0xFFFF),
    up_to(2**32 - 1),
    up_to(2**32 - 1),
    up_to(255),
    up_to(0xFFFF),
    up_to(0xFFFF),
    padded(4, 10),
)
gtpus = st.builds(
    GTPU,
    up_to(2**32 - 1),
    sequence=st.none() | up_to(0xFFFF),
    n_pdu=st.none() | up_to(255),
    extensions=extended(st.integers(1, 255), 4),
)
ips = ipv4s | ipv6s
uppers = icmps | udps | tcps
links = st.tuples(st.builds(Ethernet, macs, macs)) | st.tuples(
    st.builds(Ethernet, macs, macs), st.builds(VLAN, up_to(4095), up_to(7), st.booleans())
)
tunnels = st.tuples(ips, st.just(UDP(2152, 2152)), gtpus)
frames = st.tuples(links, st.just(()) | tunnels, st.tuples(ips, uppers)).map(lambda parts: sum(parts, ()))


@given(frames, st.binary(max_size=100))
def test_what_is_built_is_read_back(layers: tuple[Layer, ...], payload: bytes) -> None:
    frame = build(*layers, payload=payload)
    *found, carried = parse(frame)
    assert [untyped(layer) for layer in found] == list(layers)
    assert carried == payload
    assert build(*found, payload=carried) == frame
    assert parse(frame + bytes(10)) == (*found, carried)


def untyped(layer: Layer) -> Layer:
    """Without the type of what follows, which parsing tells."""
    types = [field.name for field in fields(layer) if field.name in {"ethertype", "protocol", "next_header"}]
    return replace(layer, **{name: None for name in types})


@given(st.binary(max_size=200))
def test_any_bytes_are_layers_and_a_payload(data: bytes) -> None:
    for parsed in (parse(data), parse_ip(data), parse_quoted(data)):
        *layers, payload = parsed
        assert isinstance(payload, bytes)
        assert not any(isinstance(layer, bytes) for layer in layers)


def test_layers_are_found_by_matching() -> None:
    match parse(build(ETHERNET, VLAN(5), V4, UDP(1000, 53), payload=b"question")):
        case Ethernet(), VLAN(id=number), IPv4(src_ip=who), UDP(dst_port=53), question:
            assert (number, who, question) == (5, "10.0.0.1", b"question")
        case other:
            pytest.fail(f"{other}")


def test_types_are_told_and_may_be_said() -> None:
    ethernet, tag, ip, *_ = parse(build(ETHERNET, VLAN(5), V6, UDP(1, 2)))
    assert (ethernet.ethertype, tag.ethertype, ip.next_header) == (0x8100, 0x86DD, 17)
    assert build(Ethernet(A, B, 0x88B5), payload=b"x")[12:] == b"\x88\xb5x"
    assert parse(build(Ethernet(A, B, 0x88B5), payload=b"x"))[1:] == (b"x",)


def test_a_changed_field_brings_its_checksums_along() -> None:
    frame = build(ETHERNET, V4, TCP(1000, 80, flags=Flags.SYN), payload=b"abc")
    ethernet, ip, tcp, payload = parse(frame)
    moved = build(ethernet, replace(ip, dst_ip="10.0.0.9"), replace(tcp, dst_port=8080), payload)
    assert moved == build(ETHERNET, replace(V4, dst_ip="10.0.0.9"), TCP(1000, 8080, flags=Flags.SYN), b"abc")


def test_a_wrong_checksum_is_told_and_kept() -> None:
    frame = build(ETHERNET, replace(V4, checksum=1), UDP(1, 2, checksum=2), payload=b"abc")
    _, ip, udp, _ = parsed = parse(frame)
    assert (ip.checksum, udp.checksum) == (1, 2)
    assert build(*parsed) == frame


def test_an_echo_has_an_identifier_and_a_sequence_number() -> None:
    echo = ICMP.echo(8, 7, 3)
    assert echo == ICMP(8, 0, 0x00070003)
    assert (echo.identifier, echo.sequence) == (7, 3)


def test_payloads_and_frames_are_any_buffer() -> None:
    frame = build(ETHERNET, V4, UDP(1, 2), payload=b"abc")
    for payload in (bytearray(b"abc"), memoryview(b"abc"), Packet(b"abc")):
        assert build(ETHERNET, V4, UDP(1, 2), payload=payload) == frame
        assert build(ETHERNET, V4, UDP(1, 2), payload) == frame
    for given_frame in (bytearray(frame), memoryview(frame), Packet(frame)):
        assert parse(given_frame) == parse(frame)


def test_the_packet_quoted_by_an_error_is_parsed_by_itself() -> None:
    sent = build(V4, UDP(1000, 53), payload=bytes(1000))
    *_, error, payload = parse(build(ETHERNET, IPv4("10.0.0.9", "10.0.0.1"), ICMP(3, 3), sent[:36]))
    assert error.code == 3
    ip, udp, rest = parse_quoted(payload)
    assert (ip, udp.src_port, udp.dst_port, rest) == (replace(V4, protocol=17), 1000, 53, bytes(8))
    assert udp.checksum == int.from_bytes(sent[26:28])
    assert parse_ip(payload) == (payload,)


def test_nothing_is_nothing() -> None:
    assert build() == b""
    assert build(payload=b"abc") == build(b"abc") == b"abc"
    assert parse(b"abc") == parse_ip(b"abc") == (b"abc",)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ((Ethernet("x", B),), ValueError, "Ethernet.src_mac: 'x': expected six bytes such as 02:00:00:00:00:01"),
        ((Ethernet(A, 5),), TypeError, "Ethernet.dst_mac: 5: expected a text"),
        ((Ethernet(A, B),), ValueError, "Ethernet: what follows has no type of its own: name it in Ethernet"),
        ((VLAN(4096, ethertype=0x800),), ValueError, "VLAN.id: 4096: expected a number from 0 to 4095"),
        ((VLAN(1, drop_eligible=2),), TypeError, "VLAN.drop_eligible: 2: expected True or False"),
        ((ARP(3, A, "10.0.0.1", B, "10.0.0.2"),), ValueError, "ARP.operation: 3: expected 1 or 2"),
        ((IPv4("10.0.0.1", "fd00::1"),), ValueError, "IPv4.dst_ip: 'fd00::1': expected an IPv4 address"),
        ((IPv6("10.0.0.1", "fd00::1"),), ValueError, "IPv6.src_ip: '10.0.0.1': expected an IPv6 address"),
        ((replace(V4, ttl=256),), ValueError, "IPv4.ttl: 256: expected a number from 0 to 255"),
        ((replace(V4, ttl=-1),), ValueError, "IPv4.ttl: -1: expected a number from 0 to 255"),
        ((replace(V4, ttl=None),), TypeError, "IPv4.ttl: None: expected a number from 0 to 255"),
        ((replace(V4, ttl="1"),), TypeError, "IPv4.ttl: '1': expected a number from 0 to 255"),
        ((replace(V4, ttl=2**70),), ValueError, "IPv4.ttl: 1180591620717411303424: expected"),
        ((replace(V4, protocol=17, options=b"abc"),), ValueError, "options: expected a multiple of 4 bytes"),
        ((replace(V4, protocol=17, options="abcd"),), TypeError, "IPv4.options: 'abcd': expected bytes"),
        (
            (replace(V4, protocol=17, fragment_offset=7),),
            ValueError,
            "IPv4.fragment_offset: expected bytes, a multiple",
        ),
        ((replace(V6, next_header=17, extensions=((60, b"a"),)),), ValueError, "extensions: expected types that exist"),
        ((replace(V6, next_header=17, extensions=(60,)),), TypeError, r"IPv6.extensions: \(60,\): expected pairs"),
        ((V4,), ValueError, "IPv4: what follows has no type of its own"),
        ((UDP(1, 70000),), ValueError, "UDP.dst_port: 70000: expected a number from 0 to 65535"),
        ((UDP(1, 2),), ValueError, "UDP: its checksum needs an IPv4 or IPv6 layer right below"),
        ((V4, UDP(1, 2), bytes(65536)), ValueError, r"UDP: longer than its length field can tell \(65535\)"),
        ((b"abc", UDP(1, 2)), TypeError, r"b'abc': expected layers \(Ethernet, VLAN"),
        ((V4, "text"), TypeError, "expected bytes, a Packet or another buffer of bytes, not str"),
    ],
)
def test_what_cannot_be_is_refused_by_name(layers: tuple[Layer, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(*layers)


def test_a_payload_is_given_once() -> None:
    with pytest.raises(TypeError, match="the payload is given twice"):
        build(V4, UDP(1, 2), b"abc", payload=b"")
