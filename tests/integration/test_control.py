"""``vnf ports`` and VNFs as processes: found, asked, killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libvnf.control import NoAnswer, Refused, find
from tests.peers import DEADLINE_S, Process

ROOT = Path(__file__).parents[2]
SOURCE = """
from libvnf import VNF, Fixed
vnf = VNF("b")

@vnf.server("udp://:5000?port=data0")
def echo(conn, request, packet):
    conn.send(packet)

@vnf.server("tcp://:0?port=kernel", framing=Fixed(4))
def block(conn, request, packet):
    print("held", flush=True)
    open("go").read()
"""


def vnf(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "libvnf", *args],
        env=environment(directory),
        cwd=directory.parent,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
    )


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "VNF_CONTROL": str(directory)}


@pytest.fixture
def start(vnf_run: Callable[..., Process], tmp_path: Path) -> Callable[[], Process]:
    """The VNF ``b`` on memif and kernel sockets; its control socket in ``tmp_path/c``."""
    (tmp_path / "b.py").write_text(SOURCE)

    def run() -> Process:
        port = f"memif:{tmp_path}/b.memif,address=10.0.0.2/24,name=data0"
        options = ["--transport", port, "--transport", "kernel"]
        return vnf_run(tmp_path / "b.py", *options, env=environment(tmp_path / "c"), cwd=tmp_path)

    return run


def told(directory: Path, *args: str) -> list[dict[str, Any]]:
    done = vnf(directory, "ports", "--json", "--interval", "0.1", *args)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_ports_of_a_running_vnf_are_told(start: Callable[[], Process], tmp_path: Path) -> None:
    child = start()
    [b] = told(tmp_path / "c", "b")
    assert (b["vnf"], b["pid"]) == ("b", child.pid)
    data0, kernel = b["ports"]
    assert (data0["name"], data0["type"], data0["addresses"]) == ("data0", "memif", ["10.0.0.2/24"])
    assert data0["link"].startswith("waiting for a client")
    assert (kernel["name"], kernel["type"], kernel["place"]) == ("kernel", "kernel", "kernel")
    shown = vnf(tmp_path / "c", "ports", str(child.pid), "--interval", "0.1").stdout
    assert shown.startswith(f"b (pid {child.pid}): up ")
    assert f"memif:{tmp_path}/b.memif" in shown
    assert child.stop() == 0
    assert list((tmp_path / "c").iterdir()) == []


def test_a_drop_has_its_reason(start: Callable[[], Process], tmp_path: Path) -> None:
    start()
    load = ["--transport", f"memif:{tmp_path}/b.memif,address=10.0.0.1/24", "--warmup", "0", "--duration", "0.1"]
    vnf(tmp_path / "c", "load", "udp://10.0.0.2:5001", *load)
    [b] = told(tmp_path / "c")
    assert b["ports"][0]["drops"]["drop_no_listener"] >= 1
    assert "drop_no_listener" in vnf(tmp_path / "c", "ports", "--interval", "0.1").stdout


def test_a_killed_vnf_is_not_found_and_its_file_removed(start: Callable[[], Process], tmp_path: Path) -> None:
    child = start()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [path.name for path in (tmp_path / "c").iterdir()] == [f"b.{child.pid}.sock"]
    done = vnf(tmp_path / "c", "ports", "b")
    line = "b: no VNF of that name or pid runs here; running: none\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert list((tmp_path / "c").iterdir()) == []


def test_a_held_loop_is_told_from_a_dead_vnf(start: Callable[[], Process], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    child = start()
    port = int(next(line for line in child.output.splitlines() if "127.0.0.1" in line).split()[2].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
        sock.sendall(b"hold")
        child.wait_for("^held")
        done = vnf(tmp_path / "c", "ports", "b")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"b (pid {child.pid}) does not answer within 5 s: a handler holds its loop, or it is stopped\n"
        )
        (tmp_path / "go").write_text("")


def test_a_vnf_without_a_control_socket_serves_and_says_so_once(start: Callable[[], Process], tmp_path: Path) -> None:
    (tmp_path / "c").write_text("no directory")
    child = start()
    assert child.stop() == 0
    warnings = [line for line in child.output.splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert "vnf ports and vnf trace will not find this VNF: no control socket: " in warnings[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_ends_with_a_signal(
    start: Callable[[], Process], process: Callable[..., Process], tmp_path: Path, number: signal.Signals
) -> None:
    start()
    command = [sys.executable, "-m", "libvnf", "ports", "--watch", "--json", "--interval", "0.1"]
    watching = process(command, env=environment(tmp_path / "c"))
    for _ in range(3):
        [b] = json.loads(watching.wait_for(r"^(\[.*\])$")[1])
        assert b["vnf"] == "b"
    watching.send_signal(number)
    assert watching.wait() == 0
    assert "Traceback" not in watching.output


def test_a_trace_tells_what_became_of_packets(
    start: Callable[[], Process], process: Callable[..., Process], tmp_path: Path
) -> None:
    child = start()
    command = [sys.executable, "-m", "libvnf", "trace", "b", "--count", "4"]
    tracing = process(command, env=environment(tmp_path / "c"))
    # Not begun before the VNF says that it is asked: the load goes on until the trace has all it wants.
    load = ["load", "udp://10.0.0.2:5000", "--transport", f"memif:{tmp_path}/b.memif,address=10.0.0.1/24"]
    loading = process(
        [sys.executable, "-m", "libvnf", *load, "--warmup", "0", "--duration", "60"], env=environment(tmp_path / "c")
    )
    tracing.wait_for(r"^4 .*  data0  10\.0\.0\.1:\d+ > 10\.0\.0\.2:5000 UDP 170 bytes$")
    tracing.wait_for(r"^       handler echo$")
    tracing.wait_for(r"^       > data0  10\.0\.0\.2:5000 > 10\.0\.0\.1:\d+ UDP 170 bytes$")
    assert tracing.wait() == 0
    [b] = told(tmp_path / "c")
    assert (b["ports"][0]["link"], b["ports"][0]["peer"]) == ("up", "load")
    loading.send_signal(signal.SIGINT)
    assert loading.wait() == 0
    assert "errors" not in loading.output.splitlines()
    assert child.stop() == 0


def test_a_trace_ends_with_who_asked_for_it_and_with_its_vnf(
    start: Callable[[], Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start()
    monkeypatch.setenv("VNF_CONTROL", str(tmp_path / "c"))
    [peer] = find("b")

    def asks() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE_S)
        sock.connect(str(peer.path))
        sock.sendall(b'{"ask": "trace", "count": 1}\n')
        with pytest.raises(Refused, match="another trace runs"):
            peer.ask("trace", count=1)
        return sock

    asks().close()
    # Who waits for a packet in vain is not refused any more.
    with pytest.raises(NoAnswer, match="does not answer within"):
        while True:
            with contextlib.suppress(Refused):
                peer.ask("trace", 0.2, count=1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with pytest.raises(NoAnswer, match="does not answer: Connection refused"):
        peer.ask("trace", count=1)


def test_a_bridge_is_asked_as_a_vnf_is(process: Callable[..., Process], tmp_path: Path) -> None:
    ports = [f"memif:{tmp_path}/{name}.memif" for name in "ab"]
    bridging = process([sys.executable, "-m", "libvnf", "bridge", *ports], env=environment(tmp_path / "c"))
    bridging.wait_for("^bridging ")
    [found] = told(tmp_path / "c", "bridge")
    assert [port["place"] for port in found["ports"]] == ports
    assert found["ports"][0]["link"].startswith("waiting for a client")
    shown = vnf(tmp_path / "c", "ports", "--interval", "0.1").stdout
    assert re.match(rf"bridge \(pid {bridging.pid}\): up \d+ s\n  port ", shown)
    done = vnf(tmp_path / "c", "trace", "bridge")
    words = f"bridge (pid {bridging.pid}): a bridge passes packets on unseen: --capture writes them to a file\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", words)
    assert bridging.stop() == 0
    assert list((tmp_path / "c").iterdir()) == []
