"""The values that rules are made of: what they take, in which form they keep it, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from libvnf import ConfigError
from libvnf.flow import (
    FiveTuple,
    Match,
    accept,
    checked,
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

TCP = Match(protocol="tcp", src_ip="10.0.0.0/8")


def test_equal_matches_are_equal_however_they_are_written() -> None:
    written = Match(src_mac="02:AA:00:00:00:01", ethertype="ipv6", dst_ip="fd00:0::1/128", protocol="UDP")
    assert written == Match(src_mac="02:aa:00:00:00:01", ethertype=0x86DD, dst_ip="fd00::1", protocol=17)
    assert (written.protocol, written.protocol_number, Match(protocol=99).protocol) == ("udp", 17, 99)
    assert len({written, Match(protocol=6), Match(protocol="tcp")}) == 2


def test_a_match_shows_what_it_says() -> None:
    assert repr(TCP) == "Match(src_ip='10.0.0.0/8', protocol='tcp')"
    assert repr(Match()) == "Match()"


def test_a_five_tuple_turns_round_and_makes_a_match() -> None:
    asked = FiveTuple("udp", "10.0.0.1", 5000, "10.0.0.2", 53)
    assert asked.reversed() == FiveTuple("udp", "10.0.0.2", 53, "10.0.0.1", 5000)
    assert asked.reversed().reversed() == asked
    wanted = Match(port="a", protocol=17, src_ip="10.0.0.2", dst_ip="10.0.0.1", src_port=53, dst_port=5000, priority=3)
    assert Match.of(asked.reversed(), port="a", priority=3) == wanted
    assert asked.replace(src_port=9) == FiveTuple(17, "10.0.0.1", 9, "10.0.0.2", 53)


def test_a_frame_has_a_five_tuple_where_it_has_ports() -> None:
    fields = {"protocol": 17, "src_ip": "10.0.0.1", "src_port": 5000, "dst_ip": "10.0.0.2", "dst_port": 53}
    good = {**fields, "is_fragment": False, "is_malformed": False}
    assert FiveTuple.of(SimpleNamespace(**good)) == FiveTuple(**fields)  # type: ignore[arg-type]
    assert FiveTuple.of(SimpleNamespace(**{**good, "protocol": 1, "dst_port": 0})) is not None
    for other in (
        {"protocol": 47},
        {"src_ip": None, "dst_ip": None},
        {"is_fragment": True},
        {"is_malformed": True},
        {"protocol": 1, "src_port": 0, "dst_port": 0},
    ):
        assert FiveTuple.of(SimpleNamespace(**{**good, **other})) is None


def test_actions_without_arguments_may_be_called() -> None:
    assert [action() for action in (count, drop, reply, accept, decapsulate, to_python)] == [
        count,
        drop,
        reply,
        accept,
        decapsulate,
        to_python,
    ]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Match(port=""), "match: port: '': expected the name of a port"),
        (lambda: Match(src_ip="10.0.0.256"), "match: src_ip: '10.0.0.256': expected an address"),
        (lambda: Match(src_ip="10.1.0.0/8"), "the bits after the prefix are not 0"),
        (lambda: Match(src_ip="10.0.0.1", dst_ip="fd00::1"), "10.0.0.1 and fd00::1: expected both IPv4, or both IPv6"),
        (lambda: Match(src_port=True), "match: src_port: True: expected a whole number from 0 to 65535"),
        (lambda: Match(dst_port=65536), "match: dst_port: 65536"),
        (lambda: Match(vlan=4095), "match: vlan: 4095: expected a whole number from 0 to 4094"),
        (lambda: Match(teid=-1), "match: teid: -1"),
        (lambda: Match(protocol="tpc"), "match: protocol: 'tpc': expected a number from 0 to 255, or icmp"),
        (lambda: Match(src_mac="02:00"), "match: src_mac: '02:00': expected six bytes"),
        (lambda: Match(priority=2**31), "match: priority"),
        (lambda: Match(protocol="gre", src_port=1), "match: protocol: gre has no ports"),
        (lambda: Match(protocol="tcp", teid=1), "match: protocol: GTP-U runs over udp"),
        (lambda: Match(ethertype="arp", src_ip="10.0.0.1"), "match: ethertype: 0x0806 has no IPv4 addresses"),
        (lambda: FiveTuple("udp", "10.0.0.0/8", 1, "10.0.0.2", 2), "fivetuple: src_ip: '10.0.0.0/8'"),
        (lambda: rewrite(), "nothing is to be rewritten"),
        (lambda: rewrite(ttl=0), "rewrite: ttl: 0: expected a whole number from 1 to 255"),
        (lambda: rewrite(src_ip="10.0.0.1", dst_ip="fd00::1"), "expected both IPv4, or both IPv6"),
        (lambda: encapsulate(1, None, None), "expected src_ip and dst_ip"),  # type: ignore[arg-type]
        (lambda: encapsulate(1, "10.0.0.1", "fd00::1"), "expected both IPv4, or both IPv6"),
        (lambda: limit(0, 1500), "limit: bps: 0: expected more than 0"),
        (lambda: limit(1e6, 1), "limit: burst_bytes: 1: expected at least 64"),
        (lambda: limit(float("nan"), 1500), "limit: bps: nan: expected a number"),
        (lambda: forward(1), "forward: port: 1: expected the name of a port"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_where_it_is_made(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("match", "actions", "words"),
    [
        (TCP, [], "0 actions: expected 1 to 16"),
        (TCP, [count] * 17, "17 actions"),
        (TCP, [drop, count], "drop ends the rule: it is action 1 of 2, expected it to be the last"),
        (TCP, [rewrite(ttl=3)], "packets are changed, and then? Expected forward, route"),
        (TCP, [decapsulate, drop], "GTP-U runs over udp, and the packets are tcp"),
        (TCP, [rewrite(src_ip="fd00::1"), drop], "fd00::1 is IPv6, and the packets are IPv4"),
        (Match(protocol="gre"), [rewrite(dst_port=1), drop], "gre has no ports"),
        (Match(ethertype="arp"), [encapsulate(1, "10.0.0.1", "10.0.0.2"), forward("a")], "not 0x0806"),
        (TCP, [limit(1, 64), limit(1, 64), drop], "two limits: expected one at most"),
        (TCP, ["drop"], "'drop' is not an action"),
        ("tcp", [drop], "'tcp' is not a Match"),
    ],
)
def test_actions_that_make_no_rule_are_refused(match: Any, actions: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(match, actions)
    assert words in str(refused.value)


def test_the_inner_packet_of_a_tunnel_may_be_of_another_family() -> None:
    tunnelled = Match(protocol="udp", dst_ip="10.0.0.1", teid=7)
    steps = [decapsulate, rewrite(src_ip="fd00::1"), route("n6")]
    assert checked(tunnelled, steps) == tuple(steps)
    assert checked(Match(dst_ip="fd00::/64"), [encapsulate(7, "10.0.0.1", "10.0.0.2"), rewrite(dscp=46), route("n3")])


def test_a_rule_that_only_counts_or_limits_need_not_say_where_to() -> None:
    assert checked(TCP, count) == (count,)
    assert checked(TCP, [count, limit(1e6, 15_000)])
