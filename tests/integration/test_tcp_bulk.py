"""Bulk data between Linux and user-space TCP, both ways, whoever connects: intact, on a good path and a bad one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.integration.bridge import Bridge, NetNS, Start, beyond, bridge, losing, without_offload
from tests.integration.bulk import BULK, MB, Orders, Rate, ask, digest, send, take
from tests.peers import DEADLINE_S, Namespace

pytestmark = pytest.mark.needs("dpdk-testpmd", "ip", "root")

# A quarter of a megabyte per second: slower than any of it ever is, however busy the machine.
SLOWEST = MB // 4


@contextmanager
def bulk_bridge(
    tmp_path: Path, netns: NetNS, testpmd: Start, *, mtu: int = 1500, keys: str = ""
) -> Iterator[tuple[Bridge, Orders]]:
    path = tmp_path / "orders.sock"
    with bridge(tmp_path, netns, testpmd, "server", "--set", f"orders={path}", source=BULK, mtu=mtu, keys=keys) as link:
        link.wait_up()
        with closing(Orders(path)) as orders:
            yield link, orders


def both_ways(host: Namespace, address: str, orders: Orders, size: int) -> None:
    """Linux connects and sends, connects and takes; then the VNF does. ``address`` is Linux's."""
    version6 = ":" in address
    family = socket.AF_INET6 if version6 else socket.AF_INET
    vnf = "fd00::2" if version6 else "10.0.0.2"
    deadline_s = max(DEADLINE_S, size / SLOWEST)
    expected = digest(size)
    for verb in ("take", f"send {size}"):
        with host.socket(family) as sock:
            sock.settimeout(deadline_s)
            ask(sock, vnf, verb)
            with Rate(f"Linux connects, the VNF does: {verb}", size):
                found = send(sock, size) if verb == "take" else take(sock)[1]
            assert found == expected
    with host.socket(family) as server:
        server.bind((address, 47001))
        server.listen()
        for verb in ("take", f"send {size}"):
            orders.give(f"{verb} tcp://{f'[{address}]' if version6 else address}:47001")
            sock, _ = server.accept()
            with sock:
                sock.settimeout(deadline_s)
                with Rate(f"the VNF connects and does: {verb}", size):
                    found = send(sock, size) if verb == "take" else take(sock)[1]
                assert found == expected == orders.answer(deadline_s)


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_100_mb_arrive_intact_each_way(tmp_path: Path, netns: NetNS, testpmd: Start, address: str) -> None:
    with bulk_bridge(tmp_path, netns, testpmd) as (link, orders):
        both_ways(link.namespace, address, orders, 100 * MB // (1 if address == "10.0.0.1" else 4))
        counters = link.window.counters("port0")
        print({name: n for name, n in counters.items() if n})


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_1_gb_arrives_intact_each_way(tmp_path: Path, netns: NetNS, testpmd: Start) -> None:
    with bulk_bridge(tmp_path, netns, testpmd) as (link, orders):
        both_ways(link.namespace, "10.0.0.1", orders, 1_000 * MB)


@pytest.mark.needs("nft", "ethtool")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [10 * MB, pytest.param(100 * MB, marks=pytest.mark.soak)], ids=["10MB", "100MB"])
def test_what_a_bad_path_loses_is_sent_again(tmp_path: Path, netns: NetNS, testpmd: Start, size: int) -> None:
    """One packet of a hundred is lost each way, and no device merges or cuts segments."""
    with bulk_bridge(tmp_path, netns, testpmd) as (link, orders):
        host = beyond(link.namespace, netns)
        for namespace, device in ((link.namespace, "dtap"), (link.namespace, "inner"), (host, "outer")):
            without_offload(namespace, device)
        losing(link.namespace, "inner", 1)
        losing(host, "outer", 1)
        both_ways(host, "10.0.1.2", orders, size)
        counters = link.window.counters("port0")
        print({name: n for name, n in counters.items() if n})
        assert counters["tx_tcp_retransmission"] > size // 1500 // 200
