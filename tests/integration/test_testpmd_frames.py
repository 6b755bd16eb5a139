"""DPDK's testpmd gives back the frames that the frame generator sends it, over every feature of memif: several queues,
interfaces that share a socket, rings of all sizes, frames longer than a buffer, and the modes in which it changes them.
What comes back is compared byte by byte, and nothing may be missing.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from libvnf import _native
from tests.peers import DEADLINE_S, Testpmd

pytestmark = pytest.mark.needs("dpdk-testpmd")

Start = Callable[..., Testpmd]
OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
FLOWS = 200


class Generator(threading.Thread):
    """Sends ``frame`` until it is ended; then ``report`` says what came back."""

    def __init__(self, ports: list[str], frame: bytes, **options: object) -> None:
        super().__init__(name="frames", daemon=True)
        defaults = {"outstanding": 16, "duration_s": 600.0, "warmup_s": 0.0, "timeout_s": DEADLINE_S, "expect": frame}
        self._options = {**defaults, "ports": ports, "frame": frame, **options}
        self._enough, self._ending = threading.Event(), threading.Event()
        self._outcome: dict[str, Any] | BaseException | None = None

    def run(self) -> None:
        try:
            self._outcome = _native.generate_frames(self._options, self._progress)
        except BaseException as error:
            self._outcome = error
        self._enough.set()

    def _progress(self, now: dict[str, Any]) -> bool:
        if now["received"] >= 10 * FLOWS:
            self._enough.set()
        return self._ending.is_set()

    def wait_enough(self, pmd: Testpmd) -> None:
        """Until every flow has come back several times."""
        until = time.monotonic() + DEADLINE_S
        while not self._enough.wait(0.1):
            if has_crashed(pmd):
                raise PeerCrashed
            assert time.monotonic() < until, "frames do not come back"

    def end(self) -> dict[str, Any]:
        self._ending.set()
        self.join(DEADLINE_S)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None, "the generator does not end"
        return self._outcome


class PeerCrashed(Exception):
    """DPDK 22.11's threads for interrupts and for frames touch a memif port that the other one is just setting up or
    tearing down; now and then that is a segmentation fault of testpmd's.
    """


def has_crashed(pmd: Testpmd) -> bool:
    state = os.waitid(os.P_PID, pmd.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return state is not None and state.si_status == signal.SIGSEGV


def despite_crashes(tmp_path: Path, attempt: Callable[[Path], None]) -> None:
    """Once more, in a directory of its own, when it was testpmd that crashed."""
    for number in range(4):
        (directory := tmp_path / str(number)).mkdir()
        try:
            return attempt(directory)
        except PeerCrashed:
            continue
    raise AssertionError("testpmd crashes each time")


@contextmanager
def exchange(
    testpmd: Start, devices: list[str], sockets: list[Path], ports: list[str], frame: bytes, **options: Any
) -> Iterator[tuple[Generator, Testpmd]]:
    """testpmd and the generator, talking. Whoever listens is there first."""
    # At its start it would throw away what has come already.
    forward, more = options.pop("forward", "io"), "--no-flush-rx " + options.pop("options", "--port-topology=loop")
    generator = Generator(ports, frame, **options)
    try:
        if any("role=server" in port for port in ports):
            generator.start()
            while not all(map(Path.exists, sockets)):
                assert generator.is_alive(), generator.end()
            pmd = testpmd(*devices, forward=forward, options=more, cpu=1)
        else:
            pmd = testpmd(*devices, forward=forward, options=more, cpu=1)
            generator.start()
        generator.wait_enough(pmd)
        yield generator, pmd
        try:
            report = generator.end()
        except OSError:
            if has_crashed(pmd):
                raise PeerCrashed from None
            raise
        assert (report["received"], report["other"]) == (report["sent"], 0), report
        pmd.stop(grace_s=1)  # a DPDK server that has lost a client hangs on its way out
    finally:
        generator._ending.set()
        generator.join(DEADLINE_S)


def talk(testpmd: Start, tmp_path: Path, role: str, frame: Packet | bytes, keys: str = "", **options: Any) -> None:
    """One interface, there and back. ``role`` is ours."""
    theirs = {key: options.pop(key) for key in ("ring_log2", "buffer_bytes") if key in options}

    def attempt(directory: Path) -> None:
        path = directory / "m.sock"
        device = Testpmd.memif(path, role="client" if role == "server" else "server", **theirs)
        with exchange(testpmd, [device], [path], [f"memif:{path},role={role}{keys}"], bytes(frame), **options):
            pass

    despite_crashes(tmp_path, attempt)


def datagram(size: int = 60) -> Packet:
    headers = Ether(src=OURS, dst=THEIRS) / IP(src="10.0.0.0", dst="192.0.2.1") / UDP(sport=1024, dport=9)
    return Ether(bytes(headers / os.urandom(size - len(headers))))


both_roles = pytest.mark.parametrize("role", ["server", "client"])


@both_roles
@pytest.mark.parametrize("queues", [3])
def test_flows_spread_over_queues_and_all_come_back(tmp_path: Path, testpmd: Start, role: str, queues: int) -> None:
    path = tmp_path / "m.sock"
    device = Testpmd.memif(path, role="client" if role == "server" else "server")
    ports = [f"memif:{path},role={role},queues={queues if role == 'client' else 1}"]
    options = f"--port-topology=loop --rxq={queues} --txq={queues}"
    frame = bytes(datagram())
    with exchange(testpmd, [device], [path], ports, frame, flows=FLOWS, options=options) as (_, pmd):
        found = pmd.command("show fwd stats all")
        streams = re.findall(r"RX Port= 0/Queue= *(\d+) .*?RX-packets: *(\d+)", found, re.S)
        assert len(streams) == queues, found
        each = [int(packets) for _, packets in streams]
        assert min(each) > sum(each) / queues / 2, found


@both_roles
@pytest.mark.parametrize("log2", [1, 5, 14])
def test_rings_of_all_sizes(tmp_path: Path, testpmd: Start, role: str, log2: int) -> None:
    # What testpmd cannot send at once it drops.
    at_once = min(16, 2**log2 // 2)
    talk(testpmd, tmp_path, role, datagram(), f",ring_slots={2**log2}", ring_log2=log2, outstanding=at_once)


@both_roles
@pytest.mark.parametrize("size", [42, 65, 2048])
def test_frames_of_all_sizes(tmp_path: Path, testpmd: Start, role: str, size: int) -> None:
    talk(
        testpmd,
        tmp_path,
        role,
        datagram(size),
        ",mtu=9000",
        flows=FLOWS,
        options="--port-topology=loop --mbuf-size=4096",
    )


@both_roles
@pytest.mark.parametrize("size", [9014])
def test_long_frames_in_one_buffer(tmp_path: Path, testpmd: Start, role: str, size: int) -> None:
    keys = ",mtu=9000,buffer_bytes=10240,ring_slots=256"
    options = "--port-topology=loop --mbuf-size=10496"
    talk(testpmd, tmp_path, role, datagram(size), keys, ring_log2=8, buffer_bytes=10240, options=options)


@both_roles
@pytest.mark.parametrize("size", [2049, 9014])
def test_long_frames_in_chains_of_buffers(tmp_path: Path, testpmd: Start, role: str, size: int) -> None:
    options = "--port-topology=loop --mbuf-size=10496"
    talk(testpmd, tmp_path, role, datagram(size), ",mtu=9000,buffer_bytes=2048", options=options)


@both_roles
def test_interfaces_share_a_socket(tmp_path: Path, testpmd: Start, role: str) -> None:
    frame, other = bytes(datagram()), "client" if role == "server" else "server"
    paired = {"both_ways": True, "options": "--port-topology=paired"}

    def attempt(directory: Path) -> None:
        path = directory / "m.sock"
        devices = [Testpmd.memif(path, role=other, id=number) for number in (3, 5)]
        ports = [f"memif:{path},role={role},id={number}" for number in (3, 5)]
        with exchange(testpmd, devices, [path], ports, frame, **paired) as (_, pmd):
            assert all(pmd.counters(port)["RX-packets"] > 0 for port in (0, 1))

    despite_crashes(tmp_path, attempt)


@both_roles
def test_macswap(tmp_path: Path, testpmd: Start, role: str) -> None:
    frame = datagram()
    swapped = frame.copy()
    swapped.src, swapped.dst = frame.dst, frame.src
    talk(testpmd, tmp_path, role, frame, forward="macswap", expect=bytes(swapped), flows=FLOWS)


@both_roles
def test_5tswap(tmp_path: Path, testpmd: Start, role: str) -> None:
    frame = datagram()
    swapped = frame.copy()
    swapped.src, swapped.dst = frame.dst, frame.src
    swapped[IP].src, swapped[IP].dst = frame[IP].dst, frame[IP].src
    swapped[UDP].sport, swapped[UDP].dport = frame[UDP].dport, frame[UDP].sport
    talk(testpmd, tmp_path, role, frame, forward="5tswap", expect=bytes(swapped))


@both_roles
def test_icmpecho_answers_ping(tmp_path: Path, testpmd: Start, role: str) -> None:
    ping = Ether(src=OURS, dst=THEIRS) / IP(src="10.0.0.1", dst="10.0.0.2", id=7) / ICMP(id=5, seq=9) / os.urandom(40)
    answer = Ether(src=THEIRS, dst=OURS) / IP(src="10.0.0.2", dst="10.0.0.1", id=7) / ICMP(type=0, id=5, seq=9)
    talk(testpmd, tmp_path, role, ping, forward="icmpecho", expect=bytes(answer / ping[ICMP].payload))
