"""``vnf.flows`` against a list of rules that is walked from end to end, in Python; scapy makes and reads the frames."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, fields, replace
from typing import Any

import hypothesis.strategies as st
from hypothesis import given
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from libvnf import VNF
from libvnf.flow import Action, Match, drop, forward, rewrite
from tests.byhand import by_hand

PORTS = ("a", "b")
NUMBERS = (53, 80)
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
PREFIXES = ("10.0.0.1", "10.0.0.0/24", "10.0.0.0/8", "10.1.0.1", "0.0.0.0/0", "fd00::1", "fd00::/16", "::/0")
HOSTS = {4: ("10.0.0.1", "10.0.0.2", "10.1.0.1"), 6: ("fd00::1", "fd01::1")}


@dataclass(frozen=True)
class Frame:
    """What is drawn of a frame; the fields of matches by their names."""

    port: str
    src_mac: str
    vlan: int
    src_ip: str
    dst_ip: str
    protocol: str
    src_port: int
    dst_port: int

    def bytes(self, **changed: Any) -> bytes:
        now = replace(self, **changed)
        ip = IPv6 if ":" in now.src_ip else IP
        packet: Any = Ether(src=now.src_mac, dst="02:00:00:00:00:99")
        if now.vlan:
            packet /= Dot1Q(vlan=now.vlan)
        packet /= ip(src=now.src_ip, dst=now.dst_ip)
        return bytes(packet / {"tcp": TCP, "udp": UDP}[now.protocol](sport=now.src_port, dport=now.dst_port) / b"data")

    def matches(self, match: Match) -> bool:
        for spec in fields(match):
            wanted = getattr(match, spec.name)
            if wanted is None or spec.name == "priority":
                continue
            found = getattr(self, spec.name, None)
            if spec.name in ("src_ip", "dst_ip"):
                network, address = ipaddress.ip_network(wanted), ipaddress.ip_address(str(found))
                if address.version != network.version or address not in network:
                    return False
            elif spec.name == "ethertype":
                if wanted != (0x86DD if ":" in self.src_ip else 0x0800):
                    return False
            elif found != wanted:
                return False
        return True


def says(match: Match) -> int:
    """How many bits of a packet a match asks for."""
    widths = {"port": 16, "src_mac": 48, "vlan": 16, "ethertype": 16, "protocol": 8, "src_port": 16, "dst_port": 16}
    bits = sum(width for name, width in widths.items() if getattr(match, name) is not None)
    return bits + sum(ipaddress.ip_network(ip).prefixlen for ip in (match.src_ip, match.dst_ip) if ip is not None)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    hosts = st.sampled_from(HOSTS[draw(st.sampled_from([4, 6]))])
    chosen = [draw(st.sampled_from(choices)) for choices in (PORTS, MACS, (0, 7))]
    numbers = st.sampled_from(NUMBERS)
    return Frame(*chosen, draw(hosts), draw(hosts), draw(st.sampled_from(["tcp", "udp"])), draw(numbers), draw(numbers))


@st.composite
def matches(draw: st.DrawFn) -> Match:
    def maybe(*choices: Any) -> Any:
        return draw(st.none() | st.sampled_from(choices))

    source = maybe(*PREFIXES)
    same = PREFIXES if source is None else [text for text in PREFIXES if (":" in text) == (":" in source)]
    target = maybe(*same)
    version = next((6 if ":" in ip else 4 for ip in (source, target) if ip is not None), None)
    return Match(
        port=maybe(*PORTS),
        src_mac=maybe(*MACS),
        vlan=maybe(0, 7),
        ethertype=maybe({4: "ipv4", 6: "ipv6"}[version]) if version else maybe("ipv4", "ipv6"),
        src_ip=source,
        dst_ip=target,
        protocol=maybe("tcp", "udp"),
        src_port=maybe(*NUMBERS),
        dst_port=maybe(*NUMBERS),
        priority=draw(st.integers(-1, 1)),
    )


# What a rule does to a frame that it forwards to port c.
EDITS: dict[str, tuple[list[Action], dict[str, Any]]] = {
    "nothing": ([forward("c")], {}),
    "number": ([rewrite(dst_port=4000), forward("c")], {"dst_port": 4000}),
    "sender": ([rewrite(src_mac="02:00:00:00:00:77"), forward("c")], {"src_mac": "02:00:00:00:00:77"}),
    "tag": ([rewrite(vlan=9), forward("c")], {"vlan": 9}),
    "no tag": ([rewrite(vlan=0), forward("c")], {"vlan": 0}),
}

STEPS = st.one_of(
    st.tuples(st.just("install"), matches(), st.sampled_from(["drop", *EDITS])),
    st.tuples(st.just("remove"), st.integers(0, 20)),
    st.tuples(st.just("frame"), frames()),
)


@given(st.lists(STEPS, min_size=5, max_size=40))
def test_every_frame_gets_what_the_most_important_rule_says(steps: list[Any]) -> None:
    asyncio.run(play(steps))


async def play(steps: list[Any]) -> None:
    vnf = VNF("model", program=False)
    vnf.bridge("a", "b")
    # By match: when it was installed, what it does, its packets and bytes.
    rules: dict[Match, list[Any]] = {}
    async with by_hand(vnf) as hand:
        for number, (step, *arguments) in enumerate(steps):
            if step == "install":
                match, does = arguments
                replaced = vnf.flows.install(match, [drop] if does == "drop" else EDITS[does][0])
                assert replaced == (match in rules)
                rules[match] = [number, does, 0, 0]
            elif step == "remove" and rules:
                match = list(rules)[arguments[0] % len(rules)]
                figures = vnf.flows.remove(match)
                assert figures is not None
                assert [figures.packets, figures.bytes] == rules.pop(match)[2:]
            elif step == "frame":
                frame = arguments[0]
                found = [match for match in rules if frame.matches(match)]
                best = max(found, key=lambda match: (match.priority, says(match), -rules[match][0]), default=None)
                given = frame.bytes()
                left = hand.give(frame.port, given)
                if best is None:
                    assert left == {"b" if frame.port == "a" else "a": [given]}
                    continue
                rules[best][2] += 1
                rules[best][3] += len(given)
                does = rules[best][1]
                assert left == ({} if does == "drop" else {"c": [frame.bytes(**EDITS[does][1])]})
        assert set(vnf.flows) == set(rules)
        assert len(vnf.flows) == len(rules)
