"""Traces: which frames they are of, what they tell of each, and that the engine is as before when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from scapy.contrib.gtp import GTPHeader
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from libvnf import Connection, Limits, Request, _native
from libvnf.errors import VNFError
from libvnf.flow import Match, drop, forward, rewrite
from libvnf.tracing import Trace

OWN, PEER = "02:00:00:00:00:02", "02:00:00:00:00:01"
TO_US = Ether(dst=OWN, src=PEER)
FROM = IP(src="10.0.0.1", dst="10.0.0.2")
ASKS = TO_US / ARP(op=1, hwsrc=PEER, psrc="10.0.0.1", pdst="10.0.0.2")
DATAGRAM = TO_US / FROM / UDP(sport=4000, dport=5000) / b"hello"
LOST = TO_US / FROM / UDP(sport=4000, dport=9) / b"hello"


class Bench:
    """An engine with two queues, ``q`` and ``r``, driven by hand; UDP and TCP port 5000 of ``q`` echo."""

    def __init__(self) -> None:
        self.core = _native.Core(
            asyncio.get_running_loop(),
            connection=Connection,
            request=Request,
            resolve=lambda url: None,
            on_failure=lambda *failure: None,
            limits=Limits().native(),
        )
        self.time_s = 0.0
        self.engine = _native.Engine(self.core, clock=lambda: self.time_s)
        self.engine.add_queue("q", {"address": "10.0.0.2/24", "mac": OWN})
        self.engine.add_queue("r", {"address": "10.0.1.2/24"})
        self.heard: list[bytes] = []
        for datagram in (True, False):
            endpoint = _native.Endpoint(self.core, "echo", datagram=datagram)
            endpoint.handler = self.echo
            self.engine.listen("q", None, 5000, endpoint)

    def echo(self, conn: Connection, request: Any, packet: _native.Packet) -> None:
        self.heard.append(bytes(packet))
        if packet == b"fail":
            raise ValueError("why")
        conn.send(packet)

    def take(self, *frames: Packet, port: str = "q") -> list[bytes]:
        """What the engine sends when it was given these."""
        for frame in frames:
            self.engine.give_frame(port, bytes(frame))
        while self.engine.turn() == 0.0:
            pass
        return self.engine.take_frames(port)

    def trace(self, *frames: Packet, count: int = 100, **match: Any) -> list[dict[str, Any]]:
        """What a trace tells of these."""
        _native.trace_start(self.engine, count, match)
        self.take(*frames)
        traced, left, looked_at = _native.trace_take(self.engine)
        assert (left, looked_at) == (count - len(traced), min(looked_at, len(frames)))
        _native.trace_stop(self.engine)
        return traced


@pytest.fixture
async def bench() -> Any:
    made = Bench()
    made.take(ASKS)
    yield made
    made.engine.close()


async def test_a_datagram_is_told_from_ring_to_reply(bench: Bench) -> None:
    [one] = bench.trace(DATAGRAM)
    frame = one["frame"]
    assert (frame["port"], frame["bytes"], frame["kinds"]) == ("q", 47, ["ipv4", "udp"])
    assert (frame["src_ip"], frame["src_port"], frame["dst_ip"], frame["dst_port"]) == (
        "10.0.0.1",
        4000,
        "10.0.0.2",
        5000,
    )
    assert (frame["src_mac"], frame["dst_mac"], frame["protocol"]) == (PEER, OWN, 17)
    assert one["notes"] == ["handler Bench.echo"]
    assert one["counters"]["q"].items() >= {"rx_udp": 1, "tx_udp": 1, "rx_frames": 1}.items()
    assert one["counters"][""].items() >= {"connections_opened": 1, "messages_in": 1}.items()
    [out] = one["out"]
    assert (out["port"], out["src_port"], out["dst_port"], out["became"]) == ("q", 5000, 4000, "sent")
    assert one["ns"] > 0
    assert one["at_s"] > 1.7e9


async def test_a_drop_is_told_by_its_counter(bench: Bench) -> None:
    [one] = bench.trace(LOST)
    assert one["counters"]["q"]["drop_no_listener"] == 1
    assert [out["icmp"] for out in one["out"]] == [(3, 3)]
    assert one["notes"] == []


async def test_what_the_host_does_itself_is_told(bench: Bench) -> None:
    arp, echo = bench.trace(ASKS, TO_US / FROM / ICMP(type=8, id=7) / b"ping")
    assert (arp["frame"]["arp"], arp["frame"]["src_ip"], arp["frame"]["dst_ip"]) == (1, "10.0.0.1", "10.0.0.2")
    assert [(out["arp"], out["src_ip"]) for out in arp["out"]] == [(2, "10.0.0.2")]
    assert (echo["frame"]["icmp"], echo["out"][0]["icmp"]) == ((8, 0), (0, 0))
    assert echo["counters"]["q"]["rx_icmp_echo"] == 1


async def test_a_segment_is_told_with_what_it_made_us_send(bench: Bench) -> None:
    [one] = bench.trace(TO_US / FROM / TCP(sport=4000, dport=5000, flags="S", seq=1))
    assert one["frame"]["tcp_flags"] == 0x02
    assert [out["tcp_flags"] for out in one["out"]] == [0x12]


async def test_a_handler_that_raises_is_told(bench: Bench) -> None:
    [one] = bench.trace(TO_US / FROM / UDP(sport=4000, dport=5000) / b"fail")
    assert one["notes"][0] == "handler Bench.echo"
    assert one["counters"][""]["handler_errors"] == 1
    assert one["out"] == []


async def test_frames_come_one_by_one_and_none_is_lost(bench: Bench) -> None:
    frames = [TO_US / FROM / UDP(sport=4000, dport=5000) / bytes([n]) for n in range(100)]
    traced = bench.trace(*frames, count=40)
    assert [[out["dst_port"] for out in one["out"]] for one in traced] == [[4000]] * 40
    assert bench.heard == [bytes([n]) for n in range(100)]


FRAMES: dict[str, Packet] = {
    "udp": DATAGRAM,
    "arp": ASKS,
    "tcp": TO_US / IP(src="10.0.0.9", dst="10.0.0.2") / TCP(sport=1, dport=2),
    "six": TO_US / IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=4000, dport=5001),
    "tag": TO_US / Dot1Q(vlan=7) / FROM / UDP(sport=4001, dport=5000),
    "gtp": TO_US / FROM / UDP(sport=9, dport=2152) / GTPHeader(teid=7, gtp_type=255) / FROM / UDP(),
    "fragment": TO_US / IP(src="10.0.0.1", dst="10.0.0.2", frag=100, proto=17) / b"middle",
    "short": Raw(bytes(TO_US / FROM / UDP())[:30]),
    "runt": Raw(b"\x02"),
}


@pytest.mark.parametrize(
    ("match", "wanted"),
    [
        ({}, set(FRAMES)),
        ({"port": "q"}, set(FRAMES)),
        ({"port": "r"}, set()),
        ({"kind": "arp"}, {"arp"}),
        ({"kind": "gtpu"}, {"gtp"}),
        ({"kind": "fragment"}, {"fragment"}),
        ({"kind": "malformed"}, {"short", "runt"}),
        ({"kind": "ipv6"}, {"six"}),
        ({"protocol": 6}, {"tcp"}),
        ({"protocol": 17}, {"udp", "six", "tag", "gtp", "fragment"}),
        ({"ip": "10.0.0.9"}, {"tcp"}),
        ({"ip": "10.0.0.0/24"}, {"udp", "tcp", "tag", "gtp", "fragment"}),
        ({"ip": "fd00::/64"}, {"six"}),
        ({"src_ip": "10.0.0.2"}, set()),
        ({"dst_ip": "10.0.0.2"}, {"udp", "tcp", "tag", "gtp", "fragment"}),
        ({"number": 4000}, {"udp", "six"}),
        ({"number": 5000}, {"udp", "tag"}),
        ({"src_port": 5000}, set()),
        ({"dst_port": 5000}, {"udp", "tag"}),
        ({"vlan": 7}, {"tag"}),
        ({"teid": 7}, {"gtp"}),
        ({"teid": 8}, set()),
        ({"src_ip": "10.0.0.1", "dst_port": 5000, "vlan": 0}, {"udp"}),
        ({"dropped": True}, set(FRAMES) - {"udp", "arp", "fragment"}),  # which waits for the others
    ],
)
async def test_only_frames_that_match_are_told(bench: Bench, match: dict[str, Any], wanted: set[str]) -> None:
    found = set()
    for name, frame in FRAMES.items():
        bench.time_s += 1  # so that no rate limit stands in the way
        if bench.trace(frame, **match):
            found.add(name)
    assert found == wanted


@pytest.mark.parametrize(
    ("count", "match", "words"),
    [
        (0, {}, "count: 0: expected 1 to 10000"),
        (10_001, {}, "count: 10001: expected 1 to 10000"),
        (1, {"port": "x"}, 'there is no port "x": expected q, r'),
        (1, {"port": 7}, "port: 7: that is not its kind of value"),
        (1, {"kind": "ipx"}, '"ipx" is not a kind: expected ipv4, ipv6, arp'),
        (1, {"ip": "10.0.0.1/33"}, '"10.0.0.1/33" is not an IP address or network'),
        (1, {"ip": "a"}, '"a" is not an IP address or network'),
        (1, {"vlan": -1}, "vlan: -1: that is not its kind of value"),
        (1, {"speed": 1}, "speed: unknown"),
        ("x", {}, "str"),
        (1, [], "list"),
    ],
)
async def test_what_cannot_be_matched_is_refused(bench: Bench, count: Any, match: Any, words: str) -> None:
    with pytest.raises(VNFError) as error:
        Trace(bench.engine, {"count": count, "match": match})
    assert words in str(error.value)
    assert len(bench.trace(DATAGRAM)) == 1, "nothing of it is left"


async def test_one_trace_at_a_time(bench: Bench) -> None:
    first = Trace(bench.engine, {"count": 1})
    with pytest.raises(VNFError, match=r"^another trace runs$"):
        Trace(bench.engine, {"count": 1})
    first.close()
    Trace(bench.engine, {"count": 1}).close()


async def test_without_ports_there_is_nothing_to_trace() -> None:
    with pytest.raises(VNFError, match=r"^no port of it to trace: what comes over kernel sockets, tcpdump shows$"):
        Trace(None, {"count": 1})


async def heard(bench: Bench, count: int, given: Callable[[], None]) -> tuple[list[Any], Any]:
    """The items and the answer of the stream, after ``given`` has run."""
    items: list[Any] = []
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    trace = Trace(bench.engine, {"count": count})
    trace.start(items.append, answer.set_result)
    given()
    found = await answer
    trace.close()
    return items, found


async def test_the_stream_ends_when_all_is_told(bench: Bench) -> None:
    items, answer = await heard(bench, 2, lambda: bench.take(DATAGRAM, LOST, DATAGRAM) and None)
    assert [one["frame"]["dst_port"] for one in items] == [5000, 9]
    assert answer == {"frames": 2, "missing": 0}
    assert len(bench.heard) == 2


async def test_nobody_forgets_a_trace_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libvnf.tracing.LONGEST_S", 0.0)
    items, answer = await heard(bench, 2, lambda: bench.take(DATAGRAM) and None)
    assert (len(items), answer) == (1, {"frames": 1, "missing": 1})
    assert len(bench.trace(DATAGRAM)) == 1


async def test_ports_are_bare_when_a_trace_has_ended(bench: Bench) -> None:
    _native.trace_start(bench.engine, 5, {})
    _native.trace_stop(bench.engine)
    _native.trace_stop(bench.engine)
    frames = [TO_US / FROM / UDP(sport=4000, dport=5000) / bytes([n]) for n in range(32)]
    assert len(bench.take(*frames)) == 32
    assert _native.trace_take(bench.engine) == ([], 0, 0)
    assert bench.engine.ports()[0]["counters"]["rx_frames"] == 33


def on_frames(bench: Bench, per_packet: Callable[..., None] | None, batches: Callable[..., None] | None) -> None:
    endpoint = _native.Endpoint(bench.core, "frames of r")
    endpoint.handler = per_packet
    _native.attach_frames(bench.engine, "r", Connection(bench.core, endpoint), batches)


async def test_handlers_of_frames_are_named_with_what_they_decide(bench: Bench) -> None:
    def decide(port: Any, request: Any, frame: _native.Frame) -> None:
        frame.forward("q") if frame.dst_port == 5000 else frame.drop()

    on_frames(bench, decide, None)
    _native.trace_start(bench.engine, 10, {"port": "r"})
    bench.take(DATAGRAM, LOST, DATAGRAM, port="r")
    forwarded, dropped, _ = _native.trace_take(bench.engine)[0]
    assert forwarded["notes"] == ["handler of frames " + decide.__qualname__]
    assert [(out["port"], out["dst_port"]) for out in forwarded["out"]] == [("q", 5000)]
    assert dropped["counters"][""]["drop_verdict"] == 1
    assert dropped["out"] == []


async def test_a_batch_is_of_one_frame_while_it_is_traced(bench: Bench) -> None:
    pytest.importorskip("numpy", reason="batches need NumPy: pip install numpy")
    sizes = []

    def decide(batch: _native.Batch) -> None:
        sizes.append(len(batch))
        batch.drop(batch.dst_port == 9)
        batch.forward("q")

    on_frames(bench, None, decide)
    bench.take(DATAGRAM, LOST, DATAGRAM, port="r")
    _native.trace_start(bench.engine, 10, {"port": "r", "dropped": True})
    bench.take(DATAGRAM, LOST, DATAGRAM, port="r")
    [dropped] = _native.trace_take(bench.engine)[0]
    assert dropped["notes"] == ["handler of batches " + decide.__qualname__]
    assert dropped["counters"][""]["drop_verdict"] == 1
    assert sizes == [3, 1, 1, 1]


async def test_rules_say_what_they_did(bench: Bench) -> None:
    rules = _native.FlowTable(bench.engine)
    rules.install(Match(dst_port=9), [drop])
    rules.install(Match(dst_port=5000), [rewrite(dst_ip="10.0.1.9", dst_port=53), forward("r")])
    forwarded, dropped, missed = bench.trace(DATAGRAM, LOST, ASKS)
    assert (forwarded["notes"], dropped["notes"], missed["notes"]) == (
        ["flows: forward"],
        ["flows: drop"],
        ["flows: no rule"],
    )
    [out] = forwarded["out"]
    assert (out["port"], out["dst_ip"], out["dst_port"]) == ("r", "10.0.1.9", 53)
    assert dropped["counters"]["q"]["drop_flow"] == 1
    assert [out["arp"] for out in missed["out"]] == [2]
    assert len(bench.trace(DATAGRAM, LOST, dropped=True)) == 1


async def test_what_passes_a_bridge_of_the_vnf_says_so(bench: Bench) -> None:
    bench.engine.bridge("q", "r")
    [one] = bench.trace(DATAGRAM)
    assert (one["notes"], [out["port"] for out in one["out"]]) == (["bridge"], ["r"])
