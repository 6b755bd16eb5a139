"""The NAT of the examples on two interfaces by AF_XDP: hosts inside, and a server outside that sees one address."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.bridge import NetNS
from tests.integration.site import Site, site
from tests.peers import Namespace, Process

pytestmark = pytest.mark.needs("ip", "root", "ethtool")

ProcessOf = Callable[..., Process]
ADDRESSES = {"inside": "10.0.0.9/24", "outside": "198.51.100.1/24"}
# Answers every connection with who it thinks is asking.
SERVER = """
import asyncio

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    who = writer.get_extra_info("peername")[0].encode()
    writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + who + b"\\n")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "198.51.100.1", 80, backlog=4096)
    print("serving", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextmanager
def nat_site(tmp_path: Path, netns: NetNS, *options: str) -> Iterator[Site]:
    with site(tmp_path, netns, "nat", ADDRESSES, *options) as nat:
        nat.hosts["inside"].run("ip", "route", "add", "default", "via", "10.0.0.1")
        yield nat


def web(process: ProcessOf, host: Namespace) -> None:
    process([sys.executable, "-c", SERVER], netns=host.name).wait_for("serving")


@pytest.mark.needs("ping", "curl")
def test_a_thousand_parallel_requests_come_from_one_address(tmp_path: Path, netns: NetNS, process: ProcessOf) -> None:
    with nat_site(tmp_path, netns) as nat:
        web(process, nat.hosts["outside"])
        nat.hosts["inside"].pings("10.0.0.1")
        nat.hosts["inside"].pings("198.51.100.1")
        parallel = [
            "curl",
            "--no-progress-meter",
            "-Z",
            "--parallel-immediate",
            "--parallel-max",
            "250",
            "--connect-timeout",
            "60",
        ]
        crowd = [process([*parallel, "http://198.51.100.1/?[1-250]"], netns=nat.hosts["inside"].name) for _ in range(4)]
        for curls in crowd:
            assert curls.wait(deadline_s=90) == 0, curls.output
            assert curls.output.split() == ["198.51.100.2"] * 250
        assert nat.rules() >= 2000


@pytest.mark.needs("iperf3")
def test_bulk_passes_both_ways(tmp_path: Path, netns: NetNS, process: ProcessOf) -> None:
    with nat_site(tmp_path, netns) as nat:
        server = process(["iperf3", "-s", "--forceflush"], netns=nat.hosts["outside"].name)
        for options in ([], ["-R"], ["-u", "-b", "5M"]):
            server.wait_for("listening")
            report = json.loads(
                nat.hosts["inside"].run("iperf3", "-J", "-t", "2", *options, "-c", "198.51.100.1", timeout_s=60)
            )
            assert "error" not in report, report["error"]
            end = report["end"]
            assert (end.get("sum_received") or end["sum"])["bits_per_second"] > 1e6


@pytest.mark.needs("traceroute")
def test_errors_about_what_it_translated_reach_who_asked(tmp_path: Path, netns: NetNS) -> None:
    with nat_site(tmp_path, netns) as nat:
        with nat.hosts["inside"].socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("198.51.100.1", 9))
            sock.send(b"is anybody there?")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(100)
        # Linux sends so few of these in a second.
        nat.hosts["outside"].run("sysctl", "-q", "-w", "net.ipv4.icmp_ratelimit=0")
        for method in ("-U", "-I", "-T"):
            traced = nat.hosts["inside"].run("traceroute", "-n", "-q1", "-w5", method, "198.51.100.1").splitlines()[1:]
            assert [line.split()[1] for line in traced] == ["10.0.0.1", "198.51.100.1"]


def test_a_conversation_ends_when_both_directions_are_silent(tmp_path: Path, netns: NetNS) -> None:
    with (
        nat_site(tmp_path, netns, "--set", "idle_s=1") as nat,
        nat.hosts["outside"].socket(kind=socket.SOCK_DGRAM) as server,
    ):
        server.bind(("198.51.100.1", 5000))
        with nat.hosts["inside"].socket(kind=socket.SOCK_DGRAM) as client:
            client.connect(("198.51.100.1", 5000))
            client.send(b"one")
            data, source = server.recvfrom(100)
            assert (data, source[0]) == (b"one", "198.51.100.2")
            server.sendto(b"two", source)
            assert client.recv(100) == b"two"
            assert nat.rules() == 2
            nat.window.wait(lambda now: now["flows"]["open"] == 0)
            client.send(b"three")
            data, again = server.recvfrom(100)
            assert data == b"three"
            assert again[1] != source[1], "a number that was given back waits its turn"
