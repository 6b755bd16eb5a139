"""What stands in the store, read and written by others: redis-py, redis-cli and the server's own MessagePack, by the
layout of docs/design/store.md alone; the scripts, called by redis-py; and whatever else may stand there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import struct
import subprocess
import time
from binascii import crc_hqx
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, NamedTuple

import pytest
import redis

from libvnf.errors import LockLost, StateError, Unreadable
from libvnf.state import Record, Tables, write_back, write_through
from libvnf.state.redis import RedisStore
from libvnf.state.shared import SharedTable
from libvnf.state.store import Stored
from libvnf.state.url import StoreURL
from tests.integration.inside import until
from tests.meta.tree import ROOT
from tests.peers import DEADLINE_S
from tests.redis_cluster import RedisServer

pytestmark = pytest.mark.needs("redis-server", "redis-cli")

PARTITIONS = 8
HOUR_MS = 3_600_000
SOMEBODY = 0xABCDEF << 40
"""Versions of a writer that is none of ours."""


class Session(Record):
    user: str
    hits: int = 0


# --- the layout, as the page has it -----------------------------------------------------------------------------------


def place(packed: bytes, table: str = "t", partitions: int = PARTITIONS) -> bytes:
    """The braces that a key of a table stands behind."""
    return b"{vnf:%s:%d}" % (table.encode(), crc_hqx(packed, 0) % partitions)


def name(packed: bytes, table: str = "t", partitions: int = PARTITIONS) -> bytes:
    return place(packed, table, partitions) + packed


class Value(NamedTuple):
    version: int
    deadline_ms: int
    recent: tuple[int, ...]
    schema: int
    packed: bytes

    @classmethod
    def read(cls, octets: bytes) -> Value:
        version, high, low, count = struct.unpack_from(">QHIB", octets)
        recent = struct.unpack_from(f">{count}Q", octets, 15)
        payload = octets[15 + 8 * count :]
        return cls(version, high << 32 | low, recent, int.from_bytes(payload[:2], "big"), payload[2:])

    def write(self) -> bytes:
        high, low = divmod(self.deadline_ms, 1 << 32)
        head = struct.pack(">QHIB", self.version, high, low, len(self.recent))
        return head + struct.pack(f">{len(self.recent)}QH", *self.recent, self.schema) + self.packed


class Peer:
    """The store as redis-py sees it. MessagePack is the server's own (``cmsgpack``)."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.client = server, server.client()
        self._versions = iter(range(SOMEBODY + 1, SOMEBODY + 1_000_000))

    def packed(self, value: Any) -> bytes:
        packed = self.client.eval("return cmsgpack.pack(cjson.decode(ARGV[1]))", 0, json.dumps(value))
        assert isinstance(packed, bytes)
        return packed

    def unpacked(self, packed: bytes) -> Any:
        return json.loads(self.client.eval("return cjson.encode({cmsgpack.unpack(ARGV[1])})", 0, packed))[0]  # type: ignore[arg-type]

    def read(self, packed_key: bytes, **of: Any) -> Value:
        octets = self.client.get(name(packed_key, **of))
        assert isinstance(octets, bytes)
        return Value.read(octets)

    def put(self, packed_key: bytes, packed: bytes, *, deadline_ms: int = 0, schema: int = 1, **of: Any) -> Value:
        value = Value(next(self._versions), deadline_ms, (), schema, packed)
        self.client.set(name(packed_key, **of), value.write())
        return value


@pytest.fixture
def peer(redis_server: Callable[..., RedisServer]) -> Iterator[Peer]:
    peer = Peer(redis_server())
    yield peer
    peer.client.close()


Open = Callable[..., Any]


@pytest.fixture
async def opened(peer: Peer) -> AsyncIterator[Open]:
    """``await opened(key, value, durability, name=…, on_expire=…, **options)``: a table of a replica of its own."""
    async with AsyncExitStack() as close:

        async def table(
            key: Any = str,
            value: Any = Session,
            durability: Any = write_through,
            *,
            name: str = "t",
            on_expire: Any = None,
            limits: dict[str, Any] | None = None,
            **options: Any,
        ) -> SharedTable[Any, Any]:
            tables = Tables(logging.getLogger("vnf.test"))
            tables.store = RedisStore(StoreURL.parse(peer.server.url), **(limits or {}))
            close.push_async_callback(tables.close)
            made = tables.add(name, key, value, durability, partitions=PARTITIONS, **options)
            assert isinstance(made, SharedTable)
            if on_expire is not None:
                made.on_expire(on_expire)
            await tables.start(peer.server.url, lambda fn, *args: fn(*args), DEADLINE_S)
            return made

        yield table


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- what libvnf wrote, read by others --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "key", "packed"),
    [
        (str, "alice", b"\xa5alice"),
        (bytes, b"\0\xff", b"\xc4\x02\0\xff"),
        (int, 7, b"\x07"),
        (int, -1, b"\xff"),
        (tuple, ("10.0.0.1", 5000), b"\x92\xa810.0.0.1\xcd\x13\x88"),
    ],
)
async def test_an_entry_stands_where_the_layout_says(
    peer: Peer, opened: Open, kind: Any, key: Any, packed: bytes
) -> None:
    table = await opened(kind)
    before_ms = now_ms()
    await table.put(key, Session("alice", 3), ttl_s=3600)
    found = peer.read(packed)
    assert found.version >> 40 == table.store.writer == int(peer.client.get("vnf:writers"))  # type: ignore[arg-type]
    assert before_ms + HOUR_MS <= found.deadline_ms <= now_ms() + HOUR_MS
    assert peer.client.execute_command("PEXPIRETIME", name(packed)) == found.deadline_ms
    assert (found.recent, found.schema, peer.unpacked(found.packed)) == ((), 1, ["alice", 3])
    await table.put(key, Session("bob"))
    assert peer.client.pttl(name(packed)) == -1
    assert peer.read(packed)[1:3] == (0, ())
    await table.delete(key)
    assert peer.client.exists(name(packed)) == 0


async def test_updates_of_several_writers_stand_in_the_list_youngest_first(peer: Peer, opened: Open) -> None:
    replicas = [await opened(value=int) for _ in range(3)]
    for replica in (*replicas, replicas[0]):
        await replica.incr("n")
    found = peer.read(b"\xa1n")
    assert (found.version, peer.unpacked(found.packed)) == (found.recent[0], 4)
    assert [version >> 40 for version in found.recent] == [replicas[at].store.writer for at in (0, 2, 1)]
    # A put carries the list on.
    await replicas[1].put("n", 10)
    assert peer.read(b"\xa1n").recent == found.recent


async def said(*command: str | bytes) -> bytes:
    """What a program printed."""
    run = partial(subprocess.run, command, capture_output=True, check=True, timeout=DEADLINE_S)
    return (await asyncio.to_thread(run)).stdout


async def test_redis_cli_reads_an_entry(peer: Peer, opened: Open) -> None:
    table = await opened()
    await table.put("alice", Session("alice", 3))
    script = (
        "local v=redis.call('GET',KEYS[1]) local at=16+8*string.byte(v,15) "
        "return cjson.encode({(struct.unpack('>I2',v,at)),cmsgpack.unpack(string.sub(v,at+2))})"
    )
    cli = ["redis-cli", "-p", str(peer.server.port)]
    assert json.loads(await said(*cli, "eval", script, "1", name(b"\xa5alice"))) == [1, ["alice", 3]]
    assert (await said(*cli, "--scan", "--pattern", "{vnf:t:*")).splitlines() == [name(b"\xa5alice")]


async def test_the_catalogue_describes_the_table(peer: Peer, opened: Open) -> None:
    await opened()
    found = peer.read(b"\xa1t", table=".tables", partitions=1)
    [partitions, keeps, key, value, _schemas] = peer.unpacked(found.packed)
    assert (partitions, keeps, key, value) == (PARTITIONS, False, "str", "Session")


async def test_deadlines_of_a_table_with_a_handler_are_a_sorted_set(peer: Peer, opened: Open) -> None:
    table = await opened(on_expire=lambda key, value: None)
    await table.put("alice", Session("alice"), ttl_s=3600)
    found = peer.read(b"\xa5alice")
    deadlines = place(b"\xa5alice") + b"\xffttl"
    assert peer.client.zrange(deadlines, 0, -1, withscores=True) == [(b"\xa5alice", found.deadline_ms)]
    assert peer.client.pttl(name(b"\xa5alice")) == -1, "it stays until the handler has seen it"
    await table.put("alice", Session("alice"))
    assert peer.client.exists(deadlines) == 0


async def test_a_lock_is_its_owner_and_the_fence(peer: Peer, opened: Open) -> None:
    table = await opened()
    lock = place(b"\xa1k") + b"\xfflock\xa1k"
    async with table.lock("k", lease_s=30) as held:
        owner = peer.client.get(lock)
        assert owner == held.owner.to_bytes(8, "big") + b"%d" % held.fence
        assert 20_000 < peer.client.pttl(lock) <= 30_000
        assert int(peer.client.get(place(b"\xa1k") + b"\xfffence")) == held.fence  # type: ignore[arg-type]
    assert peer.client.exists(lock) == 0


# --- what others wrote, read by libvnf --------------------------------------------------------------------------------


async def test_what_others_write_by_the_layout_is_read_and_changes_are_told(peer: Peer, opened: Open) -> None:
    table = await opened()
    peer.put(b"\xa5alice", peer.packed(["alice", 3]))
    peer.put(b"\xa3bob", b"\x91\xa3bob")  # fields with defaults may be missing
    assert (await table.get("alice"), await table.get("bob")) == (Session("alice", 3), Session("bob"))
    peer.put(b"\xa5alice", peer.packed(["alice", 4]))
    await until(lambda: table.get_nowait("alice") is None)
    assert await table.get("alice") == Session("alice", 4)
    assert sorted([item async for item in table.scan()]) == [("alice", Session("alice", 4)), ("bob", Session("bob"))]
    assert await table.update("alice", lambda s: s.replace(hits=s.hits + 1)) == Session("alice", 5)
    assert peer.unpacked(peer.read(b"\xa5alice").packed) == ["alice", 5]


async def test_an_update_meets_what_another_wrote_meanwhile(peer: Peer, opened: Open) -> None:
    table = await opened(value=int)
    await table.put("n", 1)

    def add(value: int) -> int:
        if value == 1:
            peer.put(b"\xa1n", b"\x0a")
        return value + 1

    assert await table.update("n", add) == 11


async def test_what_others_let_expire_is_handled(peer: Peer, opened: Open) -> None:
    gone: list[tuple[str, Session]] = []
    table = await opened(on_expire=lambda key, value: gone.append((key, value)))
    peer.put(b"\xa5alice", peer.packed(["alice", 3]), deadline_ms=now_ms() - 1)
    peer.client.zadd(place(b"\xa5alice") + b"\xffttl", {b"\xa5alice": now_ms() - 1})
    await until(lambda: gone and not peer.client.exists(name(b"\xa5alice")))
    assert gone == [("alice", Session("alice", 3))]
    await until(lambda: table.counts["expired"] == 1)


async def test_a_lock_that_another_has_taken_is_waited_for(peer: Peer, opened: Open) -> None:
    table = await opened()
    lock = place(b"\xa1k") + b"\xfflock\xa1k"
    peer.client.set(lock, (SOMEBODY | 1).to_bytes(8, "big") + b"7", px=60_000)
    with pytest.raises(TimeoutError):
        async with table.lock("k", timeout_s=0.1):
            pass
    peer.client.delete(lock)
    with pytest.raises(LockLost):
        async with table.lock("k", timeout_s=DEADLINE_S) as held:
            await held.put(Session("mine"))
            peer.client.set(lock, (SOMEBODY | 2).to_bytes(8, "big") + b"9", px=60_000)
            await held.put(Session("late"))
    assert peer.unpacked(peer.read(b"\xa1k").packed) == ["mine", 0]


# --- what stands there and is nothing of ours -------------------------------------------------------------------------

HEAD = struct.pack(">QHIB", SOMEBODY | 5, 0, 0, 0)
STRANGE = {
    "empty": b"",
    "truncated version": b"\xab\xcd",
    "truncated header": HEAD[:14],
    "no version": bytes(8) + HEAD[8:] + b"\0\x01\x91\xa1x",
    "a list that is too long": HEAD[:14] + b"\xff" + bytes(8 * 255) + b"\0\x01\x91\xa1x",
    "a list beyond the end": HEAD[:14] + b"\x08" + bytes(20),
    "text": b"written by somebody else, for some other purpose",
}
UNPACKABLE = {
    "no payload": b"",
    "half a schema": b"\0",
    "no MessagePack": b"\0\x01\xc1\xc1\xc1",
    "of another type": b"\0\x01\xa5alice",
    "fields of other types": b"\0\x01\x92\x01\x02",
    "a newer schema": b"\0\x07\x91\xa1x",
    "None": b"\0\x01\xc0",
    "more elements than there are": b"\0\x01\xdd\xff\xff\xff\xff\xa1x",
    "a longer text than there is": b"\0\x01\x91\xdb\xff\xff\xff\xff",
    "lists in lists": b"\0\x01" + b"\x91" * 200_000 + b"\x01",
    "an extension": b"\0\x01\xc7\x04\x05abcd",
    "long": b"\0\x01\x91" + b"\xc6" + struct.pack(">I", 4_000_000) + bytes(4_000_000),
}
VALUES = [*STRANGE.items(), *((what, HEAD + payload) for what, payload in UNPACKABLE.items())]


@pytest.mark.parametrize("octets", [octets for _, octets in VALUES], ids=[what for what, _ in VALUES])
async def test_a_value_that_is_none_is_an_error_of_its_key_alone(peer: Peer, opened: Open, octets: bytes) -> None:
    table, behind = await opened(), await opened(durability=write_back(interval_s=0.01))
    await table.put("good", Session("good"))
    await table.put("alice", Session("alice"))
    assert await behind.get("alice") == Session("alice")
    peer.client.set(name(b"\xa5alice"), octets)
    await until(lambda: table.cache.peek("alice") is None and behind.cache.peek("alice") is None)
    answers = await asyncio.gather(table.get("alice"), table.get("good"), table.get("new"), return_exceptions=True)
    assert type(answers[0]) is Unreadable
    assert str(answers[0]).startswith("table 't'")
    assert answers[1:] == [Session("good"), None]
    assert table.statistics()["unreadable"] == 1
    with pytest.raises(Unreadable):
        await table.update("alice", lambda s: s)
    assert [item async for item in table.scan()] == [("good", Session("good"))]
    # It is replaced by whoever puts there, and nothing else waits for that.
    behind.put_nowait("alice", Session("new"))
    behind.put_nowait("other", Session("other"))
    await behind.flush()
    assert behind.statistics()["flush_failures"] == 0
    assert (await table.get("alice"), await table.get("other")) == (Session("new"), Session("other"))


@pytest.mark.parametrize("octets", STRANGE.values(), ids=STRANGE)
async def test_what_is_put_over_what_has_become_none_is_stored(peer: Peer, opened: Open, octets: bytes) -> None:
    table = await opened()
    await table.put("alice", Session("alice"))
    entry = table.cache.peek("alice")
    peer.client.set(name(b"\xa5alice"), octets)
    await until(lambda: table.cache.peek("alice") is None)
    # As if it had not heard of that yet: what it writes is based on what stood there.
    table.cache.put_clean("alice", entry.packed, entry.value, Stored(entry.version, 0, b"", entry.payload))
    outcomes = await asyncio.gather(table.put("alice", Session("new")), table.put("b", Session("b")))
    assert outcomes == [None, None]
    assert peer.unpacked(peer.read(b"\xa5alice").packed) == ["new", 0]
    peer.client.set(name(b"\xa5alice"), octets)
    await until(lambda: table.cache.peek("alice") is None)
    table.delete_nowait("alice")
    await table.flush()
    assert peer.client.exists(name(b"\xa5alice")) == 0


def fill(client: redis.Redis, kind: str, key: bytes) -> None:
    client.delete(key)
    match kind:
        case "list":
            client.rpush(key, b"x")
        case "hash":
            client.hset(key, b"f", b"x")
        case "set":
            client.sadd(key, b"x")
        case "sorted set":
            client.zadd(key, {b"x": 1})
        case "stream":
            client.xadd(key, {b"f": b"x"})
    assert client.type(key) != b"string"


KINDS = ["list", "hash", "set", "sorted set", "stream"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_key_of_another_kind_is_absent_and_replaced(peer: Peer, opened: Open, kind: str) -> None:
    table = await opened(value=int)
    keys = [f"k{number}" for number in range(40)]
    await asyncio.gather(*(table.put(key, 1) for key in keys))
    packed = b"\xa2k7"
    fill(peer.client, kind, name(packed))
    await until(lambda: table.cache.peek("k7") is None)
    # Alone, among others, and by a scan.
    assert await table.get("k7") is None
    table.cache.clear()
    found = await asyncio.gather(*(table.get(key) for key in keys))
    assert found == [None if key == "k7" else 1 for key in keys]
    assert len([item async for item in table.scan()]) == 39
    assert await table.incr("k7") == 1
    fill(peer.client, kind, name(packed))
    await until(lambda: table.cache.peek("k7") is None)
    await table.put("k7", 5, ttl_s=3600)
    assert peer.unpacked(peer.read(packed).packed) == 5
    fill(peer.client, kind, name(packed))
    await until(lambda: table.cache.peek("k7") is None)
    await table.drop()
    assert peer.client.exists(name(packed)) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_strange_entries_do_not_keep_others_from_expiring(peer: Peer, opened: Open, kind: str) -> None:
    gone: list[str] = []
    table = await opened(value=int, on_expire=lambda key, value: gone.append(key))
    keys = [f"k{number}" for number in range(64)]
    packed = [b"\xa2k%d" % n if n < 10 else b"\xa3k%d" % n for n in range(64)]
    # Two in each partition, at the front of what is due: one of another kind, one too short.
    for number in range(PARTITIONS):
        front = [key for key in packed if place(key) == b"{vnf:t:%d}" % number][:2]
        fill(peer.client, kind, name(front[0]))
        peer.client.set(name(front[1]), b"short")
        peer.client.zadd(place(front[0]) + b"\xffttl", {front[0]: 1, front[1]: 2, b"\xa4gone": 3})
    strange = {key for key in keys if peer.client.exists(name(packed[keys.index(key)]))}
    assert len(strange) == 2 * PARTITIONS
    await asyncio.gather(*(table.put(key, 1, ttl_s=0.05) for key in keys if key not in strange))
    await until(lambda: len(gone) >= len(keys) - len(strange))
    assert sorted(gone) == sorted(set(keys) - strange)
    assert table.counts["claims_failed"] == 0


async def test_deadlines_and_locks_of_another_kind_are_errors_where_they_are(peer: Peer, opened: Open) -> None:
    table = await opened(value=int, on_expire=lambda key, value: None)
    broken = next(f"k{n}" for n in range(100) if place(b"\xa2k%d" % n) == b"{vnf:t:0}")
    other = next(f"k{n}" for n in range(10) if place(b"\xa2k%d" % n) != b"{vnf:t:0}")
    fill(peer.client, "hash", b"{vnf:t:0}\xffttl")
    with pytest.raises(StateError, match="WRONGTYPE"):
        await table.put(broken, 1, ttl_s=60)
    await table.put(other, 1, ttl_s=60)
    peer.client.delete(b"{vnf:t:0}\xffttl")
    await table.put(broken, 1, ttl_s=60)
    lock = place(b"\xa2" + broken.encode()) + b"\xfflock\xa2" + broken.encode()
    fill(peer.client, "list", lock)
    with pytest.raises(StateError, match="WRONGTYPE"):
        async with table.lock(broken, timeout_s=DEADLINE_S):
            pass
    async with table.lock(other, timeout_s=DEADLINE_S) as held:
        await held.put(2)


async def test_a_value_longer_than_is_read_at_all_is_an_error_of_its_key_alone(peer: Peer, opened: Open) -> None:
    table = await opened(value=bytes, limits={"max_reply_bytes": 1 << 20})
    keys = [f"k{number}" for number in range(32)]
    await asyncio.gather(*(table.put(key, b"x") for key in keys))
    long = Value(SOMEBODY | 5, 0, (), 1, b"\xc6" + struct.pack(">I", 2 << 20) + bytes(2 << 20)).write()
    peer.client.set(name(b"\xa2k7"), long)
    await until(lambda: table.cache.peek("k7") is None)
    table.cache.clear()
    found = await asyncio.gather(*(table.get(key) for key in keys), return_exceptions=True)
    assert [type(one) for one in found] == [Unreadable if key == "k7" else bytes for key in keys]
    assert sorted([key async for key, _ in table.scan()]) == sorted(set(keys) - {"k7"})
    await table.put("k7", b"new")
    assert await table.get("k7") == b"new"


async def test_a_description_that_is_none_is_told_as_that(peer: Peer, opened: Open) -> None:
    peer.client.set(name(b"\xa1t", table=".tables", partitions=1), b"of somebody else")
    with pytest.raises(Unreadable, match=r"^the description of table 't': what stands under this key is no entry"):
        await opened()
    assert await (await opened(name="another")).get("k") is None


async def test_a_stored_key_that_is_none_is_passed_over_and_counted(peer: Peer, opened: Open) -> None:
    table = await opened()
    await table.put("good", Session("good"))
    value = Value(SOMEBODY | 1, 0, (), 1, b"\x91\xa1x").write()
    for packed in (b"\x07", b"\xc1", b"\xa9short", b"\xff", b"\xdd\xff\xff\xff\xff"):
        peer.client.set(name(packed), value)
    peer.client.set(b"{vnf:t:99}\xa1x", value)  # no such partition
    peer.client.set(b"{vnf:t:0}", value)
    before = table.statistics()["unreadable"]
    assert [item async for item in table.scan()] == [("good", Session("good"))]
    assert table.statistics()["unreadable"] == before + 5


# --- the scripts, by redis-py -----------------------------------------------------------------------------------------


def scripts() -> dict[str, str]:
    """Their texts, out of the source that the client is built from."""
    source = (ROOT / "native/src/state/script.rs").read_text()
    found = re.findall(r'pub static (\w+): Script =\s*Script::new\(\s*"(.*?)",?\s*\);', source, re.DOTALL)
    return {script: re.sub(r"\\\n\s*", "", text).replace("\\\\", "\\") for script, text in found}


class Scripts:
    """Each as a function of its keys and arguments."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._texts = scripts()

    def __getattr__(self, script: str) -> Callable[..., Any]:
        def call(keys: list[bytes], *arguments: Any) -> Any:
            return self._client.eval(self._texts[script.upper()], len(keys), *keys, *arguments)  # type: ignore[arg-type]

        return call


@pytest.fixture
def lua(peer: Peer) -> Scripts:
    return Scripts(peer.client)


def entry(version: int, text: bytes = b"x", deadline_ms: int = 0) -> bytes:
    return Value(version, deadline_ms, (), 1, text).write()


def version(number: int) -> bytes:
    return number.to_bytes(8, "big")


ABSENT = bytes(8)
A, B, C, TTL, LOCK = (b"{p}" + suffix for suffix in (b"a", b"b", b"c", b"\xffttl", b"\xfflocka"))


async def test_the_client_uses_these_scripts_and_no_others(peer: Peer, opened: Open) -> None:
    texts = scripts()
    assert set(texts) == {"PUT", "PUT_ONE", "SET", "CHANGE", "CLAIM", "EXPIRED", "DROP", "LOCK", "RENEW", "UNLOCK"}
    peer.client.script_flush()
    await opened()
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in texts.values()]
    assert peer.client.script_exists(*digests) == [True] * len(texts)


def test_put_writes_what_stands_as_expected_and_tells_the_rest(peer: Peer, lua: Scripts) -> None:
    assert lua.put([A, B], entry(1), entry(2), ABSENT + ABSENT) == 0
    assert lua.put([A, B], entry(1), entry(2), ABSENT + ABSENT) == 0, "a repetition has succeeded"
    assert lua.put([A, B, C], entry(3), entry(4), entry(5), version(1) + version(9) + version(9)) == [
        2,
        entry(2),
        3,
        None,
    ]
    assert peer.client.mget(A, B, C) == [entry(3), entry(2), None]


def test_put_of_one_is_as_put(peer: Peer, lua: Scripts) -> None:
    assert lua.put_one([A], entry(1), ABSENT) == 0
    assert lua.put_one([A], entry(1), ABSENT) == 0, "a repetition has succeeded"
    assert lua.put_one([A], entry(2), version(9)) == [1, entry(1)]
    assert lua.put_one([B], entry(2), version(9)) == [1, None]
    peer.client.rpush(C, b"x")
    assert lua.put_one([C], entry(3), version(9)) == [1, None]
    assert lua.put_one([C], entry(3), ABSENT) == 0
    assert peer.client.mget(A, B, C) == [entry(1), None, entry(3)]


def test_put_does_not_tell_more_than_fits(peer: Peer, lua: Scripts) -> None:
    large = entry(1, bytes(20 << 20))
    peer.client.mset({A: large, B: large, C: entry(1)})
    answer = lua.put([A, B, C], entry(3), entry(4), entry(5), version(9) * 3)
    assert (answer[0], answer[1] == large, answer[2:]) == (1, True, [2, 0, 3, 0])


def test_change_deletes_and_lets_expire(peer: Peer, lua: Scripts) -> None:
    due = now_ms() + HOUR_MS
    assert lua.change([A, B], entry(1, deadline_ms=due), entry(2), ABSENT * 2, b"", b"") == 0
    assert (peer.client.execute_command("PEXPIRETIME", A), peer.client.pttl(B)) == (due, -1)
    # Gone already: a deletion has succeeded, one that is a read-modify-write has not.
    assert lua.change([A, C], version(3), version(4), version(1) + version(9), b"", b"") == 0
    assert lua.change([C], version(5) + b"\0", version(9), b"", b"") == [1, None]
    assert lua.change([B], version(5), version(9), b"", b"") == [1, entry(2)]
    assert peer.client.exists(A, B, C) == 1


def test_change_keeps_deadlines_where_a_handler_is_to_see_them(peer: Peer, lua: Scripts) -> None:
    due = now_ms() + HOUR_MS
    assert lua.change([A, B, TTL], entry(1, deadline_ms=due), entry(2), ABSENT * 2, b"", b"1") == 0
    assert (peer.client.zrange(TTL, 0, -1, withscores=True), peer.client.pttl(A)) == ([(b"a", due)], -1)
    assert lua.change([A, TTL], version(3), version(1), b"", b"1") == 0
    assert peer.client.exists(A, TTL) == 0


def test_change_asks_whose_the_lock_is(peer: Peer, lua: Scripts) -> None:
    assert lua.change([A, LOCK], entry(1), ABSENT, version(7), b"") == -1
    assert lua.lock([LOCK, b"{p}\xfffence"], version(7), 60_000) == 1
    assert lua.change([A, LOCK], entry(1), ABSENT, version(7), b"") == 0
    assert lua.change([A, LOCK], entry(2), version(1), version(8), b"") == -1
    assert peer.client.get(A) == entry(1)


def test_what_is_due_is_claimed_once_and_removed_at_its_version(peer: Peer, lua: Scripts) -> None:
    lua.change([A, B, C, TTL], *(entry(n, deadline_ms=n * 1000) for n in (1, 2, 3)), b"", b"", b"1")
    assert lua.claim([TTL], 2500, 9000, 10) == [b"a", entry(1, deadline_ms=1000), b"b", entry(2, deadline_ms=2000)]
    assert lua.claim([TTL], 2500, 9000, 10) == []
    lua.change([B, TTL], entry(4, deadline_ms=4000), b"", b"", b"1")
    assert lua.expired([A, B, TTL], version(1) + version(2)) == 1
    assert peer.client.zrange(TTL, 0, -1, withscores=True) == [(b"c", 3000), (b"b", 4000)]
    assert lua.claim([TTL], 9000, 9999, 1) == [b"c", entry(3, deadline_ms=3000)]


def test_a_lock_has_one_owner_and_fences_that_grow(peer: Peer, lua: Scripts) -> None:
    fence = b"{p}\xfffence"
    assert lua.lock([LOCK, fence], version(7), 60_000) == 1
    assert -60_000 <= lua.lock([LOCK, fence], version(8), 60_000) < -50_000
    assert lua.lock([LOCK, fence], version(7), 90_000) == 1, "the same owner keeps its fence"
    assert 60_000 < peer.client.pttl(LOCK) <= 90_000
    assert (lua.renew([LOCK], version(8), 10), lua.renew([LOCK], version(7), 30_000)) == (0, 1)
    assert 20_000 < peer.client.pttl(LOCK) <= 30_000
    assert (lua.unlock([LOCK], version(8)), lua.unlock([LOCK], version(7)), lua.unlock([LOCK], version(7))) == (0, 1, 0)
    assert lua.lock([LOCK, fence], version(7), 60_000) == 2, "taken anew: a greater one"
