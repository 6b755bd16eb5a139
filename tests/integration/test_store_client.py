"""The native client of the store against real servers: what it does when they fail, move, stop and lie."""

import asyncio
import contextlib
from binascii import crc_hqx
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from libvnf._native import StoreClient
from libvnf.errors import DurabilityUnknown, LockLost, StateError, StateFull, StoreUnavailable, Unreadable
from libvnf.state.store import Stored, Written
from tests.peers import DEADLINE_S
from tests.redis_cluster import Certificates, RedisCluster, RedisServer

pytestmark = pytest.mark.needs("redis-server")

WRITER = 7 << 40
KEYS = [b"\xcd" + number.to_bytes(2, "big") for number in range(2000)]


class Asker:
    """A client on this loop: ``await asker.read(…)`` is the answer; what it was told unasked is in ``events``."""

    def __init__(self, client: StoreClient) -> None:
        self.client, self.events, self._news = client, list[Any](), asyncio.Event()
        self._sequence = 0
        asyncio.get_running_loop().add_reader(client.wake_fd, self.drain)

    def drain(self) -> None:
        errors, events = self.client.drain()
        assert not errors
        self.events += events
        self._news.set()

    def versions(self, count: int = 1) -> int:
        first = WRITER | self._sequence + 1
        self._sequence += count
        return first

    def __getattr__(self, name: str) -> Callable[..., asyncio.Future[Any]]:
        def ask(*arguments: Any) -> asyncio.Future[Any]:
            answer = asyncio.get_running_loop().create_future()
            getattr(self.client, name)(lambda it: answer.done() or answer.set_result(it), *arguments)
            self.client.go()
            return answer

        return ask

    async def told(self, wanted: Callable[[Any], bool]) -> Any:
        """The first event of that kind, now or later; those before it are forgotten."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                while self.events:
                    if wanted(event := self.events.pop(0)):
                        return event
                self._news.clear()
                await self._news.wait()

    async def put(self, table: int, keys: list[bytes], payload: bytes, **_: Any) -> Written:
        written = await self.write(table, keys, None, self.versions(len(keys)), [payload] * len(keys))
        assert isinstance(written, Written)
        return written

    async def payloads(self, table: int, keys: list[bytes]) -> list[bytes | None]:
        return [stored and stored.payload for stored in await self.read(table, keys)]


@contextlib.asynccontextmanager
async def asking(*nodes: RedisServer, **options: Any) -> AsyncIterator[Asker]:
    asker = Asker(StoreClient([node.address for node in nodes], **options))
    try:
        yield asker
    finally:
        asyncio.get_running_loop().remove_reader(asker.client.wake_fd)
        asker.client.close()


def is_up(event: Any) -> bool:
    return event == ("state", "up", False)


def is_down(event: Any) -> bool:
    return event[0] == "state" and event[1].startswith("down: ")


STORED = Written([], [])
Start = Callable[..., RedisServer]


# --- what it is asked for ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["server", "cluster"])
def store(request: pytest.FixtureRequest) -> tuple[list[RedisServer], dict[str, Any]]:
    if request.param == "server":
        return [request.getfixturevalue("redis_server")()], {}
    return request.getfixturevalue("redis_cluster").nodes[:2], {"cluster": True}


async def test_what_is_written_is_read(store: Any) -> None:
    async with asking(*store[0], **store[1]) as asker:
        table = asker.client.table("t")
        first = asker.versions(len(KEYS))
        payloads = [b"value of " + key for key in KEYS]
        assert await asker.write(table, KEYS, [0] * len(KEYS), first, payloads) == STORED
        found = await asker.read(table, [*KEYS, b"\xa4none"])
        assert found == [*(Stored(first + i, 0, b"", p) for i, p in enumerate(payloads)), None]


async def test_a_write_on_an_old_version_is_a_conflict_that_tells_what_stands(store: Any) -> None:
    async with asking(*store[0], **store[1]) as asker:
        table = asker.client.table("t")
        first, again = asker.versions(4), asker.versions(4)
        await asker.write(table, KEYS[:4], None, first, [b"old"] * 4)
        expected = [first, first + 99, 0, first + 3]
        written = await asker.write(table, KEYS[:4], expected, again, [b"new", b"new", b"new", None])
        stands = [Stored(first + 1, 0, b"", b"old"), Stored(first + 2, 0, b"", b"old")]
        assert written == Written(list(zip([1, 2], stands, strict=True)), [])
        assert await asker.payloads(table, KEYS[:4]) == [b"new", b"old", b"old", None]


async def test_a_scan_finds_every_entry_of_its_table_and_no_other(store: Any) -> None:
    async with asking(*store[0], **store[1]) as asker:
        table, other = asker.client.table("t"), asker.client.table("other", 4, True)
        await asker.put(table, KEYS, b"x")
        await asker.write(other, KEYS[:9], None, asker.versions(9), [b"y"] * 9, [9_999_999_999_999] * 9)
        found, cursor = dict[bytes, bytes](), None
        while True:
            cursor, entries = await asker.scan(table, cursor, 100)
            found |= {key: stored.payload for key, stored in entries}
            if cursor is None:
                break
        assert found == dict.fromkeys(KEYS, b"x")
        assert await asker.drop(table) is None
        assert set(await asker.payloads(table, KEYS)) == {None}
        assert await asker.payloads(other, KEYS[:9]) == [b"y"] * 9


async def test_expired_entries_are_claimed_once_and_removed_when_handled(store: Any) -> None:
    async with asking(*store[0], **store[1]) as asker:
        table = asker.client.table("t", 4, True)
        first = asker.versions(3)
        await asker.write(table, KEYS[:3], None, first, [b"a", b"b", b"c"], [1000, 2000, 9_999_999_999_999])
        claimed = await asker.claim_expired(table, 5000, 60_000, 100)
        assert [(key, stored.payload) for key, stored in claimed] == [(KEYS[0], b"a"), (KEYS[1], b"b")]
        assert await asker.claim_expired(table, 5000, 60_000, 100) == []
        await asker.put(table, [KEYS[1]], b"written since")
        assert await asker.expired(table, KEYS[:2], [first, first + 1]) is None
        assert await asker.payloads(table, KEYS[:3]) == [None, b"written since", b"c"]


async def test_any_command_goes_to_the_node_of_its_key(store: Any) -> None:
    async with asking(*store[0], **store[1]) as asker:
        assert [await asker.call([b"INCR", b"vnf:writers"]) for _ in range(3)] == [1, 2, 3]
        assert await asker.call([b"HSET", b"vnf:tables", b"a", b"1"]) == 1
        assert await asker.call([b"HGETALL", b"vnf:tables"]) == [b"a", b"1"]
        error = await asker.call([b"LPUSH", b"vnf:tables", b"x"])
        assert type(error) is StateError and "WRONGTYPE" in str(error)


async def test_what_is_no_entry_is_an_error_for_that_key_alone(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server) as asker:
        table = asker.client.table("t", 1)
        await asker.put(table, KEYS[:2], b"x")
        with server.client() as raw:
            raw.set(b"{vnf:t:0}" + KEYS[0], b"not ours")
        broken, whole = await asker.read(table, KEYS[:2])
        assert type(broken) is Unreadable and whole.payload == b"x"


# --- what it is told --------------------------------------------------------------------------------------------------


async def test_writes_of_others_are_told_and_our_own_are_not(store: Any) -> None:
    nodes, options = store
    async with asking(*nodes, **options) as asker, asking(*nodes, **options) as other:
        table, theirs = asker.client.table("t"), other.client.table("t")
        await asker.read(table, KEYS[:2])
        await asker.put(table, KEYS[:2], b"ours")
        await other.put(theirs, [KEYS[1]], b"theirs")
        assert await asker.told(lambda e: e[0] == "invalid" and e[2] is not None) == ("invalid", table, [KEYS[1]])
        assert await asker.payloads(table, KEYS[:2]) == [b"ours", b"theirs"]
        # Written again on what was read again: still told of the next one.
        await asker.put(table, [KEYS[1]], b"ours")
        await other.put(theirs, [KEYS[1]], b"theirs")
        assert await asker.told(lambda e: e[0] == "invalid") == ("invalid", table, [KEYS[1]])


async def test_a_lost_connection_makes_stale_what_was_read_by_it_of_all_tables(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server) as asker:
        tables = [asker.client.table(name, 4) for name in ("t", "u", "never read")]
        await asker.told(is_up)
        await asker.read(tables[0], KEYS)
        await asker.put(tables[1], KEYS[:1], b"x")
        await asyncio.to_thread(server.restart)
        stale = [await asker.told(lambda e: e[0] == "deaf") for _ in range(2)]
        [written] = {partition(key, 4) for key in KEYS[:1]}
        assert sorted(stale) == [("deaf", tables[0], [0, 1, 2, 3]), ("deaf", tables[1], [written])]
        await asker.told(is_up)
        assert await asker.put(tables[2], KEYS, b"x") == STORED


def partition(key: bytes, partitions: int) -> int:
    return crc_hqx(key, 0) % partitions


async def test_a_lost_node_makes_stale_what_it_served_and_nothing_else(redis_cluster: RedisCluster) -> None:
    async with asking(redis_cluster.nodes[0], cluster=True) as asker:
        table = asker.client.table("t")
        await asker.read(table, KEYS)
        node = redis_cluster.masters()[1]
        served = [p for p in range(64) if redis_cluster.owner(redis_cluster.slot(f"{{vnf:t:{p}}}")) is node]
        asker.events.clear()
        node.ask("client", "kill", "type", "normal", "skipme", "yes")
        assert await asker.told(lambda e: e[0] in ("deaf", "invalid")) == ("deaf", table, served)
        assert 0 < len(served) < 64


async def test_a_slot_that_moves_is_stale_and_nothing_else(redis_cluster: RedisCluster) -> None:
    async with asking(redis_cluster.nodes[0], cluster=True) as asker:
        table = asker.client.table("t")
        await asker.read(table, KEYS)
        slot = redis_cluster.slot("{vnf:t:7}")
        source = redis_cluster.owner(slot)
        asker.events.clear()
        target = next(node for node in redis_cluster.masters() if node is not source)
        await asyncio.to_thread(redis_cluster.migrate, slot, target)
        await asker.read(table, KEYS)
        assert await asker.told(lambda e: e[0] in ("deaf", "invalid")) == ("deaf", table, [7])


async def test_flushed_servers_make_everything_stale(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server) as asker:
        table = asker.client.table("t")
        await asker.put(table, KEYS, b"x")
        server.ask("flushall")
        assert await asker.told(lambda e: e[0] == "invalid") == ("invalid", table, None)


# --- faults -----------------------------------------------------------------------------------------------------------


class Load:
    """Increments counters by compare-and-set, one at a time each, until told to end."""

    def __init__(self, asker: Asker, table: int, keys: list[bytes], replicas: int = 0) -> None:
        self.asker, self.table, self.replicas = asker, table, replicas
        self.counts, self.unknown = dict.fromkeys(keys, 0), 0
        self._ended, self.rounds, self._round = False, 0, asyncio.Event()

    async def _count(self, key: bytes) -> None:
        stored = None
        while not self._ended:
            value = int(stored.payload) if stored else 0
            version, payload = self.asker.versions(), str(value + 1).encode()
            recent = stored.recent if stored else b""
            arguments = ([stored.version if stored else 0], version, [payload], None, [recent], True, self.replicas)
            written = await self.asker.write(self.table, [key], *arguments)
            match written:
                case Written([], []):
                    self.counts[key] += 1
                case Written([], [(0, DurabilityUnknown())]):
                    self.unknown += 1
                case _:
                    raise AssertionError(f"{written} after {stored}")
            [stored] = await self.asker.read(self.table, [key])
            assert not isinstance(stored, StateError), stored
            self.rounds += 1
            self._round.set()

    async def goes_on(self, rounds: int) -> None:
        """Until so many more have been counted."""
        async with asyncio.timeout(DEADLINE_S):
            wanted = self.rounds + rounds
            while self.rounds < wanted:
                self._round.clear()
                await self._round.wait()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        async with asyncio.TaskGroup() as tasks:
            for key in self.counts:
                tasks.create_task(self._count(key))
            try:
                yield self
            finally:
                self._ended = True

    async def check(self, lost: int = 0) -> None:
        """Every increment was applied once, but for those of unknown fate."""
        stored = await self.asker.payloads(self.table, list(self.counts))
        total, sure = sum(int(value or 0) for value in stored), sum(self.counts.values())
        assert sure - lost <= total <= sure + self.unknown, (total, sure, self.unknown)


async def test_a_killed_master_is_survived_under_load(redis_cluster: RedisCluster) -> None:
    async with asking(redis_cluster.nodes[0], cluster=True) as asker:
        table = asker.client.table("t")
        async with Load(asker, table, KEYS[:64], replicas=1).running() as load:
            await load.goes_on(500)
            victim = redis_cluster.masters()[1]
            await asyncio.to_thread(victim.kill)
            await asker.told(is_down)
            await asker.told(is_up)
            await load.goes_on(500)
        await load.check()


async def test_a_stopped_master_is_survived_under_load(redis_cluster: RedisCluster) -> None:
    async with asking(redis_cluster.nodes[0], cluster=True, silence_s=0.3) as asker:
        table = asker.client.table("t")
        async with Load(asker, table, KEYS[:64]).running() as load:
            await load.goes_on(500)
            victim = redis_cluster.masters()[2]
            victim.pause()
            await asker.told(is_down)
            await asker.told(is_up)
            await load.goes_on(500)
            victim.resume()
            await load.goes_on(500)
        assert asker.client.statistics()["silences"] > 0


async def test_slots_move_under_load(redis_cluster: RedisCluster) -> None:
    async with asking(redis_cluster.nodes[0], cluster=True) as asker:
        table = asker.client.table("t", 4)
        async with Load(asker, table, KEYS[:64]).running() as load:
            await load.goes_on(500)
            for partition in range(4):
                slot = redis_cluster.slot(f"{{vnf:t:{partition}}}")
                source = redis_cluster.owner(slot)
                target = next(node for node in redis_cluster.masters() if node is not source)
                await asyncio.to_thread(redis_cluster.migrate, slot, target)
                await load.goes_on(100)
        await load.check()
        assert load.unknown == 0
        assert asker.client.statistics()["moved"] > 0


async def test_a_server_that_is_away_for_a_while_costs_nothing_but_time(redis_server: Start) -> None:
    server = redis_server({"appendonly": "yes", "appendfsync": "always"})
    async with asking(server) as asker:
        table = asker.client.table("t")
        async with Load(asker, table, KEYS[:16]).running() as load:
            await load.goes_on(100)
            await asyncio.to_thread(server.restart)
            await load.goes_on(100)
            server.pause()
            await asker.told(is_down)
            server.resume()
            await load.goes_on(100)
        await load.check()


async def test_without_a_server_operations_fail_in_time_and_say_why(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server, timeout_s=0.5) as asker:
        table = asker.client.table("t")
        assert await asker.put(table, KEYS[:1], b"x") == STORED
        await asyncio.to_thread(server.kill)
        [error] = await asker.read(table, KEYS[:1])
        assert type(error) is StoreUnavailable and "connection refused" in str(error)
        written = await asker.put(table, KEYS[:2], b"y")
        assert [type(error) for _, error in written.failed] == [StoreUnavailable] * 2
        await asker.told(lambda e: is_down(e) and "connection refused" in e[1])


async def test_a_write_to_a_server_that_falls_silent_may_stand(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server, timeout_s=0.5, silence_s=0.2) as asker:
        table = asker.client.table("t")
        await asker.told(is_up)
        server.pause()
        try:
            written = await asker.put(table, KEYS[:1], b"x")
        finally:
            server.resume()
        assert [type(error) for _, error in written.failed] == [DurabilityUnknown]


async def test_a_full_server_refuses_writes_and_takes_them_again(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server) as asker:
        table = asker.client.table("t")
        server.ask("config", "set", "maxmemory", "1")
        written = await asker.put(table, KEYS[:1], b"x")
        assert [type(error) for _, error in written.failed] == [StateError] and "OOM" in str(written.failed)
        server.ask("config", "set", "maxmemory", "0")
        assert await asker.put(table, KEYS[:1], b"x") == STORED


async def test_forgotten_scripts_are_told_again(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server) as asker:
        table = asker.client.table("t")
        await asker.put(table, KEYS[:1], b"x")
        server.ask("script", "flush")
        assert await asker.put(table, KEYS, b"y") == STORED
        assert asker.client.statistics()["script_loads"] > 0


async def test_a_wrong_password_is_hopeless(redis_server: Start) -> None:
    server = redis_server({"requirepass": "right"})
    async with asking(server, password="wrong", timeout_s=0.5) as asker:
        assert "WRONGPASS" in (await asker.told(lambda e: e[0] == "state" and e[2]))[1]
        [error] = await asker.read(asker.client.table("t"), KEYS[:1])
        assert type(error) is StoreUnavailable and "WRONGPASS" in str(error)
    async with asking(server, password="right") as asker:
        await asker.told(is_up)


async def test_a_node_of_a_cluster_is_not_taken_for_a_server(redis_cluster: RedisCluster, redis_server: Start) -> None:
    async with asking(redis_cluster.nodes[0]) as asker:
        assert "a node of a cluster" in (await asker.told(lambda e: e[0] == "state" and e[2]))[1]
    async with asking(redis_server(), cluster=True) as asker:
        assert "a single server" in (await asker.told(lambda e: e[0] == "state" and e[2]))[1]


# --- replicas ---------------------------------------------------------------------------------------------------------


async def test_replicas_are_waited_for_and_too_few_are_told(redis_cluster: RedisCluster) -> None:
    async with asking(redis_cluster.nodes[0], cluster=True, replica_timeout_s=0.2) as asker:
        table = asker.client.table("t", 1)

        async def put(replicas: int) -> Any:
            first = asker.versions(9)
            return await asker.write(table, KEYS[:9], None, first, [b"x"] * 9, None, None, False, replicas)

        assert await put(1) == STORED
        failed = (await put(2)).failed
        assert {type(error) for _, error in failed} == {DurabilityUnknown} and "1 of 2" in str(failed[0][1])
        replica = redis_cluster.replica_of(redis_cluster.owner(redis_cluster.slot("{vnf:t:0}")))
        replica.pause()
        assert "0 of 1" in str((await put(1)).failed[0][1])
        assert await asker.payloads(table, KEYS[:9]) == [b"x"] * 9
        replica.resume()


# --- locks ------------------------------------------------------------------------------------------------------------


async def test_a_lock_is_one_owners_and_guards_writes(store: Any) -> None:
    async with asking(*store[0], **store[1]) as asker:
        table, key = asker.client.table("t"), KEYS[0]
        mine, other = asker.versions(), asker.versions()
        fence = await asker.lock(table, key, mine, 10_000)
        assert await asker.lock(table, key, other, 10_000) is None

        async def guarded(owner: int) -> Any:
            arguments = ([key], None, asker.versions(), [b"x"], None, None, False, 0, (key, owner))
            return await asker.write(table, *arguments)

        assert await guarded(mine) == STORED
        assert [type(error) for _, error in (await guarded(other)).failed] == [LockLost]
        assert await asker.unlock(table, key, mine) is None
        assert isinstance(await asker.unlock(table, key, mine), LockLost)
        assert await asker.lock(table, key, other, 10_000) > fence


async def test_leases_are_renewed_while_the_loop_lives(redis_server: Start) -> None:
    async with asking(redis_server()) as asker:
        table, owner = asker.client.table("t"), asker.versions()
        await asker.lock(table, KEYS[0], owner, 150)
        while asker.client.statistics()["leases_renewed"] < 5:
            asker.client.beat()
            assert await asker.lock(table, KEYS[0], owner + 1, 150) is None
        assert await asker.unlock(table, KEYS[0], owner) is None


async def test_the_lease_of_a_loop_that_stands_still_runs_out(redis_server: Start) -> None:
    async with asking(redis_server(), stall_limit_s=0.001) as asker:
        table, owner = asker.client.table("t"), asker.versions()
        await asker.lock(table, KEYS[0], owner, 100)
        assert await asker.told(lambda e: e[0] == "lock_lost") == ("lock_lost", table, KEYS[0], owner)
        # It lapses here before it does there.
        while await asker.lock(table, KEYS[0], owner + 1, 100) is None:
            pass
        assert isinstance(await asker.unlock(table, KEYS[0], owner), LockLost)


async def test_a_lock_that_the_store_has_lost_is_told(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server) as asker:
        table, owner = asker.client.table("t"), asker.versions()
        await asker.lock(table, KEYS[0], owner, 300)
        server.ask("flushall")
        assert await asker.told(lambda e: e[0] == "lock_lost") == ("lock_lost", table, KEYS[0], owner)


# --- bounds, and the end ----------------------------------------------------------------------------------------------


async def test_no_more_is_queued_than_was_allowed(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server, max_queued=10, max_queued_bytes=100_000) as asker:
        table = asker.client.table("t")
        await asker.told(is_up)
        server.pause()
        asked = [asker.read(table, KEYS[:1]) for _ in range(10)]
        with pytest.raises(StateFull):
            asker.client.read(print, table, KEYS[:1])
        server.resume()
        assert await asyncio.gather(*asked) == [[None]] * 10
        with pytest.raises(StateFull):
            asker.client.write(print, table, KEYS[:1], None, asker.versions(), [bytes(100_000)])
        assert await asker.put(table, KEYS[:1], bytes(50_000)) == STORED
        statistics = asker.client.statistics()
        assert statistics["queued_bytes_now"] == statistics["queued_operations_now"] == 0


async def test_closing_answers_what_is_under_way(redis_server: Start) -> None:
    server = redis_server()
    async with asking(server) as asker:
        table = asker.client.table("t")
        await asker.told(is_up)
        server.pause()
        try:
            read, scan = asker.read(table, KEYS[:2]), asker.scan(table, None, 1)
            write = asker.write(table, KEYS[:2], None, asker.versions(2), [b"x"] * 2)
            asker.client.close()
            asker.drain()
        finally:
            server.resume()
        assert [type(error) for error in await read] == [StoreUnavailable] * 2
        assert [type(error) for _, error in (await write).failed] == [DurabilityUnknown] * 2
        assert type(await scan) is StoreUnavailable
        with pytest.raises(StateError, match="closed"):
            asker.client.read(print, table, KEYS[:1])


async def test_over_tls_it_is_the_same(redis_server: Start, certificates: Certificates) -> None:
    async with asking(redis_server(tls=certificates), tls_ca=certificates.ca.read_bytes()) as asker:
        table, large = asker.client.table("t"), bytes(range(256)) * 3000
        assert await asker.put(table, KEYS[:5], large) == STORED
        assert await asker.payloads(table, KEYS[:5]) == [large] * 5
        async with Load(asker, table, KEYS[10:20]).running() as load:
            await load.goes_on(100)
        await load.check()


@pytest.mark.needs("openssl")
async def test_a_server_that_cannot_show_who_it_is_is_hopeless(
    redis_server: Start, certificates: Certificates, tmp_path: Path
) -> None:
    stranger = Certificates(tmp_path / "stranger").ca.read_bytes()
    async with asking(redis_server(tls=certificates), tls_ca=stranger) as asker:
        assert "TLS: invalid peer certificate" in (await asker.told(lambda e: e[0] == "state" and e[2]))[1]
    async with asking(redis_server(), tls_ca=stranger, timeout_s=0.5) as asker:
        [error] = await asker.read(asker.client.table("t"), KEYS[:1])
        assert type(error) is StoreUnavailable


async def test_a_unix_socket_is_a_node_too(redis_server: Start) -> None:
    server = redis_server({"unixsocket": "redis.sock"})
    asker = Asker(StoreClient([(str(server.directory / "redis.sock"), 0)]))
    assert await asker.put(asker.client.table("t"), KEYS, b"x") == STORED
    asyncio.get_running_loop().remove_reader(asker.client.wake_fd)
    asker.client.close()


async def test_wrong_arguments_are_refused_at_the_call() -> None:
    client = StoreClient([("127.0.0.1", 1)])
    table = client.table("t")
    for wrong in (
        lambda: client.read(None, 5, []),
        lambda: client.write(None, table, KEYS[:2], [0], 1, [b"", b""]),
        lambda: client.write(None, table, KEYS[:2], None, 1, [b""]),
        lambda: client.call(None, [b"PING"]),
        lambda: client.table("t", 3),
        lambda: client.table("a:b"),
        lambda: StoreClient([]),
        lambda: StoreClient([("h", 1)], namespace="{}"),
        lambda: StoreClient([("h", 1)], timeout_s=0),
        lambda: StoreClient([("h", 1)], tls_ca=b"no certificate"),
    ):
        with pytest.raises(ValueError):
            wrong()
    client.close()
