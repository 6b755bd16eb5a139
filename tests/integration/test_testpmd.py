"""A VNF reached through DPDK's testpmd, which joins a kernel's TAP device to memif: what comes out of the namespace is
Linux's, what carries it is DPDK's, and what answers is ours. Here ports and datagrams; TCP is in test_tcp_*.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.bridge import NetNS, Start, bridge
from tests.peers import Process

pytestmark = pytest.mark.needs("dpdk-testpmd", "ip", "root")

ROOT = Path(__file__).parents[2]
FORWARD = """
from libvnf import VNF

vnf = VNF("b")

@vnf.server("udp://:5201")
def there(a, request, packet):
    if a.state is None:
        a.state = a.connect("udp://10.0.0.1:5201")
        a.state.state = a
        a.state.on_data(back)
    a.state.send(packet)

def back(peer, request, packet):
    peer.state.send(packet)

@vnf.session("tcp://:5201")
async def control(a):
    async with a.connect("tcp://10.0.0.1:5201") as b:
        await a.splice(b)
"""
DNS = ROOT / "examples" / "dns" / "dns.py"


both_roles = pytest.mark.parametrize("role", ["server", "client"])


@both_roles
@pytest.mark.needs("ping", "nc", "tshark")
def test_linux_reaches_it_by_ping_nc_and_sockets_and_tshark_finds_no_fault(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: Callable[..., Process], tshark_check: Any, role: str
) -> None:
    with bridge(tmp_path, netns, testpmd, role) as link:
        link.wait_up()
        capture = tmp_path / "wire.pcapng"
        # The devices of testpmd compute no checksums: what is captured is what is sent.
        recorder = process(["tshark", "-i", "dtap", "-w", str(capture)], netns=link.namespace.name)
        recorder.wait_for(r"Capturing on")
        run = link.namespace.run
        for size in (56, 8000):  # 8000: fragments there and back
            for address in ("10.0.0.2", "fd00::2"):
                # What a busy machine's TAP queue loses is not ours; that we lose nothing is counted below.
                answer = run("ping", "-c", "8", "-i", "0.05", "-s", str(size), address)
                assert int(re.search(r"(\d+) received", answer)[1]) >= 6, answer  # type: ignore[index]
        for address in ("10.0.0.2", "fd00::2"):
            sizes = [0, 1, 2, 17, 18, 19, 63, 256, 1024, 1452, 1471, 1472, 1473, 1500, 2048, 9000, 30000]
            for size in sizes:
                payload = os.urandom(size)
                assert link.ask(payload, address) == payload, f"{size} bytes to {address}"
        talk = process(["nc", "-u", "-w", "5", "10.0.0.2", "5000"], netns=link.namespace.name)
        talk.write("by hand\n")
        talk.wait_for("^by hand$")
        # Nobody listens there: Linux is told.
        with link.socket() as sock:
            sock.connect(("10.0.0.2", 5001))
            sock.send(b"anyone?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)
        counters = link.window.counters("port0")
        assert counters["rx_reassembled"] >= 6 and counters["tx_fragment"] >= 30
        # Linux's own multicast is not for us, and one datagram had no listener: nothing else was dropped.
        dropped = {name for name, n in counters.items() if name.startswith(("drop_", "rx_pool", "rx_bad")) and n}
        assert dropped <= {"drop_not_for_us", "drop_icmp_ignored", "drop_no_listener", "drop_neighbour_ignored"}
        assert counters["tx_icmp_echo"] == counters["rx_icmp_echo"] >= 24
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait() == 0
        assert tshark_check(capture) > 150


@both_roles
@pytest.mark.needs("dig")
def test_dig_reads_the_dns_example(tmp_path: Path, netns: NetNS, testpmd: Start, role: str) -> None:
    with bridge(tmp_path, netns, testpmd, role, source=DNS.read_text()) as link:
        dig = ["dig", "@10.0.0.2", "-p", "5300", "+tries=5", "+time=2", "+noedns"]
        found = link.namespace.run(*dig, "+short", "www.EXAMPLE.com")
        assert found.split() == ["192.0.2.10", "192.0.2.11"]
        assert "status: NXDOMAIN" in link.namespace.run(*dig, "nobody.example.com")
        nothing = link.namespace.run(*dig, "mail.example.com", "AAAA")
        assert "status: NOERROR" in nothing and "ANSWER: 0" in nothing


@both_roles
def test_a_secret_opens_only_to_those_who_know_it(tmp_path: Path, netns: NetNS, testpmd: Start, role: str) -> None:
    with bridge(tmp_path, netns, testpmd, role, secret="abc123") as link:
        link.wait_up()
        assert link.ask(b"hello") == b"hello"
        if role == "server":
            link.pmd.stop()
            link.begin_testpmd("wrong")
            link.window.wait(lambda now: "Incorrect secret" in now["transports"]["port0"]["link"])
    if role == "client":
        link.transport = link.transport.replace("abc123", "wrong")
        with link.vnf():
            link.window.wait(lambda now: "secret" in now["transports"]["port0"]["link"].lower())


@both_roles
def test_when_testpmd_is_killed_and_comes_back_traffic_resumes(
    tmp_path: Path, netns: NetNS, testpmd: Start, role: str
) -> None:
    with bridge(tmp_path, netns, testpmd, role) as link:
        link.wait_up()
        assert link.ask(b"before") == b"before"
        link.pmd.send_signal(signal.SIGKILL)
        link.pmd.wait()
        link.window.wait(lambda now: now["transports"]["port0"]["link"] != "up")
        if role == "client":
            link.path.unlink(missing_ok=True)  # DPDK does not replace a socket that a dead one left
        link.begin_testpmd()
        link.wait_up()
        assert link.ask(b"after") == b"after"
        assert link.window.counters("port0")["connects"] == 2


@both_roles
def test_when_the_vnf_is_killed_and_comes_back_traffic_resumes(
    tmp_path: Path, netns: NetNS, testpmd: Start, role: str
) -> None:
    with bridge(tmp_path, netns, testpmd, role) as link:
        link.wait_up()
        assert link.ask(b"before") == b"before"
        link.program.signal(signal.SIGKILL)
        assert link.program.exit() == -signal.SIGKILL
        with link.vnf():
            if role == "server":
                # A DPDK client tries once; its operator starts the port again.
                for command in ("stop", "port stop 0", "port start 0", "start"):
                    link.pmd.command(command)
            link.wait_up()
            assert link.ask(b"after") == b"after"
            link.pmd.stop(grace_s=1)  # a DPDK server that has lost a client hangs on its way out


@pytest.mark.needs("iperf3")
@pytest.mark.parametrize("reverse", [False, True], ids=["there", "back"])
def test_iperf3_measures_datagrams_through_a_forwarder(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: Callable[..., Process], reverse: bool
) -> None:
    with bridge(tmp_path, netns, testpmd, "server", source=FORWARD) as link:
        run = link.namespace.run
        run("ping", "-c", "1", "-w", "10", "10.0.0.2")
        server = process(["iperf3", "-s", "-1", "-p", "5201", "--forceflush"], netns=link.namespace.name)
        server.wait_for("Server listening")
        options = ["-u", "-c", "10.0.0.2", "-p", "5201", "-b", "10M", "-l", "1200", "-t", "2", "--json"]
        report = json.loads(run("iperf3", *options, *(["-R"] if reverse else [])))
        assert "error" not in report
        total = report["end"]["sum"]
        assert total["packets"] > 1_000
        assert total["lost_percent"] < 5
