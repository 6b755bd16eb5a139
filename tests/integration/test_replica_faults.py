"""Replicas that are killed, stopped, drained and cut off, over real stores: every update is counted by who asked for
it, and the store is held against that. What is lost is within what the durability says (docs/guide/state.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from libvnf.state import Tables, write_through
from tests.integration.inside import until
from tests.integration.programs import ROOT, RUN
from tests.peers import DEADLINE_S, Process
from tests.redis_cluster import RedisCluster, RedisServer
from tests.vnfs.tally import LEVELS, Both

pytestmark = pytest.mark.needs("redis-server")

TALLY = ROOT / "tests" / "vnfs" / "tally.py"
QUICK = ["--set", "limits.grace_s=0"]
KEYS = 16
WORKERS = 2

Start = Callable[..., "Replica"]


class Asker:
    """One connection to a replica: a question, its answer, the next question."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def line(self) -> str:
        """The next answer. ``ConnectionError`` where there is none."""
        if not (answer := await self._reader.readline()).endswith(b"\n"):
            raise ConnectionResetError
        return answer.decode().strip()

    def send(self, *words: object) -> None:
        self._writer.write(" ".join(map(str, words)).encode() + b"\n")

    async def ask(self, *words: object) -> str:
        self.send(*words)
        return await self.line()

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


class Replica:
    """``tests/vnfs/tally.py``, running."""

    def __init__(self, process: Process) -> None:
        self.process = process
        found = [process.wait_for(r"^tally: serving tcp://127\.0\.0\.1:(\d+)")[1] for _ in range(2)]
        self._ports = [int(port) for port in found]
        process.wait_for(r"^tally: ready in ")

    @asynccontextmanager
    async def asker(self, *, commit: bool = False) -> AsyncIterator[Asker]:
        asker = Asker(*await asyncio.open_connection("127.0.0.1", self._ports[commit]))
        try:
            yield asker
        finally:
            await asker.close()

    async def ask(self, *words: object) -> str:
        async with self.asker() as asker:
            return await asker.ask(*words)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """Returns when it stands still."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)


@pytest.fixture
def start(process: Callable[..., Process]) -> Start:
    def started(url: str, *options: str) -> Replica:
        return Replica(launch(process, url, *options))

    return started


def launch(process: Callable[..., Process], url: str, *options: str) -> Process:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return process([*RUN, TALLY, "--store", url, *QUICK, *options], env=environment)


async def standing(url: str, name: str, kind: type = int, key: type = bytes) -> dict[Any, Any]:
    """What the table has in the store."""
    tables = Tables(logging.getLogger("test"))
    table: Any = tables.add(name, key, kind, write_through)
    try:
        await tables.start(url, lambda fn, *args: fn(*args), DEADLINE_S)
        return {key: value async for key, value in table.scan()}
    finally:
        await tables.close()


# --- kill -9 of a replica ---------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A change that was acknowledged; and what its replica told of its table when it was made."""

    number: int
    flushes: int = 0
    flying: int = 0
    dirty: int = 0


class Worker:
    """Puts numbers from 1 on, each at one of its keys, or counts up; each time when the last has been answered."""

    def __init__(self, name: str, level: str, *, commit: bool = False, keys: int = KEYS, command: str = "put") -> None:
        self.name, self.level, self.commit, self.keys, self.command = name, level, commit, keys, command
        self.asked = 0
        self.answers: list[Answer] = []

    def key(self, number: int) -> bytes:
        return f"{self.name}-{number % self.keys}".encode()

    async def run(self, replica: Replica) -> None:
        """Until the replica is gone."""
        with suppress(ConnectionError):
            async with replica.asker(commit=self.commit) as asker:
                while True:
                    self.asked += 1
                    answer = await asker.ask(self.command, self.level, self.key(self.asked).decode(), self.asked)
                    self.answers.append(Answer(*map(int, answer.split())))

    def lost(self, stored: dict[bytes, int]) -> list[Answer]:
        """What was acknowledged and is not in the store, nor is anything later of the same key."""
        return [answer for answer in self.answers if stored.get(self.key(answer.number), 0) < answer.number]


def workers(name: str) -> dict[str, list[Worker]]:
    """Of one replica, by what is tested."""
    found: dict[str, list[Worker]] = {}
    for level in ("local", "interval", "every", "request_end", "write_through", "replicated"):
        found[level] = [Worker(f"{name}-{at}", level) for at in range(WORKERS)]
    # Each change an entry of its own: what waits is counted by entries.
    found["every"] = [Worker(f"{name}-{at}", "every", keys=1 << 30) for at in range(WORKERS)]
    for level in ("interval_long", "every_many", "request_end", "write_through", "replicated"):
        found[f"commit, {level}"] = [Worker(f"{name}-c{at}", level, commit=True) for at in range(WORKERS)]
    for level in ("write_through", "replicated"):
        found[f"incr, {level}"] = [Worker(f"{name}-{level}", level, keys=1, command="incr")]
    return found


class Killed(NamedTuple):
    """What was done with replicas that are dead, and what stands in the store."""

    replicas: list[dict[str, list[Worker]]]
    stored: dict[str, dict[bytes, int]]

    def of(self, test: str) -> Iterator[tuple[list[Worker], dict[bytes, int]]]:
        for found in self.replicas:
            yield found[test], self.stored["sums" if test.startswith("incr") else found[test][0].level]


async def kill_under_load(replica: Replica, load: dict[str, list[Worker]], answers: int) -> None:
    """kill -9 when every worker has had so many answers."""
    every = [worker for some in load.values() for worker in some]
    running = [asyncio.ensure_future(worker.run(replica)) for worker in every]
    await until(lambda: all(len(worker.answers) >= answers for worker in every) or any(one.done() for one in running))
    replica.signal(signal.SIGKILL)
    await asyncio.gather(*running)
    assert await asyncio.to_thread(replica.process.wait) == -signal.SIGKILL, replica.process.output


@pytest.fixture(scope="module", params=[6, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(7, 27))])
def killed(request: pytest.FixtureRequest, session_cluster: RedisCluster) -> Killed:
    """Six replicas, killed at moments of their own under load of every kind."""
    session_cluster.heal()
    url, chance, started = session_cluster.url, random.Random(request.param), list[Process]()

    def process(*args: Any, **options: Any) -> Process:
        started.append(Process(*args, **options))
        return started[-1]

    async def run() -> Killed:
        loads = []
        for wave in range(2):
            processes = [launch(process, url) for _ in range(3)]
            replicas = [Replica(one) for one in processes]
            some = [workers(f"{wave}{at}") for at in range(len(replicas))]
            await asyncio.gather(
                *(kill_under_load(*pair, chance.randint(20, 150)) for pair in zip(replicas, some, strict=True))
            )
            loads += some
        names = ["sums", *LEVELS]
        return Killed(loads, {name: await standing(url, name) for name in names})

    try:
        return asyncio.run(run())
    finally:
        for one in started:
            one.stop(grace_s=0)


def test_of_a_local_table_everything_dies_with_its_replica(killed: Killed) -> None:
    assert killed.stored["local"] == {}
    assert all(worker.answers for some, _ in killed.of("local") for worker in some)


NOTHING_LOST = [
    "write_through",
    "replicated",
    *(f"commit, {level}" for level in ("interval_long", "every_many", "request_end", "write_through", "replicated")),
]


@pytest.mark.parametrize("test", NOTHING_LOST)
def test_what_the_store_has_before_it_is_acknowledged_outlives_its_replica(killed: Killed, test: str) -> None:
    for some, stored in killed.of(test):
        for worker in some:
            assert worker.lost(stored) == []
            assert all(stored.get(worker.key(at), 0) <= worker.asked for at in range(KEYS))


@pytest.mark.parametrize("test", ["interval", "every", "request_end"])
def test_a_killed_replica_takes_with_it_what_it_had_not_flushed_and_no_more(killed: Killed, test: str) -> None:
    lost = certain = 0
    for some, stored in killed.of(test):
        flushes = max(answer.flushes for worker in some for answer in worker.answers)
        for worker in some:
            missing = set(worker.lost(stored))
            # Nothing was under way when it was put, so the next flight took it; and one has landed since.
            landed = {answer for answer in worker.answers if not answer.flying and answer.flushes < flushes}
            assert missing & landed == set()
            assert all(stored.get(worker.key(answer.number), 0) <= worker.asked for answer in worker.answers)
            lost, certain = lost + len(missing), certain + len(landed)
    assert certain > 0
    assert lost > 0 or test == "request_end", "the load was enough to lose something"


def test_with_every_no_more_waits_than_that_and_what_waits_is_all_that_is_lost(killed: Killed) -> None:
    for some, stored in killed.of("every"):
        assert all(answer.dirty < 20 + WORKERS for worker in some for answer in worker.answers)
        # Of the last of all answers it is not known whose it was.
        waited = max(worker.answers[-1].dirty + worker.answers[-1].flying for worker in some)
        assert sum(len(worker.lost(stored)) for worker in some) <= waited + WORKERS


@pytest.mark.parametrize("test", ["incr, write_through", "incr, replicated"])
def test_an_increment_that_was_answered_is_counted_once(killed: Killed, test: str) -> None:
    for [worker], stored in killed.of(test):
        sums = [answer.number for answer in worker.answers]
        assert sums == list(range(1, len(sums) + 1))
        assert len(sums) <= stored[worker.key(0)] <= worker.asked


async def test_a_write_that_a_replica_has_outlives_the_death_of_its_replica_and_of_a_master(
    redis_cluster: RedisCluster, start: Start
) -> None:
    replica = await asyncio.to_thread(start, redis_cluster.url)
    load = {
        "put": [Worker(f"p{at}", "replicated", keys=200) for at in range(4)],
        "commit": [Worker(f"c{at}", "replicated", keys=200, commit=True) for at in range(4)],
    }
    master = redis_cluster.masters()[0]
    every = [worker for some in load.values() for worker in some]
    running = [asyncio.ensure_future(worker.run(replica)) for worker in every]
    await until(lambda: all(len(worker.answers) > 200 for worker in every))
    master.kill()
    replica.signal(signal.SIGKILL)
    await asyncio.gather(*running)
    await asyncio.to_thread(redis_cluster.wait_failover, master)
    stored = await standing(redis_cluster.url, "replicated")
    assert [worker.lost(stored) for worker in every] == [[]] * len(every)


async def test_what_an_embedded_store_has_outlives_its_replica_and_its_server(tmp_path: Path, start: Start) -> None:
    url = f"redis+embedded://{tmp_path}/store"
    replica = await asyncio.to_thread(start, url)
    every = [Worker(f"p{at}", "write_through") for at in range(4)]
    running = [asyncio.ensure_future(worker.run(replica)) for worker in every]
    await until(lambda: all(len(worker.answers) > 100 for worker in every))
    server = int(await server_of(tmp_path / "store" / "store.sock"))
    replica.signal(signal.SIGSTOP)  # so that it does not begin the server again
    os.kill(server, signal.SIGKILL)
    replica.signal(signal.SIGKILL)
    await asyncio.gather(*running)
    stored = await standing(url, "write_through")
    assert [worker.lost(stored) for worker in every] == [[]] * len(every)


async def server_of(path: Path) -> str:
    """The process id of the server that listens there."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"INFO server\r\n")
    text = await reader.readuntil(b"tcp_port")
    writer.close()
    await writer.wait_closed()
    found = re.search(r"process_id:(\d+)", text.decode())
    assert found is not None
    return found[1]


# --- a replica that stands still --------------------------------------------------------------------------------------


async def test_a_replica_that_wakes_after_its_lease_overwrites_nothing_of_its_successor(
    redis_cluster: RedisCluster, start: Start
) -> None:
    first, successor = [await asyncio.to_thread(start, redis_cluster.url) for _ in range(2)]
    keys = [f"k{number}" for number in range(50)]
    async with first.asker() as holder, successor.asker() as heir:
        old, fence = (await holder.ask("hold", "lock", 0.5, 1)).split()
        for key in keys:
            assert await first.ask("change", "interval_long", key, 1) == "changed"
        first.stop()
        # It waits until the lease is over.
        new, later = (await heir.ask("hold", "lock", 0.5, 2)).split()
        assert old == new == "holds" and int(later) > int(fence)
        assert await successor.ask("proceed") == "told"
        assert await heir.line() == "written"
        for key in keys:
            assert await successor.ask("change", "interval_long", key, 2) == "changed"
        assert await successor.ask("flush", "interval_long") == "flushed"
        first.resume()
        assert await first.ask("proceed") == "told"
        assert await holder.line() == "refused"
    while (now := json.loads(await first.ask("stats", "interval_long")))["dirty_now"] + now["flying_now"]:
        pass
    assert (now["conflicts"], now["gave way to 2"]) == (len(keys), len(keys))
    assert json.loads(await first.ask("stats", "sums"))["leases_lost"] == 1
    assert await standing(redis_cluster.url, "interval_long") == {key.encode(): 2 for key in keys}
    assert (await standing(redis_cluster.url, "sums"))[b"lock"] == 2
    assert {await first.ask("get", "interval_long", key) for key in keys} == {"2"}


@pytest.mark.parametrize("stops", [False, True])
async def test_no_update_is_lost_to_puts_of_another_replica_and_each_conflict_is_told(
    redis_cluster: RedisCluster, start: Start, stops: bool
) -> None:
    """One counts by ``update``, the other puts what it makes of what it has read, and stands still now and then."""
    updater, putter = [await asyncio.to_thread(start, redis_cluster.url) for _ in range(2)]
    keys, rounds, times = 64, 10, 200
    async with updater.asker() as updating, putter.asker() as putting:
        assert await putting.ask("overwrite", keys, 7) == "begins"
        for at in range(rounds):
            if stops and at % 2:
                putter.stop()
            assert await updating.ask("update", times, keys, at) == "updated"
            putter.resume()
        assert await putter.ask("proceed") == "told"
        told = json.loads(await putting.line())
    stored = (await standing(redis_cluster.url, "both", Both, int)).values()
    assert sum(value.updates for value in stored) == rounds * times
    assert sum(value.puts for value in stored) == told["made"] - told["lost puts"]
    assert told["counted"] == told["conflicts"] > 0


# --- one key ----------------------------------------------------------------------------------------------------------


async def test_the_sum_of_100_000_updates_of_two_replicas_is_exact(redis_cluster: RedisCluster, start: Start) -> None:
    replicas = [await asyncio.to_thread(start, redis_cluster.url) for _ in range(2)]
    each = 25_024  # a multiple of those at once
    answers = await asyncio.gather(*(replica.ask("count", "key", each, each) for replica in replicas))
    done, returned = (sum(column) for column in zip(*(map(int, answer.split()) for answer in answers), strict=True))
    total = 4 * each
    assert total >= 100_000 and done == total
    assert await standing(redis_cluster.url, "sums") == {b"key": total}
    assert returned == total * (total + 1) // 2, "each sum was returned once"


# --- SIGTERM ----------------------------------------------------------------------------------------------------------

CACHED = ["interval", "every", "request_end", "interval_long", "every_many"]


async def test_sigterm_under_load_stores_all_that_was_acknowledged(redis_cluster: RedisCluster, start: Start) -> None:
    replica = await asyncio.to_thread(start, redis_cluster.url)
    every = [Worker(f"{level}{at}", level) for level in CACHED for at in range(WORKERS)]
    running = [asyncio.ensure_future(worker.run(replica)) for worker in every]
    await until(lambda: all(len(worker.answers) > 100 for worker in every))
    replica.signal(signal.SIGTERM)
    await asyncio.gather(*running)
    assert await asyncio.to_thread(replica.process.wait) == 0
    assert "not stored" not in replica.process.output
    for worker in every:
        assert worker.lost(await standing(redis_cluster.url, worker.level)) == []


@pytest.mark.parametrize("fault", ["killed", "stopped"])
async def test_sigterm_while_the_store_is_away_ends_and_says_what_is_not_stored(
    redis_server: Callable[..., RedisServer], start: Start, fault: str
) -> None:
    server = redis_server()
    replica = await asyncio.to_thread(start, server.url, "--set", "limits.drain_s=0.2")
    for number in range(7):
        assert await replica.ask("change", "interval_long", f"k{number}", 1) == "changed"
    if fault == "killed":
        server.kill()
    else:
        server.pause()
    async with replica.asker() as waiting:
        # It has no answer, and is reset in the end.
        waiting.send("put", "write_through", "k", 1)
        for number in range(5):
            assert (await replica.ask("put", "every_many", f"k{number}", 1)).startswith("1 ")
        replica.signal(signal.SIGTERM)
        assert await asyncio.to_thread(replica.process.wait) == 0
        with pytest.raises(ConnectionError):
            await waiting.line()
    told = re.findall(r"^tally: (table .* not stored)$", replica.process.output, re.MULTILINE)
    assert told == [
        "table write_through: 1 change not stored",
        "table interval_long: 7 changes not stored",
        "table every_many: 5 changes not stored",
    ]
    assert "tried again: the store was closed" not in replica.process.output


async def test_sigterm_of_one_that_never_had_a_store_says_what_is_not_stored(
    redis_server: Callable[..., RedisServer], start: Start
) -> None:
    server = redis_server()
    server.kill()
    replica = await asyncio.to_thread(start, server.url, "--set", "limits.drain_s=0.2")
    for number in range(3):
        assert (await replica.ask("put", "interval", f"k{number}", 1)).startswith("1 ")
    replica.signal(signal.SIGTERM)
    assert await asyncio.to_thread(replica.process.wait) == 0
    assert "tally: table interval: 3 changes not stored" in replica.process.output
