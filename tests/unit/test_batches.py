"""Frames in batches: columns, masks, verdicts; what is kept stays what it was."""

from __future__ import annotations

import gc
import ipaddress
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from scapy.all import ARP, ICMP, IP, TCP, UDP, Dot1Q, Ether, IPv6, Raw
from scapy.contrib.gtp import GTP_U_Header

from libvnf import VNF, ConfigError, Connection, Limits, _native
from tests.unit.test_frames import A, B, Bench, udp

COLUMNS = [name for name in dir(_native.Batch) if name.startswith(("is_", "src_", "dst_"))] + [
    "length", "ethertype", "vlan", "protocol", "ttl", "tcp_flags", "teid",
]  # fmt: skip


class Batches(Bench):
    """With a handler of batches on ``left``."""

    def take(self, handler: Callable[[Any], object]) -> Connection:
        connection = Connection(self.core, _native.Endpoint(self.core, "frames", datagram=True))
        _native.attach_frames(self.engine, "left", connection, handler)
        return connection


@pytest.fixture
async def bench() -> Any:
    bench = Batches()
    yield bench
    bench.engine.close()


def expected(frame: bytes) -> dict[str, Any]:
    """Every column's value, by scapy."""
    packet = Ether(frame)
    ip4, ip6, tcp, udp_, arp = (packet.getlayer(kind) for kind in (IP, IPv6, TCP, UDP, ARP))
    transport = tcp or udp_
    tag, gtp, icmp = packet.getlayer(Dot1Q), packet.getlayer(GTP_U_Header), packet.getlayer(ICMP)
    return {
        "length": len(frame),
        "ethertype": tag.type if tag else packet.type,
        "vlan": tag.vlan if tag else 0,
        "protocol": ip4.proto if ip4 else ip6.nh if ip6 else 0,
        "ttl": ip4.ttl if ip4 else ip6.hlim if ip6 else 0,
        "src_ip": int(ipaddress.ip_address(ip4.src)) if ip4 else 0,
        "dst_ip": int(ipaddress.ip_address(ip4.dst)) if ip4 else 0,
        "src_ip6": list(ipaddress.ip_address(ip6.src).packed if ip6 else bytes(16)),
        "dst_ip6": list(ipaddress.ip_address(ip6.dst).packed if ip6 else bytes(16)),
        "src_mac": int(packet.src.replace(":", ""), 16),
        "dst_mac": int(packet.dst.replace(":", ""), 16),
        "src_port": transport.sport if transport else icmp.id if icmp else 0,
        "dst_port": transport.dport if transport else 0,
        "tcp_flags": int(tcp.flags) if tcp else 0,
        "teid": gtp.teid if gtp else 0,
        "is_ipv4": ip4 is not None,
        "is_ipv6": ip6 is not None,
        "is_arp": arp is not None,
        "is_tcp": tcp is not None,
        "is_udp": udp_ is not None,
        "is_icmp": icmp is not None,
        "is_fragment": bool(ip4 and (ip4.frag or ip4.flags.MF)),
        "is_gtpu": gtp is not None,
        "is_malformed": False,
    }


def mixed(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)

    def one() -> bytes:
        n = chance.randrange(1, 65536)
        network = IP(src="10.0.0.1", dst=f"10.0.{n % 200}.2", ttl=n % 255 + 1)
        if chance.random() < 0.3:
            network = IPv6(src="fd00::1", dst=f"fd00::{n:x}", hlim=n % 255)
        link = Ether(src=A, dst=B)
        if chance.random() < 0.3:
            link = link / Dot1Q(vlan=n % 4094 + 1)
        kinds: list[Callable[[], Any]] = [
            lambda: network / UDP(sport=n, dport=n % 97 + 1) / bytes(n % 300),
            lambda: network / TCP(sport=n, dport=n % 89 + 1, flags=n % 64) / bytes(n % 1200),
            lambda: IP(src="1.2.3.4", dst="4.3.2.1", frag=n % 100 + 1, proto=17) / Raw(bytes(20)),
            lambda: IP() / ICMP(id=n) / bytes(n % 40),
            lambda: ARP(),
            lambda: IP() / UDP(sport=2152, dport=2152) / GTP_U_Header(teid=n, gtp_type=255) / Raw(bytes(30)),
        ]
        return bytes(link / chance.choice(kinds)())

    return [one() for _ in range(count)]


@pytest.mark.parametrize("count", [1, 31, 256, 300])
async def test_every_column_tells_what_scapy_reads(bench: Batches, count: int) -> None:
    seen: list[dict[str, Any]] = []

    def handler(batch: Any) -> None:
        columns = {name: getattr(batch, name).tolist() for name in COLUMNS}
        seen.extend({name: column[i] for name, column in columns.items()} for i in range(len(batch)))
        batch.forward("right")

    bench.take(handler)
    frames = mixed(count)
    assert bench.give(*frames)["right"] == frames
    assert bench.failures == []
    for found, frame in zip(seen, frames, strict=True):
        assert found == expected(frame)


async def test_a_filter_drops_by_two_columns_and_forwards_the_rest_in_order(bench: Batches) -> None:
    def police(batch: Any) -> None:
        batch.drop(batch.is_udp & (batch.dst_port == 53))
        batch.forward("right")

    bench.take(police)
    frames = [udp(sport=n, dport=53 if n % 3 else 80) for n in range(1000)]
    assert bench.give(*frames)["right"] == frames[::3]
    assert bench.counted("drop_verdict") == 1000 - len(frames[::3])
    assert bench.counted("messages_in") == 1000


async def test_batches_hold_256_frames_at_most_and_jumbo_frames_fit(bench: Batches) -> None:
    sizes = []
    bench.take(lambda batch: sizes.append(len(batch)))
    bench.give(*[udp()] * 600)
    assert (max(sizes), sum(sizes)) == (256, 600)
    sizes.clear()
    bench.give(*[b"x" * 9000] * 256)
    assert sum(sizes) == 256
    assert bench.counted("drop_undecided") == 856


async def test_the_first_verdict_counts_whether_by_mask_or_by_frame(bench: Batches) -> None:
    def handler(batch: Any) -> None:
        batch[1].forward("left")
        batch.drop(batch.dst_port < 2)
        batch[0].forward("right")
        assert batch[2] is batch[2]
        batch[2].reply()
        batch.forward("right")

    bench.take(handler)
    frames = [udp(dport=n) for n in range(4)]
    out = bench.give(*frames)
    assert out["right"] == [frames[3]]
    assert out["left"] == [frames[1], frames[2][6:12] + frames[2][:6] + frames[2][12:]]
    assert (bench.counted("drop_verdict"), bench.counted("drop_undecided")) == (1, 0)
    assert bench.failures == []


async def test_a_link_address_has_two_digits_per_byte_and_no_sign(bench: Batches) -> None:
    bench.take(lambda batch: batch.rewrite(dst_mac="02:00:00:00:00:+1"))
    bench.give(udp())
    [error] = bench.failures
    assert isinstance(error, ValueError)
    assert "expected a link address" in str(error)


async def test_a_column_whose_shape_and_type_are_set_is_whole_in_the_next_batch(bench: Batches) -> None:
    seen: list[Any] = []

    def handler(batch: Any) -> None:
        seen.append((batch.dst_port.dtype, batch.dst_port.tolist()))
        mine = batch.dst_port
        mine.dtype = numpy.uint8
        mine.shape = (2, -1)

    bench.take(handler)
    for count in (4, 4, 256, 256):
        bench.give(*(udp(dport=n) for n in range(count)))
    assert bench.failures == []
    assert seen == [(numpy.dtype("<u2"), list(range(count))) for count in (4, 4, 256, 256)]


async def test_a_handler_of_batches_that_keeps_every_frame_gets_no_more_than_its_quota(bench: Batches) -> None:
    kept: list[Any] = []
    connection = bench.take(lambda batch: kept.extend(batch))
    quota = Limits().max_kept_bytes_per_connection
    longest = 2048
    for _ in range(2 * quota // (256 * longest)):
        bench.give(*[udp(payload=bytes(1400))] * 256)
    assert quota < connection.kept <= quota + 256 * longest
    before = bench.counted("drop_kept_quota")
    assert before > 0
    kept.clear()
    bench.give(udp())
    assert (len(kept), bench.counted("drop_kept_quota")) == (1, before)


async def test_a_kept_column_stays_what_it_was(bench: Batches) -> None:
    kept: list[Any] = []
    views: list[Any] = []

    def handler(batch: Any) -> None:
        kept.append(batch.dst_port)
        views.append(batch.src_port[1:3])
        numpy.testing.assert_array_equal(batch.dst_port, kept[-1])

    bench.take(handler)
    for start in range(0, 1000, 100):
        bench.give(*(udp(sport=n, dport=n) for n in range(start, start + 100)))
    assert [column.tolist() for column in kept] == [list(range(n, n + 100)) for n in range(0, 1000, 100)]
    assert [view.tolist() for view in views] == [[n + 1, n + 2] for n in range(0, 1000, 100)]


async def test_columns_that_nobody_kept_are_used_again_and_kept_full_ones_are_not(bench: Batches) -> None:
    seen: list[int] = []
    kept: list[Any] = []

    def handler(batch: Any) -> None:
        seen.append(batch.dst_port.ctypes.data)
        if kept is not None and len(seen) == 3:
            kept.append(memoryview(batch.dst_port))

    bench.take(handler)
    for number in range(6):
        bench.give(*[udp(dport=number)] * 256)
    assert len(set(seen[:3])) == 1
    assert len(set(seen[3:])) == 1 and seen[3] != seen[2]
    assert set(kept[0].tolist()) == {2}


async def test_a_column_cannot_be_written(bench: Batches) -> None:
    def handler(batch: Any) -> None:
        with pytest.raises(ValueError, match="read-only"):
            batch.length[0] = 1
        with pytest.raises(ValueError):
            batch.length.setflags(write=True)
        batch.drop()

    bench.take(handler)
    bench.give(udp())
    assert bench.failures == []
    assert bench.counted("drop_verdict") == 1


MASKS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda batch: batch.is_udp[:-1], ValueError, "mask: 9 values for 10 frames"),
    (lambda batch: numpy.ones(11, bool), ValueError, "mask: 11 values for 10 frames"),
    (
        lambda batch: batch.protocol,
        TypeError,
        "array of 10 bool, one per frame, not ndarray of 1 dim.*uint8",
    ),
    (lambda batch: numpy.ones((10, 1), bool), TypeError, "not ndarray of 2 dimensions of bool"),
    (lambda batch: [True] * 10, TypeError, "not list"),
    (lambda batch: True, TypeError, "not bool"),
    (lambda batch: numpy.bool_(True), TypeError, "of 0 dimensions"),
    (lambda batch: b"\1" * 10, TypeError, "not bytes"),
]


@pytest.mark.parametrize(("mask", "kind", "text"), MASKS, ids=range(len(MASKS)))
async def test_a_mask_of_the_wrong_type_or_length_is_refused_at_the_call(
    bench: Batches, mask: Callable[[Any], Any], kind: type[Exception], text: str
) -> None:
    def handler(batch: Any) -> None:
        for verdict in (batch.drop, batch.reply, batch.accept, batch.again, lambda m: batch.forward("right", m)):
            with pytest.raises(kind, match=text):
                verdict(mask(batch))
        with pytest.raises(kind, match=text):
            batch.rewrite(mask(batch), ttl=1)

    bench.take(handler)
    assert bench.give(*[udp()] * 10) == {"left": [], "right": []}
    assert bench.failures == []
    assert bench.counted("drop_undecided") == 10


async def test_masks_may_be_strided(bench: Batches) -> None:
    bench.take(lambda batch: batch.forward("right", numpy.repeat(batch.dst_port == 1, 2)[::2]))
    frames = [udp(dport=n % 2) for n in range(9)]
    assert bench.give(*frames)["right"] == frames[1::2]


async def test_a_batch_is_over_with_its_handler(bench: Batches) -> None:
    kept: list[Any] = []
    bench.take(kept.append)
    bench.give(udp())
    bench.give(udp(), udp())
    assert kept[0] is not kept[1]
    assert [len(batch) for batch in kept] == [0, 0]
    for use in (lambda: kept[0].length, kept[0].drop, lambda: kept[0][0]):
        with pytest.raises(RuntimeError, match="the batch is over"):
            use()


async def test_a_frame_kept_out_of_a_batch_may_be_decided_later(bench: Batches) -> None:
    kept: list[Any] = []

    def handler(batch: Any) -> None:
        kept.extend(batch[n] for n in range(3))
        batch.drop(batch.dst_port == 1)

    bench.take(handler)
    frames = [udp(dport=n) for n in range(5)]
    assert bench.give(*frames)["right"] == []
    assert (bench.counted("drop_verdict"), bench.counted("drop_undecided")) == (1, 2)
    assert [bytes(frame) for frame in kept] == frames[:3]
    for frame in kept[:2]:
        frame.forward("right")
    bench.core.flush()
    assert bench.turn()["right"] == [frames[0]]
    kept.clear()
    gc.collect()
    assert bench.counted("drop_undecided") == 3


async def test_iterating_gives_every_frame(bench: Batches) -> None:
    def handler(batch: Any) -> None:
        assert [frame.dst_port for frame in batch] == batch.dst_port.tolist()
        assert batch[-1].dst_port == len(batch) - 1
        with pytest.raises(IndexError):
            batch[len(batch)]
        for frame in batch:
            frame.forward("right")

    bench.take(handler)
    frames = [udp(dport=n) for n in range(20)]
    assert bench.give(*frames)["right"] == frames
    assert bench.failures == []


async def test_accepted_frames_reach_the_host(bench: Batches) -> None:
    bench.take(lambda batch: batch.accept(batch.is_arp))
    arp = bytes(Ether(src=A, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=A, psrc="10.0.0.1", pdst="10.0.0.2"))
    [answer] = bench.give(udp(), arp, udp())["left"]
    assert Ether(answer)[ARP].op == 2
    assert bench.counted("drop_undecided") == 2


async def test_frames_are_sent_beside_the_batch(bench: Batches) -> None:
    def handler(batch: Any) -> None:
        batch.send("left", b"\xee" * 60)
        batch.send("left", batch[0])

    bench.take(handler)
    assert bench.give(udp())["left"] == [b"\xee" * 60, udp()]
    assert bench.counted("drop_undecided") == 0


async def test_a_handler_that_raises_keeps_what_it_decided_and_the_port_goes_on(bench: Batches) -> None:
    def handler(batch: Any) -> None:
        batch.forward("right", batch.dst_port == 1)
        raise KeyError

    connection = bench.take(handler)
    assert bench.give(udp(dport=1), udp(dport=2))["right"] == [udp(dport=1)]
    assert bench.give(udp(dport=1))["right"] == [udp(dport=1)]
    assert (bench.counted("handler_errors"), bench.counted("drop_undecided")) == (2, 1)
    assert connection.connected


async def test_what_leaves_is_rewritten_and_what_came_stays(bench: Batches) -> None:
    kept: list[Any] = []

    def handler(batch: Any) -> None:
        before = batch.dst_ip.tolist()
        batch.rewrite(batch.dst_port == 1, dst_ip="192.0.2.9", src_port=77, ttl=5, dst_mac="02:00:00:00:00:99")
        batch.rewrite(dscp=46)
        batch[1].rewrite(vlan=9)
        assert batch.dst_ip.tolist() == before
        assert batch[0].dst_ip == "10.0.0.2"
        assert set(batch.ttl.tolist()) == {64}
        kept.append(batch[2])
        batch.forward("right", batch.dst_port < 2)

    bench.take(handler)
    frames = [udp(dport=n, payload=bytes(range(n, 200))) for n in range(3)]
    zero, one = map(Ether, bench.give(*frames)["right"])
    assert bench.failures == []
    assert (zero[IP].tos >> 2, zero[IP].dst, zero[UDP].sport) == (46, "10.0.0.2", 1000)
    assert (one.dst, one[Dot1Q].vlan, one[IP].dst, one[IP].ttl, one[UDP].sport) == (
        "02:00:00:00:00:99", 9, "192.0.2.9", 5, 77,
    )  # fmt: skip
    for packet in (zero, one):
        again = packet.copy()
        del again[IP].chksum, again[UDP].chksum
        assert bytes(again.__class__(bytes(again))) == bytes(packet)
    kept[0].forward("right")
    bench.core.flush()
    [two] = map(Ether, bench.turn()["right"])
    assert two[IP].tos >> 2 == 46


async def test_frames_that_cannot_be_rewritten_are_dropped_and_counted(bench: Batches) -> None:
    def handler(batch: Any) -> None:
        with pytest.raises(ValueError, match="rewrite: its protocol has no such port"):
            batch[1].rewrite(src_port=5)
        batch.rewrite(src_port=5)
        batch.forward("right")

    bench.take(handler)
    gre = bytes(Ether(src=A, dst=B) / IP(proto=47) / Raw(bytes(20)))
    assert len(bench.give(udp(), gre)["right"]) == 1
    assert bench.failures == []
    assert bench.counted("drop_verdict_failed") == 1


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        ({}, TypeError, "expected some of src_mac, dst_mac"),
        ({"colour": 1}, TypeError, '"colour": expected some of'),
        ({"src_ip": "10.0.0"}, ValueError, 'src_ip: "10.0.0": expected an IP address'),
        ({"src_mac": "02:00:0:00:00:01"}, ValueError, "expected a link address"),
        ({"vlan": 4095}, ValueError, "vlan: 4095: expected 0 to 4094"),
        ({"ttl": 256}, ValueError, "ttl: 256: expected 0 to 255"),
        ({"dscp": 64}, ValueError, "dscp: 64: expected 0 to 63"),
        ({"dst_port": -1}, ValueError, "dst_port: -1: expected 0 to 65535"),
    ],
)
async def test_wrong_values_are_refused_at_the_call(
    bench: Batches, values: dict[str, Any], kind: type[Exception], text: str
) -> None:
    def handler(batch: Any) -> None:
        for rewrite in (batch.rewrite, batch[0].rewrite):
            with pytest.raises(kind, match=text):
                rewrite(**values)

    bench.take(handler)
    bench.give(udp())
    assert bench.failures == []


async def test_a_closed_or_paused_port_counts_what_it_does_not_handle(bench: Batches) -> None:
    connection = bench.take(lambda batch: batch.forward("right"))
    connection.pause()
    assert bench.give(udp(), udp())["right"] == []
    connection.resume()
    assert len(bench.give(udp())["right"]) == 1
    connection.close()
    bench.core.flush()
    assert bench.give(udp())["right"] == []
    assert (bench.counted("drop_paused"), bench.counted("drop_not_connected")) == (2, 1)


async def test_hostile_frames_are_columns_too(bench: Batches) -> None:
    chance = random.Random(7)
    lengths = []

    def handler(batch: Any) -> None:
        for name in COLUMNS:
            assert len(getattr(batch, name)) == len(batch)
        for frame in batch:
            for name in COLUMNS:
                if not name.endswith("ip6"):
                    getattr(frame, name, None)
            assert len(frame.payload) <= len(frame)
        lengths.extend(batch.length.tolist())

    bench.take(handler)
    frames = []
    for frame in mixed(300, seed=3):
        cut = bytearray(frame[: chance.randrange(1, len(frame) + 1)])
        for _ in range(chance.randrange(4)):
            cut[chance.randrange(len(cut))] = chance.randrange(256)
        frames.append(bytes(cut))
    bench.give(*frames)
    assert bench.failures == []
    assert lengths == [len(frame) for frame in frames]


def test_without_numpy_a_handler_of_batches_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def police(batch: Any) -> None: ...

    with pytest.raises(ConfigError) as caught:
        VNF("f").frames("port0")(police)
    assert "\n" not in str(caught.value)
    assert 'needs NumPy for its columns: pip install "libvnf[columns]"' in str(caught.value)
    assert str(caught.value).startswith(f"{__file__}:{police.__code__.co_firstlineno}: ")
    VNF("f").frames("port0", per_packet=True)(lambda port, request, packet: None)
