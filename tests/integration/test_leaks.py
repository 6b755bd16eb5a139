"""Hundreds of thousands of messages through every shape of handler leave Python's heap, the process and the packet pool
as they were. ``vnf load`` asks; the figures are read through the window before and after.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.inspection import Window, in_use
from tests.integration.programs import ROOT, running
from tests.peers import DEADLINE_S

HEAD = """
import asyncio
from libvnf import VNF, Field, Fixed
from tests.integration.inspection import open_window

vnf = VNF("b")
open_window(vnf)
url = vnf.setting("url", default="udp://:5000")
"""

SHAPES = {
    "message": """
@vnf.server(url, framing=Fixed(128))
def echo(conn, request, packet):
    conn.send(packet)
""",
    "async message": """
@vnf.server(url, framing=Fixed(128))
async def echo(conn, request, packet):
    conn.send(packet)
""",
    "async message that waits": """
@vnf.server(url, framing=Fixed(128))
async def echo(conn, request, packet):
    await asyncio.sleep(0)
    conn.send(packet)
""",
    "messages by id": """
@vnf.server(url, framing=Fixed(128), request_id=Field(0, 4))
async def echo(conn, request, packet):
    await asyncio.sleep(0)
    conn.send(packet)
""",
    "session": """
@vnf.session(url, framing=Fixed(128))
async def echo(conn):
    async for packet in conn:
        conn.send(packet)
""",
    "callback that keeps packets and state": """
@vnf.server(url, framing=Fixed(128))
def echo(conn, request, packet):
    request.kept, request.itself, request.conn = packet[4:], request, conn
    conn.state = packet
    request.after(0, later, request)

def later(request):
    request.conn.send(request.conn.state)
    request.conn.state = None
""",
    "handler that raises": """
@vnf.server(url, framing=Fixed(128), request_id=Field(0, 4))
def echo(conn, request, packet):
    conn.send(packet)
    raise ValueError(packet)
""",
}

CHAIN = """
@vnf.server("udp://:5001", framing=Fixed(128))
def far(conn, request, packet):
    conn.send(packet)
"""

CHAINS = {
    "a connection per request": """
@vnf.server(url, framing=Fixed(128))
def near(a, request, packet):
    peer = a.connect("udp://127.0.0.1:5001", framing=Fixed(128))
    request.a, peer.state = a, packet
    peer.on_data(back)
    peer.send(packet)

def back(peer, request, packet):
    request.a.send(packet)
    peer.close()
""",
    "a pooled connection per request": """
@vnf.server(url, framing=Fixed(128))
async def near(a, request, packet):
    async with a.connect("udp://127.0.0.1:5001", framing=Fixed(128), pool=8) as peer:
        a.send(await peer.ask(packet))
""",
    "a client with ids": """
far_away = vnf.client("udp://127.0.0.1:5001", framing=Fixed(128), request_id=Field(0, 4))

@vnf.server(url, framing=Fixed(128))
async def near(a, request, packet):
    a.send(await far_away.ask(packet))
""",
}


def load(url: str, *options: str, seconds: float) -> int:
    """Replies that came back."""
    command = [sys.executable, "-m", "libvnf", "load", url, "--outstanding", "64", "--connections", "8"]
    command += ["--duration", str(seconds), "--warmup", "0", "--json", "-", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * DEADLINE_S)
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    answered: int = report["requests"]
    return answered


def flat(
    tmp_path: Path, source: str, url: str, messages: int, *options: str, load_options: tuple[str, ...] = ()
) -> None:
    window = tmp_path / "window.sock"
    options = (*options, "--set", f"window={window}", "--log-level", "error", "--set", "limits.idle_s=1")
    with running(tmp_path, source, *options) as program:
        look = Window(window)
        try:
            begin = look.look()["core"]["connections_open"]

            def at_rest(now: Mapping[str, Any]) -> bool:
                core = now["core"]
                return (core["requests_open"], core["connections_open"]) == (0, begin) and not any(in_use(now).values())

            load(url, *load_options, seconds=1.5)
            before = look.wait(at_rest)
            answered = 0
            while answered < messages:
                answered += load(url, *load_options, seconds=1.5)
            after = look.wait(at_rest)
        finally:
            look.close()
        assert after["core"]["messages_in"] - before["core"]["messages_in"] >= messages
        # A leak of one object per message would be ten times as many.
        assert after["blocks"] - before["blocks"] < messages // 10
        assert after["resident_bytes"] - before["resident_bytes"] < (4 << 20) + messages * 16
        assert after["descriptors"] <= before["descriptors"] + 8
        assert after["core"]["kept_bytes"] == 0
        program.process.kill()


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "session"])
def test_no_shape_of_handler_leaks_over_memif(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "m.sock"
    ports = ["--transport", f"memif:{path},address=10.0.0.2/24"]
    near = ("--transport", f"memif:{path},role=client,address=10.0.0.1/24")
    flat(tmp_path, HEAD + SHAPES[shape], "udp://10.0.0.2:5000", 300_000, *ports, load_options=near)


@pytest.mark.parametrize("shape", ["message", "async message that waits", "session"])
def test_no_shape_of_handler_leaks_over_kernel_streams(tmp_path: Path, shape: str) -> None:
    url = f"unix://{tmp_path / 'b.sock'}"
    flat(tmp_path, HEAD + SHAPES[shape], url, 100_000, "--set", f"url={url}")


def test_connections_that_come_and_go_leak_nothing(tmp_path: Path) -> None:
    url = f"unix://{tmp_path / 'b.sock'}"
    each = ("--requests-per-connection", "1")
    flat(tmp_path, HEAD + SHAPES["session"], url, 20_000, "--set", f"url={url}", load_options=each)


@pytest.mark.parametrize("each", [(), ("--requests-per-connection", "1")], ids=["kept", "one request each"])
def test_connections_of_a_memif_leak_nothing(tmp_path: Path, each: tuple[str, ...]) -> None:
    path, url = tmp_path / "m.sock", "tcp://10.0.0.2:5000"
    ports = ["--transport", f"memif:{path},address=10.0.0.2/24,tcp_time_wait_s=0.1", "--set", f"url={url}"]
    near = ("--transport", f"memif:{path},role=client,address=10.0.0.1/24", *each)
    flat(tmp_path, HEAD + SHAPES["session"], url, 20_000 if each else 100_000, *ports, load_options=near)


@pytest.mark.parametrize("chain", CHAINS)
def test_no_way_to_ask_another_leaks(tmp_path: Path, chain: str) -> None:
    flat(tmp_path, HEAD + CHAIN + CHAINS[chain], "udp://127.0.0.1:5000", 20_000)
