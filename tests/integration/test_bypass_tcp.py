"""TCP between replicas, as an operator runs them: processes joined by a memif, whichever of them is its server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.memif import Client
from tests.integration.programs import Program, running
from tests.integration.station import Station

FAR = """
import asyncio, signal
from libvnf import VNF, Fixed
vnf = VNF("far")
go = asyncio.Event()
vnf.after(0, lambda: asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, go.set))

@vnf.server("tcp://:5000", framing=Fixed(4))
def plain(conn, request, packet):
    conn.send(packet)

@vnf.server("tcp://:5001", framing=Fixed(4))
async def waiting(conn, request, packet):
    if packet == b"wait":
        print("began", flush=True)
        await go.wait()
    conn.send(packet)

@vnf.session("tcp://:5002")
async def session(conn):
    whole = b"".join([bytes(piece) async for piece in conn])
    conn.send(whole[::-1])
"""

NEAR = """
import asyncio, os
from libvnf import VNF, Field, Fixed
vnf = VNF("near")

async def told():
    try:
        await talk()
    except Exception as error:
        print(f"failed: {type(error).__name__}: {error}", flush=True)

vnf.after(0, told)

async def talk():
"""

TALK = """
    host = "HOST"
    for port in (5000, 5001):
        async with vnf.connect(f"tcp://{host}:{port}", framing=Fixed(4)) as peer:
            for number in range(100):
                message = number.to_bytes(4, "big")
                assert await peer.ask(message) == message
    peer = await vnf.connect(f"tcp://{host}:5002")
    whole = os.urandom(1_000_000)
    peer.send(whole)
    peer.end()
    assert b"".join([bytes(piece) async for piece in peer]) == whole[::-1]
    print("talked", flush=True)
"""

IN_FLIGHT = """
    old = await vnf.connect("tcp://10.0.0.2:5001", framing=Fixed(4))
    idle = await vnf.connect("tcp://10.0.0.2:5000", framing=Fixed(4))
    asked = asyncio.ensure_future(old.ask(b"wait", timeout_s=60))
    assert [message async for message in idle] == []
    print("idle ended", flush=True)
    try:
        await vnf.connect("tcp://10.0.0.2:5000")
    except ConnectionRefusedError as error:
        print("refused", flush=True)
    print("answer:", bytes(await asked), flush=True)
"""


def port(here: Path, role: str, last: int) -> str:
    return f"memif:{here}/m.sock,role={role},address=10.0.0.{last}/24,address=fd00::{last}/64"


@contextmanager
def pair(here: Path, talk: str, server: str = "far", *options: str) -> Iterator[tuple[Program, Program]]:
    """The far VNF, and a near one that runs ``talk``."""
    roles = ("server", "client") if server == "far" else ("client", "server")
    (here / "far").mkdir()
    (here / "near").mkdir()
    with (
        running(here / "far", FAR, "--transport", port(here, roles[0], 2), *options) as far,
        running(here / "near", NEAR + talk, "--transport", port(here, roles[1], 1)) as near,
    ):
        yield far, near


@pytest.mark.parametrize("host", ["10.0.0.2", "[fd00::2]"])
@pytest.mark.parametrize("server", ["far", "near"])
def test_replicas_talk_whichever_of_them_serves_the_memif(tmp_path: Path, server: str, host: str) -> None:
    with pair(tmp_path, TALK.replace("HOST", host), server) as (far, near):
        near.line(r"^talked$")
        near.signal(signal.SIGTERM)
        assert near.exit() == 0
        far.signal(signal.SIGTERM)
        assert far.exit() == 0
        assert far.output[-1] == "far: drained"
        assert far.errors == near.errors == []


def test_a_draining_replica_finishes_what_is_in_flight(tmp_path: Path) -> None:
    with pair(tmp_path, IN_FLIGHT, "far", "--set", "limits.grace_s=0") as (far, near):
        far.line(r"^began$")
        far.signal(signal.SIGTERM)
        near.line(r"^idle ended$")
        near.line(r"^refused$")
        far.signal(signal.SIGUSR1)
        near.line(r"^answer: b'wait'$")
        assert far.exit() == 0
        assert far.output[-1] == "far: drained"


def test_what_outlives_the_drain_is_reset_and_counted(tmp_path: Path) -> None:
    stuck = """
    peer = await vnf.connect("tcp://10.0.0.2:5001", framing=Fixed(4))
    peer.send(b"wait")
    await peer.wait("closed")
    print("closed:", peer.close_reason, flush=True)
"""
    with pair(tmp_path, stuck, "far", "--set", "limits.grace_s=0", "--set", "limits.drain_s=0.1") as (far, near):
        far.line(r"^began$")
        far.signal(signal.SIGTERM)
        near.line(r"^closed: reset: .*Connection reset by peer$")
        assert far.exit() == 0
        assert "1 connection reset" in far.output[-1]


def test_a_host_that_is_not_there_and_one_that_does_not_answer_are_told_apart(tmp_path: Path) -> None:
    talk = """
    for last in (9, 8):
        try:
            await vnf.connect(f"tcp://10.0.0.{last}:5000")
        except ConnectionError as error:
            print(type(error).__name__, error, flush=True)
"""
    source = NEAR.replace("vnf.after(0, told)", "") + talk + "\n@vnf.server('udp://:7')\n"
    source += "def begin(conn, request, packet):\n    vnf.after(0, told)\n"
    options = ("--transport", port(tmp_path, "server", 1), "--set", "limits.connect_s=4")
    with running(tmp_path, source, *options) as near, Client(tmp_path / "m.sock").connect() as memif:
        station = Station(memif, "10.0.0.8", "10.0.0.1")
        station.send(station.udp(7, b"go"))
        near.line(r"ConnectionError .*10\.0\.0\.9:5000: No route to host")
        near.line(r"ConnectionError .*10\.0\.0\.8:5000: not connected within 4 s")
