"""Frames one by one, on queues: what a handler sees, what its verdicts do, and what is counted."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from scapy.all import ARP, GRE, ICMP, IP, TCP, UDP, Dot1Q, Ether, IPv6, Raw
from scapy.contrib.gtp import GTP_U_Header

from libvnf import VNF, ConfigError, Connection, Limits, Request, Unsupported, _native, api
from libvnf.config import parse_transport
from libvnf.flow import Match, forward
from tests.byhand import by_hand

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def udp(sport: int = 1000, dport: int = 2000, payload: bytes = b"hello", src: str = "10.0.0.1") -> bytes:
    return bytes(Ether(src=A, dst=B) / IP(src=src, dst="10.0.0.2") / UDP(sport=sport, dport=dport) / payload)


class Bench:
    """An engine with the queues ``left`` and ``right``, driven by hand."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.core = _native.Core(
            asyncio.get_running_loop(),
            connection=Connection,
            request=Request,
            resolve=lambda url: None,
            on_failure=lambda connection, request, error: self.failures.append(error),
            limits=Limits().native(),
        )
        self.engine = _native.Engine(self.core, clock=lambda: 0.0)
        self.engine.add_queue("left", {"address": "10.0.0.2/24", "mac": B})
        self.engine.add_queue("right", {"address": "10.1.0.2/24", "mac": "02:00:00:00:00:0c"})
        self.turn()

    def attach(self, handler: Callable[..., Any], port: str = "left", **options: Any) -> Connection:
        endpoint = _native.Endpoint(self.core, "frames", datagram=True, **options)
        endpoint.handler = handler
        connection = Connection(self.core, endpoint)
        _native.attach_frames(self.engine, port, connection)
        return connection

    def give(self, *frames: bytes, port: str = "left") -> dict[str, list[bytes]]:
        for frame in frames:
            self.engine.give_frame(port, frame)
        return self.turn()

    def turn(self) -> dict[str, list[bytes]]:
        while self.engine.turn() == 0.0:
            pass
        return {port: self.engine.take_frames(port) for port in ("left", "right")}

    def counted(self, name: str) -> int:
        return self.core.statistics()[name]


@pytest.fixture
async def bench() -> Any:
    bench = Bench()
    yield bench
    bench.engine.close()


async def test_a_forwarded_frame_leaves_as_it_came(bench: Bench) -> None:
    bench.attach(lambda port, request, packet: packet.forward("right"))
    frames = [udp(sport=number) for number in range(100)]
    assert bench.give(*frames) == {"left": [], "right": frames}
    assert bench.counted("messages_in") == 100
    assert bench.counted("drop_undecided") == 0


async def test_frames_without_a_verdict_and_dropped_ones_are_counted_apart(bench: Bench) -> None:
    bench.attach(lambda port, request, packet: packet.drop() if packet.dst_port == 53 else None)
    assert bench.give(udp(dport=53), udp(), udp()) == {"left": [], "right": []}
    assert (bench.counted("drop_verdict"), bench.counted("drop_undecided")) == (1, 2)


async def test_the_first_verdict_counts(bench: Bench) -> None:
    def handler(port: Any, request: Any, packet: Any) -> None:
        packet.forward("right")
        packet.drop()
        packet.forward("left")

    bench.attach(handler)
    assert bench.give(udp()) == {"left": [], "right": [udp()]}
    assert bench.counted("drop_verdict") == 0


async def test_a_reply_goes_back_with_link_addresses_exchanged(bench: Bench) -> None:
    bench.attach(lambda port, request, packet: packet.reply())
    [back] = bench.give(udp())["left"]
    assert (back[:6], back[6:12], back[12:]) == (udp()[6:12], udp()[:6], udp()[12:])
    assert bench.give(b"short") == {"left": [], "right": []}
    assert bench.counted("drop_verdict_failed") == 1


async def test_what_is_accepted_reaches_the_port_s_own_host_and_nothing_else_does(bench: Bench) -> None:
    bench.attach(lambda port, request, packet: packet.accept() if packet.is_arp else packet.drop())
    arp = bytes(Ether(src=A, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=A, psrc="10.0.0.1", pdst="10.0.0.2"))
    ping = bytes(Ether(src=A, dst=B) / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP())
    [answer] = bench.give(arp, ping)["left"]
    assert Ether(answer)[ARP].op == 2


async def test_the_connection_that_stands_for_the_port_sends_frames(bench: Bench) -> None:
    seen = []

    def handler(port: Any, request: Any, packet: Any) -> None:
        seen.append((port.local, packet.port))
        port.send(b"\xff" * 60)
        port.send(packet)

    bench.attach(handler)
    assert bench.give(udp())["left"] == [b"\xff" * 60, udp()]
    assert seen == [("left", "left")]
    assert bench.counted("drop_undecided") == 0


async def test_an_unknown_port_is_refused_at_the_call(bench: Bench) -> None:
    bench.attach(lambda port, request, packet: packet.forward("middle"))
    bench.give(udp())
    [error] = bench.failures
    assert str(error) == 'there is no port "middle": expected one of left, right'
    assert isinstance(error, ValueError)


async def test_a_handler_that_raises_does_not_end_the_port(bench: Bench) -> None:
    def handler(port: Any, request: Any, packet: Any) -> None:
        if packet.src_port == 7:
            raise KeyError(7)
        packet.forward("right")

    connection = bench.attach(handler)
    assert len(bench.give(udp(7), udp(8))["right"]) == 1
    assert bench.counted("handler_errors") == 1
    assert connection.connected


async def test_a_frame_that_is_kept_may_be_decided_later(bench: Bench) -> None:
    kept: list[Any] = []
    bench.attach(lambda port, request, packet: kept.append(packet))
    frames = [udp(sport=number) for number in range(4)]
    assert bench.give(*frames) == {"left": [], "right": []}
    assert bench.counted("drop_undecided") == 0
    assert bench.counted("kept_bytes") > 0
    assert [bytes(frame) for frame in kept] == frames
    kept[2].forward("right")
    kept[1].accept()
    bench.core.flush()
    assert bench.turn()["right"] == [frames[2]]
    kept.clear()
    gc.collect()
    assert bench.counted("drop_undecided") == 2
    assert bench.counted("kept_bytes") == 0


async def test_a_frame_that_is_kept_does_not_change(bench: Bench) -> None:
    kept: list[Any] = []

    def handler(port: Any, request: Any, packet: Any) -> None:
        packet.forward("right")
        if not kept:
            kept.append(packet.payload)

    bench.attach(handler)
    bench.give(*(udp(payload=bytes([number]) * 8) for number in range(50)))
    assert kept == [bytes(8)]


async def test_an_async_handler_decides_after_it_has_waited_in_order(bench: Bench) -> None:
    gate = asyncio.Event()

    async def handler(port: Any, request: Any, packet: Any) -> None:
        await gate.wait()
        packet.forward("right")

    bench.attach(handler)
    frames = [udp(sport=number) for number in range(5)]
    assert bench.give(*frames)["right"] == []
    gate.set()
    sent: list[bytes] = []
    while len(sent) < 5:
        await asyncio.sleep(0)
        sent += bench.turn()["right"]
    assert sent == frames


async def test_with_request_ids_only_frames_of_the_same_id_wait(bench: Bench) -> None:
    gate = asyncio.Event()
    begun = []

    async def handler(port: Any, request: Any, packet: Any) -> None:
        begun.append((request.id, packet.src_port))
        await gate.wait()
        packet.forward("right")

    bench.attach(handler, request_id=lambda packet: packet.src_ip)
    bench.give(*(udp(sport=n, src=f"10.0.0.{1 + n % 2}") for n in range(4)))
    assert begun == [("10.0.0.1", 0), ("10.0.0.2", 1)]
    gate.set()
    sent: list[bytes] = []
    while len(sent) < 4:
        await asyncio.sleep(0)
        sent += bench.turn()["right"]
    assert sorted(begun) == [("10.0.0.1", 0), ("10.0.0.1", 2), ("10.0.0.2", 1), ("10.0.0.2", 3)]


async def test_a_second_handler_for_the_same_port_is_refused(bench: Bench) -> None:
    bench.attach(print)
    with pytest.raises(ValueError, match="have a handler already"):
        bench.attach(print)


# --- what a frame says of itself --------------------------------------------------------------------------------------

OUTER = Ether(src=A, dst=B) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=2152, dport=2152)


def fields(packet: Any, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(packet, name) for name in names)


TABLE: list[tuple[Any, dict[str, Any]]] = [
    (
        Ether(src=A, dst=B) / IP(src="10.0.0.1", dst="10.0.0.2", ttl=9) / UDP(sport=1, dport=2) / b"abc",
        {
            "src_mac": A,
            "dst_mac": B,
            "ethertype": 0x800,
            "vlan": 0,
            "src_ip": "10.0.0.1",
            "dst_ip": "10.0.0.2",
            "ttl": 9,
            "protocol": 17,
            "src_port": 1,
            "dst_port": 2,
            "payload": b"abc",
            "is_udp": True,
            "is_ipv4": True,
            "is_tcp": False,
            "is_fragment": False,
            "is_malformed": False,
            "tcp_flags": 0,
            "teid": 0,
            "is_gtpu": False,
        },
    ),
    (
        Ether() / Dot1Q(vlan=7) / IPv6(src="fd00::1", dst="fd00::2", hlim=3) / TCP(sport=5, dport=6, flags="SA") / b"x",
        {
            "vlan": 7,
            "ethertype": 0x86DD,
            "src_ip": "fd00::1",
            "dst_ip": "fd00::2",
            "ttl": 3,
            "is_tcp": True,
            "tcp_flags": 0x12,
            "src_port": 5,
            "dst_port": 6,
            "payload": b"x",
            "is_ipv6": True,
            "is_ipv4": False,
        },
    ),
    (OUTER / GTP_U_Header(teid=0x1234, gtp_type=255) / IP() / UDP(), {"is_gtpu": True, "teid": 0x1234, "is_udp": True}),
    (Ether() / ARP(), {"is_arp": True, "src_ip": None, "is_malformed": False}),
    (Ether() / IP(frag=100) / Raw(b"rest"), {"is_fragment": True, "src_port": 0, "payload": b"rest"}),
    (Ether() / IP() / ICMP(id=77) / b"ping", {"is_icmp": True, "src_port": 77, "dst_port": 0, "payload": b"ping"}),
    (Ether() / IP(proto=47) / GRE(), {"protocol": 47, "is_udp": False, "payload": bytes(GRE())}),
    (bytes(Ether(type=0x800)) + b"\x45", {"is_malformed": True, "src_ip": None, "payload": b"\x45"}),
    (b"\x01\x02", {"is_malformed": True, "src_mac": None, "ethertype": 0, "payload": b""}),
]


@pytest.mark.parametrize(("frame", "told"), TABLE, ids=range(len(TABLE)))
async def test_a_frame_tells_its_fields(bench: Bench, frame: Any, told: dict[str, Any]) -> None:
    found: list[dict[str, Any]] = []
    bench.attach(lambda port, request, packet: found.append({name: getattr(packet, name) for name in told}))
    bench.give(bytes(frame))
    assert bench.failures == []
    assert [dict(one, payload=bytes(one["payload"])) if "payload" in one else one for one in found] == [told]


async def test_a_frame_is_a_packet(bench: Bench) -> None:
    seen = []

    def handler(port: Any, request: Any, packet: Any) -> None:
        seen.append((isinstance(packet, _native.Packet), packet.u16(12), packet[0:6], len(packet), packet == udp()))

    bench.attach(handler)
    bench.give(udp())
    assert seen == [(True, 0x0800, udp()[:6], len(udp()), True)]


# --- registration -----------------------------------------------------------------------------------------------------


def test_handlers_that_cannot_be_called_are_refused_with_their_line() -> None:
    def two(port: Any, packet: Any) -> None: ...

    with pytest.raises(ConfigError, match=r"two.* is called as two\(port, request, packet\)"):
        VNF("f").frames("port0", per_packet=True)(two)

    async def batch(batch: Any) -> None: ...

    with pytest.raises(ConfigError, match="must be def"):
        VNF("f").frames("port0")(batch)


async def test_frames_of_kernel_sockets_are_refused() -> None:
    vnf = VNF("f", program=False)
    vnf.frames("port0", per_packet=True)(lambda port, request, packet: None)
    with pytest.raises(Unsupported, match="frames do not come by kernel sockets"):
        await vnf.start([parse_transport("kernel", {})])


async def test_the_papers_null_address_is_the_whole_interface(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    vnf = VNF("f", program=False)
    monkeypatch.setattr(api, "_vnf", vnf)
    server = api.createServer("data0", None, None, None)
    api.registerCallback(server, "read", lambda connID, request, packet: api.sendData(connID, packet))
    [(found, place, _)] = await vnf.start([parse_transport(f"memif:{tmp_path}/m.sock,name=data0", {})])
    try:
        assert (found, place) == (server, "frames of data0")
    finally:
        await vnf.close()


# --- with rules -------------------------------------------------------------------------------------------------------


async def test_frames_that_waited_look_again_for_a_rule_installed_meanwhile() -> None:
    vnf, gate = VNF("f"), asyncio.Event()
    seen = []

    @vnf.frames("a", per_packet=True, request_id=lambda packet: packet.src_ip)
    async def first(port: Any, request: Any, packet: Any) -> None:
        seen.append(packet.src_port)
        await gate.wait()
        vnf.flows.install(Match(port="a", src_ip=packet.src_ip), [forward("b")])
        packet.again()

    async with by_hand(vnf) as hand:
        frames = [udp(sport=number) for number in range(5)]
        assert hand.give("a", *frames) == {}
        gate.set()
        sent: list[bytes] = []
        while len(sent) < 5:
            await asyncio.sleep(0)
            sent += hand.turn().get("b", [])
        assert (sent, seen) == (frames, [0])
        assert hand.give("a", *frames) == {"b": frames}
        assert (vnf.statistics()["core"]["drop_undecided"], seen) == (0, [0])


async def test_rules_go_before_handlers_of_batches() -> None:
    vnf = VNF("f")
    sizes = []

    @vnf.frames("a")
    def rest(batch: Any) -> None:
        sizes.append(len(batch))
        vnf.flows.install(Match(port="a", dst_port=int(batch.dst_port[0]), protocol="udp"), [forward("b")])
        batch.again()

    async with by_hand(vnf) as hand:
        frames = [udp(dport=1 + number % 2) for number in range(20)]
        assert hand.give("a", *frames) == {"b": frames[::2]}
        # Those of a rule leave first, each flow in order.
        assert hand.give("a", *frames) == {"b": frames[::2] + frames[1::2]}
        assert (sizes, vnf.statistics()["core"]["drop_undecided"]) == ([20, 10], 10)


async def test_again_without_a_rule_is_a_drop_that_is_counted(bench: Bench) -> None:
    bench.attach(lambda port, request, packet: packet.again())
    assert bench.give(udp(), udp())["right"] == []
    assert bench.counted("drop_undecided") == 2
