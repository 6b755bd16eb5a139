"""``--capture FILE``: what a VNF's and the load tool's ports carry, as tshark reads it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import DEADLINE_S, Process

ROOT = Path(__file__).parents[2]
ECHO = """
from libvnf import VNF
vnf = VNF("b")

@vnf.server("udp://:5000")
def echo(conn, request, packet):
    conn.send(packet)
"""


def vnf(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "libvnf", *args],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )


def fields(capture: Path, *names: str) -> list[list[str]]:
    command = ["tshark", "-n", "-r", str(capture), "-Tfields", *(word for name in names for word in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.fixture
def serve(vnf_run: Callable[..., Process], tmp_path: Path) -> Callable[..., Process]:
    (tmp_path / "b.py").write_text(ECHO)

    def run(capture: str) -> Process:
        options = ["--transport", f"memif:{tmp_path}/b.memif,address=10.0.0.2/24,name=data0", "--capture", capture]
        return vnf_run(tmp_path / "b.py", *options, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})

    return run


LOAD = ["load", "udp://10.0.0.2:5000", "--size", "100", "--warmup", "0", "--duration", "0.2", "--rate", "1000"]


@pytest.mark.needs("tshark")
def test_both_ends_have_every_frame_in_both_directions(
    serve: Callable[..., Process], tshark_check: Callable[[Path], int], tmp_path: Path
) -> None:
    child = serve("b.pcapng")
    done = vnf(tmp_path, *LOAD, "--transport", f"memif:{tmp_path}/b.memif,address=10.0.0.1/24", "--capture", "a.pcapng")
    assert done.returncode == 0, done.stderr
    assert child.stop() == 0
    assert "WARNING" not in child.output
    assert (tmp_path / "b.pcapng").stat().st_mode & 0o777 == 0o600
    assert tshark_check(tmp_path / "a.pcapng") == tshark_check(tmp_path / "b.pcapng")
    seen: dict[str, list[list[str]]] = {}
    for name in ("a", "b"):
        rows = fields(
            tmp_path / f"{name}.pcapng",
            "udp.dstport",
            "udp.length",
            "frame.interface_name",
            "frame.packet_flags_direction",
        )
        seen[name] = [row for row in rows if row[0]]
    requests = sum(row[0] == "5000" for row in seen["b"])
    assert requests > 10
    assert len(seen["b"]) == len(seen["a"]) == 2 * requests
    assert {row[1] for row in seen["b"]} == {"108"}
    assert {row[2] for row in seen["b"]} == {"data0"}
    # 1: inbound, 2: outbound.
    directions = {name: {(row[0] == "5000", int(row[3], 0)) for row in rows} for name, rows in seen.items()}
    assert directions == {"a": {(True, 2), (False, 1)}, "b": {(True, 1), (False, 2)}}


def test_a_pipe_that_nobody_reads_on_costs_frames_and_is_told(serve: Callable[..., Process], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        child = serve("pipe")
        load = [*LOAD[:-2], "--outstanding", "64"]
        # More than the pipe and the waiting room hold.
        load[load.index("--duration") + 1] = "2"
        load[load.index("--size") + 1] = "1400"
        done = vnf(tmp_path, *load, "--transport", f"memif:{tmp_path}/b.memif,address=10.0.0.1/24")
        assert done.returncode == 0, done.stderr
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0
        child.wait_for(r"WARNING vnf\.capture: pipe lacks [\d,]+ frames")
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("missing/b.pcapng", "No such file or directory"),
        (".", "Is a directory"),
        ("/dev/full", "No space left on device"),
        ("pipe", "a pipe that nobody reads"),
    ],
)
def test_a_file_that_cannot_be_is_one_clear_line(tmp_path: Path, file: str, words: str) -> None:
    (tmp_path / "b.py").write_text(ECHO)
    os.mkfifo(tmp_path / "pipe")
    port = "memif:b.memif,address=10.0.0.2/24"
    done = vnf(tmp_path, "run", "b.py", "--transport", port, "--capture", file)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"--capture {file}: {words}\n")
    assert not (tmp_path / "b.memif").exists()
    done = vnf(tmp_path, *LOAD, "--transport", port, "--capture", file)
    assert done.returncode == 2
    assert f"--capture {file}: {words}" in done.stderr


def test_kernel_sockets_are_not_captured(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(ECHO)
    words = "there is no port: what comes over kernel sockets, tcpdump records\n"
    done = vnf(tmp_path, "run", "b.py", "--capture", "b.pcapng")
    assert (done.returncode, done.stderr) == (2, f"--capture: {words}")
    done = vnf(tmp_path, *LOAD, "--capture", "b.pcapng")
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "b.pcapng").exists()
