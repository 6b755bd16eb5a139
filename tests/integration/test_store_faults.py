"""Stores that are not there, not well, not ours or not stores: what is told, and that everything goes on afterwards."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import shlex
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from libvnf.errors import DurabilityUnknown, StateError, StoreUnavailable
from libvnf.state import Table, replicated, write_through
from libvnf.state.redis import RedisStore
from libvnf.state.store import Written
from libvnf.state.tables import Tables
from libvnf.state.url import StoreURL
from tests.integration.inside import until
from tests.integration.pages import commands
from tests.integration.test_store_conformance import Client, again
from tests.peers import DEADLINE_S
from tests.redis_cluster import Certificates, RedisCluster, RedisServer

DONE = Written([], [])
QUICK = {"timeout_s": 1.0, "silence_s": 0.3}

Opened = Callable[..., Awaitable[Client]]
Server = Callable[..., RedisServer]


class Told(Client):
    """A client, and what it was told of its store."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store)
        self.states: list[str] = []
        store.on_state = self.states.append


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Awaitable[Told]]]:
    """``await opened(url, **limits)``: a client of the store at ``url``."""
    async with AsyncExitStack() as close:

        async def client(url: str, **limits: Any) -> Told:
            store = RedisStore(StoreURL.parse(url), **limits)
            close.push_async_callback(store.close)
            states: list[str] = []
            store.on_state = states.append
            await store.open()
            told = Told(store)
            told.states[:0] = states
            return told

        yield client


async def refused(url: str, **limits: Any) -> str:
    """What the store is refused with, at once: waiting would not help."""
    store = RedisStore(StoreURL.parse(url), **{"timeout_s": DEADLINE_S, **limits})
    with pytest.raises(StateError) as caught:
        async with asyncio.timeout(DEADLINE_S / 2):
            await store.open()
    assert type(caught.value) is StateError
    return str(caught.value)


# --- at the start -----------------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_told_and_not_shown(redis_server: Server) -> None:
    server = redis_server({"requirepass": "right"})
    for login in ("u:guess@", ":guess@", ""):
        text = await refused(f"redis://{login}127.0.0.1:{server.port}")
        assert f"127.0.0.1:{server.port}" in text
        assert "WRONGPASS" in text or "NOAUTH" in text
        assert "guess" not in text


async def test_a_server_is_no_cluster_and_a_node_no_server(redis_server: Server, redis_cluster: RedisCluster) -> None:
    assert "cluster" in await refused(redis_server().url.replace("redis:", "redis-cluster:"))
    assert "cluster" in await refused(redis_cluster.nodes[0].url)


async def test_a_store_that_comes_later_is_opened_then(redis_server: Server, opened: Opened) -> None:
    server = redis_server()
    server.kill()
    store = RedisStore(StoreURL.parse(server.url), timeout_s=0.3)
    try:
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port}"):
            await store.open()
        server.start()

        async def there() -> bool:
            with suppress(StoreUnavailable):  # between two attempts to connect
                await store.open()
            return store.writer != 0

        await again(there, bool)
        client = Client(store)
        assert (await client.write(store.table("t"), {b"k": b"1"}))[1] == DONE
    finally:
        await store.close()


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-7\r\n", b"*4294967296\r\n", b"\0" * 100_000, b"+" * 100_000, b""],
    ids=["HTTP", "no length", "a list without end", "zeros", "a line without end", "closed"],
)
async def test_what_is_no_store_is_no_store(answer: bytes) -> None:
    ended = asyncio.Event()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()
        ended.set()

    async with await asyncio.start_server(babble, "127.0.0.1") as listening:
        port = listening.sockets[0].getsockname()[1]
        store = RedisStore(StoreURL.parse(f"redis://127.0.0.1:{port}"), timeout_s=0.5)
        with pytest.raises(StateError):
            await store.open()
        await store.close()
        assert ended.is_set()


# --- afterwards -------------------------------------------------------------------------------------------------------


async def test_a_restarted_store_is_up_again_and_what_was_read_may_be_stale(
    redis_server: Server, opened: Opened
) -> None:
    server = redis_server({"appendonly": "yes", "appendfsync": "always"})
    client = await opened(server.url, timeout_s=DEADLINE_S)
    table = client.store.table("t")
    await client.write(table, {b"k": b"1"})
    server.kill()
    await until(lambda: client.states[-1].startswith("down: "))
    reading = asyncio.ensure_future(client.payloads(table, b"k"))
    await asyncio.sleep(0)
    server.start()
    assert await reading == [b"1"]
    await until(lambda: client.states[-1] == "up")
    assert any(where == table and keys is not None and keys(b"k") for where, keys in client.invalid)


async def test_a_store_that_has_forgotten_its_writers_gives_no_number_again(
    redis_server: Server, opened: Opened
) -> None:
    server, writers = redis_server(), []
    random.seed(4)
    for _ in range(4):
        writers.append((await opened(server.url)).store.writer)
        server.ask("flushall", "sync")
    assert len(set(writers)) == 4
    assert all(0 < writer < 1 << 24 for writer in writers)


async def test_a_stopped_store_is_waited_for_and_no_longer_than_allowed(redis_server: Server, opened: Opened) -> None:
    server = redis_server()
    client = await opened(server.url, **QUICK)
    table = client.store.table("t")
    first, _ = await client.write(table, {b"k": b"1"})
    server.pause()
    [answer] = await client.read(table, b"k")
    assert type(answer) is StoreUnavailable
    again_first, written = await client.write(table, {b"k": b"2"}, [first])
    assert [type(error) for _, error in written.failed] in ([DurabilityUnknown], [StoreUnavailable])
    assert client.states[-1].startswith("down: ")
    server.resume()
    await again(lambda: client.read(table, b"k"), lambda found: not isinstance(found[0], StateError))
    # Whatever became of it, to repeat it is right.
    assert (await client.write(table, {b"k": b"2"}, [first], first=again_first))[1] == DONE
    await until(lambda: client.states[-1] == "up")


async def test_a_full_store_refuses_and_what_stands_there_is_read(redis_server: Server, opened: Opened) -> None:
    server = redis_server({"maxmemory": "8mb"})
    client = await opened(server.url, **QUICK)
    table = client.store.table("t")
    await client.write(table, {b"small": b"1"})
    number = 0
    while (outcome := (await client.write(table, {b"%d" % number: bytes(1 << 20)}))[1]) == DONE:
        number += 1
        assert number < 20
    [(_, error)] = outcome.failed
    assert "OOM" in str(error)
    assert await client.payloads(table, b"small") == [b"1"]
    server.ask("config", "set", "maxmemory", "64mb")
    assert (await client.write(table, {b"small": b"2"}))[1] == DONE


async def test_a_user_without_the_right_to_write_is_told(redis_server: Server, opened: Opened) -> None:
    server = redis_server()
    server.ask("acl", "setuser", "reader", "on", ">p", "~*", "+@all", "-set", "-mset")
    client = await opened(f"redis://reader:p@127.0.0.1:{server.port}", **QUICK)
    _, written = await client.write(client.store.table("t"), {b"k": b"1"})
    [(_, error)] = written.failed
    assert "can't run this command" in str(error)


async def test_an_embedded_server_that_was_killed_is_begun_again_by_itself(tmp_path: Path, opened: Opened) -> None:
    client = await opened(f"redis+embedded://{tmp_path}/store", timeout_s=DEADLINE_S)
    table = client.store.table("t")
    with redis.Redis(unix_socket_path=f"{tmp_path}/store/store.sock", protocol=2) as admin:
        os.kill(admin.info("server")["process_id"], signal.SIGKILL)
    assert (await client.write(table, {b"k": b"1"}))[1] == DONE
    assert await client.payloads(table, b"k") == [b"1"]
    await until(lambda: client.states[-1] == "up")


async def test_too_much_that_waits_is_refused_at_the_call(redis_server: Server, opened: Opened) -> None:
    server = redis_server()
    client = await opened(server.url, **QUICK, max_queued=10)
    table = client.store.table("t")
    server.pause()
    calls = [asyncio.ensure_future(client.read(table, b"%d" % number)) for number in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(answer) for answer in answers if isinstance(answer, StateError)] == [
        "too much waits for the store"
    ] * 10
    server.resume()
    await again(lambda: client.read(table, b"k"), lambda found: found == [None])


# --- a cluster that lets in whom it knows -----------------------------------------------------------------------------


@pytest.fixture
def secured(tmp_path: Path, certificates: Certificates) -> Iterator[RedisCluster]:
    """Three masters, on TLS alone, that ask for certificates and passwords."""
    options = {"tls-auth-clients": "yes", "requirepass": "administrator", "masterauth": "administrator"}
    cluster = RedisCluster(tmp_path / "secured", options, replicas=False, tls=certificates)
    try:
        cluster.start()
        [granted] = [command for command in commands("docs/guide/state.md") if "acl setuser" in command]
        rights = shlex.split(granted)[1:]
        assert ">secret" in rights
        for node in cluster.nodes:
            node.ask(*(">p@ss" if word == ">secret" else word for word in rights))
        yield cluster
    finally:
        cluster.stop()


async def test_a_user_with_a_certificate_uses_a_cluster_over_tls(
    secured: RedisCluster, certificates: Certificates, opened: Opened
) -> None:
    url, authority = secured.url.replace("//", "//tables:p%40ss@"), f"tls_ca={certificates.ca}"
    shown = f"tls_cert={certificates.cert}&tls_key={certificates.key}"
    client = await opened(f"{url}?{authority}&{shown}", timeout_s=DEADLINE_S)
    table = client.store.table("t")
    entries = {b"%d" % number: bytes(1000) for number in range(1000)}
    first, written = await client.write(table, entries, [0] * 1000)
    assert written == DONE
    assert [stored.version for stored in await client.read(table, *entries)] == list(range(first, first + 1000))
    assert len(await client.all(table)) == 1000
    owner = client.versions.take()
    assert isinstance(await client.ask(client.store.lock, table, b"k", owner, 10_000), int)
    assert (await client.write(table, {b"k": b"1"}, guard=(b"k", owner)))[1] == DONE
    assert await client.ask(client.store.unlock, table, b"k", owner) is None
    _, written = await client.write(table, {b"k": None}, replicas=1)
    assert "0 of 1 replicas" in str(written.failed)
    ending = client.store.table("ending", keeps_expired=True)
    await client.write(ending, {b"k": b"1"}, deadlines=[1])
    [(key, stored)] = await client.ask(client.store.claim_expired, ending, 10, 1000, 64)
    assert await client.ask(client.store.expired, ending, [key], [stored.version]) is None
    for handle in (table, ending):
        assert await client.ask(client.store.drop, handle) is None
        assert await client.all(handle) == []
    assert client.states[-1] == "up"
    assert "certificate" in (await refused(f"{url}?{authority}", timeout_s=2.0)).lower()
    wrong = url.replace("p%40ss", "guess")
    text = await refused(f"{wrong}?{authority}&{shown}")
    assert "WRONGPASS" in text
    assert "guess" not in text


# --- a cluster that changes -------------------------------------------------------------------------------------------


async def test_a_master_that_is_killed_is_replaced_without_a_write_lost_that_replicas_had(
    redis_cluster: RedisCluster, opened: Opened
) -> None:
    client = await opened(redis_cluster.url, timeout_s=DEADLINE_S)
    table = client.store.table("t")
    acknowledged: dict[bytes, bytes] = {}
    ended = asyncio.Event()

    async def write(worker: int) -> None:
        number = 0
        while not ended.is_set():
            entries = {b"%d %d %d" % (worker, number, at): b"%d" % at for at in range(20)}
            _, written = await client.write(table, entries, [0] * 20, replicas=1)
            assert written.conflicts == [], "a write that is repeated meets itself"
            failed = {index for index, _ in written.failed}
            acknowledged.update(item for at, item in enumerate(entries.items()) if at not in failed)
            number += 1

    async def enough(more: int) -> None:
        wanted = len(acknowledged) + more
        await until(lambda: len(acknowledged) >= wanted)

    workers = [asyncio.ensure_future(write(worker)) for worker in range(4)]
    await enough(400)
    master = redis_cluster.masters()[0]
    await asyncio.to_thread(master.kill)
    await asyncio.to_thread(redis_cluster.wait_failover, master)
    # Without a second replica of what it served, writes there stay uncertain.
    await enough(10)
    await asyncio.to_thread(master.start)
    await enough(2000)
    ended.set()
    await asyncio.gather(*workers)
    assert await client.payloads(table, *acknowledged) == list(acknowledged.values())


async def test_a_slot_that_moves_under_load_loses_nothing(redis_cluster: RedisCluster, opened: Opened) -> None:
    client = await opened(redis_cluster.url, timeout_s=DEADLINE_S)
    table = client.store.table("t", partitions=1)
    keys = [b"%d" % number for number in range(100)]
    first, _ = await client.write(table, dict.fromkeys(keys, b"0"), [0] * 100)
    versions = [first + at for at in range(100)]
    ended = asyncio.Event()
    rounds = 0

    async def count() -> None:
        nonlocal versions, rounds
        while not ended.is_set():
            rounds += 1
            first, written = await client.write(table, dict.fromkeys(keys, b"%d" % rounds), versions)
            assert written == DONE
            versions = [first + at for at in range(100)]
            assert await client.payloads(table, *keys[::7]) == [b"%d" % rounds] * 15

    counting = asyncio.ensure_future(count())
    slot = redis_cluster.slot("{vnf:t:0}")
    source = redis_cluster.owner(slot)
    there = next(node for node in redis_cluster.masters() if node is not source)
    for target in (there, source):
        before = rounds
        await until(lambda before=before: rounds > before + 5 or counting.done())
        await asyncio.to_thread(redis_cluster.migrate, slot, target)
    before = rounds
    await until(lambda: rounds > before + 5 or counting.done())
    ended.set()
    await counting
    assert [stored.version for stored in await client.read(table, *keys)] == versions


# --- counters, by tables ----------------------------------------------------------------------------------------------


@pytest.fixture
async def counters(redis_cluster: RedisCluster) -> AsyncIterator[list[Table[str, int]]]:
    """The same table in two replicas of a VNF."""
    async with AsyncExitStack() as close:
        found = []
        for _ in range(2):
            tables = Tables(logging.getLogger("test"))
            close.push_async_callback(tables.close)
            found.append(tables.add("counters", str, int, write_through))
            await tables.start(redis_cluster.url, lambda fn, *args: fn(*args), DEADLINE_S)
        yield found


async def test_two_replicas_count_on_one_key_and_the_sum_is_exact(counters: list[Table[str, int]]) -> None:
    async def count(table: Table[str, int]) -> None:
        for _ in range(500):
            await table.update("key", lambda value: value + 1, default=0)

    await asyncio.gather(*(count(table) for table in counters for _ in range(2)))
    # By the store: what is cached may be older for a moment.
    assert [await table.incr("key", 0) for table in counters] == [2000, 2000]


async def test_no_increment_is_applied_twice_when_a_master_is_killed(
    redis_cluster: RedisCluster, counters: list[Table[str, int]]
) -> None:
    keys = [f"key {number}" for number in range(30)]
    sure, doubtful = Counter[str](), Counter[str]()
    ended = asyncio.Event()

    async def count(table: Table[str, int], some: list[str]) -> None:
        for key in itertools.cycle(some):
            if ended.is_set():
                return
            try:
                await table.incr(key, durability=replicated(1))
            except DurabilityUnknown:
                doubtful[key] += 1
            except StoreUnavailable:
                pass
            else:
                sure[key] += 1

    counting = [asyncio.ensure_future(count(table, keys[at::5])) for table in counters for at in range(5)]
    await until(lambda: sure.total() > 300)
    master = redis_cluster.masters()[0]
    await asyncio.to_thread(master.kill)
    await asyncio.to_thread(redis_cluster.wait_failover, master)
    await asyncio.to_thread(master.start)
    before = sure.total()
    await until(lambda: sure.total() > before + 2000)
    ended.set()
    await asyncio.gather(*counting)
    for key in keys:
        found = await counters[0].incr(key, 0)
        assert sure[key] <= found <= sure[key] + doubtful[key], key
