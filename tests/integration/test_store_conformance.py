"""The contract between tables and stores (``libvnf/state/store.py``), kept by every store: one suite for all."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libvnf.errors import ConfigError, DurabilityUnknown, LockLost, StateError
from libvnf.state.memory import Memory, MemoryStore
from libvnf.state.redis import RedisStore
from libvnf.state.store import RECENT, SEQUENCE_BITS, Invalid, Stored, Versions, Written, carried
from libvnf.state.url import StoreURL
from tests.integration.inside import until

KINDS = ["memory", "embedded", "redis", "acl", "tls", "cluster"]
SHARED = pytest.mark.parametrize("world", KINDS[1:], indirect=True)
DONE = Written([], [])
FUNCTION_SCOPED = hypothesis.HealthCheck.function_scoped_fixture
HOUR_MS = 3_600_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Client:
    """One client of the store under test; each call is awaited."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.versions = Versions(store.writer)
        self.invalid: list[tuple[int, Invalid]] = []
        store.on_invalid = lambda table, keys: self.invalid.append((table, keys))

    async def ask(self, call: Callable[..., None], *args: Any, **more: Any) -> Any:
        """The answer to a call; several values as a tuple."""
        answered = asyncio.get_running_loop().create_future()
        returned = False

        def done(*answer: Any) -> None:
            assert returned, "answered before the call had returned"
            assert not answered.done(), "answered twice"
            answered.set_result(answer[0] if len(answer) == 1 else answer)

        call(*args, done, **more)
        returned = True
        return await answered

    async def read(self, table: int, *keys: bytes) -> list[Any]:
        found = await self.ask(self.store.read, table, list(keys))
        assert len(found) == len(keys)
        return list(found)

    async def payloads(self, table: int, *keys: bytes) -> list[bytes | None]:
        return [stored and stored.payload for stored in await self.read(table, *keys)]

    async def write(self, table: int, entries: dict[bytes, Any], expected: Any = None, **more: Any) -> tuple[int, Any]:
        """The first version, and what became of it."""
        first = more.pop("first", 0) or self.versions.take(len(entries))
        call = (table, list(entries), expected, first, list(entries.values()))
        return first, await self.ask(self.store.write, *call, **more)

    async def all(self, table: int, count: int = 100) -> list[tuple[bytes, Stored]]:
        found: list[tuple[bytes, Stored]] = []
        cursor: object | None = None
        while True:
            cursor, entries = await self.ask(self.store.scan, table, cursor, count)
            found += entries
            if cursor is None:
                return found

    async def told(self) -> list[tuple[int, Invalid]]:
        """What it was told to be stale, since it was asked last; at least one."""
        await until(lambda: self.invalid)
        told, self.invalid[:] = list(self.invalid), []
        return told


async def again(ask: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """The first good answer; the test's own time limit ends the asking otherwise."""
    while not good(answer := await ask()):  # noqa: ASYNC110 — the store says nothing by itself
        await asyncio.sleep(0.01)
    return answer


class World:
    """A store under test: ``await world.client()`` is another client of it."""

    def __init__(self, kind: str, open_store: Callable[..., Any], close: AsyncExitStack) -> None:
        self.kind, self._open, self._close = kind, open_store, close
        self._names = itertools.count()

    async def client(self, **options: Any) -> Client:
        store = self._open(**options)
        await store.open()
        self._close.push_async_callback(store.close)
        return Client(store)

    def name(self) -> str:
        """Of a table that nobody has used."""
        return f"t{next(self._names)}"


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kind, trusted = request.param, ""
    async with AsyncExitStack() as close:
        if kind == "memory":
            memory = Memory(now_ms)
            yield World(kind, lambda: MemoryStore(memory, asyncio.get_running_loop()), close)
            return
        if kind == "embedded":
            url = f"redis+embedded://{tmp_path}/store"
        elif kind == "redis":
            url = request.getfixturevalue("redis_server")().url
        elif kind in ("acl", "tls"):
            certificates = request.getfixturevalue("certificates") if kind == "tls" else None
            server = request.getfixturevalue("redis_server")({"requirepass": "administrator"}, tls=certificates)
            allowed = ("~vnf:*", "~{vnf:*", "+@all", "-@dangerous", "+info", "+client|tracking", "+role")
            server.ask("acl", "setuser", "tables", "on", ">p@ss", "resetchannels", *allowed)
            scheme, trusted = ("rediss", f"&tls_ca={certificates.ca}") if certificates else ("redis", "")
            url = f"{scheme}://tables:p%40ss@127.0.0.1:{server.port}"
        else:
            url = request.getfixturevalue("redis_cluster").url
        yield World(kind, lambda namespace="vnf": RedisStore(StoreURL.parse(f"{url}?ns={namespace}{trusted}")), close)


pytestmark = pytest.mark.parametrize("world", KINDS, indirect=True)


# --- entries ----------------------------------------------------------------------------------------------------------


async def test_what_one_client_has_written_every_client_reads(world: World) -> None:
    here, there = await world.client(), await world.client()
    table, same = (client.store.table("t") for client in (here, there))
    first, written = await here.write(table, {b"a": b"1", b"b": b"2"})
    assert written == DONE
    expected = [Stored(first + 1, 0, b"", b"2"), None, Stored(first, 0, b"", b"1")]
    assert await there.read(same, b"b", b"c", b"a") == expected
    assert first >> SEQUENCE_BITS == here.store.writer


async def test_keys_and_values_are_any_octets(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    # Packed keys are not empty, and begin with 0xff only when they are nothing else (-1).
    keys = [b"\0", b"\xff", b"{", b"}", b"{}", b"{a}b", b"a\r\nb", b"\xfe\xfflock", b"k" * 1024, bytes(range(256))]
    entries = {key: bytes([number]) + key[::-1] for number, key in enumerate(keys)}
    entries[b"empty"], entries[b"large"] = b"", bytes(1 << 20)
    assert (await client.write(table, entries))[1] == DONE
    assert await client.payloads(table, *entries) == list(entries.values())
    assert sorted((key, stored.payload) for key, stored in await client.all(table)) == sorted(entries.items())


async def test_a_call_of_many_entries_is_answered_in_their_order(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    entries = {b"%d" % number: b"value %d" % number for number in range(5000)}
    first, written = await client.write(table, entries, [0] * 5000)
    assert written == DONE
    found = await client.read(table, *reversed(entries))
    assert [stored.version for stored in reversed(found)] == list(range(first, first + 5000))
    assert [stored.payload for stored in reversed(found)] == list(entries.values())


async def test_calls_without_entries_are_answered(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    assert await client.read(table) == []
    assert (await client.write(table, {}, first=client.versions.take()))[1] == DONE


async def test_calls_under_way_together_are_all_answered(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    keys = [b"%d" % number for number in range(200)]
    written = await asyncio.gather(*(client.write(table, {key: key}, [0]) for key in keys))
    assert [outcome for _, outcome in written] == [DONE] * 200
    assert await asyncio.gather(*(client.payloads(table, key) for key in keys)) == [[key] for key in keys]


async def test_tables_are_apart(world: World) -> None:
    client = await world.client()
    one, two = client.store.table("t"), client.store.table("t2", partitions=1)
    assert one != two == client.store.table("t2", partitions=1)
    await client.write(one, {b"k": b"1"})
    assert await client.read(two, b"k") == [None]
    await client.write(two, {b"k": b"2"})
    assert await client.payloads(one, b"k") == [b"1"]
    with pytest.raises(ConfigError):
        client.store.table("t", partitions=2)


async def test_clients_have_writers_of_their_own(world: World) -> None:
    writers = [(await world.client()).store.writer for _ in range(3)]
    assert len(set(writers)) == 3
    assert all(0 < writer < 1 << 24 for writer in writers)


# --- conditions -------------------------------------------------------------------------------------------------------


async def test_without_a_condition_whatever_stands_there_is_replaced(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t")
    there.store.table("t")
    await here.write(table, {b"k": b"1"})
    assert (await there.write(table, {b"k": b"2"}))[1] == DONE
    assert await here.payloads(table, b"k") == [b"2"]


async def test_a_condition_is_of_each_entry_by_itself(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    first, _ = await client.write(table, {b"a": b"1", b"b": b"1", b"c": b"1"})
    wrong = client.versions.take()
    # As expected, another one, absent as expected, present and not expected, absent and expected.
    entries = {b"a": b"2", b"b": b"2", b"d": b"2", b"c": b"2", b"e": b"2"}
    _, written = await client.write(table, entries, [first, wrong, 0, 0, wrong])
    conflicts = [(1, Stored(first + 1, 0, b"", b"1")), (3, Stored(first + 2, 0, b"", b"1")), (4, None)]
    assert (sorted(written.conflicts, key=lambda it: it[0]), written.failed) == (conflicts, [])
    assert await client.payloads(table, b"a", b"b", b"c", b"d", b"e") == [b"2", b"1", b"1", b"2", None]


async def test_a_repeated_write_has_succeeded(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    first, _ = await client.write(table, {b"k": b"1"}, [0])
    assert (await client.write(table, {b"k": b"1"}, [0], first=first))[1] == DONE
    assert await client.read(table, b"k") == [Stored(first, 0, b"", b"1")]


async def test_of_writers_with_the_same_condition_one_succeeds(world: World) -> None:
    clients = [await world.client() for _ in range(3)]
    [table] = {client.store.table("t") for client in clients}
    keys = {b"%d" % number: b"" for number in range(100)}
    outcomes = await asyncio.gather(
        *(client.write(table, {key: b"%d" % client.store.writer for key in keys}, [0] * 100) for client in clients)
    )
    beaten = sum(len(written.conflicts) for _, written in outcomes)
    assert beaten == 200
    for (first, written), client in zip(outcomes, clients, strict=True):
        lost = {index for index, _ in written.conflicts}
        for index, stored in enumerate(await client.read(table, *keys)):
            assert (stored.version == first + index) == (index not in lost)


async def test_deleting_takes_a_condition_and_what_is_absent_is_deleted(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    first, _ = await client.write(table, {b"a": b"1", b"b": b"1", b"c": b"1"})
    wrong = client.versions.take()
    entries: dict[bytes, None] = dict.fromkeys((b"a", b"b", b"d"))
    _, written = await client.write(table, entries, [first, wrong, wrong])
    assert written == Written([(1, Stored(first + 1, 0, b"", b"1"))], [])
    assert (await client.write(table, dict.fromkeys((b"c", b"e"))))[1] == DONE
    assert await client.payloads(table, b"a", b"b", b"c", b"d", b"e") == [None, b"1", None, None, None]


async def test_updates_stand_in_the_entry_youngest_first_each_writer_once(world: World) -> None:
    clients = [await world.client() for _ in range(RECENT + 2)]
    tables = [client.store.table("t") for client in clients]
    expected, recent = 0, b""
    for client, table in [*zip(clients, tables, strict=True), (clients[-2], tables[-2])]:
        first, written = await client.write(table, {b"k": b"v"}, [expected], recents=[recent], update=True)
        assert written == DONE
        recent, expected = carried(recent, first), first
        assert await client.read(table, b"k") == [Stored(first, 0, recent, b"v")]
    assert len(recent) == 8 * RECENT
    # A conditional put carries them on.
    first, written = await clients[0].write(tables[0], {b"k": b"w"}, [expected], recents=[recent])
    assert written == DONE
    assert await clients[1].read(tables[1], b"k") == [Stored(first, 0, recent, b"w")]


# --- time -------------------------------------------------------------------------------------------------------------


async def test_an_entry_ends_at_its_deadline(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    soon, late = now_ms() + 150, now_ms() + HOUR_MS
    first, written = await client.write(
        table, {b"a": b"1", b"b": b"1", b"c": b"1"}, deadlines=[soon, late, now_ms() - 1]
    )
    assert written == DONE
    assert await client.read(table, b"b", b"c") == [Stored(first + 1, late, b"", b"1"), None]
    await again(partial(client.read, table, b"a"), lambda found: found == [None])
    assert now_ms() >= soon
    assert (await client.write(table, {b"a": b"2", b"b": b"2"}, [0, first + 1], deadlines=[late, 0]))[1] == DONE
    found = await client.read(table, b"a", b"b")
    assert [(it.deadline_ms, it.payload) for it in found] == [(late, b"2"), (0, b"2")]


async def test_an_expired_entry_is_given_to_one_client_and_removed_when_that_is_done(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t", partitions=1, keeps_expired=True)
    assert table == there.store.table("t", partitions=1, keeps_expired=True)
    at = now_ms()
    entries = {b"%d" % number: b"v" for number in range(5)}
    first, _ = await here.write(table, entries, deadlines=[at - 3, at - 2, at - 1, at + HOUR_MS, 0])
    assert [it.version for it in await there.read(table, *entries)] == [first + n for n in range(5)]
    claimed = await here.ask(here.store.claim_expired, table, at, 60_000, 2)
    assert sorted(claimed) == [(b"0", Stored(first, at - 3, b"", b"v")), (b"1", Stored(first + 1, at - 2, b"", b"v"))]
    assert await there.ask(there.store.claim_expired, table, at, 60_000, 10) == [
        (b"2", Stored(first + 2, at - 1, b"", b"v"))
    ]
    assert await here.ask(here.store.claim_expired, table, at, 60_000, 10) == []
    # 0 was dealt with; 1 has been put anew meanwhile; 2's client has died.
    again, _ = await there.write(table, {b"1": b"w"}, deadlines=[at + 1])
    assert await here.ask(here.store.expired, table, [b"0", b"1"], [first, first + 1]) is None
    assert await here.payloads(table, b"0", b"1", b"2") == [None, b"w", b"v"]
    claimed = await here.ask(here.store.claim_expired, table, at + 60_001, 60_000, 10)
    assert sorted(claimed) == [
        (b"1", Stored(again, at + 1, b"", b"w")),
        (b"2", Stored(first + 2, at - 1, b"", b"v")),
    ]


# --- others -----------------------------------------------------------------------------------------------------------


async def test_who_has_read_an_entry_is_told_once_of_anothers_change(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t")
    there.store.table("t")
    await here.write(table, {b"written": b"1"})
    await here.read(table, b"written", b"absent")
    await there.write(table, {b"written": b"2", b"absent": b"2", b"unknown": b"2"})
    told: list[bytes] = []
    while len(told) < 2:
        for where, keys in await here.told():
            assert where == table and isinstance(keys, list)
            told += keys
    assert sorted(told) == [b"absent", b"written"]
    # Not read again, so not told again: the next that is told is another entry.
    await here.read(table, b"last")
    await there.write(table, {b"written": b"3"})
    await there.write(table, {b"last": b"3"})
    assert await here.told() == [(table, [b"last"])]


async def test_who_has_written_an_entry_is_told_of_anothers_change_and_not_of_its_own(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t")
    there.store.table("t")
    first, _ = await here.write(table, {b"a": b"1", b"b": b"1"})
    await here.write(table, {b"a": b"2"}, [first])
    await here.write(table, {b"a": b"3"})
    await there.write(table, {b"b": b"4"})
    assert await here.told() == [(table, [b"b"])]
    await there.write(table, {b"a": None})
    assert await here.told() == [(table, [b"a"])]


async def test_an_end_by_deadline_is_told(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t")
    there.store.table("t")
    await here.write(table, {b"k": b"1"}, deadlines=[now_ms() + 50])
    await again(partial(there.read, table, b"k"), lambda found: found == [None])
    assert await here.told() == [(table, [b"k"])]


async def test_expired_entries_of_all_partitions_are_found(world: World) -> None:
    client = await world.client()
    table = client.store.table("t", keeps_expired=True)
    entries = {b"%d" % number: b"" for number in range(1000)}
    first, _ = await client.write(table, entries, deadlines=[1] * 1000)
    claimed: list[tuple[bytes, Stored]] = []
    while some := await client.ask(client.store.claim_expired, table, now_ms(), 60_000, 128):
        claimed += some
        assert len(some) <= 128
    assert {key: stored.version for key, stored in claimed} == {key: first + at for at, key in enumerate(entries)}
    versions = [stored.version for _, stored in claimed]
    assert await client.ask(client.store.expired, table, [key for key, _ in claimed], versions) is None
    assert await client.all(table) == []


async def test_a_scan_finds_what_stands_there(world: World) -> None:
    client = await world.client()
    table, other = client.store.table("t"), client.store.table("t2")
    assert await client.all(table) == []
    entries = {b"%d" % number: b"v%d" % number for number in range(1000)}
    await client.write(table, entries)
    await client.write(other, {b"other": b""})
    found = await client.all(table)
    assert {key: stored.payload for key, stored in found} == entries
    assert {key for key, _ in await client.all(table, count=1_000_000)} == set(entries)


async def test_a_dropped_table_is_empty_and_usable(world: World) -> None:
    client = await world.client()
    table, other = client.store.table("t", keeps_expired=True), client.store.table("t2")
    await client.write(table, {b"%d" % number: b"" for number in range(1000)}, deadlines=[now_ms() - 1] * 1000)
    await client.write(other, {b"k": b"1"})
    assert await client.ask(client.store.drop, table) is None
    assert await client.all(table) == []
    assert await client.ask(client.store.claim_expired, table, now_ms(), 1000, 10) == []
    assert await client.payloads(other, b"k") == [b"1"]
    assert (await client.write(table, {b"k": b"2"}, [0]))[1] == DONE


async def test_what_is_put_while_its_table_is_dropped_goes_or_expires(world: World) -> None:
    here, there = await world.client(), await world.client()
    for partitions in (1, 4):
        name = world.name()
        [table] = {one.store.table(name, partitions=partitions, keeps_expired=True) for one in (here, there)}
        for _ in range(5):
            at = now_ms()
            await here.write(table, {b"%d" % number: b"" for number in range(2000)}, deadlines=[at] * 2000)
            puts = (there.write(table, {b"new %d" % number: b""}, deadlines=[at]) for number in range(300))
            assert (await asyncio.gather(here.ask(here.store.drop, table), *puts))[0] is None
            left = {key for key, _ in await here.all(table)}
            assert all(key.startswith(b"new") for key in left)
            claimed = await here.ask(here.store.claim_expired, table, now_ms(), HOUR_MS, 1000)
            assert {key for key, _ in claimed} == left


async def test_a_drop_leaves_locks_and_their_fences(world: World) -> None:
    client = await world.client()
    table = client.store.table("t", keeps_expired=True)
    mine, yours = client.versions.take(), client.versions.take()
    fence = await client.ask(client.store.lock, table, b"k", mine, 60_000)
    await client.write(table, {b"k": b"v"}, guard=(b"k", mine))
    assert await client.ask(client.store.drop, table) is None
    assert await client.all(table) == []
    assert await client.ask(client.store.lock, table, b"k", yours, 60_000) is None
    assert await client.ask(client.store.unlock, table, b"k", mine) is None
    assert await client.ask(client.store.lock, table, b"k", yours, 60_000) > fence


async def test_replicas_that_are_not_there_leave_durability_unknown(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    entries = {b"%d" % number: b"v" for number in range(100)}
    _, written = await client.write(table, entries, replicas=1)
    if world.kind == "cluster":
        assert written == DONE
        _, written = await client.write(table, entries, replicas=5)
    assert written.conflicts == []
    assert sorted(index for index, _ in written.failed) == list(range(100))
    assert {type(error) for _, error in written.failed} == {DurabilityUnknown}
    assert await client.payloads(table, *entries) == [b"v"] * 100


# --- locks ------------------------------------------------------------------------------------------------------------


async def test_a_lock_has_one_owner_and_its_fence_grows(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t")
    there.store.table("t")
    mine, yours = here.versions.take(), there.versions.take()
    fence = await here.ask(here.store.lock, table, b"k", mine, 60_000)
    assert isinstance(fence, int)
    assert await there.ask(there.store.lock, table, b"k", yours, 60_000) is None
    assert await here.ask(here.store.lock, table, b"k", mine, 60_000) == fence
    assert isinstance(await there.ask(there.store.unlock, table, b"k", yours), LockLost)
    assert await here.ask(here.store.unlock, table, b"k", mine) is None
    assert await there.ask(there.store.lock, table, b"k", yours, 60_000) > fence
    assert await there.ask(there.store.unlock, table, b"k", yours) is None
    assert isinstance(await there.ask(there.store.unlock, table, b"k", yours), LockLost)


async def test_only_the_owner_of_a_lock_writes_under_its_guard(world: World) -> None:
    client = await world.client()
    table = client.store.table("t", partitions=1)
    owner = client.versions.take()
    _, written = await client.write(table, {b"k": b"0"}, guard=(b"k", owner))
    assert [(index, type(error)) for index, error in written.failed] == [(0, LockLost)]
    await client.ask(client.store.lock, table, b"k", owner, 60_000)
    entries = {b"k": b"1", b"other": b"1"}
    assert (await client.write(table, entries, [0, 0], guard=(b"k", owner)))[1] == DONE
    _, written = await client.write(table, {b"k": b"2"}, guard=(b"k", client.versions.take()))
    assert [(index, type(error)) for index, error in written.failed] == [(0, LockLost)]
    await client.ask(client.store.unlock, table, b"k", owner)
    _, written = await client.write(table, {b"k": b"2"}, guard=(b"k", owner))
    assert [(index, type(error)) for index, error in written.failed] == [(0, LockLost)]
    assert await client.payloads(table, b"k") == [b"1"]
    assert {key for key, _ in await client.all(table)} == set(entries), "a lock is no entry"


async def test_a_lock_of_a_client_that_left_is_free_after_its_lease(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t")
    there.store.table("t")
    fence = await here.ask(here.store.lock, table, b"k", here.versions.take(), 300)
    await here.store.close()
    owner = there.versions.take()
    lock = partial(there.ask, there.store.lock, table, b"k", owner, 300)
    assert await again(lock, lambda answer: answer is not None) > fence


async def test_a_lease_is_renewed_while_the_loop_lives(world: World) -> None:
    here, there = await world.client(), await world.client()
    table = here.store.table("t")
    there.store.table("t")
    owner, until_ms = here.versions.take(), now_ms() + 900
    assert isinstance(await here.ask(here.store.lock, table, b"k", owner, 300), int)
    while now_ms() < until_ms:
        here.store.beat()
        assert await there.ask(there.store.lock, table, b"k", there.versions.take(), 300) is None
        await asyncio.sleep(0.05)
    assert await here.ask(here.store.unlock, table, b"k", owner) is None


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_a_closed_store_refuses_and_answers_what_was_under_way(world: World) -> None:
    client = await world.client()
    table = client.store.table("t")
    under_way = [
        asyncio.ensure_future(client.read(table, b"k")),
        asyncio.ensure_future(client.write(table, {b"k": b"1"})),
    ]
    await asyncio.sleep(0)
    await client.store.close()
    await client.store.close()
    async with asyncio.timeout(10):
        await asyncio.gather(*under_way)
    with pytest.raises(StateError):
        client.store.read(table, [b"k"], lambda _: None)
    with pytest.raises(StateError):
        client.store.write(table, [b"k"], None, client.versions.take(), [b"1"], lambda _: None)


async def test_statistics_are_numbers_with_names(world: World) -> None:
    client = await world.client()
    await client.write(client.store.table("t"), {b"k": b"1"})
    counters = client.store.statistics()
    assert counters
    assert all(isinstance(name, str) and isinstance(value, int) for name, value in counters.items())


# --- against the model ------------------------------------------------------------------------------------------------

KEYS = [b"a", b"b", b"{a}"]
STEP = st.tuples(
    st.integers(0, 1),  # the client
    st.sampled_from(["put", "put if", "put if wrong", "update", "delete", "delete if", "repeat", "read", "scan"]),
    st.lists(st.sampled_from(KEYS), unique=True, min_size=1),
)


async def play(clients: list[Client], table: int, steps: list[Any]) -> list[Any]:
    """The answers to a program, with versions as (number of the client, number of its write)."""
    names = {0: None}
    known: dict[bytes, Stored] = {}
    last: tuple[Any, ...] | None = None
    answers: list[Any] = []

    def plain(stored: Stored | None) -> Any:
        if stored is None:
            return None
        recent = [int.from_bytes(stored.recent[at : at + 8], "big") for at in range(0, len(stored.recent), 8)]
        return names[stored.version], [names[version] for version in recent], stored.payload

    for number, (who, what, keys) in enumerate(steps):
        client = clients[who]
        if what == "scan":
            answers.append(sorted((key, plain(stored)) for key, stored in await client.all(table)))
            continue
        found = await client.read(table, *keys)
        if what == "read":
            answers.append([plain(stored) for stored in found])
            known.update(zip(keys, found, strict=True))
            continue
        if what == "repeat":
            if last is None:
                continue
            who, first, keys, payloads, expected, more = last
            client = clients[who]
        else:
            first = client.versions.take(len(keys))
            payload = None if what.startswith("delete") else b"%d" % number
            payloads, more = [payload] * len(keys), {}
            versions = [stored.version if stored else 0 for stored in found]
            expected = versions if what in ("put if", "update", "delete if") else None
            if what == "put if wrong":
                expected = [stored.version if (stored := known.get(key)) else 0 for key in keys]
            if what == "update":
                more = {"recents": [stored.recent if stored else b"" for stored in found], "update": True}
            last = who, first, keys, payloads, expected, more
        names.update({first + index: (who, number, index) for index in range(len(keys)) if first + index not in names})
        written = await client.ask(client.store.write, table, keys, expected, first, payloads, **more)
        assert written.failed == []
        answers.append(sorted((index, plain(stored)) for index, stored in written.conflicts))
    return answers


# The fixture is the same for all examples; each has an empty table.
@settings(max_examples=40, suppress_health_check=[*hypothesis.settings().suppress_health_check, FUNCTION_SCOPED])
@given(steps=st.lists(STEP, max_size=15))
async def test_a_program_has_the_answers_it_has_in_memory(steps: list[Any], kept: Any) -> None:
    ours, name = kept
    memory = Memory(now_ms)
    oracle = [MemoryStore(memory, asyncio.get_running_loop()) for _ in range(2)]
    for store in oracle:
        await store.open()
    [table] = {client.store.table(name) for client in ours}
    model = await play([Client(store) for store in oracle], oracle[0].table("t"), steps)
    assert await play(ours, table, steps) == model
    await ours[0].ask(ours[0].store.drop, table)
    for store in oracle:
        await store.close()


@pytest.fixture
async def kept(world: World) -> tuple[list[Client], str]:
    """Two clients for all examples, which leave their table empty."""
    return [await world.client() for _ in range(2)], world.name()
