"""TAP and TUN ports, spoken to by the tools everybody has from the kernel on the interface's other side."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration import bulk
from tests.integration.bridge import ECHO, NetNS, beyond, without_offload
from tests.integration.bulk import BULK, MB
from tests.integration.programs import inside, running
from tests.integration.tap import DEVICE, addressed, tap, transport
from tests.integration.test_guide import told_of_a_port
from tests.integration.test_tcp_tools import SPLICE, WEB, curl
from tests.integration.wire import captured, segments
from tests.peers import DEADLINE_S, Namespace, Process

pytestmark = pytest.mark.needs("ip", "root")
layers = pytest.mark.parametrize("layer", ["ethernet", "ip"])
versions = pytest.mark.parametrize("version", [4, 6])
ADDRESS = {4: "10.0.0.2", 6: "fd00::2"}


def exists(namespace: Namespace) -> bool:
    return DEVICE in namespace.run("ip", "-o", "link")


@pytest.mark.needs("ping")
@layers
@versions
def test_ping_is_answered_at_every_size(tmp_path: Path, netns: NetNS, layer: str, version: int) -> None:
    with tap(tmp_path, netns(), ECHO, layer=layer) as link:
        for size in (0, 56, 1400, 3000, 20_000):
            report = link.namespace.run("ping", "-c3", "-i0.01", "-W5", "-s", str(size), ADDRESS[version])
            assert " 0% packet loss" in report
        counters = link.counters()
        told_of_a_port(set(counters), "tap")
        assert counters["rx_icmp_echo"] == counters["tx_icmp_echo"] >= 15
        assert counters["rx_not_ip"] == counters["tx_not_ip"] == counters["tx_lost"] == counters["tx_refused"] == 0


@pytest.mark.needs("arping")
def test_arping_finds_the_address_and_no_other_one(tmp_path: Path, netns: NetNS) -> None:
    with tap(tmp_path, netns(), ECHO) as link:
        mac = link.window.look()["transports"]["port0"]["mac"]
        report = link.namespace.run("arping", "-c2", "-w10", "-I", DEVICE, "10.0.0.2")
        assert mac.upper() in report and "Received 2 response" in report
        # Duplicate address detection: somebody has the one, and nobody the other.
        in_it = ["ip", "netns", "exec", link.namespace.name, "arping", "-D", "-c1", "-w1", "-I", DEVICE]
        assert subprocess.run([*in_it, "10.0.0.2"], capture_output=True, timeout=DEADLINE_S).returncode == 1
        assert subprocess.run([*in_it, "10.0.0.3"], capture_output=True, timeout=DEADLINE_S).returncode == 0


@pytest.mark.needs("traceroute")
@layers
@versions
@pytest.mark.parametrize("method", ["-U", "-I", "-T"])
def test_traceroute_ends_at_the_vnf_one_hop_behind_the_router(
    tmp_path: Path, netns: NetNS, layer: str, version: int, method: str
) -> None:
    with tap(tmp_path, netns(), ECHO, layer=layer) as link:
        host = beyond(link.namespace, netns)
        lines = host.run("traceroute", f"-{version}", "-n", method, "-q1", "-w5", ADDRESS[version]).splitlines()[1:]
        hops = [line.split()[1] for line in lines]
        assert hops == [{4: "10.0.1.1", 6: "fd01::1"}[version], ADDRESS[version]]


@pytest.mark.needs("curl", "wrk")
@layers
@versions
def test_curl_and_wrk_see_no_error(tmp_path: Path, netns: NetNS, layer: str, version: int) -> None:
    with tap(tmp_path, netns(), WEB, layer=layer) as link:
        host = {4: "10.0.0.2", 6: "[fd00::2]"}[version]
        body, back = tmp_path / "body", tmp_path / "back"
        body.write_bytes(bytes(range(256)) * 4_000)
        done = curl(link.namespace, "-H", "Expect:", "--data-binary", f"@{body}", "-o", back, f"http://{host}/")
        assert done.returncode == 0 and back.read_bytes() == body.read_bytes(), done
        done = curl(link.namespace, "-o", back, f"http://{host}:81/")
        assert done.returncode == 0 and back.read_bytes() == bytes(range(256)) * 40_000, done
        refused = curl(link.namespace, f"http://{host}:82/")
        assert refused.returncode == 7, refused
        report = link.namespace.run("wrk", "-t1", "-c50", "-d2s", f"http://{host}/")
        print(re.findall(r"Requests/sec.*", report))
        assert "Socket errors" not in report and "Non-2xx" not in report
        assert int(re.search(r"(\d+) requests in", report)[1]) > 100  # type: ignore[index]


@pytest.mark.needs("iperf3")
@pytest.mark.parametrize(("layer", "queues"), [("ethernet", 1), ("ethernet", 4), ("ip", 1), ("ip", 4)])
def test_iperf3_runs_through_a_splice_proxy_both_ways(
    tmp_path: Path, netns: NetNS, process: Callable[..., Process], layer: str, queues: int
) -> None:
    upstream = ["--set", "upstream=tcp://10.0.0.1:5201"]
    with tap(tmp_path, netns(), SPLICE, *upstream, layer=layer, keys=f"queues={queues}") as link:
        for direction in ([], ["-R"]):
            server = process(["iperf3", "-s", "-1", "--forceflush"], netns=link.namespace.name)
            server.wait_for("Server listening")
            client = ["iperf3", "-c", "10.0.0.2", "-p", "47000", "-t", "2", "-P", "4", "-J", *direction]
            report = json.loads(link.namespace.run(*client))
            assert "error" not in report
            total = report["end"]["sum_received"]
            print(f"{layer}, {queues} queues {direction}: {total['bits_per_second'] / 1e6:,.0f} Mbit/s")
            assert total["bytes"] > 1 << 20
            assert all(one["receiver"]["bytes"] > 0 for one in report["end"]["streams"])
            assert server.wait() == 0


@pytest.mark.needs("tshark", "ethtool")
@layers
@versions
def test_a_router_that_takes_less_is_obeyed_in_the_middle_of_a_transfer(
    tmp_path: Path, netns: NetNS, process: Callable[..., Process], layer: str, version: int
) -> None:
    """Path MTU discovery: "fragmentation needed" and "packet too big" reach the VNF's connection."""
    size = 5 * MB
    family, network, headers = (
        (socket.AF_INET, "10.0.1.0/24", 40) if version == 4 else (socket.AF_INET6, "fd01::/64", 60)
    )
    with tap(tmp_path, netns(), BULK, "--set", f"orders={tmp_path}/orders.sock", layer=layer) as link:
        host = beyond(link.namespace, netns)
        for namespace, device in ((link.namespace, DEVICE), (link.namespace, "inner"), (host, "outer")):
            without_offload(namespace, device)
        capture = tmp_path / "wire.pcapng"
        with captured(process, host, capture, "outer"), host.socket(family) as sock:
            bulk.ask(sock, ADDRESS[version], f"send {size}")
            begun = sock.recv(MB, socket.MSG_WAITALL)
            route = ["ip", f"-{version}", "route", "replace", network, "dev", "inner", "proto", "kernel"]
            metric = "0" if version == 4 else "256"  # the one of the route that it replaces
            link.namespace.run(*route, "metric", metric, "mtu", "lock", "1300")
            assert bulk.take(sock, begun) == (size, bulk.digest(size))
        lengths = [one.length for one in segments(capture) if one.ours and one.length]
        assert lengths[0] == 1500 - headers and lengths[-2] <= 1300 - headers
        assert link.counters()["flow_path_mtu_lowered"] >= 1


@pytest.mark.needs("ping", "tshark", "capinfos")
@layers
def test_a_capture_of_the_port_has_every_frame_with_its_direction(
    tmp_path: Path, netns: NetNS, tshark_check: Callable[[Path], int], layer: str
) -> None:
    file = tmp_path / "port.pcapng"
    with tap(tmp_path, netns(), ECHO, "--capture", str(file), layer=layer) as link:
        for address in ADDRESS.values():
            link.namespace.run("ping", "-c5", "-i0.01", "-s", "3000", address)
        link.namespace.run("ip", "link", "set", DEVICE, "down")
        link.window.wait(lambda now: now["transports"]["port0"]["link"] != "up")
        last = link.window.wait(
            lambda now: (
                (counters := now["transports"]["port0"]["counters"])["capture_frames"]
                >= counters["rx_frames"] + counters["tx_frames"]
            )
        )
        counters = last["transports"]["port0"]["counters"]
        assert counters["capture_lost"] == 0
        link.program.signal(signal.SIGTERM)
        assert link.program.exit() == 0
    assert tshark_check(file) == counters["capture_frames"]
    command = ["tshark", "-n", "-r", str(file), "-Tfields", "-eframe.packet_flags_direction", "-eframe.interface_name"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout.split("\n")
    directions = [int(line.split("\t")[0], 16) for line in told if line]
    assert {line.split("\t")[1] for line in told if line} == {"port0"}
    # Frames that a queue still had when the interface went down were queued, and so captured.
    assert directions.count(1) == counters["rx_frames"] >= 20
    assert directions.count(2) >= counters["tx_frames"] >= 20
    report = subprocess.run(["capinfos", file], capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout
    assert "nanoseconds (9)" in report and "libvnf" in report


@layers
def test_the_mtu_is_the_interfaces_or_becomes_it(tmp_path: Path, netns: NetNS, layer: str) -> None:
    namespace = netns()
    with tap(tmp_path, namespace, ECHO, layer=layer, keys="mtu=9000") as link:
        assert "mtu 9000" in namespace.run("ip", "link", "show", DEVICE)
        with namespace.socket(kind=socket.SOCK_DGRAM) as sock:
            sock.connect(("10.0.0.2", 5000))
            sock.send(bytes(8900))
            assert len(sock.recv(10_000)) == 8900
        assert link.counters()["tx_fragment"] == link.counters()["rx_fragment"] == 0
    mode = {"ethernet": "tap", "ip": "tun"}[layer]
    namespace.run("ip", "tuntap", "add", DEVICE, "mode", mode)
    namespace.run("ip", "link", "set", DEVICE, "mtu", "1400", "up")
    with tap(tmp_path, namespace, ECHO, layer=layer) as link, namespace.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.connect(("10.0.0.2", 5000))
        sock.send(bytes(1400))
        assert len(sock.recv(2000)) == 1400
        assert link.counters()["tx_fragment"] == 2
    assert exists(namespace), "an interface that was there before stays"


def test_what_the_vnf_is_too_slow_for_is_counted(tmp_path: Path, netns: NetNS) -> None:
    with tap(tmp_path, netns(), ECHO) as link, link.namespace.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.connect(("10.0.0.2", 9))
        sock.send(b"its address is known then")
        link.window.wait(lambda now: now["transports"]["port0"]["counters"]["drop_no_listener"])
        link.program.signal(signal.SIGSTOP)
        for _ in range(3000):  # the interface holds 1000
            with contextlib.suppress(ConnectionRefusedError):
                sock.send(b"flood")
        link.program.signal(signal.SIGCONT)
        link.window.wait(
            lambda now: (
                (counters := now["transports"]["port0"]["counters"])["drop_no_listener"] + counters["rx_dropped"]
                >= 2990
            )
        )
        assert link.counters()["rx_dropped"] >= 1500


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_interface_goes_with_the_vnf_that_made_it(tmp_path: Path, netns: NetNS, number: int) -> None:
    with tap(tmp_path, netns(), ECHO) as link:
        assert exists(link.namespace)
        link.program.signal(number)
        link.program.exit()
        assert not exists(link.namespace)


@layers
def test_an_interface_set_down_or_removed_is_told_and_taken_again(tmp_path: Path, netns: NetNS, layer: str) -> None:
    mode = {"ethernet": "tap", "ip": "tun"}[layer]
    with tap(tmp_path, netns(), ECHO, layer=layer) as link:

        def ask(text: bytes) -> None:
            with link.namespace.socket(kind=socket.SOCK_DGRAM) as sock:
                sock.connect(("10.0.0.2", 5000))
                sock.send(text)
                assert sock.recv(100) == text

        def told(words: str) -> None:
            link.window.wait(lambda now: now["transports"]["port0"]["link"] == words)

        ip = ["ip", "link"]
        ask(b"before")
        link.namespace.run(*ip, "set", DEVICE, "down")
        told("vnf0 is down: ip link set vnf0 up")
        link.namespace.run(*ip, "set", DEVICE, "name", "other0")
        link.namespace.run(*ip, "set", "other0", "up")
        told("up")
        ask(b"up again, by another name")
        link.namespace.run(*ip, "delete", "other0")
        told("other0 was removed")
        link.namespace.run("ip", "tuntap", "add", DEVICE, "mode", mode)
        told("vnf0 is down: ip link set vnf0 up")
        link.namespace.run(*ip, "set", DEVICE, "up")
        told("up")
        addressed(link.namespace)
        ask(b"made again")
        counters = link.counters()
        assert (counters["connects"], counters["disconnects"]) == (3, 2)


# As virtual machines leave it: persistent, its kernel told that checksums and segments are finished by who reads
# (linux/if_tun.h: TUNSETIFF of a TAP with IFF_VNET_HDR, TUNSETOFFLOAD, TUNSETPERSIST).
MACHINE = """
import fcntl, os, struct
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454ca, struct.pack("16sH22x", b"vnf0", 0x0002 | 0x1000 | 0x4000))
fcntl.ioctl(device, 0x400454d0, 1 | 2 | 4)
fcntl.ioctl(device, 0x400454cb, 1)
"""


def test_what_a_predecessor_promised_the_kernel_does_not_bind_the_vnf(tmp_path: Path, netns: NetNS) -> None:
    namespace = netns()
    namespace.run(sys.executable, "-c", MACHINE)
    namespace.run("ip", "link", "set", DEVICE, "up")
    with tap(tmp_path, namespace, ECHO) as link:
        with namespace.socket(kind=socket.SOCK_DGRAM) as sock:
            sock.connect(("10.0.0.2", 5000))
            sock.send(b"hello")
            assert sock.recv(100) == b"hello"
        assert link.counters()["drop_udp_checksum"] == 0


def refused(tmp_path: Path, namespace: Namespace, keys: str = "", layer: str = "ethernet", drop: bool = False) -> str:
    """The one line that is printed before exit code 2."""
    (tmp_path / "b.py").write_text(ECHO.replace("open_window(vnf)", ""))
    prefix = ["capsh", "--drop=cap_net_admin", "--", "-c", 'exec "$0" "$@"'] if drop else []
    command = inside(namespace)
    command[4:4] = prefix
    done = subprocess.run(
        [*command, "b.py", "--transport", transport(layer, keys)],
        cwd=tmp_path,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.needs("capsh")
def test_without_privilege_one_line_says_what_would_help(tmp_path: Path, netns: NetNS) -> None:
    namespace = netns()
    line = refused(tmp_path, namespace, drop=True)
    assert "vnf0: no privilege: needs CAP_NET_ADMIN, or ip tuntap add vnf0 mode tap user NAME" in line
    assert not exists(namespace)


def test_an_interface_of_another_kind_or_somebody_elses_is_left_alone(tmp_path: Path, netns: NetNS) -> None:
    namespace = netns()
    namespace.run("ip", "link", "add", DEVICE, "type", "veth", "peer", "other")
    assert "vnf0: exists already, and not as a TAP interface with queues=1" in refused(tmp_path, namespace)
    namespace.run("ip", "link", "delete", DEVICE)
    namespace.run("ip", "tuntap", "add", DEVICE, "mode", "tap")
    assert "not as a TUN interface" in refused(tmp_path, namespace, layer="ip")
    assert "with queues=2" in refused(tmp_path, namespace, "queues=2")
    options = ["--transport", transport("ethernet"), "--set", f"window={tmp_path}/window.sock"]
    with running(tmp_path, ECHO, *options, command=inside(namespace)):
        assert "vnf0: taken by another program" in refused(tmp_path, namespace)
    assert exists(namespace)
