"""What the tutorial tells a reader to do, done."""

import socket
from collections.abc import Callable
from pathlib import Path

from tests.peers import DEADLINE_S, Process

ECHO = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "echo.py"


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
