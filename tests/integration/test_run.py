"""``vnf run`` as an operator meets it: start-up lines, signals, draining, and the peers' own tools."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.programs import running

ECHO = """
from libvnf import VNF, Fixed
vnf = VNF("b")

@vnf.server("tcp://:0", framing=Fixed(4))
def echo(conn, request, packet):
    conn.send(packet)
"""

SLOW = """
import asyncio
from libvnf import VNF, Fixed
vnf = VNF("b")
go = asyncio.Event()

@vnf.server("tcp://:0", framing=Fixed(4))
async def slow(conn, request, packet):
    if packet == b"wait":
        print("began", flush=True)
        await go.wait()
    elif packet == b"go!!":
        go.set()
    conn.send(packet)
"""

STUCK = SLOW.replace("await go.wait()", "await asyncio.Event().wait()")


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    return sock


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


def test_it_says_what_it_serves_and_when_it_is_ready(tmp_path: Path) -> None:
    with running(tmp_path, ECHO) as program:
        assert re.fullmatch(r"b: serving tcp://127\.0\.0\.1:\d+ \(kernel\)", program.output[0])
        assert re.fullmatch(r"b: ready in \d\.\d\d s \((uvloop|asyncio), pid \d+\)", program.output[-1])
        with connect(program.port()) as sock:
            sock.sendall(b"ping")
            assert exactly(sock, 4) == b"ping"


def test_python_file_does_the_same(tmp_path: Path) -> None:
    source = ECHO.replace("tcp://:0", "{url}").replace('VNF("b")', 'VNF("b")\nurl = vnf.setting("url", "tcp://:1")')
    source = source.replace('"{url}"', "url") + "\nvnf.run()\n"
    options = ["--set", "url=tcp://127.0.0.1:0"]
    with running(tmp_path, source, *options, command=[sys.executable]) as program:
        with connect(program.port()) as sock:
            sock.sendall(b"ping")
            assert exactly(sock, 4) == b"ping"
        program.signal(signal.SIGTERM)
        assert program.exit() == 0


def test_sigterm_finishes_the_request_in_flight_and_exits_0(tmp_path: Path) -> None:
    with running(tmp_path, SLOW) as program, connect(program.port()) as busy, connect(program.port()) as other:
        busy.sendall(b"wait")
        program.line("^began")
        program.signal(signal.SIGTERM)
        program.line("draining: 2 connections, 1 requests")
        other.sendall(b"go!!")
        assert exactly(other, 4) == b"go!!"
        assert exactly(busy, 5) == b"wait"  # and then the end
        assert program.exit() == 0
        assert program.output[-1] == "b: drained"


def test_draining_closes_idle_connections_and_refuses_new_ones(tmp_path: Path) -> None:
    with running(tmp_path, SLOW, "--set", "limits.grace_s=0") as program, connect(program.port()) as busy:
        with connect(program.port()) as idle:
            idle.sendall(b"ping")
            assert exactly(idle, 4) == b"ping"
            busy.sendall(b"wait")
            program.line("^began")
            program.signal(signal.SIGTERM)
            assert idle.recv(1) == b""
        with pytest.raises(ConnectionError):
            connect(program.port()).recv(1)
        assert program.process.poll() is None
        program.signal(signal.SIGTERM)
        assert program.exit() == 0


def test_what_does_not_finish_is_reset_and_counted(tmp_path: Path) -> None:
    options = ["--set", "limits.grace_s=0", "--set", "limits.drain_s=0.1"]
    with running(tmp_path, STUCK, *options) as program, connect(program.port()) as busy:
        busy.sendall(b"wait")
        program.line("^began")
        program.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            assert busy.recv(1) != b""
        assert program.exit() == 0
        assert program.output[-1] == "b: drained; 1 connection reset after 0.1 s"


def test_a_second_sigterm_does_not_wait(tmp_path: Path) -> None:
    with running(tmp_path, STUCK, "--set", "limits.drain_s=3600") as program, connect(program.port()) as busy:
        busy.sendall(b"wait")
        program.line("^began")
        program.signal(signal.SIGTERM)
        program.line("draining")
        program.signal(signal.SIGTERM)
        assert program.exit() == 0


@pytest.mark.parametrize("source", [ECHO, STUCK])
def test_ctrl_c_stops_at_once_without_a_traceback(tmp_path: Path, source: str) -> None:
    with running(tmp_path, source) as program, connect(program.port()) as sock:
        if source is STUCK:
            sock.sendall(b"wait")
            program.line("^began")
        program.signal(signal.SIGINT)
        assert program.exit() == 130
        assert program.errors == []


@pytest.mark.parametrize("call", ["await vnf.close()", "vnf.spawn(vnf.close())"])
def test_a_vnf_that_closes_itself_ends_its_program(tmp_path: Path, call: str) -> None:
    source = f"""
from libvnf import VNF, Fixed
vnf = VNF("b")

@vnf.server("tcp://:0", framing=Fixed(4))
async def last(conn, request, packet):
    {call}
"""
    with running(tmp_path, source) as program, connect(program.port()) as sock:
        sock.sendall(b"quit")
        assert program.exit() == 0
        assert (program.output[-1], program.errors) == ("b: closed by itself", [])


def test_ctrl_c_while_the_file_is_loaded_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("import signal\nprint('loading', flush=True)\nsignal.pause()\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "libvnf", "run", "b.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_a_unix_socket_is_private_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with running(tmp_path, ECHO.replace("tcp://:0", f"unix://{path}")) as program:
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"ping")
            assert exactly(sock, 4) == b"ping"
        program.signal(signal.SIGTERM)
        assert program.exit() == 0
        assert not path.exists()


def test_a_handlers_exception_is_logged_once_and_ends_only_its_connection(tmp_path: Path) -> None:
    source = ECHO.replace("conn.send(packet)", "if packet == b'boom': raise ValueError('why')\n    conn.send(packet)")
    with running(tmp_path, source) as program, connect(program.port()) as good:
        for _ in range(50):
            with connect(program.port()) as bad:
                bad.sendall(b"boom")
                try:
                    assert bad.recv(1) == b""
                except ConnectionResetError:
                    pass
        good.sendall(b"ping")
        assert exactly(good, 4) == b"ping"
        program.signal(signal.SIGTERM)
        assert program.exit() == 0
        assert sum("Traceback" in line for line in program.errors) == 1


HTTP = """
from libvnf import VNF
vnf = VNF("web")

@vnf.session("tcp://:0")
async def serve(conn):
    while head := bytes(await conn.receive(until=b"\\r\\n\\r\\n", limit=65536, timeout_s=60)):
        conn.send(b"HTTP/1.1 200 OK\\r\\ncontent-length: 5\\r\\n\\r\\n", b"hello")
"""


@pytest.mark.needs("curl")
def test_curl_reads_from_a_session(tmp_path: Path) -> None:
    with running(tmp_path, HTTP) as program:
        url = f"http://127.0.0.1:{program.port()}/"
        done = subprocess.run(["curl", "-sS", url, url], capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout == "hellohello"


@pytest.mark.needs("nc")
def test_nc_talks_to_a_delimited_server(tmp_path: Path) -> None:
    source = ECHO.replace("Fixed(4)", "Delimiter(b'\\n')").replace("import VNF, Fixed", "import VNF, Delimiter")
    source = source.replace("conn.send(packet)", "conn.send(bytes(packet)[::-1], b'\\n')")
    with running(tmp_path, source) as program:
        done = subprocess.run(
            ["nc", "-N", "127.0.0.1", str(program.port())],
            input=b"abc\n\nxyz\n",
            capture_output=True,
            timeout=30,
            check=True,
        )
        assert done.stdout == b"cba\n\nzyx\n"
