"""User-space TCP, spoken to by the tools everybody has, from a Linux kernel behind DPDK's testpmd: their connections to
our servers, and ours to their servers (a VNF that splices what comes to it to where it was told).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.bridge import NetNS, Start, bridge
from tests.integration.test_kernel_tools import HTTP
from tests.peers import DEADLINE_S, Namespace, Process

pytestmark = pytest.mark.needs("dpdk-testpmd", "ip", "root")

WEB = (
    HTTP.replace("tcp://:0", "tcp://:80")
    + """
BODY = bytes(range(256)) * 40_000

@vnf.session("tcp://:81")
async def large(conn):
    await conn.receive(until=b"\\r\\n\\r\\n")
    conn.send(f"HTTP/1.1 200 OK\\r\\ncontent-length: {len(BODY)}\\r\\nconnection: close\\r\\n\\r\\n".encode())
    for at in range(0, len(BODY), 65536):
        conn.send(BODY[at:at + 65536])
        await conn.drain()
"""
)
SPLICE = """
from libvnf import VNF

vnf = VNF("proxy")
upstream = vnf.setting("upstream", default="tcp://127.0.0.1:1")

@vnf.session("tcp://:47000")
async def proxy(a):
    try:
        b = await a.connect(upstream)
    except (OSError, ConnectionError):
        a.abort()
        return
    async with b:
        await a.splice(b)
"""
ProcessOf = Callable[..., Process]


def curl(host: Namespace, *args: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = ["ip", "netns", "exec", host.name, "curl", "-sS", "--noproxy", "*", "--max-time", "20", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S)


@pytest.mark.needs("curl")
@pytest.mark.parametrize("address", ["10.0.0.2", "[fd00::2]"])
def test_curl_gets_posts_keeps_its_connection_and_is_refused(
    tmp_path: Path, netns: NetNS, testpmd: Start, address: str
) -> None:
    with bridge(tmp_path, netns, testpmd, source=WEB) as link:
        url = f"http://{address}/"

        def get(*args: str | Path) -> str:
            done = curl(link.namespace, *args)
            assert done.returncode == 0, done
            return done.stdout.decode()

        assert get("--retry", "5", "--retry-connrefused", "--retry-all-errors", url) == "hello"
        body = tmp_path / "body"
        body.write_bytes(bytes(range(256)) * 4_000)
        back = tmp_path / "back"
        get("-H", "Expect:", "--data-binary", f"@{body}", "-o", back, url)
        assert back.read_bytes() == body.read_bytes()
        get("-o", back, f"http://{address}:81/")
        assert back.read_bytes() == bytes(range(256)) * 40_000
        assert get("-w", "%{num_connects}\n", url, url, url) == "hello1\nhello0\nhello0\n"
        assert get("--http1.0", url) == "hello"
        assert "content-length: 5" in get("-I", url)
        refused = curl(link.namespace, "-v", f"http://{address}:82/")
        assert refused.returncode == 7 and b"Connection refused" in refused.stderr, refused


@pytest.mark.needs("wrk", "ab")
def test_wrk_and_ab_see_no_error(tmp_path: Path, netns: NetNS, testpmd: Start) -> None:
    with bridge(tmp_path, netns, testpmd, source=WEB) as link:
        run = link.namespace.run
        report = run("wrk", "-t1", "-c100", "-d3s", "http://10.0.0.2/")
        print(report)
        assert "Socket errors" not in report and "Non-2xx" not in report
        assert int(re.search(r"(\d+) requests in", report)[1]) > 100  # type: ignore[index]
        for count, keep in ((10_000, ["-k"]), (5_000, [])):
            report = run("ab", "-q", "-n", str(count), "-c", "50", *keep, "http://10.0.0.2/")
            print(re.findall(r"Requests per second.*", report))
            assert f"Complete requests:      {count}\n" in report and "Failed requests:        0\n" in report
            assert "Non-2xx" not in report


# Where the VNF finds the other end: by its port, in the same namespace; or by kernel sockets, on loopback.
PORTS = {"memif": "port0", "kernel": "kernel"}
both_ends = pytest.mark.parametrize("upstream", ["memif", "kernel"])


@pytest.mark.needs("iperf3")
@both_ends
@pytest.mark.parametrize("streams", [1, 32])
def test_iperf3_runs_through_a_splice_proxy(
    tmp_path: Path,
    netns: NetNS,
    testpmd: Start,
    process: ProcessOf,
    free_port: Callable[[], int],
    upstream: str,
    streams: int,
) -> None:
    address, port = ("10.0.0.1", 5201) if upstream == "memif" else ("127.0.0.1", free_port())
    options = ["--set", f"upstream=tcp://{address}:{port}?port={PORTS[upstream]}"]
    options += ["--transport", "kernel"] if upstream == "kernel" else []
    source = SPLICE.replace("tcp://:47000", "tcp://:47000?port=port0")
    with bridge(tmp_path, netns, testpmd, "server", *options, source=source) as link:
        for direction in ([], ["-R"]):
            server = process(
                ["iperf3", "-s", "-1", "--forceflush", "-B", address, "-p", str(port)],
                netns=link.namespace.name if upstream == "memif" else None,
            )
            server.wait_for("Server listening")
            client = ["iperf3", "-c", "10.0.0.2", "-p", "47000", "-t", "2", "-P", str(streams), "-J", *direction]
            report = json.loads(link.namespace.run(*client))
            assert "error" not in report
            total = report["end"]["sum_received"]
            print(f"{upstream}, {streams} streams {direction}: {total['bits_per_second'] / 1e6:,.0f} Mbit/s")
            assert total["bytes"] > 1 << 20
            # None of them starved.
            assert len(report["end"]["streams"]) == streams
            assert all(one["receiver"]["bytes"] > 0 for one in report["end"]["streams"])
            assert server.wait() == 0


@pytest.mark.needs("curl")
def test_linux_is_told_when_the_far_server_refuses_or_is_not_there(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf
) -> None:
    """Our connections to a Linux where nobody listens, and to an address that nobody has."""
    source = SPLICE.replace("a.abort()", 'a.send(f"{type(error).__name__}".encode())').replace(
        "ConnectionError):", "ConnectionError) as error:"
    )
    for upstream, told in (("10.0.0.1:5299", "ConnectionRefusedError"), ("10.0.0.77:80", "OSError|ConnectionError")):
        with bridge(tmp_path, netns, testpmd, "server", "--set", f"upstream=tcp://{upstream}", source=source) as link:
            done = curl(link.namespace, "--http0.9", "http://10.0.0.2:47000/")
            assert re.fullmatch(told, done.stdout.decode()), done


@pytest.mark.needs("nc")
def test_nc_ends_its_side_first_and_is_answered(
    tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf
) -> None:
    with bridge(tmp_path, netns, testpmd, "server", "--set", "upstream=tcp://10.0.0.1:5202", source=SPLICE) as link:
        # The server answers when the question has ended.
        command = "import socket; s = socket.create_server(('10.0.0.1', 5202)); print('listening', flush=True); " + (
            "c, _ = s.accept(); q = b''.join(iter(lambda: c.recv(4096), b'')); c.sendall(q[::-1]); c.close()"
        )
        server = process(["python3", "-c", command], netns=link.namespace.name)
        server.wait_for("listening")
        args = ["ip", "netns", "exec", link.namespace.name, "nc", "-N", "10.0.0.2", "47000"]
        done = subprocess.run(args, input=b"a question", capture_output=True, timeout=DEADLINE_S)
        assert (done.returncode, done.stdout) == (0, b"noitseuq a")
        assert server.wait() == 0


@pytest.mark.needs("rsync")
def test_rsync_copies_a_tree_there_and_back(tmp_path: Path, netns: NetNS, testpmd: Start, process: ProcessOf) -> None:
    there, back, tree = tmp_path / "there", tmp_path / "back", tmp_path / "tree"
    for directory in (there, back, tree):
        directory.mkdir()
    for number in range(200):
        (tree / f"{number}").write_bytes(bytes([number]) * number**2 * 10)
    config = tmp_path / "rsyncd.conf"
    config.write_text(
        f"log file = /dev/stdout\nuse chroot = no\nuid = 0\ngid = 0\n[tree]\npath = {there}\nread only = no\n"
    )
    with bridge(tmp_path, netns, testpmd, "server", "--set", "upstream=tcp://10.0.0.1:8730", source=SPLICE) as link:
        server = process(
            ["rsync", "--daemon", "--no-detach", f"--config={config}", "--address=10.0.0.1", "--port=8730"],
            netns=link.namespace.name,
        )
        server.wait_for("rsyncd version")
        url = "rsync://10.0.0.2:47000/tree/"
        link.namespace.run("rsync", "-a", f"{tree}/", url)
        link.namespace.run("rsync", "-a", url, f"{back}/")
    assert {file.name: file.read_bytes() for file in back.iterdir()} == {
        file.name: file.read_bytes() for file in tree.iterdir()
    }
