"""``vnf.flows`` and ``vnf.bridge`` over ports that a test drives by hand; scapy says what frames are."""

from __future__ import annotations

import asyncio
import gc
import runpy
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from scapy.contrib.gtp import GTP_U_Header
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether

from libvnf import VNF, ConfigError, Connection, FlowsFull, Limits, Request
from libvnf._native import Frame
from libvnf.config import Config, parse_transport
from libvnf.flow import (
    FiveTuple,
    Match,
    Statistics,
    accept,
    count,
    decapsulate,
    drop,
    encapsulate,
    forward,
    limit,
    reply,
    rewrite,
    route,
    to_python,
)
from tests.byhand import MACS, by_hand

ROOT = Path(__file__).parents[2]
CLIENT, SERVER = "02:00:00:00:00:01", "02:00:00:00:00:02"
ASKED = FiveTuple("udp", "10.0.0.1", 5000, "10.1.0.1", 53)


def datagram(five: FiveTuple, payload: bytes = b"?", dst: str = MACS["a"], **ip: Any) -> bytes:
    packet = Ether(src=CLIENT, dst=dst) / IP(src=five.src_ip, dst=five.dst_ip, **ip)
    return bytes(packet / UDP(sport=five.src_port, dport=five.dst_port) / payload)


QUESTION = datagram(ASKED)


async def test_a_bridge_passes_frames_both_ways_and_its_hosts_get_none() -> None:
    vnf = VNF("switch")
    vnf.bridge("a", "b")
    async with by_hand(vnf) as hand:
        arp = bytes(Ether(src=CLIENT, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="10.0.0.1", pdst="10.0.0.2"))
        assert hand.give("a", arp, b"x") == {"b": [arp, b"x"]}
        assert hand.give("b", QUESTION) == {"a": [QUESTION]}
        assert list(hand.give("c", QUESTION)) == [], "not of the bridge"
        assert hand.counters("a")["forwarded"] == 2
        with pytest.raises(ConfigError, match="'a' and 'b' are bridged to each other"):
            vnf.bridge("b", "c")
        with pytest.raises(ConfigError, match='there is no port "d"'):
            vnf.bridge("c", "d")
        vnf.bridge("b", "a")


async def test_a_rule_takes_effect_between_two_packets_and_so_does_its_end() -> None:
    vnf = VNF("switch")
    vnf.bridge("a", "b")
    rule = Match(port="a", protocol="udp", dst_port=53)
    async with by_hand(vnf) as hand:
        assert hand.give("a", QUESTION) == {"b": [QUESTION]}
        assert vnf.flows.install(rule, [forward("c")]) is False
        assert hand.give("a", QUESTION) == {"c": [QUESTION]}
        assert vnf.flows.install(rule, [drop]) is True
        assert hand.give("a", QUESTION) == {}
        assert hand.counters("a")["drop_flow"] == 1
        figures = vnf.flows.remove(rule)
        assert figures is not None
        assert (figures.packets, figures.bytes) == (1, len(QUESTION))
        assert vnf.flows.remove(rule) is None
        assert hand.give("a", QUESTION) == {"b": [QUESTION]}


async def test_rules_of_before_the_start_are_installed_at_the_start() -> None:
    vnf = VNF("early")
    assert vnf.flows.install(Match.of(ASKED, port="a"), [forward("b")]) is False
    assert vnf.flows.install(Match.of(ASKED, port="a"), [forward("c")]) is True
    vnf.flows.install(Match(port="b"), drop)
    assert vnf.flows.statistics(Match(port="b")) == Statistics(0, 0, 0, 0, 0.0)
    assert vnf.flows.remove(Match(port="b")) == Statistics(0, 0, 0, 0, 0.0)
    assert (len(vnf.flows), list(vnf.flows), Match.of(ASKED, port="a") in vnf.flows) == (
        1,
        [Match.of(ASKED, port="a")],
        True,
    )
    async with by_hand(vnf) as hand:
        assert hand.give("a", QUESTION) == {"c": [QUESTION]}
        assert list(vnf.flows) == [Match.of(ASKED, port="a")]
    with pytest.raises(RuntimeError, match="has run"):
        vnf.flows.install(Match(), drop)


async def test_an_unknown_port_is_refused_at_the_call_once_ports_are_known() -> None:
    vnf = VNF("b")
    vnf.config = Config(transports=(parse_transport("memif:/x,name=lan", {}),))
    for match, action in ((Match(port="lam"), drop), (Match(), forward("lam")), (Match(), route("wan"))):
        with pytest.raises(ConfigError, match=r"there is no port '(lam|wan)': expected lan"):
            vnf.flows.install(match, action)
    with pytest.raises(ConfigError, match=r"there is no port 'wan': expected lan"):
        vnf.bridge("lan", "wan")
    vnf = VNF("b")
    async with by_hand(vnf):
        with pytest.raises(ConfigError, match='there is no port "d": expected one of a, b, c'):
            vnf.flows.install(Match(port="d"), drop)
        with pytest.raises(ConfigError, match='no port "d"'):
            vnf.flows.statistics(Match(port="d"))


async def test_rules_and_bridges_need_ports() -> None:
    vnf = VNF("b")
    vnf.flows.install(Match(protocol="tcp"), drop)
    with pytest.raises(ConfigError, match=r"Match\(protocol='tcp'\): kernel sockets have no frames: expected a port"):
        await vnf.start()
    vnf = VNF("b")
    vnf.bridge("a", "b")
    with pytest.raises(ConfigError, match="bridge 'a', 'b': kernel sockets have no frames"):
        await vnf.start()


async def test_network_address_translation_both_ways() -> None:
    vnf = VNF("nat")
    seen = FiveTuple("udp", "192.0.2.1", 40_000, "10.1.0.1", 53)
    async with by_hand(vnf) as hand:
        vnf.flows.install(Match.of(ASKED, port="a"), [rewrite(src_ip="192.0.2.1", src_port=40_000), forward("b")])
        vnf.flows.install(
            Match.of(seen.reversed(), port="b"), [rewrite(dst_ip="10.0.0.1", dst_port=5000), forward("a")]
        )
        assert hand.give("a", QUESTION) == {"b": [datagram(seen)]}
        answer = datagram(seen.reversed(), b"!")
        assert hand.give("b", answer) == {"a": [datagram(ASKED.reversed(), b"!")]}
        unreachable = Ether(src=SERVER, dst=MACS["b"]) / IP(src="10.1.0.9", dst="192.0.2.1")
        error = bytes(unreachable / ICMP(type=3, code=1) / IP(datagram(seen)[14:]))
        (translated,) = hand.give("b", error)["a"]
        quoted = IP(bytes(Ether(translated)[ICMP].payload))
        assert (Ether(translated)[IP].dst, quoted.src, quoted[UDP].sport) == ("10.0.0.1", "10.0.0.1", 5000)


async def test_a_route_asks_for_its_next_hop_and_tells_who_hops_too_far() -> None:
    vnf = VNF("router")
    async with by_hand(vnf) as hand:
        vnf.flows.install(Match(port="a", dst_ip="10.1.0.0/24"), [route("b")])
        (question,) = hand.give("a", QUESTION)["b"]
        assert (Ether(question)[ARP].pdst, Ether(question)[ARP].psrc) == ("10.1.0.1", "10.1.0.2")
        answer = Ether(src=SERVER, dst=MACS["b"]) / ARP(op=2, hwsrc=SERVER, psrc="10.1.0.1", pdst="10.1.0.2")
        (waited,) = hand.give("b", bytes(answer))["b"]
        (known,) = hand.give("a", QUESTION)["b"]
        routed = Ether(datagram(ASKED, dst=SERVER, ttl=63))
        routed.src = MACS["b"]
        assert waited == known == bytes(routed)
        (error,) = hand.give("a", datagram(ASKED, ttl=1))["a"]
        assert (Ether(error)[ICMP].type, Ether(error)[IP].src, Ether(error).dst) == (11, "10.0.0.2", CLIENT)
        assert hand.counters("a")["drop_route_hop_limit"] == 1


async def test_what_a_rule_accepts_is_for_the_host_though_the_port_is_bridged() -> None:
    vnf = VNF("switch")
    vnf.bridge("a", "b")
    vnf.flows.install(Match(port="a", ethertype="arp"), accept)
    async with by_hand(vnf) as hand:
        arp = bytes(Ether(src=CLIENT, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=CLIENT, psrc="10.0.0.1", pdst="10.0.0.2"))
        (answer,) = hand.give("a", arp)["a"]
        assert Ether(answer)[ARP].hwsrc == MACS["a"]


async def test_counting_and_limiting_rules_leave_the_way_as_it_is() -> None:
    vnf = VNF("meter")
    vnf.bridge("a", "b")
    vnf.flows.install(Match(port="a"), [count])
    metered = Match(port="b")
    vnf.flows.install(metered, [limit(bps=8 * len(QUESTION), burst_bytes=2 * len(QUESTION))])
    async with by_hand(vnf) as hand:
        assert hand.give("a", QUESTION) == {"b": [QUESTION]}
        assert hand.give("b", *[QUESTION] * 5) == {"a": [QUESTION] * 2}
        hand.turn(after_s=1)
        assert hand.give("b", *[QUESTION] * 5) == {"a": [QUESTION]}
        figures = vnf.flows.statistics(metered)
        assert figures is not None
        assert (figures.packets, figures.limited, figures.failed) == (10, 7, 0)
        assert hand.counters("b")["drop_flow"] == 7


async def test_a_reply_goes_back_and_what_is_for_python_needs_a_handler() -> None:
    vnf = VNF("echo")
    async with by_hand(vnf) as hand:
        vnf.flows.install(Match(port="a"), reply)
        (frame,) = hand.give("a", QUESTION)["a"]
        assert (Ether(frame).dst, Ether(frame).src, frame[14:]) == (CLIENT, MACS["a"], QUESTION[14:])
        vnf.flows.install(Match(port="a"), to_python)
        assert hand.give("a", QUESTION) == {}
        assert hand.counters("a")["drop_no_handler"] == 1


async def test_rules_end_when_idle_or_after_their_time_and_say_so() -> None:
    vnf = VNF("nat")
    ended: list[tuple[Match, str, int]] = []
    awaited: list[Match] = []

    @vnf.flows.on_expire
    def tell(match: Match, reason: str, statistics: Statistics) -> None:
        ended.append((match, reason, statistics.packets))

    @vnf.flows.on_expire
    async def tell_later(match: Match, reason: str, statistics: Statistics) -> None:
        awaited.append(match)

    idle, hard = (
        Match.of(ASKED, port="a"),
        Match(port="b", src_ip="fd00::/16", vlan=0, src_mac=CLIENT, teid=5, protocol="udp"),
    )
    async with by_hand(vnf) as hand:
        vnf.flows.install(idle, forward("b"), idle_s=2)
        vnf.flows.install(hard, drop, hard_s=5)
        assert vnf.flows.install(Match(port="c"), drop, hard_s=5) is False
        vnf.flows.remove(Match(port="c"))
        hand.turn()
        for _ in range(2):
            assert hand.give("a", QUESTION) == {"b": [QUESTION]}
            hand.turn(after_s=1.5)
        assert (ended, len(vnf.flows)) == ([], 2)
        hand.turn(after_s=1)
        assert ended == [(idle, "idle", 2)]
        hand.turn(after_s=3)
        assert ended[1:] == [(hard, "hard", 0)]
        assert len(vnf.flows) == 0
        for task in list(vnf._tasks):
            await task
        assert awaited == [idle, hard]


async def test_a_handler_of_expiry_that_raises_is_reported_and_the_next_one_is_told() -> None:
    vnf = VNF("nat")
    told: list[Match] = []

    @vnf.flows.on_expire
    def fails(match: Match, reason: str, statistics: Statistics) -> None:
        raise LookupError("no such session")

    async with by_hand(vnf) as hand:
        vnf.flows.on_expire(lambda match, reason, statistics: told.append(match))
        for number in range(600):
            vnf.flows.install(Match(src_port=number), drop, hard_s=1)
        for _ in range(4):
            hand.turn(after_s=2)
        assert len(told) == len(set(told)) == 600
        assert vnf.statistics()["failures"] == 600
        assert vnf.statistics()["flows"]["ended_hard"] == 600
    with pytest.raises(ConfigError, match=r"is called as short\(match, reason, statistics\)"):

        @vnf.flows.on_expire
        def short(match: Match) -> None: ...


async def test_rules_that_end_together_end_a_few_per_turn_and_at_once() -> None:
    vnf = VNF("nat")
    told: list[Match] = []

    @vnf.flows.on_expire
    def again(match: Match, reason: str, statistics: Statistics) -> None:
        told.append(match)
        vnf.flows.install(match, drop, hard_s=1)

    async with by_hand(vnf) as hand:
        rules = [Match(src_port=number) for number in range(600)]
        for match in rules:
            vnf.flows.install(match, drop, hard_s=1)
        hand.driver.time_s += 2
        assert hand.driver.engine.turn() == 0.0
        assert 0 < len(told) <= 16
        hand.turn()
        assert sorted(told, key=str) == sorted(rules, key=str)
        assert len(vnf.flows) == 600


async def test_a_handler_of_expiry_that_ends_the_program_does_so() -> None:
    vnf = VNF("nat")

    @vnf.flows.on_expire
    def ends(match: Match, reason: str, statistics: Statistics) -> None:
        raise SystemExit(3)

    async with by_hand(vnf) as hand:
        vnf.flows.install(Match(), drop, hard_s=1)
        with pytest.raises(SystemExit):
            hand.turn(after_s=2)


async def test_rules_belong_to_the_thread_of_the_loop_and_names_of_ports_to_none() -> None:
    vnf, kept = VNF("nat"), []

    @vnf.frames("a", per_packet=True)
    def take(port: Connection, request: Request, packet: Frame) -> None:
        kept.append(packet)

    async with by_hand(vnf) as hand:
        hand.give("a", QUESTION)
        for call in (lambda: vnf.flows.on_expire(lambda match, reason, statistics: None), lambda: len(vnf.flows)):
            with pytest.raises(RuntimeError, match="belongs to the event loop's thread"):
                await asyncio.to_thread(call)
        with pytest.raises(RuntimeError, match="belongs to the event loop's thread"):
            await asyncio.to_thread(kept[0].forward, "b")
        assert await asyncio.to_thread(lambda: kept[0].port) == "a"
    assert kept[0].port == "a"
    with pytest.raises(ValueError, match="the ports are closed"):
        kept[0].forward("b")


async def test_the_loop_is_woken_for_a_rule_that_ends_sooner_than_it_sleeps() -> None:
    vnf = VNF("nat")
    async with by_hand(vnf) as hand:
        hand.turn()
        before = hand.driver.wakes
        vnf.flows.install(Match(src_port=1), drop, hard_s=1)
        assert hand.driver.wakes == before + 1


async def test_over_the_limit_a_rule_is_refused_and_the_others_stand() -> None:
    vnf = VNF("small", limits=Limits(max_flows=2))
    async with by_hand(vnf):
        vnf.flows.install(Match(src_port=1), drop)
        vnf.flows.install(Match(src_port=2), drop)
        with pytest.raises(FlowsFull, match=r"Match\(src_port=3\): .*limits.max_flows is 2"):
            vnf.flows.install(Match(src_port=3), drop)
        assert vnf.flows.install(Match(src_port=2), count) is True
        assert sorted(match.src_port or 0 for match in vnf.flows) == [1, 2]


def test_a_limit_that_memory_is_too_small_for_is_told_and_ends_nothing() -> None:
    code = """
import asyncio, resource
from libvnf import VNF, FlowsFull, Limits
from libvnf.flow import Match, drop
from tests.byhand import by_hand

async def run():
    vnf = VNF("b", limits=Limits(max_flows=1 << 28))
    async with by_hand(vnf) as hand:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
        try:
            vnf.flows.install(Match(), drop)
        except FlowsFull as error:
            print(error)
        hand.turn()

asyncio.run(run())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    told = "Match(): there is no memory for so many flows: limits.max_flows is 268435456\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")


async def test_rules_are_listed_in_pages_that_changes_do_not_confuse() -> None:
    vnf = VNF("many")
    async with by_hand(vnf):
        stay = {Match(src_port=number, protocol="udp") for number in range(3000)}
        for match in stay:
            vnf.flows.install(match, drop)
        listed = []
        for number, match in enumerate(vnf.flows):
            listed.append(match)
            if number % 100 == 0:
                vnf.flows.install(Match(dst_port=number), drop)
        assert stay <= set(listed)
        assert len(listed) == len(set(listed))


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan"), float("inf"), 1e-9])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(ConfigError, match=r"idle_s: .*expected seconds"):
        VNF("b").flows.install(Match(), drop, idle_s=timeout)


async def test_a_vnf_with_rules_is_collected_when_it_is_over() -> None:
    vnf = VNF("gone")

    vnf.flows.on_expire(lambda match, reason, statistics, vnf=vnf: None)
    async with by_hand(vnf) as hand:
        vnf.flows.install(Match(), drop)
        hand.turn()
    seen = weakref.ref(vnf)
    del vnf, hand
    gc.collect()
    assert seen() is None


async def test_a_handler_installs_what_follows_and_sends_the_packet_through_it() -> None:
    vnf = VNF("first")
    seen: list[FiveTuple | None] = []

    @vnf.frames("a", per_packet=True)
    def first(port: Any, request: Any, packet: Any) -> None:
        if packet.is_arp:
            packet.accept()
            return
        five = FiveTuple.of(packet)
        seen.append(five)
        if five is not None:
            vnf.flows.install(Match.of(five, port="a"), [rewrite(ttl=9), forward("b")])
        packet.again()

    async with by_hand(vnf) as hand:
        for _ in range(3):
            assert hand.give("a", QUESTION) == {"b": [datagram(ASKED, ttl=9)]}
        assert seen == [ASKED]
        assert hand.give("a", datagram(ASKED, proto=47)) == {}
        assert seen == [ASKED, None]
        assert vnf.statistics()["core"]["drop_undecided"] == 1
        arp = bytes(Ether(src=CLIENT, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=CLIENT, psrc="10.0.0.1", pdst="10.0.0.2"))
        assert Ether(hand.give("a", arp)["a"][0])[ARP].op == 2


async def test_rules_come_before_the_handler_and_accept_passes_by_it() -> None:
    vnf = VNF("guard")
    seen: list[bytes] = []

    @vnf.frames("a", per_packet=True)
    def rest(port: Any, request: Any, packet: Any) -> None:
        seen.append(bytes(packet))
        packet.drop()

    vnf.flows.install(Match(port="a", protocol="udp"), forward("b"))
    vnf.flows.install(Match(port="a", ethertype="arp"), accept)
    vnf.flows.install(Match(port="a", protocol="udp", dst_port=54), to_python)
    async with by_hand(vnf) as hand:
        assert hand.give("a", QUESTION) == {"b": [QUESTION]}
        arp = bytes(Ether(src=CLIENT, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=CLIENT, psrc="10.0.0.1", pdst="10.0.0.2"))
        assert Ether(hand.give("a", arp)["a"][0])[ARP].op == 2
        other = datagram(ASKED.replace(dst_port=54))
        unmatched = datagram(ASKED, proto=47)
        assert hand.give("a", other, unmatched) == {}
        assert seen == [other, unmatched]


async def test_user_data_goes_into_a_tunnel_and_comes_out_of_it() -> None:
    vnf = VNF("upf")
    async with by_hand(vnf) as hand:
        vnf.flows.install(Match(port="a", teid=7), [decapsulate, forward("b")])
        vnf.flows.install(Match(port="b", dst_ip="10.0.0.1"), [encapsulate(7, "192.0.2.1", "192.0.2.2"), forward("a")])
        answer = datagram(ASKED.reversed(), b"!" * 1000)
        (tunnelled,) = hand.give("b", answer)["a"]
        outer = Ether(tunnelled)
        assert (outer[IP].src, outer[IP].dst, outer[UDP].dport) == ("192.0.2.1", "192.0.2.2", 2152)
        assert outer[GTP_U_Header].teid == 7
        assert bytes(outer[GTP_U_Header].payload) == answer[14:]
        assert hand.give("a", tunnelled) == {"b": [answer]}
        other = bytes(outer).replace(b"\x00\x00\x00\x07", b"\x00\x00\x00\x08", 1)
        assert hand.give("a", other) == {}, "another tunnel: for the host, which has no listener"


async def test_the_example_of_a_translator_translates() -> None:
    vnf: VNF = runpy.run_path("examples/nat/nat.py")["vnf"]
    async with by_hand(vnf, "inside", "outside") as hand:
        question = datagram(ASKED, dst="02:00:00:00:01:00")
        (asked,) = hand.give("inside", question)["outside"]
        assert Ether(asked)[ARP].pdst == "10.1.0.1"
        reply = ARP(op=2, hwsrc=SERVER, psrc="10.1.0.1", hwdst="02:00:00:00:01:01", pdst="10.1.0.2")
        (sent,) = hand.give("outside", bytes(Ether(src=SERVER, dst="02:00:00:00:01:01") / reply))["outside"]
        out = Ether(sent)
        assert (out[IP].src, out[UDP].sport, out.dst) == ("198.51.100.2", 20_000, SERVER)
        assert len(vnf.flows) == 2
