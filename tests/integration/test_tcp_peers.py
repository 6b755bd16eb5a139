"""Linux peers that stop reading, die or disappear, and a VNF that stops reading: what waits waits, the others go on,
and what is lost is told and freed.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.bridge import Bridge, NetNS, Start
from tests.integration.bulk import MB, ask, digest, take
from tests.integration.test_tcp_bulk import bulk_bridge
from tests.peers import Process

pytestmark = pytest.mark.needs("dpdk-testpmd", "ip", "root")
ProcessOf = Callable[..., Process]
SIZE = 10 * MB


def connections(link: Bridge, enough: Callable[[int], bool]) -> None:
    """Waits until ``enough`` of the VNF's TCP connections."""
    link.window.wait(lambda now: enough(now["transports"]["port0"]["counters"]["tcp_connections"]))


def another_goes_on(link: Bridge) -> None:
    with link.namespace.socket() as other:
        ask(other, "10.0.0.2", f"send {MB}")
        assert take(other) == (MB, digest(MB))


def watch(process: ProcessOf, link: Bridge, what: str) -> Process:
    """tshark, which prints a line for each segment that is ``what``."""
    args = ["tshark", "-n", "-l", "-i", "dtap", "-Y", what]
    watching = process(args, netns=link.namespace.name)
    watching.wait_for("Capturing on")
    return watching


@pytest.mark.needs("tshark")
def test_a_linux_that_stops_reading_is_probed_and_gets_the_rest_later(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf
) -> None:
    with bulk_bridge(tmp_path, netns, testpmd) as (link, _):
        watching = watch(process, link, "tcp.analysis.zero_window")
        with link.namespace.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            ask(slow, "10.0.0.2", f"send {SIZE}")
            # Once when it closes; then in answer to each of our probes.
            for _ in range(3):
                watching.wait_for(r"10\.0\.0\.1 . 10\.0\.0\.2.*ZeroWindow\]")
            another_goes_on(link)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            assert take(slow) == (SIZE, digest(SIZE))


@pytest.mark.needs("tshark")
def test_a_vnf_that_stops_reading_closes_its_window_and_gets_the_rest_later(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf
) -> None:
    with bulk_bridge(tmp_path, netns, testpmd) as (link, orders):
        watching = watch(process, link, "tcp.analysis.zero_window")
        command = (
            "import sys; sys.path.insert(0, sys.argv[1]); import socket; from tests.integration import bulk; "
            f"s = bulk.ask(socket.socket(), '10.0.0.2', 'hold'); print(bulk.send(s, {SIZE}))"
        )
        sender = process(["python3", "-c", command, Path(__file__).parents[2]], netns=link.namespace.name)
        for _ in range(3):
            watching.wait_for(r"10\.0\.0\.2 . 10\.0\.0\.1.*ZeroWindow\]")
        another_goes_on(link)
        orders.give("release")
        assert orders.answer() == "released"
        sender.wait_for(f"^{digest(SIZE)}$")
        assert sender.wait() == 0


def test_a_linux_process_that_is_killed_resets_and_frees_its_connection(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf
) -> None:
    """With bytes unread, and our bytes on their way: a reset, told to the VNF at once."""
    with bulk_bridge(tmp_path, netns, testpmd) as (link, _):
        command = (
            f"import socket; s = socket.create_connection(('10.0.0.2', 47000)); s.sendall(b'send {SIZE}\\n'); "
            "s.recv(1000); print('reading', flush=True); input()"
        )
        victim = process(["python3", "-c", command], netns=link.namespace.name)
        victim.wait_for("reading")
        connections(link, lambda count: count == 1)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        connections(link, lambda count: count == 0)
        assert link.window.counters("port0")["rx_tcp_reset"] >= 1
        another_goes_on(link)


def test_a_link_that_is_cut_frees_its_connections_after_the_user_timeout(
    tmp_path: Path, netns: NetNS, testpmd: Start
) -> None:
    with bulk_bridge(tmp_path, netns, testpmd, keys="tcp_user_timeout_s=2") as (link, _):
        with link.namespace.socket() as lost:
            ask(lost, "10.0.0.2", f"send {100 * MB}")
            assert lost.recv(1000)
            connections(link, lambda count: count == 1)
            link.namespace.run("ip", "link", "set", "dtap", "down")
            connections(link, lambda count: count == 0)
            assert link.window.counters("port0")["tcp_timeout"] == 1
            link.namespace.run("ip", "link", "set", "dtap", "up")
            another_goes_on(link)
