"""What is on the wire between user-space TCP and Linux, as tshark reads it: at every MTU, equal or not, over IPv4 and
IPv6, and where a router on the way takes less than either end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration import bulk
from tests.integration.bridge import NetNS, Start, beyond, without_offload
from tests.integration.bulk import MB
from tests.integration.test_tcp_bulk import both_ways, bulk_bridge
from tests.integration.wire import captured, sane, segments
from tests.peers import Process

pytestmark = pytest.mark.needs("dpdk-testpmd", "ip", "root", "ethtool", "tshark")
ProcessOf = Callable[..., Process]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(1500, 1500), (9000, 9000), (1280, 1280), (1500, 9000), (9000, 1500), (1280, 1500)]
)
def test_every_segment_fits_its_receiver_and_its_window(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf, ours: int, theirs: int, version: int
) -> None:
    address, headers = ("10.0.0.1", 40) if version == 4 else ("fd00::1", 60)
    with bulk_bridge(tmp_path, netns, testpmd, mtu=theirs, keys=f"mtu={ours}") as (link, orders):
        without_offload(link.namespace, "dtap")
        capture = tmp_path / "wire.pcapng"
        with captured(process, link.namespace, capture):
            both_ways(link.namespace, address, orders, 2 * MB)
        seen = segments(capture)
        remarks = sane(seen, mss_ours=ours - headers, mss_theirs=theirs - headers)
        print(len(seen), "segments;", dict(remarks))
        assert max(one.length for one in seen if one.ours) == min(ours, theirs) - headers
        # On a path that loses nothing nothing is lost; what is sent again is what a machine that stood still for longer
        # than a timeout has not acknowledged in time.
        assert not remarks.keys() & {"our lost_segment", "their lost_segment"}, remarks
        assert remarks.total() <= len(seen) // 100, remarks


@pytest.mark.parametrize("version", [4, 6])
def test_a_router_that_takes_less_is_obeyed_in_the_middle_of_a_transfer(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf, version: int
) -> None:
    """Its "fragmentation needed" and "packet too big" reach the VNF's connection as well as Linux's."""
    size = 20 * MB
    family, vnf, network, headers = (
        (socket.AF_INET, "10.0.0.2", "10.0.{}.0/24", 40)
        if version == 4
        else (socket.AF_INET6, "fd00::2", "fd0{}::/64", 60)
    )
    with bulk_bridge(tmp_path, netns, testpmd) as (link, _):
        host = beyond(link.namespace, netns)
        for namespace, device in ((link.namespace, "dtap"), (link.namespace, "inner"), (host, "outer")):
            without_offload(namespace, device)

        def narrow(mtu: int) -> None:
            for number, device in ((0, "dtap"), (1, "inner")):
                route = ["ip", f"-{version}", "route", "replace", network.format(number), "dev", device]
                metric = "0" if version == 4 else "256"  # the one of the route that it replaces
                link.namespace.run(*route, "proto", "kernel", "metric", metric, "mtu", "lock", str(mtu))

        capture = tmp_path / "wire.pcapng"
        with captured(process, host, capture, "outer"), host.socket(family) as sock:
            bulk.ask(sock, vnf, f"send {size}")
            begun = sock.recv(MB, socket.MSG_WAITALL)
            narrow(1300)
            assert bulk.take(sock, begun) == (size, bulk.digest(size))
        lengths = [one.length for one in segments(capture) if one.ours and one.length]
        assert lengths[0] == 1500 - headers and lengths[-2] <= 1300 - headers
        with host.socket(family) as sock:
            bulk.ask(sock, vnf, "take")
            assert bulk.send(sock, size) == bulk.digest(size)
        # What is known of the path serves the next connection.
        with captured(process, host, capture, "outer"), host.socket(family) as sock:
            bulk.ask(sock, vnf, f"send {MB}")
            assert bulk.take(sock) == (MB, bulk.digest(MB))
        assert max(one.length for one in segments(capture) if one.ours) <= 1300 - headers
        print({name: n for name, n in link.window.counters("port0").items() if n})
