"""What the tutorial tells a reader to do, done."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.pages import ROOT, argv, blocks, commands
from tests.integration.test_readme import answered
from tests.peers import DEADLINE_S, Process

TUTORIAL = ROOT / "docs" / "tutorial"
ECHO, DNS, RESOLVER = (TUTORIAL / name for name in ("echo.py", "dns.py", "resolver.py"))


def test_the_first_function_answers_line_by_line(vnf_run: Callable[..., Process], free_port: Callable[[], int]) -> None:
    port = free_port()
    vnf = vnf_run(ECHO, "--set", f"listen=tcp://:{port}")
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as peer:
        # The second line comes in two pieces, and the third is empty.
        for piece in (b"one\ntw", b"o\n\n"):
            peer.sendall(piece)
        with peer.makefile("rb") as answers:
            assert [answers.readline() for _ in range(3)] == [b"one\n", b"two\n", b"\n"]
    assert vnf.stop() == 0


def test_without_a_host_it_listens_on_loopback_only(
    vnf_run: Callable[..., Process], free_port: Callable[[], int]
) -> None:
    port = free_port()
    vnf = vnf_run(ECHO, "--set", f"listen=tcp://:{port}")
    lines = [line for line in vnf.output.splitlines() if " serving " in line]
    assert lines
    assert all("127.0.0.1" in line or "[::1]" in line for line in lines)


# --- the name server --------------------------------------------------------------------------------------------------


@pytest.mark.needs("dig")
def test_the_name_server_answers_dig(vnf_run: Callable[..., Process], free_port: Callable[[], int]) -> None:
    port = free_port()
    vnf = vnf_run(DNS, "--set", f"listen=udp://:{port}")

    def dig(*question: str, options: tuple[str, ...] = ()) -> str:
        command = ["dig", "@127.0.0.1", "-p", str(port), "+noedns", *options, *question]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout

    assert dig("b.test", options=("+short",)) == "10.0.0.2\n"
    assert dig("C.test", options=("+short",)) == "10.0.0.3\n"
    assert "status: NXDOMAIN" in (nobody := dig("nobody.test"))
    assert "status: NOERROR" in (other := dig("b.test", "AAAA"))
    assert "Warning" not in nobody + other and "ANSWER: 0" in other
    with socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.sendto(bytes(12) + b"\xff", ("127.0.0.1", port))
    vnf.wait_for("IndexError")
    assert dig("b.test", options=("+short",)) == "10.0.0.2\n"
    assert vnf.stop() == 0


def test_the_same_name_server_answers_over_shared_memory(vnf_run: Callable[..., Process], tmp_path: Path) -> None:
    [run] = [line for line in commands("docs/tutorial/dns.md") if "dns.py" in line and "memif" in line]
    [ask] = [line for line in commands("docs/tutorial/dns.md") if "resolver.py" in line]
    places = {"memif:": f"memif:{tmp_path}/"}
    vnf = vnf_run(DNS, *argv(run, places)[5:])
    resolver = vnf_run(RESOLVER, *argv(ask, places)[5:])
    resolver.wait_for(r"^b\.test is at 10\.0\.0\.2$")
    assert resolver.stop() == vnf.stop() == 0


def test_the_zone_of_the_page_is_read_from_its_file(
    vnf_run: Callable[..., Process], free_port: Callable[[], int], tmp_path: Path
) -> None:
    [toml] = blocks("docs/tutorial/dns.md", "toml")
    (tmp_path / "vnf.toml").write_text(toml)
    port = free_port()
    vnf_run(DNS, "--config", str(tmp_path / "vnf.toml"), "--set", f"listen=udp://:{port}")
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.settimeout(DEADLINE_S)
        peer.sendto(b"\7\7\1\0\0\1\0\0\0\0\0\0\2db\4test\0\0\1\0\1", ("127.0.0.1", port))
        assert peer.recv(512).endswith(bytes([10, 1, 0, 7]))


# --- requests across connections --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["b.py", "b_callbacks.py"])
def test_b_asks_c_and_answers_a(
    file: str, vnf_run: Callable[..., Process], free_port: Callable[[], int], tmp_path: Path
) -> None:
    load = commands("docs/tutorial/requests.md")[1]
    places = {":5000": f":{free_port()}", ":6000": f":{free_port()}"}
    settings = ["--set", f"listen=tcp://{places[':5000']}", "--set", f"c=tcp://127.0.0.1{places[':6000']}"]
    vnf = vnf_run(TUTORIAL / file, *settings)
    assert answered(argv(load, places), tmp_path) > 0
    with socket.create_connection(("127.0.0.1", int(places[":5000"][1:])), timeout=DEADLINE_S) as a:
        a.sendall(bytes(128))  # and C has gone
        if file == "b.py":  # the error that nobody caught
            with pytest.raises(ConnectionResetError):
                a.recv(1)
        else:
            assert a.recv(1) == b""
    assert vnf.stop() == 0


def test_the_tests_of_the_tutorial_pass() -> None:
    done = subprocess.run(
        argv(commands("docs/tutorial/testing.md")[0].replace("python ", f"{sys.executable} ")),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
