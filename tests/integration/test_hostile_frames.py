"""Frames that are wrong from Ethernet up to UDP, and fragments that overlap or never end: each is a drop that its own
counter names, and the next good datagram is answered. They are built by scapy and damaged by hand.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from tests.integration.inspection import in_use
from tests.integration.memif import Client
from tests.integration.replica import FreePort, Replica, attack
from tests.integration.station import Station


def patched(packet: Packet, at: int, *values: int) -> bytes:
    data = bytearray(bytes(packet))
    data[at : at + len(values)] = bytes(values)
    return bytes(data)


def short(packet: Packet, length: int) -> bytes:
    return bytes(packet)[:length]


def wrong_frames(s: Station, port: int) -> dict[str, list[bytes]]:
    """By the counter that must name them. Offsets: IP begins at 14, UDP at 34."""
    good = s.udp(port, b"x" * 40)
    v6 = s.ether() / IPv6(src="fd00::1", dst="fd00::2")
    arp = {"op": 1, "hwsrc": s.mac, "psrc": s.address, "pdst": s.peer}
    return {
        "drop_truncated": [b"\0", short(good, 13), short(good, 14), short(good, 33), short(good, 40), short(v6, 30)],
        "drop_bad_version": [patched(good, 14, 0x55), patched(good, 14, 0x05), patched(v6, 14, 0x40)],
        "drop_ethertype": [bytes(s.ether(type=0x88CC) / Raw(b"lldp" * 12)), bytes(s.ether(type=60) / Raw(b"llc" * 20))],
        "drop_ip_checksum": [patched(good, 24, 1, 2), bytes(s.ip(chksum=0) / UDP(dport=port))],
        "drop_udp_checksum": [patched(good, 40, 1, 2), bytes(v6 / UDP(dport=port, chksum=0xBEEF) / Raw(b"x"))],
        "drop_icmp_checksum": [
            bytes(s.ip() / ICMP(type=8, chksum=1)),
            bytes(v6 / ICMPv6EchoRequest(cksum=1)),
        ],
        "drop_martian": [
            bytes(s.ip(src="127.0.0.1") / UDP(dport=port)),
            bytes(s.ip(src="224.0.0.1") / UDP(dport=port)),
            bytes(s.ip(src="255.255.255.255") / UDP(dport=port)),
            bytes(s.ip(src="10.0.0.2") / UDP(dport=port)),
            bytes(s.ip(src="0.0.0.0") / UDP(dport=port)),
            bytes(s.ether() / IPv6(src="ff02::1", dst="fd00::2") / UDP(dport=port)),
            bytes(Ether(src="01:00:00:00:00:01", dst=s.peer_mac) / IP(src=s.address, dst=s.peer) / UDP(dport=port)),
        ],
        "drop_not_for_us": [
            bytes(s.ip(dst="10.0.0.77") / UDP(dport=port)),
            bytes(Ether(src=s.mac, dst="02:77:00:00:00:77") / IP(src=s.address, dst=s.peer) / UDP(dport=port)),
        ],
        "drop_no_listener": [bytes(s.udp(9, b"nobody"))],
        "drop_protocol": [bytes(s.ip(proto=132) / Raw(b"sctp")), bytes(s.ip(proto=47) / Raw(b"t" * 20))],
        "drop_source_route": [bytes(s.ip(options=b"\x83\x07\x04\x0a\x00\x00\x09\x00") / UDP(dport=port))],
        "drop_malformed": [
            patched(good, 14, 0x44),  # a header of 16 bytes
            patched(good, 16, 0, 19),  # a total length shorter than the header
            patched(good, 38, 0, 7),  # a UDP length shorter than its header
            bytes(s.ether(type=0x0806) / ARP(**{**arp, "hwtype": 6})),
            bytes(s.ether(type=0x0806) / ARP(**{**arp, "plen": 6})),
            bytes(s.ether(type=0x0806) / ARP(**{**arp, "op": 77})),
            bytes(s.ether() / IPv6(src="fd00::1", dst="fd00::2", hlim=64) / ICMPv6ND_NS(tgt="fd00::2")),
        ],
        "neighbour_conflict": [bytes(s.ether(type=0x0806) / ARP(**{**arp, "psrc": s.peer}))],
    }


def raised(victim: Replica, before: dict[str, int]) -> dict[str, int]:
    """The counters that say why something was dropped, and by how much they have grown."""
    after = victim.counters()
    names = [name for name in after if name.startswith(("drop_", "neighbour_conflict"))]
    return {name: after[name] - before[name] for name in names if after[name] != before[name]}


def deliver(victim: Replica, station: Station, frame: bytes) -> dict[str, int]:
    """What one frame counted as, once it was certainly handled: a question behind it has been answered."""
    before = victim.counters()
    station.send(frame)
    assert station.ask(victim.port, b"behind it") == b"behind it"
    return raised(victim, before)


def test_every_malformed_frame_is_a_drop_that_its_counter_names(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as peer:
        station = victim.station(peer)
        found = {
            (name, number): deliver(victim, station, frame)
            for name, frames in wrong_frames(station, victim.port).items()
            for number, frame in enumerate(frames)
        }
        wrong = {f"{name}[{number}]": counted for (name, number), counted in found.items() if counted != {name: 1}}
        assert wrong == {}
        victim.serves()


def test_no_piece_of_a_good_frame_is_mistaken_for_one(tmp_path: Path, free_port: FreePort) -> None:
    """Cut at every length, and with every byte of its headers changed: nothing but counted drops, or an answer."""
    chance = random.Random(7)
    with attack(tmp_path, free_port) as victim, Client(victim.attacked, log2=10).connect() as peer:
        station = victim.station(peer)
        good = [station.udp(victim.port, b"payload"), station.ip() / ICMP(type=8) / Raw(b"payload")]
        good += [station.ether() / IPv6(src="fd00::1", dst="fd00::2") / ICMPv6EchoRequest(data=b"payload")]
        good += [station.ether(type=0x0806) / ARP(op=1, hwsrc=station.mac, psrc=station.address, pdst=station.peer)]
        for packet in good:
            frame = bytes(packet)
            for length in range(1, len(frame)):
                station.send(frame[:length])
                while peer.take() is not None:
                    pass
            assert station.ask(victim.port, b"after the cuts", source=4001) == b"after the cuts"
            # From the type on: other link addresses would only make it somebody else's.
            for at in range(12, min(len(frame), 62)):
                station.send(patched(packet, at, chance.randrange(256)))
                while peer.take() is not None:
                    pass
            assert station.ask(victim.port, b"after the changes", source=4002) == b"after the changes"
        victim.serves()


def fragments(station: Station, payload: bytes, port: int, size: int = 512, id: int = 77) -> list[Packet]:
    found: list[Packet] = fragment(station.ip(id=id) / UDP(sport=4000, dport=port) / Raw(payload), fragsize=size)
    return found


def test_fragments_are_put_together_in_any_order(tmp_path: Path, free_port: FreePort) -> None:
    payload = bytes(range(256)) * 8
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as peer:
        station = victim.station(peer)
        for id in range(20):
            pieces = fragments(station, payload, victim.port, id=id)
            random.Random(id).shuffle(pieces)
            for piece in [*pieces[:1], *pieces]:  # the first one twice: a repetition is no overlap
                station.send(piece)
            answer: list[Packet] = []
            while sum(len(p[IP].payload) for p in answer) < len(payload) + 8:
                answer.append(station.wait(lambda packet: IP in packet))
            data = b"".join(bytes(p[IP].payload) for p in sorted(answer, key=lambda p: p[IP].frag))
            assert data[8:] == payload
        assert victim.counters()["rx_reassembled"] == 20
        assert victim.counters()["drop_fragment_duplicate"] >= 1


def test_overlapping_fragments_condemn_their_datagram(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as peer:
        station = victim.station(peer)
        pieces = fragments(station, b"a" * 2000, victim.port)
        liar = pieces[1].copy()
        liar[IP].frag -= 1
        del liar[IP].chksum
        before = victim.counters()
        for piece in [pieces[0], liar, *pieces[1:]]:
            station.send(piece)
        assert station.ask(victim.port, b"behind it") == b"behind it"
        assert "drop_fragment_overlap" in raised(victim, before)
        assert victim.counters()["rx_reassembled"] == 0


def test_a_datagram_of_fragments_longer_than_any_is_dropped(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked).connect() as peer:
        station = victim.station(peer)
        death = station.ip(id=5, frag=8190, proto=17) / Raw(b"d" * 600)
        assert deliver(victim, station, bytes(death)) == {"drop_fragment_too_long": 1}
        v6 = station.ether() / IPv6(src="fd00::1", dst="fd00::2")
        tiny = v6 / IPv6ExtHdrFragment(offset=0, m=1, nh=17, id=1) / Raw(b"x" * 13)  # not a multiple of 8
        assert deliver(victim, station, bytes(tiny)) == {"drop_malformed": 1}


def test_datagrams_that_never_end_take_a_bounded_part_of_the_pool(tmp_path: Path, free_port: FreePort) -> None:
    with attack(tmp_path, free_port) as victim, Client(victim.attacked, log2=10).connect() as peer:
        station = victim.station(peer)
        before = in_use(victim.window.look())
        for id in range(1000):
            station.send(fragments(station, b"x" * 1200, victim.port, id=id + 1)[0])
            if id % 100 == 99:
                assert station.ask(victim.port, b"still", source=4001) == b"still"
        counters = victim.counters()
        assert counters["drop_reassembly_full"] == 1000 - 64
        held = {name: count - before[name] for name, count in in_use(victim.window.look()).items()}
        assert sum(held.values()) <= 64
        victim.serves()
        # They would be kept for 30 s; the youngest are still known, and the last of their pieces frees them.
        for id in range(1000 - 64, 1000):
            for piece in fragments(station, b"x" * 1200, victim.port, id=id + 1)[1:]:
                station.send(piece)
            assert station.ask(victim.port, b"next", source=4001) == b"next"
        assert victim.counters()["rx_reassembled"] == 64


def test_each_piece_of_a_datagram_costs_no_more_than_the_whole(tmp_path: Path, free_port: FreePort) -> None:
    """Every second eight bytes of a datagram: more separate pieces than anybody honest sends."""
    with attack(tmp_path, free_port) as victim, Client(victim.attacked, log2=10).connect() as peer:
        station = victim.station(peer)
        before = victim.counters()
        for piece in range(200):
            station.send(station.ip(id=9, frag=2 * piece, flags="MF", proto=17) / Raw(b"8 bytes!"))
        assert station.ask(victim.port, b"behind them") == b"behind them"
        assert raised(victim, before).get("drop_fragment_pieces", 0) >= 1


def test_questions_nobody_asked_for_teach_nothing(tmp_path: Path, free_port: FreePort) -> None:
    """A flood of ARP from made-up stations does not push out who is talked to."""
    with attack(tmp_path, free_port) as victim, Client(victim.attacked, log2=10).connect() as peer:
        station = victim.station(peer)
        chance = random.Random(3)
        for _ in range(2000):
            fake: dict[str, Any] = {"hwsrc": f"02:00:00:00:{chance.randrange(256):02x}:01"}
            fake["psrc"] = f"10.0.0.{chance.randrange(3, 255)}"
            station.send(Ether(src=fake["hwsrc"], dst="ff:ff:ff:ff:ff:ff") / ARP(op=2, pdst="10.0.0.200", **fake))
            while peer.take() is not None:
                pass
            if peer.out.head - peer.out.tail & 0xFFFF > 900:
                assert station.ask(victim.port, b"still me", source=4001) == b"still me"
        assert station.ask(victim.port, b"still me", source=4001) == b"still me"
