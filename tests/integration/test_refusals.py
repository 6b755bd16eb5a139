"""What cannot work is refused in one clear line with exit code 2, and leaves nothing behind; what a signal ends is
taken away as well.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.memif import Client
from tests.integration.programs import ROOT, running
from tests.integration.station import Station
from tests.peers import DEADLINE_S

ECHO = """
from libvnf import VNF

vnf = VNF("b")

@vnf.server("udp://:{port}")
def echo(conn, request, packet):
    conn.send(packet)
"""


def refused(directory: Path, *arguments: str) -> str:
    """The one line that ``vnf run`` prints before it exits with 2; the directory is as it was."""
    before = sorted(directory.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "libvnf", "run", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert sorted(directory.iterdir()) == before
    return done.stderr


MEMIF = "memif:{here}/m.sock,address=10.0.0.2/24"
SECRET = "longer than twenty-four bytes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--transport", "mumif:x"], ["mumif", "memif"]),
        (["--transport", "quantum"], ["quantum", "expected kernel, memif"]),
        (["--transport", "memif"], ["memif"]),
        (["--transport", "memif:{here}/m.sock"], ["address"]),
        (["--transport", MEMIF + ",adress=1.2.3.4"], ["adress", "address"]),
        (["--transport", "memif:{here}/m.sock,address=10.0.0.2/33"], ["10.0.0.2/33"]),
        (["--transport", "memif:{here}/m.sock,address=nowhere"], ["nowhere"]),
        (["--transport", MEMIF + ",role=king"], ["role", "king", "server"]),
        (["--transport", MEMIF + ",id=-1"], ["id", "-1"]),
        (["--transport", MEMIF + ",ring_slots=1000"], ["ring_slots", "1000"]),
        (["--transport", MEMIF + ",mtu=99999"], ["mtu", "99999"]),
        (["--transport", MEMIF + ",mac=ff:ff:ff:ff:ff:ff"], ["mac", "ff:ff:ff:ff:ff:ff"]),
        (["--transport", MEMIF + ",secret=" + SECRET], ["secret"]),
        (["--transport", MEMIF + ",mtu=1,secret=" + SECRET], ["mtu", "secret=…"]),
        (["--transport", "memif:{here}/" + "x" * 120 + ",address=10.0.0.2/24"], ["x" * 120]),
        (["--transport", "memif:{here}/no/such/m.sock,address=10.0.0.2/24"], ["no/such/m.sock"]),
        (["--transport", MEMIF, "--transport", MEMIF], ["m.sock"]),
        (["--set", "nothing=1"], ["nothing"]),
        (["--set", "limits.idle_s=soon"], ["idle_s", "soon"]),
        (["--config", "none.toml"], ["none.toml"]),
        (["--log-level", "loud"], ["loud"]),
        (["--colour"], ["--colour"]),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    (tmp_path / "b.py").write_text(ECHO.format(port=5000))
    line = refused(tmp_path, "b.py", *(argument.format(here=tmp_path) for argument in arguments))
    assert [word for word in words if word not in line] == [], line
    # click prints its usage before the line.
    assert [text for text in line.splitlines() if not text.startswith(("Usage:", "Try ", "\n")) and text] != []
    assert SECRET not in line


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, ["b.py", "no such file"]),
        ("", ["b.py", "defines no VNF"]),
        ("def broken(:", ["b.py:1", "SyntaxError"]),
        ("import nothing_of_that_name", ["b.py:1", "nothing_of_that_name"]),
        ("from libvnf import VNF\nVNF('a b')", ["b.py:2", "'a b' is not a name"]),
        ("from libvnf import VNF\nv = VNF('b')\nv.server('tpc://:1')", ["b.py:3", "tpc", "tcp://"]),
        ("from libvnf import VNF\nv = VNF('b')\nv.server('sctp://:1')", ["sctp", "not supported"]),
        ("from libvnf import VNF\na = VNF('a')\nb = VNF('b')", ["several", "b.py:a", "b.py:b"]),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path: Path, source: str | None, words: list[str]) -> None:
    if source is not None:
        (tmp_path / "b.py").write_text(source)
    line = refused(tmp_path, "b.py")
    assert [word for word in words if word not in line] == [], line


def test_a_name_on_memif_is_refused_and_its_socket_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(ECHO.replace("udp://", "tcp://b.example").format(port=5000))
    line = refused(tmp_path, "b.py", "--transport", MEMIF.format(here=tmp_path))
    assert "names are not resolved on memif" in line and line.count("\n") == 1


def test_an_address_in_use_is_refused_and_what_was_open_is_closed(tmp_path: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        (tmp_path / "b.py").write_text(ECHO.format(port=port))
        ports = ["--transport", MEMIF.format(here=tmp_path), "--transport", "kernel"]
        line = refused(tmp_path, "b.py", *ports)
        assert str(port) in line and "in use" in line and line.count("\n") == 1


def test_a_memif_socket_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    (tmp_path / "b.py").write_text(ECHO.format(port=5000))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen()
        line = refused(tmp_path, "b.py", "--transport", MEMIF.format(here=tmp_path))
        assert "m.sock" in line and "in use" in line and line.count("\n") == 1


def test_a_file_in_a_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    path.write_text("precious")
    (tmp_path / "b.py").write_text(ECHO.format(port=5000))
    line = refused(tmp_path, "b.py", "--transport", MEMIF.format(here=tmp_path))
    assert "not a socket" in line
    assert path.read_text() == "precious"


def test_a_unix_endpoint_brings_no_other_one_to_kernel_sockets(tmp_path: Path) -> None:
    local = "@vnf.server('unix://b.sock')\ndef local(conn, request, packet):\n    conn.send(packet)\n\n@vnf"
    source = ECHO.format(port=5000).replace("@vnf", local)
    with running(tmp_path, source, "--transport", MEMIF.format(here=tmp_path)) as program:
        assert program.places == ["unix://b.sock", "udp://10.0.0.2:5000"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_takes_a_memif_socket_away_and_tells_the_peer(tmp_path: Path, number: int, code: int) -> None:
    path = tmp_path / "m.sock"
    options = ["--transport", MEMIF.format(here=tmp_path), "--set", "limits.grace_s=0", "--set", "limits.drain_s=0"]
    with running(tmp_path, ECHO.format(port=5000), *options) as program, Client(path).connect() as peer:
        assert Station(peer, "10.0.0.1", "10.0.0.2").ask(5000, b"hello") == b"hello"
        program.signal(number)
        assert peer.control.farewell() == "Interface closed"
        assert (program.exit(), program.errors) == (code, [])
        assert not path.exists()


def test_a_socket_that_a_killed_vnf_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    options = ["--transport", MEMIF.format(here=tmp_path)]
    with running(tmp_path, ECHO.format(port=5000), *options) as program:
        program.signal(signal.SIGKILL)
        program.exit()
    assert path.is_socket()
    with running(tmp_path, ECHO.format(port=5000), *options), Client(path).connect() as peer:
        assert Station(peer, "10.0.0.1", "10.0.0.2").ask(5000, b"hello") == b"hello"


def test_draining_over_memif_serves_known_peers_and_refuses_new_ones(tmp_path: Path) -> None:
    source = """
import asyncio
from libvnf import VNF

vnf = VNF("b")
go = asyncio.Event()

@vnf.server("udp://:5000")
async def serve(conn, request, packet):
    if packet == b"wait":
        print("began", flush=True)
        await go.wait()
    elif packet == b"go":
        go.set()
    conn.send(packet)
"""
    options = ["--transport", MEMIF.format(here=tmp_path)]
    with running(tmp_path, source, *options) as program, Client(tmp_path / "m.sock").connect() as peer:
        station = Station(peer, "10.0.0.1", "10.0.0.2")
        assert station.ask(5000, b"known", source=4001) == b"known"
        station.send(station.udp(5000, b"wait", source=4000))
        program.line("^began")
        program.signal(signal.SIGTERM)
        program.line("draining: 2 connections, 1 requests")
        station.send(station.udp(5000, b"go", source=4001))
        answers = {bytes(station.wait(lambda p: p.haslayer("UDP"))["UDP"].payload) for _ in range(2)}
        assert answers == {b"go", b"wait"}
        assert program.exit() == 0
        assert program.output[-1] == "b: drained"
