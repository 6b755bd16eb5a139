"""The fixtures themselves: a peer that lies about having ended, or a check that finds nothing, would hide defects."""

import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from tests.peers import DEADLINE_S, Namespace, Process, Testpmd


def test_a_process_is_waited_for_by_what_it_prints(process: Callable[..., Process]) -> None:
    child = process([sys.executable, "-uc", "print('up 7'); print('echo ' + input())"])
    assert child.wait_for(r"^up (\d+)$")[1] == "7"
    child.write("hello\n")
    child.wait_for("^echo hello$")
    assert child.wait() == 0


def test_a_process_that_ends_early_says_what_it_printed(process: Callable[..., Process]) -> None:
    child = process([sys.executable, "-c", "raise SystemExit('no such port')"])
    with pytest.raises(AssertionError, match=r"it ended without printing(?s:.*)no such port"):
        child.wait_for("listening")


def test_a_process_that_ignores_sigterm_is_killed(process: Callable[..., Process]) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    child = process([sys.executable, "-c", code])
    child.wait_for("up")
    assert child.stop(grace_s=0.1) == -signal.SIGKILL


def test_what_a_process_leaves_behind_dies_with_it(process: Callable[..., Process]) -> None:
    code = "import os, signal\nif pid := os.fork(): print('left', pid, flush=True)\nelse: signal.pause()"
    child = process([sys.executable, "-c", code])
    left = os.pidfd_open(int(child.wait_for(r"left (\d+)")[1]))
    try:
        assert child.wait() == 0
        assert select.select([left], [], [], DEADLINE_S)[0], "it lives on"
    finally:
        os.close(left)


def test_free_ports_differ(free_port: Callable[[], int]) -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == len(ports)


def test_a_namespace_is_a_host_of_its_own(netns: Callable[[], Namespace]) -> None:
    here, there = netns(), netns()
    assert here.name != there.name
    assert "127.0.0.1" in here.run("ip", "address", "show", "lo")
    assert here.run("ip", "-o", "link").count("\n") == 1
    with pytest.raises(AssertionError, match="ended with 3"):
        there.run("sh", "-c", "exit 3")


def test_testpmd_answers_with_its_counters(testpmd: Callable[..., Testpmd], tmp_path: Path) -> None:
    listening = testpmd(Testpmd.memif(tmp_path / "m.sock", role="server"), forward="rxonly")
    assert listening.counters()["RX-packets"] == 0
    sending = testpmd(Testpmd.memif(tmp_path / "m.sock", role="client"), forward="txonly", options="--txpkts=60")
    assert listening.wait_counters(lambda now: now["RX-packets"] >= 1000)["RX-errors"] == 0
    assert sending.counters()["TX-packets"] >= 1000


def test_a_bad_checksum_does_not_pass(tshark_check: Callable[[Path], int], tmp_path: Path) -> None:
    sound = Ether(dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9, dport=9) / b"payload"
    wrpcap(str(tmp_path / "sound.pcap"), [sound, sound])
    assert tshark_check(tmp_path / "sound.pcap") == 2
    for name, layer in (("ip", IP), ("udp", UDP)):
        broken = sound.copy()
        broken[layer].chksum = 0x1234
        wrpcap(str(tmp_path / f"{name}.pcap"), [sound, broken])
        with pytest.raises(AssertionError, match="finds fault"):
            tshark_check(tmp_path / f"{name}.pcap")


def test_a_truncated_frame_does_not_pass(tshark_check: Callable[[Path], int], tmp_path: Path) -> None:
    sound = bytes(
        Ether(dst="02:00:00:00:00:02") / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=9, dport=9) / b"payload"
    )
    wrpcap(str(tmp_path / "short.pcap"), [Ether(sound[:36])])
    with pytest.raises(AssertionError, match="finds fault"):
        tshark_check(tmp_path / "short.pcap")
