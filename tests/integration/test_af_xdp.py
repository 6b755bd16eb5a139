"""A VNF on a network interface by AF_XDP, reached by the tools everybody has from the kernel at the other end."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.bridge import ECHO, NetNS, beyond
from tests.integration.cable import Cable
from tests.integration.test_tcp_tools import SPLICE, WEB, curl
from tests.integration.wire import captured
from tests.peers import Process

pytestmark = pytest.mark.needs("ip", "root", "ethtool")

ProcessOf = Callable[..., Process]
WINDOW = "from tests.integration.inspection import open_window\nopen_window(vnf)\n"
both_ways = pytest.mark.parametrize("attach", ["native", "generic"])


@both_ways
@pytest.mark.needs("ping", "arping", "tshark")
def test_linux_finds_it_by_arp_and_ping_and_tshark_finds_no_fault(
    tmp_path: Path, netns: NetNS, process: ProcessOf, attach: str
) -> None:
    cable = Cable(tmp_path, netns)
    with (
        captured(process, cable.far, tmp_path / "wire.pcapng", "far"),
        cable.vnf(f"attach={attach}"),
    ):
        assert cable.attached() == {"native": "xdp", "generic": "xdpgeneric"}[attach]
        mac = cable.near.run("cat", "/sys/class/net/eth1/address").strip()
        assert mac.upper() in cable.far.run("arping", "-c", "2", "-I", "far", "10.0.0.2")
        for size in (56, 8000):  # 8000: fragments there and back
            for address in ("10.0.0.2", "fd00::2"):
                answer = cable.far.run("ping", "-c", "5", "-i", "0.05", "-s", str(size), address)
                assert " 5 received" in answer, answer
        for address in ("10.0.0.2", "fd00::2"):
            for size in (0, 1, 18, 1452, 1472, 1473, 9000, 30000):
                payload = bytes(range(256)) * 118
                assert cable.ask(payload[:size], address) == payload[:size]
        counters = cable.window.counters("port0")
        lost = ("rx_pool_dry", "rx_dropped", "rx_ring_full", "tx_full", "tx_dropped", "tx_lost", "kicks_failed")
        assert {name: counters[name] for name in lost} == dict.fromkeys(lost, 0)
        assert counters["rx_icmp_echo"] == counters["tx_icmp_echo"] == 20
    assert cable.attached() is None


@pytest.mark.needs("traceroute")
def test_traceroute_ends_at_it_behind_a_router(tmp_path: Path, netns: NetNS) -> None:
    cable = Cable(tmp_path, netns)
    host = beyond(cable.far, netns)
    with cable.vnf():
        for address, router in (("10.0.0.2", "10.0.1.1"), ("fd00::2", "fd01::1")):
            hops = host.run("traceroute", "-n", "-q", "1", "-w", "5", address).splitlines()[1:]
            assert [line.split()[1] for line in hops] == [router, address]


@pytest.mark.needs("curl")
@pytest.mark.parametrize("keys", ["attach=native", "attach=generic", "ring_slots=64"])
def test_curl_gets_posts_and_is_refused(tmp_path: Path, netns: NetNS, keys: str) -> None:
    cable = Cable(tmp_path, netns)
    with cable.vnf(keys, WEB):
        for address in ("10.0.0.2", "[fd00::2]"):
            assert curl(cable.far, f"http://{address}/").stdout == b"hello"
            body, back = tmp_path / "body", tmp_path / "back"
            body.write_bytes(bytes(range(256)) * 4_000)
            done = curl(cable.far, "-H", "Expect:", "--data-binary", f"@{body}", "-o", back, f"http://{address}/")
            assert done.returncode == 0 and back.read_bytes() == body.read_bytes(), done
            curl(cable.far, "-o", back, f"http://{address}:81/")
            assert back.read_bytes() == bytes(range(256)) * 40_000
            assert curl(cable.far, f"http://{address}:82/").returncode == 7


@both_ways
@pytest.mark.needs("wrk")
def test_wrk_sees_no_error_over_several_queues(tmp_path: Path, netns: NetNS, attach: str) -> None:
    cable = Cable(tmp_path, netns, queues=2)
    with cable.vnf(f"attach={attach}", WEB + WINDOW):
        report = cable.far.run("wrk", "-t2", "-c100", "-d2s", "http://10.0.0.2/")
        print(report)
        assert "Socket errors" not in report and "Non-2xx" not in report
        assert int(re.search(r"(\d+) requests in", report)[1]) > 100  # type: ignore[index]
        counters = cable.window.counters("port0")
        assert counters["tx_full"] == counters["tx_dropped"] == 0


@pytest.mark.needs("iperf3")
@pytest.mark.parametrize("streams", [1, 16])
def test_iperf3_runs_through_a_splice_proxy(tmp_path: Path, netns: NetNS, process: ProcessOf, streams: int) -> None:
    """In by the interface, out by it: the server is where the client is."""
    cable = Cable(tmp_path, netns)
    with cable.vnf("", SPLICE, "--set", "upstream=tcp://10.0.0.1:5201"):
        for direction in ([], ["-R"]):
            server = process(["iperf3", "-s", "-1", "--forceflush", "-B", "10.0.0.1"], netns=cable.far.name)
            server.wait_for("Server listening")
            client = ["iperf3", "-c", "10.0.0.2", "-p", "47000", "-t", "2", "-P", str(streams), "-J", *direction]
            report = json.loads(cable.far.run(*client))
            assert "error" not in report
            total = report["end"]["sum_received"]
            print(f"{streams} streams {direction}: {total['bits_per_second'] / 1e6:,.0f} Mbit/s")
            assert total["bytes"] > 1 << 20
            assert all(one["receiver"]["bytes"] > 0 for one in report["end"]["streams"])
            assert server.wait() == 0


@pytest.mark.needs("curl")
@pytest.mark.parametrize("address", ["10.0.0.2", "[fd00::2]"])
def test_path_mtu_is_discovered_behind_a_router(tmp_path: Path, netns: NetNS, address: str) -> None:
    cable = Cable(tmp_path, netns)
    host = beyond(cable.far, netns, mtu=1400)
    # The host offers segments as long as its interface's; the way to it is narrower.
    host.run("ip", "link", "set", "outer", "mtu", "1500")
    with cable.vnf("", WEB + WINDOW):
        done = curl(host, "-o", tmp_path / "back", f"http://{address}:81/")
        assert done.returncode == 0 and (tmp_path / "back").read_bytes() == bytes(range(256)) * 40_000
        assert cable.window.counters("port0")["flow_path_mtu_lowered"] > 0


@pytest.mark.parametrize(("mtu", "keys"), [(3800, "frame_bytes=4096"), (1774, ""), (1280, ""), (9000, "mtu=1500")])
@pytest.mark.needs("ping")
def test_frames_as_long_as_a_buffer_carries_pass(tmp_path: Path, netns: NetNS, mtu: int, keys: str) -> None:
    cable = Cable(tmp_path, netns, mtu=mtu)
    cable.far.run("ip", "link", "set", "far", "mtu", str(min(mtu, 3800)))
    # A driver's own XDP wants whole frames in a page; above it there is no such limit.
    with cable.vnf(",".join(filter(None, ["attach=generic", keys]))):
        carried = 1500 if "mtu" in keys else mtu
        answer = cable.far.run("ping", "-c", "3", "-i", "0.05", "-M", "do", "-s", str(carried - 28), "10.0.0.2")
        assert " 3 received" in answer, answer
        if "mtu" in keys:
            cable.far.run("ip", "link", "set", "far", "mtu", "9000")
            lost = ["ip", "netns", "exec", cable.far.name, "ping", "-c1", "-W1", "-Mdo", "-s8000", "10.0.0.2"]
            assert subprocess.run(lost, capture_output=True, timeout=20).returncode == 1
            assert cable.window.counters("port0")["rx_dropped"] == 1


def test_every_counter_is_in_the_guide(tmp_path: Path, netns: NetNS) -> None:
    from tests.integration.test_guide import names

    cable = Cable(tmp_path, netns)
    with cable.vnf("", ECHO):
        told = names("statistics.md", "transports: a port") | names("statistics.md", "transports: af_xdp")
        assert set(cable.window.counters("port0")) <= told
        own = names("statistics.md", "transports: af_xdp")
        assert own <= set(cable.window.counters("port0"))
