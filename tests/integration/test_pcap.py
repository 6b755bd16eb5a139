"""Captures as ports: what tshark and scapy write is replayed to a VNF, what the VNF writes is read by them."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import PcapNgWriter, PcapWriter, rdpcap

from libvnf import VNF, ConfigError
from libvnf.config import parse_transport
from tests.integration.bridge import ECHO
from tests.integration.inspection import Window
from tests.integration.programs import QUICK, ROOT, running
from tests.peers import DEADLINE_S

OURS, THEIRS = "02:00:00:00:00:02", "02:00:00:00:00:01"
Check = Callable[[Path], int]


def question(number: int) -> Packet:
    """To the VNF's echo server, over IPv4 and IPv6 in turn."""
    ip = IP(src="10.0.0.1", dst="10.0.0.2") if number % 2 else IPv6(src="fd00::1", dst="fd00::2")
    made = Ether(src=THEIRS, dst=OURS) / ip / UDP(sport=4000, dport=5000) / (b"question %d " % number + bytes(number))
    made.time = 1_700_000_000 + number / 1000
    return made


def capture(path: Path, count: int = 100) -> list[bytes]:
    """Its payloads."""
    questions = [question(number) for number in range(count)]
    writer = PcapNgWriter(str(path)) if path.suffix == ".pcapng" else PcapWriter(str(path), nano="nano" in path.name)
    for one in questions:
        writer.write(one)
    writer.close()
    return [bytes(one[UDP].payload) for one in questions]


def replayed(
    tmp_path: Path, source: Path, target: Path, *, keys: str = "", wanted: str = "tx_udp", count: int
) -> dict[str, int]:
    """The VNF's counters, once ``count`` are counted as ``wanted``."""
    transport = f"pcap:{source},{target},mac={OURS},address=10.0.0.2/24,address=fd00::2/64{keys}"
    window = tmp_path / "window.sock"
    sets = ["--set", f"window={window}", *QUICK]
    with running(tmp_path, ECHO, "--transport", transport, *sets):
        look = Window(window)
        try:
            now = look.wait(lambda now: now["transports"]["port0"]["counters"][wanted] >= count)
        finally:
            look.close()
        found: dict[str, int] = now["transports"]["port0"]["counters"]
        return found


@pytest.mark.needs("tshark")
@pytest.mark.parametrize("source", ["micro.pcap", "nano.pcap", "in.pcapng"])
@pytest.mark.parametrize("target", ["out.pcap", "out.pcapng"])
def test_questions_of_a_capture_are_answered_into_another(
    tmp_path: Path, tshark_check: Check, source: str, target: str
) -> None:
    asked = capture(tmp_path / source)
    counters = replayed(tmp_path, tmp_path / source, tmp_path / target, count=100)
    assert (counters["rx_frames"], counters["rx_udp"], counters["plays"]) == (100, 100, 1)
    assert tshark_check(tmp_path / target) == counters["tx_frames"]
    answers = [one for one in rdpcap(str(tmp_path / target)) if UDP in one and one[UDP].sport == 5000]
    assert [bytes(one[UDP].payload) for one in answers] == asked
    assert {(one.src, one.dst, one[UDP].dport) for one in answers} == {(OURS, THEIRS, 4000)}


@pytest.mark.needs("tshark", "capinfos", "editcap")
@pytest.mark.parametrize("form", ["pcap", "nsecpcap", "pcapng"])
def test_what_editcap_writes_is_read_and_what_is_written_capinfos_reads(tmp_path: Path, form: str) -> None:
    asked = capture(tmp_path / "in.pcap")
    subprocess.run(["editcap", "-F", form, tmp_path / "in.pcap", tmp_path / "edited"], check=True, timeout=DEADLINE_S)
    replayed(tmp_path, tmp_path / "edited", tmp_path / "out.pcapng", count=len(asked))
    report = subprocess.run(["capinfos", tmp_path / "out.pcapng"], capture_output=True, text=True, timeout=DEADLINE_S)
    assert report.returncode == 0 and "pcapng" in report.stdout and "Ethernet" in report.stdout, report
    assert "Name = port0" in report.stdout and "nanoseconds (9)" in report.stdout, report.stdout


def test_recorded_frames_keep_their_distance(tmp_path: Path) -> None:
    """A hundred frames, a millisecond apart."""
    capture(tmp_path / "in.pcap")
    counters = replayed(tmp_path, tmp_path / "in.pcap", tmp_path / "out.pcapng", keys=",pace=recorded", count=100)
    assert counters["rx_frames"] == 100
    times = [float(one.time) for one in rdpcap(str(tmp_path / "out.pcapng")) if UDP in one]
    # No frame leaves before its time; how much later is the machine's business.
    assert times[-1] - times[0] > 0.09


def test_a_capture_is_repeated_until_the_vnf_ends(tmp_path: Path) -> None:
    capture(tmp_path / "in.pcap", 10)
    counters = replayed(tmp_path, tmp_path / "in.pcap", tmp_path / "out.pcap", keys=",repeat=true", count=1000)
    assert counters["plays"] >= 99
    assert counters["rx_frames"] >= 1000


def test_a_cut_and_a_truncated_capture_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    capture(tmp_path / "in.pcap", 60)
    whole = (tmp_path / "in.pcap").read_bytes()
    (tmp_path / "short.pcap").write_bytes(whole[:-7])
    counters = replayed(tmp_path, tmp_path / "short.pcap", tmp_path / "out.pcap", count=59)
    assert (counters["rx_frames"], counters["rx_truncated"], counters["plays"]) == (59, 1, 1)
    # Frames that a capture cut are too short for what their headers say.
    subprocess.run(["editcap", "-s", "70", tmp_path / "in.pcap", tmp_path / "cut.pcap"], check=True, timeout=DEADLINE_S)
    counters = replayed(tmp_path, tmp_path / "cut.pcap", tmp_path / "out.pcap", wanted="plays", count=1)
    assert counters["rx_cut"] > 40
    assert counters["rx_cut"] == counters["drop_truncated"]


async def test_mutated_captures_are_read_as_far_as_they_go_or_refused(tmp_path: Path) -> None:
    capture(tmp_path / "in.pcapng", 20)
    whole = (tmp_path / "in.pcapng").read_bytes()
    bad, refused, read = tmp_path / "bad.pcapng", 0, 0
    for at in range(0, 400, 4):
        for value in (b"\xff\xff\xff\x7f", b"\x01\x00\x00\x00"):
            bad.write_bytes(whole[:at] + value + whole[at + 4 :])
            vnf = VNF("b", program=False)
            try:
                await vnf.start([parse_transport(f"pcap:{bad},address=10.0.0.2/24", {})])
            except ConfigError as error:
                refused += 1
                assert "bad.pcapng" in str(error) and "\n" not in str(error)
                continue
            try:
                async with asyncio.timeout(DEADLINE_S):
                    while vnf.statistics()["transports"]["port0"]["link"] == "up":  # noqa: ASYNC110 — no event tells
                        await asyncio.sleep(0)
            finally:
                await vnf.close()
            read += 1
    assert refused > 5 and read > 50


def run(tmp_path: Path, transport: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "b.py").write_text("from libvnf import VNF\n\nvnf = VNF('b')\n")
    return subprocess.run(
        [sys.executable, "-m", "libvnf", "run", "b.py", "--transport", transport],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text", b"not a capture", "text: is no capture: begins with [6e, 6f, 74, 20], neither pcap nor pcapng"),
        ("empty", b"", "empty: is empty"),
        ("packed.gz", b"\x1f\x8b\x08\0", "packed.gz: is compressed: unpack it first (gunzip)"),
        ("short", b"\xd4\xc3\xb2\xa1\2\0\4\0", "short: ends after 8 bytes, within its header"),
        ("raw", bytes.fromhex("d4c3b2a1020004000000000000000000ffff000065000000"), "raw: has link type 101"),
        ("missing", None, "missing: No such file or directory"),
        ("", None, "is not a file"),
    ],
)
def test_what_is_no_capture_is_one_line_and_nothing_is_made(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    done = run(tmp_path, f"pcap:{tmp_path / name},{tmp_path}/out.pcap")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert words in done.stderr
    assert sorted(path for path in tmp_path.iterdir() if path.name != "b.py") == before


def test_an_output_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    capture(tmp_path / "in.pcap", 1)
    for target, words in (("no/such/out.pcap", "No such file"), ("in.pcap", "is read already")):
        done = run(tmp_path, f"pcap:{tmp_path}/in.pcap,{tmp_path}/{target}")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        assert re.search(words, done.stderr)
