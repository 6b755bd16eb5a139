"""Tables of a running VNF: what its handlers are told, and what its end stores."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from libvnf import VNF, ConfigError, DurabilityUnknown, Fixed, Table, replicated, write_back, write_through
from libvnf.state.durability import Durability
from libvnf.testing import Network
from tests.integration.programs import ROOT, RUN, running

COUNT = """
from libvnf import VNF, Fixed, write_back
vnf = VNF("b")
hits = vnf.table("hits", key=bytes, value=int, durability=write_back(interval_s=3600))

@vnf.server("tcp://:0", framing=Fixed(4))
async def count(conn, request, packet):
    if packet == b"down":
        vnf.tables.store.outage()
    else:
        hits.put_nowait(bytes(packet), (await hits.get(bytes(packet)) or 0) + 1)
    conn.send(packet)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
QUICK = ["--set", "limits.grace_s=0", "--set", "limits.drain_s=0.2"]


def ask(port: int, *messages: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as a:
        for message in messages:
            a.sendall(message)
            assert a.recv(4) == message


def test_sigterm_stores_what_is_not_stored(tmp_path: Path) -> None:
    with running(tmp_path, COUNT, *QUICK, "--store", "memory://") as program:
        ask(program.port(), b"one.", b"two.", b"one.")
        program.signal(signal.SIGTERM)
        assert program.exit() == 0
        assert not [line for line in program.output if "not stored" in line]
        assert not [line for line in program.errors if "not stored" in line]


def test_sigterm_says_what_could_not_be_stored(tmp_path: Path) -> None:
    with running(tmp_path, COUNT, *QUICK) as program:
        ask(program.port(), b"one.", b"two.", b"one.", b"down")
        program.signal(signal.SIGTERM)
        assert program.exit() == 0
        assert "b: table hits: 2 changes not stored" in program.output
        assert [line for line in program.errors if "the store is down" in line]


def test_a_store_that_cannot_be_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    (tmp_path / "vnf.toml").write_text("[state]\nurl = 'redis:/h'\n")
    (tmp_path / "b.py").write_text(COUNT)
    done = subprocess.run(
        [*RUN, "b.py", "--config", "vnf.toml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("vnf.toml:2: state.url: 'redis:/h' is not a store: expected one of memory://")


def counter() -> VNF:
    vnf = VNF("counter", program=False)
    hits: Table[str, int] = vnf.table("hits", key=str, value=int, durability=write_back(interval_s=1))

    @vnf.server("tcp://:5000", framing=Fixed(1))
    async def count(conn, request, packet):  # type: ignore[no-untyped-def]
        try:
            answer = await hits.incr("all") if bytes(packet) == b"+" else await hits.get("all") or 0
        except DurabilityUnknown:
            answer = 999
        conn.send(b"%3d" % answer)

    return vnf


async def test_replicas_of_a_network_share_its_store() -> None:
    async with Network(seed=7) as net:
        await net.start(counter, host="one")
        await net.start(counter, host="two")
        one, two = [await net.connect(f"tcp://{host}:5000", framing=Fixed(3)) for host in ("one", "two")]
        assert [await peer.ask(b"+") for peer in (one, two, one)] == [b"  1", b"  2", b"  3"]
        net.store.outage(seconds=5)
        before_s = net.clock.now
        assert await two.ask(b"+", timeout_s=9) == b"  4"
        assert net.clock.now - before_s >= 5
        net.store.lose_answers(1)
        assert await one.ask(b"+") == b"999"
        assert await two.ask(b"?") == b"  5"


@pytest.mark.parametrize("durability, left", [(write_through, b"  1"), (replicated(1), b"  3")])
async def test_a_failover_of_the_network_forgets_what_no_replica_was_waited_for(
    durability: Durability, left: bytes
) -> None:
    async with Network(seed=7) as net:
        with pytest.raises(ConfigError, match="no replica to take over"):
            net.store.fail_over()
        net.store.replicas = 1
        vnf = VNF("counter", program=False)
        hits: Table[str, int] = vnf.table("hits", key=str, value=int, durability=durability)

        @vnf.server("tcp://:5000", framing=Fixed(1))
        async def count(conn, request, packet):  # type: ignore[no-untyped-def]
            number = await hits.get("all") or 0
            if bytes(packet) == b"+":
                number += 1
                await hits.put("all", number)
            conn.send(b"%3d" % number)

        await net.start(vnf, host="one")
        peer = await net.connect("tcp://one:5000", framing=Fixed(3))
        assert [await peer.ask(b"+") for _ in range(3)] == [b"  1", b"  2", b"  3"]
        net.store.fail_over(seconds=2, loses=2)
        before_s = net.clock.now
        assert await peer.ask(b"?", timeout_s=9) == left
        assert net.clock.now - before_s >= 2
