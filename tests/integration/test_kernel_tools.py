"""Kernel sockets, spoken to by the tools everybody has: HTTP clients, load generators, and iperf3 through a proxy."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.programs import running
from tests.peers import DEADLINE_S, Process

HTTP = """
from libvnf import VNF

vnf = VNF("web")

@vnf.session("tcp://:0")
async def serve(conn):
    while head := bytes(await conn.receive(until=b"\\r\\n\\r\\n", limit=65536, timeout_s=60)):
        lines = head.decode("latin-1").lower().split("\\r\\n")
        method, path, version = lines[0].split()
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        length = int(fields.get("content-length", 0))
        if fields.get("expect"):
            conn.send(b"HTTP/1.1 100 Continue\\r\\n\\r\\n")
        body = bytes(await conn.receive(size=length)) if length else b"hello"
        keep = fields.get("connection", "keep-alive" if version == "http/1.1" else "close") != "close"
        conn.send(
            f"HTTP/1.1 200 OK\\r\\ncontent-length: {len(body)}\\r\\n".encode(),
            b"connection: keep-alive\\r\\n\\r\\n" if keep else b"connection: close\\r\\n\\r\\n",
            b"" if method == "head" else body,
        )
        if not keep:
            return
"""

PROXY = """
from libvnf import VNF

vnf = VNF("proxy")
upstream = vnf.setting("upstream", default="tcp://127.0.0.1:1")

@vnf.session("tcp://:0")
async def proxy(a):
    async with a.connect(upstream) as b:
        await a.splice(b)
"""


def run(*command: str | Path, stdin: bytes = b"") -> str:
    done = subprocess.run([*map(str, command)], input=stdin, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stdout!r} {done.stderr!r}"
    return done.stdout.decode()


@pytest.mark.needs("curl")
def test_curl_gets_posts_and_keeps_its_connection(tmp_path: Path) -> None:
    with running(tmp_path, HTTP) as program:
        url = f"http://127.0.0.1:{program.port()}/"
        body = tmp_path / "body"
        body.write_bytes(bytes(range(256)) * 4096)
        back = tmp_path / "back"
        run("curl", "-sS", "--data-binary", f"@{body}", "-o", back, url)
        assert back.read_bytes() == body.read_bytes()
        assert run("curl", "-sS", "-w", "%{num_connects}\n", url, url, url) == "hello1\nhello0\nhello0\n"
        assert run("curl", "-sS", "--http1.0", url) == "hello"
        assert "content-length: 5" in run("curl", "-sS", "-I", url)


@pytest.mark.needs("wrk")
def test_wrk_sees_no_error_on_a_hundred_connections(tmp_path: Path) -> None:
    with running(tmp_path, HTTP) as program:
        report = run("wrk", "-t1", "-c100", "-d2s", f"http://127.0.0.1:{program.port()}/")
        assert "Socket errors" not in report and "Non-2xx" not in report
        assert int(re.search(r"(\d+) requests in", report)[1]) > 100  # type: ignore[index]


@pytest.mark.needs("ab")
@pytest.mark.parametrize("keep", [["-k"], []])
def test_ab_counts_no_failed_request(tmp_path: Path, keep: list[str]) -> None:
    with running(tmp_path, HTTP) as program:
        report = run("ab", "-q", "-n", "2000", "-c", "20", *keep, f"http://127.0.0.1:{program.port()}/")
        assert "Complete requests:      2000" in report and "Failed requests:        0" in report
        assert "Non-2xx" not in report


@pytest.mark.needs("iperf3")
@pytest.mark.parametrize("direction", [[], ["-R"], ["--bidir"]])
def test_iperf3_runs_through_a_splice_proxy(
    tmp_path: Path, process: Callable[..., Process], free_port: Callable[[], int], direction: list[str]
) -> None:
    port = free_port()
    server = process(["iperf3", "-s", "-1", "--forceflush", "-B", "127.0.0.1", "-p", str(port)])
    server.wait_for("Server listening")
    with running(tmp_path, PROXY, "--set", f"upstream=tcp://127.0.0.1:{port}") as program:
        client = ["iperf3", "-c", "127.0.0.1", "-p", str(program.port()), "-n", "200M", "-P", "2", "-J", *direction]
        report = json.loads(run(*client))
        assert "error" not in report
        # It ends when all is sent, whatever of it is still under way.
        assert report["end"]["sum_received"]["bytes"] >= 10 << 20
        assert server.wait() == 0


@pytest.mark.needs("nc")
def test_a_half_close_passes_through_a_splice_proxy(tmp_path: Path) -> None:
    """nc ends its side first; only then is it answered."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(DEADLINE_S)
        url = f"tcp://127.0.0.1:{upstream.getsockname()[1]}"
        with running(tmp_path, PROXY, "--set", f"upstream={url}") as program:
            with subprocess.Popen(
                ["nc", "-N", "127.0.0.1", str(program.port())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as nc:
                assert nc.stdin is not None and nc.stdout is not None
                nc.stdin.write(b"a question, ")
                nc.stdin.close()
                conn, _ = upstream.accept()
                with conn:
                    conn.settimeout(DEADLINE_S)
                    received = b""
                    while piece := conn.recv(4096):
                        received += piece
                    assert received == b"a question, "
                    conn.sendall(b"and its answer")
                assert nc.stdout.read() == b"and its answer"
                assert nc.wait(DEADLINE_S) == 0
