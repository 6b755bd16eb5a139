"""Rules, routes and bridges between two kernels, judged by the tools everybody has."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.between import BESIDE, Between, between
from tests.integration.bridge import NetNS
from tests.peers import Process

pytestmark = pytest.mark.needs("ip", "root")

ROUTER = """
from libvnf import VNF
from libvnf.flow import Match, route
from tests.integration.inspection import open_window

vnf = VNF("router")
open_window(vnf)
for side, network, port in (("left", "10.1.0.0/24", "right"), ("left", "fd01::/64", "right"),
                            ("right", "10.0.0.0/24", "left"), ("right", "fd00::/64", "left")):
    vnf.flows.install(Match(port=side, dst_ip=network), [route(port)])
"""
# Left's packets seem to come from the VNF's own address on the right.
NAT = """
from libvnf import VNF
from libvnf.flow import FiveTuple, Match, rewrite, route
from tests.integration.inspection import open_window

vnf = VNF("nat")
open_window(vnf)
vnf.flows.install(Match(port="left", dst_ip="10.1.0.0/24"), [rewrite(src_ip="10.1.0.2"), route("right")])
for protocol in ("tcp", "udp", "icmp"):
    back = Match(port="right", dst_ip="10.1.0.2", protocol=protocol)
    vnf.flows.install(back, [rewrite(dst_ip="10.0.0.1"), route("left")])
# Errors are translated by rules of single conversations.
asked = FiveTuple("udp", "10.0.0.1", 5555, "10.1.0.1", 40000)
answered = asked.replace(src_ip="10.1.0.2").reversed()
vnf.flows.install(Match.of(asked, port="left"), [rewrite(src_ip="10.1.0.2"), route("right")])
vnf.flows.install(Match.of(answered, port="right"), [rewrite(dst_ip="10.0.0.1"), route("left")])
"""


def served(process: Callable[..., Process], link: Between) -> Process:
    """iperf3 on the right."""
    return process(["iperf3", "-s", "--forceflush"], netns=link.right.name)


def carried(link: Between, server: Process, address: str, *options: str) -> float:
    """Bits per second, as iperf3 counts them; the server says again that it listens when the one before is over."""
    server.wait_for("listening")
    report = json.loads(link.left.run("iperf3", "-J", "-t", "2", *options, "-c", address, timeout_s=60))
    assert "error" not in report, report["error"]
    end = report["end"]
    return float((end.get("sum_received") or end["sum"])["bits_per_second"])


@pytest.mark.needs("ping", "traceroute")
def test_a_router_of_rules_is_a_hop(tmp_path: Path, netns: NetNS) -> None:
    with between(tmp_path, netns, ROUTER) as link:
        for address in ("10.1.0.1", "fd01::1"):
            for size in (56, 1400, 4000):
                link.left.pings(address, size=size)
            ttl = re.search(r"ttl=(\d+)", link.left.run("ping", "-c1", address))
            assert ttl is not None
            assert ttl[1] == "63"
        for version, address, hop in (("-4", "10.1.0.1", "10.0.0.2"), ("-6", "fd01::1", "fd00::2")):
            for method in ("-U", "-I", "-T"):
                traced = link.left.run("traceroute", version, "-n", "-q1", "-w5", method, address).splitlines()[1:]
                assert [line.split()[1] for line in traced] == [hop, address]
        assert link.window.counters("left")["drop_route_hop_limit"] >= 6
        assert " 100% packet loss" in link.left.run("sh", "-c", "ping -c1 -W1 10.1.0.77 || true")


@pytest.mark.needs("ping", "iperf3")
def test_what_does_not_fit_the_next_link_is_told_and_gets_through(
    tmp_path: Path, netns: NetNS, process: Callable[..., Process]
) -> None:
    with between(tmp_path, netns, ROUTER, "mtu=1400") as link:
        assert "mtu = 1400" in link.left.run("sh", "-c", "ping -c1 -W5 -M do -s 1400 10.1.0.1 || true")
        assert "mtu=1400" in link.left.run("sh", "-c", "ping -6 -c1 -W5 -M do -s 1400 fd01::1 || true")
        server = served(process, link)
        assert carried(link, server, "fd01::1") > 1e6
        assert carried(link, server, "10.1.0.1") > 1e6
        assert link.window.counters("left")["drop_route_too_long"] > 0


@pytest.mark.needs("ping", "curl", "iperf3", "traceroute")
def test_an_address_is_translated_both_ways_and_so_are_errors(
    tmp_path: Path, netns: NetNS, process: Callable[..., Process]
) -> None:
    page = tmp_path / "page"
    page.write_bytes(bytes(range(256)) * 4000)
    with between(tmp_path, netns, NAT) as link:
        # Right does not know that there is anybody but 10.1.0.2.
        link.right.run("ip", "route", "del", "default")
        link.left.pings("10.1.0.1")
        web = process([sys.executable, "-u", "-m", "http.server", "80"], netns=link.right.name, cwd=tmp_path)
        web.wait_for("Serving")
        back = tmp_path / "back"
        link.left.run("curl", "-sS", "--retry", "5", "--retry-connrefused", "-o", back, "http://10.1.0.1/page")
        assert back.read_bytes() == page.read_bytes()
        assert "10.1.0.2" in web.output
        server = served(process, link)
        assert carried(link, server, "10.1.0.1") > 1e6
        assert carried(link, server, "10.1.0.1", "-R") > 1e6
        assert carried(link, server, "10.1.0.1", "-u", "-b", "2M") > 1e6
        exactly = ["-U", "-p", "40000", "--sport=5555"]
        traced = link.left.run("traceroute", "-n", "-q1", "-w5", *exactly, "10.1.0.1").splitlines()[1:]
        assert [line.split()[1] for line in traced] == ["10.0.0.2", "10.1.0.1"]
        assert link.window.look()["flows"]["translated"] > 0


@pytest.mark.needs("ping", "arping", "iperf3")
def test_vnf_bridge_joins_two_interfaces_until_a_signal(netns: NetNS, process: Callable[..., Process]) -> None:
    link = Between(netns)
    ours = process([sys.executable, "-m", "libvnf", "bridge", "tap:left", "tap:right"], netns=link.middle.name)
    ours.wait_for("bridging tap:left - tap:right")
    link.join(BESIDE)
    for address in ("10.0.0.9", "fd00::9"):
        link.left.pings(address, size=4000)
    assert "Received 2 response" in link.left.run("arping", "-c2", "-w10", "-I", "eth", "10.0.0.9")
    server = served(process, link)
    assert carried(link, server, "10.0.0.9") > 1e6
    assert carried(link, server, "fd00::9", "-R") > 1e6
    ours.send_signal(signal.SIGTERM)
    assert ours.wait() == 0
    frames = re.search(r"port0 +([\d,]+) +[\d,]+ +([\d,]+)", ours.output)
    assert frames is not None
    assert all(int(number.replace(",", "")) > 1000 for number in frames.groups())
