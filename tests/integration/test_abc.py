"""The papers' chain: every example's B on every transport that carries it, A and C in the load generator. Afterwards
B holds nothing: no connection, no request, no packet's buffer, no socket.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from libvnf import VNF, _native
from libvnf.config import Config
from libvnf.runtime import load
from tests.redis_cluster import RedisCluster

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/abc"

PER_REQUEST = {"connections": 8, "requests_per_connection": 1, "reset": True}
ON_ONE = {"connections": 1, "outstanding": 32, "id": "0:8"}
ON_EACH = {"connections": 8}
STATEFUL = tuple(f"b_state.py durability={level}" for level in ("local", "write_back", "write_through"))
OURS = ("b.py", "b.py pool=4", "b_async.py", "b_pooled.py", *STATEFUL[1:])


def ports(count: int, kind: socket.SocketKind) -> list[int]:
    """Free, and below those that connections out are given: a client of one of these could connect to itself."""
    found: list[int] = []
    for number in range(12000 + os.getpid() % 5000, 32000):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
        found.append(number)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="abc") as path:
        yield Path(path)


def endpoints(transport: str, scratch: Path) -> tuple[list[str], str, str, list[dict[str, Any]]]:
    """What B is run with, where it listens, where C is, and the transports of A and C."""
    if transport == "unix":
        listen, c = f"unix://{scratch}/b", f"unix://{scratch}/c"
        return [], listen, c, [{}, {}]
    if transport.startswith("memif "):
        scheme = transport.removeprefix("memif ")
        # A port for each, so that C is there before A.
        mine = [f"memif:{scratch}/a,address=10.0.0.2/24,name=a", f"memif:{scratch}/c,address=10.0.1.2/24"]
        theirs = [f"memif:{scratch}/a,address=10.0.0.1/24", f"memif:{scratch}/c,address=10.0.1.3/24"]
        return (
            mine,
            f"{scheme}://10.0.0.2:5000?port=a",
            f"{scheme}://10.0.1.3:5000",
            [{"transport": one} for one in theirs],
        )
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    b, c_port = ports(2, kind)
    return [], f"{transport}://127.0.0.1:{b}", f"{transport}://127.0.0.1:{c_port}", [{}, {}]


def ask(endpoint: str, more: dict[str, Any]) -> dict[str, Any]:
    """A; every reply must be its request byte for byte."""
    options = {"endpoint": endpoint.partition("?")[0], "verify": True, "duration_s": 0.5, "warmup_s": 0.1, **more}
    return _native.run_load(options, lambda progress: False)


@contextmanager
def answering(c: str, more: dict[str, Any] | None = None) -> Iterator[None]:
    """C."""
    over = threading.Event()
    options = {"respond": [c], **(more or {})}
    thread = threading.Thread(target=_native.run_load, args=(options, lambda progress: over.is_set()))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@asynccontextmanager
async def serving(file: str, transports: list[str], store: str | None = None, **settings: str) -> AsyncIterator[VNF]:
    """The example in this process, so that what it still holds can be seen. ``file`` may have a setting behind it."""
    file, *more = file.split()
    sets = (*more, *(f"{key}={value}" for key, value in settings.items()))
    vnf = load(str(EXAMPLES / file), Config.read(None, transports=tuple(transports), sets=sets, store=store))
    await vnf.start()
    try:
        yield vnf
    finally:
        await vnf.close()


async def until(fact: Callable[[], bool]) -> None:
    """The loop turns until ``fact``; one that never comes true is a failure."""
    async with asyncio.timeout(20):
        while not fact():  # noqa: ASYNC110 — counters have no event to wait for
            await asyncio.sleep(0)


@pytest.mark.parametrize("transport", ["tcp", "unix", "udp", "memif udp", "memif tcp"])
@pytest.mark.parametrize("file", OURS)
async def test_every_shape_answers_what_was_asked_and_keeps_nothing(file: str, transport: str, scratch: Path) -> None:
    transports, listen, c, (of_a, of_c) = endpoints(transport, scratch)
    datagrams = transport.endswith("udp")
    async with serving(file, transports, listen=listen, c=c) as vnf:
        with answering(c, of_c):
            await until(lambda: all(one["connected"] for one in vnf.statistics()["clients"].values()))
            for shape in [ON_ONE] if datagrams else [ON_ONE, ON_EACH, PER_REQUEST]:
                report = await asyncio.to_thread(ask, listen, {**of_a, **shape})
                assert report["requests"] > 0
                assert report["errors"] == {}
        counters = vnf.statistics()["core"]
        assert vnf.core.open_requests == 0
        assert counters["requests_opened"] == counters["requests_ended"] > 0
        assert counters["handler_errors"] == 0
        for connection in vnf.core.connections():  # a datagram server knows A's address for a while yet
            connection.abort("the test is over")
        await until(lambda: vnf.core.open_connections == 0)
        assert [name for name, row in vnf.core.pool_statistics().items() if row["slots"] != row["free"]] == []
        assert vnf.statistics()["core"]["kept_bytes"] == 0


@pytest.mark.parametrize("file", STATEFUL)
async def test_b_with_state_counts_every_request(file: str, scratch: Path, redis_cluster: RedisCluster) -> None:
    transports, listen, c, _ = endpoints("tcp", scratch)
    async with serving(file, transports, redis_cluster.url, listen=listen, c=c) as vnf:
        (users,) = vnf.tables
        with answering(c):
            report = await asyncio.to_thread(ask, listen, PER_REQUEST)
        assert report["errors"] == {}
        await users.flush()
        asked = [user.asked async for _, user in users.scan()]
        assert sum(asked) == vnf.statistics()["core"]["requests_ended"] >= report["requests"] > 0
        assert users.statistics().get("conflicts", 0) == 0


async def test_a_udp_socket_per_request_is_closed_with_its_request(scratch: Path) -> None:
    transports, listen, c, _ = endpoints("udp", scratch)
    async with serving("b.py", transports, listen=listen, c=c):
        with answering(c):
            await asyncio.to_thread(ask, listen, ON_ONE)
            before = len(os.listdir("/proc/self/fd"))
            report = await asyncio.to_thread(ask, listen, ON_ONE)
            assert report["requests"] > 100
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@contextmanager
def running(file: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """``vnf run``, on uvloop, until it says that it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-m", "libvnf", "run", str(EXAMPLES / file), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert any(": ready in " in line for line in child.stdout)
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_the_papers_listing_runs_as_it_is_printed(scratch: Path) -> None:
    b, c = ports(2, socket.SOCK_STREAM)
    config = scratch / "vnf.toml"
    config.write_text(
        f'[port.data0]\ntype = "kernel"\n'
        f'map = {{ "10.0.0.2:5000" = "127.0.0.1:{b}", "10.0.0.3:5000" = "127.0.0.1:{c}" }}\n'
    )
    with running("b_papers.py", "--config", str(config), "--transport", "data0") as child:
        with answering(f"tcp://127.0.0.1:{c}"):
            report = ask(f"tcp://127.0.0.1:{b}", PER_REQUEST)
        assert report["requests"] > 0
        assert report["errors"] == {}
        child.send_signal(signal.SIGTERM)
        assert child.stdout is not None
        rest = child.stdout.read()
        assert child.wait(30) == 0
        assert "b_papers: drained" in rest
