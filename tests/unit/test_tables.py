"""Tables over a store in memory: what is cached, stored, in conflict, lost; in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from types import TracebackType
from typing import Any, Self

import pytest

from libvnf.errors import (
    ConfigError,
    DurabilityUnknown,
    StateConflict,
    StateError,
    StateFull,
    StoreUnavailable,
    Unreadable,
)
from libvnf.state import Record, Table, Tables, local, replicated, write_back, write_through
from libvnf.state.memory import Memory, MemoryStore
from libvnf.state.shared import SharedTable
from libvnf.testing.clock import Clock

EPOCH_MS = 1_700_000_000_000
SOON = write_back(interval_s=0.1)


class Session(Record):
    user: str
    hits: int = 0


class Replica:
    """One VNF's tables, and its client of the store."""

    def __init__(self, rig: Rig) -> None:
        self.store = MemoryStore(rig.memory, asyncio.get_running_loop())
        self.tables = Tables(logging.getLogger("vnf.test"))
        self.tables.clock_ms, self.tables.store = rig.clock_ms, self.store
        self.reads: list[int] = []
        self._count_reads()

    def _count_reads(self) -> None:
        read = self.store.read

        def counted(table: int, keys: list[bytes], done: Any) -> None:
            self.reads.append(len(keys))
            read(table, keys, done)

        self.store.read = counted  # type: ignore[method-assign]

    def table(self, durability: Any = SOON, *, name: str = "t", value: Any = int, **options: Any) -> Any:
        return self.tables.add(name, str, value, durability, **options)

    async def start(self) -> None:
        await self.tables.start("memory://", lambda fn, *args: fn(*args), 1.0)


class Rig:
    """A store, time, and replicas that are closed in the end."""

    def __init__(self, replicas: int = 0) -> None:
        self.clock, self.replicas = Clock(), list[Replica]()
        self.memory = Memory(self.clock_ms, replicas=replicas)

    def clock_ms(self) -> int:
        return EPOCH_MS + round(self.clock.now * 1000)

    async def __aenter__(self) -> Self:
        self.clock.install()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replica in self.replicas:
            await replica.tables.close()
        self.clock.uninstall()

    def replica(self) -> Replica:
        self.replicas.append(Replica(self))
        return self.replicas[-1]

    async def table(self, durability: Any = SOON, **options: Any) -> tuple[SharedTable[str, Any], Replica]:
        replica = self.replica()
        table = replica.table(durability, **options)
        await replica.start()
        return table, replica

    async def two(self, durability: Any = SOON, **options: Any) -> tuple[Any, Any]:
        """The same table in two replicas."""
        one, _ = await self.table(durability, **options)
        other, _ = await self.table(durability, **options)
        return one, other


def stored(table: SharedTable[str, Any], key: str) -> Any:
    """What a replica that has cached nothing would read."""
    memory = table.store._memory  # type: ignore[attr-defined]
    found = memory.tables[table.handle].entries.get(table.keys.pack(key))
    return None if found is None else table.values.unpack(found.payload)


def at_once(coroutine: Any) -> Any:
    """What it returns without having waited for anything."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


# --- local


async def test_a_local_entry_expires() -> None:
    async with Rig() as rig:
        table: Table[str, int] = rig.replica().tables.add("t", str, int, local)
        table.put_nowait("a", 1, ttl_s=2)
        table.put_nowait("b", 2, ttl_s=2)
        table.put_nowait("b", 3)
        await asyncio.sleep(1)
        assert await table.ttl("a") == 1
        assert await table.update("a", lambda n: n + 1) == 2
        assert (await table.ttl("a"), await table.ttl("b"), await table.ttl("c")) == (1, inf, None)
        await asyncio.sleep(1)
        assert (await table.get("a"), await table.get("b"), len(table)) == (None, 3, 1)
        assert [entry async for entry in table.scan()] == [("b", 3)]
        assert await table.incr("n", 5) == 5
        await table.flush()
        await table.drop()
        assert len(table) == 0


async def test_a_local_table_has_no_store_to_ask_for() -> None:
    table = Tables(logging.getLogger("vnf.test")).add("t", str, int, local)
    with pytest.raises(ConfigError, match="is local and has no store"):
        await table.put("a", 1, durability=write_through)
    with pytest.raises(ConfigError, match="ttl_s=-1, expected more than 0"):
        await table.put("a", 1, ttl_s=-1)


# --- what cannot be


@pytest.mark.parametrize(
    ("name", "durability", "options", "words"),
    [
        ("a:b", local, {}, "is not a table's name"),
        ("{a}", local, {}, "is not a table's name"),
        ("", local, {}, "is not a table's name"),
        ("t", "write_through", {}, "durability='write_through', expected local, write_back"),
        ("t", local, {"max_entries": 5}, "max_entries is for tables in a store, this one is local"),
        ("t", write_through, {"schema": 0}, "schema=0"),
    ],
)
def test_a_table_that_cannot_be_is_refused(name: str, durability: Any, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Tables(logging.getLogger("vnf.test")).add(name, str, int, durability, **options)


async def test_wrong_types_are_refused_at_the_call() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        refused: list[Callable[[], Any]] = [
            lambda: table.put_nowait(1, 1),  # type: ignore[arg-type]
            lambda: table.put_nowait("a", "one"),
            lambda: table.get_nowait(b"a"),  # type: ignore[arg-type]
            lambda: table.put_nowait("a", None),
        ]
        for call in refused:
            with pytest.raises(ConfigError, match="table 't': "):
                call()
        with pytest.raises(ConfigError, match="key of type int, expected str"):
            await table.get(1)  # type: ignore[arg-type]
        with pytest.raises(StateError, match="at most 1024"):
            await table.put("k" * 2000, 1)


# --- reading


async def test_a_hit_waits_for_nothing() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(value=Session)
        table.put_nowait("a", Session("x"))
        assert at_once(table.get("a")) == Session("x")
        await table.flush()
        assert at_once(table.get("a")) == Session("x")
        assert at_once(table.put("a", Session("y"))) is None
        assert replica.reads == [1]


async def test_an_absent_key_is_known_to_be_absent() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        assert await table.get("a") is None
        assert at_once(table.get("a")) is None


async def test_misses_of_one_key_are_one_read_and_those_of_one_turn_one_batch() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        await one.update("a", lambda n: n, 1)
        reads = rig.replicas[1].reads
        assert await asyncio.gather(*[other.get(key) for key in "aaabbc"]) == [1, 1, 1, None, None, None]
        assert reads == [3]


async def test_who_waits_for_a_read_may_be_cancelled() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await one.put("a", 1)
        rig.replicas[1].store.slow(0.5)
        waiting = [asyncio.ensure_future(other.get("a")) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [1, 1]


async def test_a_value_that_can_be_changed_is_each_readers_own() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(value=list)
        mine = [1, 2]
        table.put_nowait("a", mine)
        mine.append(3)
        (await table.get("a")).append(4)
        assert (await table.get("a"), table.get_nowait("a")) == ([1, 2], [1, 2])


async def test_what_cannot_be_read_is_an_error_of_that_key_until_it_is_put() -> None:
    async with Rig() as rig:
        newer, _ = await rig.table(write_through, schema=2, upgrades={1: lambda n: n})
        older, _ = await rig.table(write_through)
        await newer.put("a", 1)
        await newer.put("b", 1)
        with pytest.raises(Unreadable, match="newer code has written it"):
            await older.get("a")
        with pytest.raises(Unreadable):
            await older.update("a", lambda n: n + 1, 0)
        assert [entry async for entry in older.scan()] == []
        assert older.statistics()["unreadable"] >= 2
        await older.put("a", 2)
        assert await older.get("a") == 2
        assert await newer.get("a") == 2


# --- when changes are stored


async def test_a_change_is_stored_after_the_interval() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_back(interval_s=0.1))
        table.put_nowait("a", 1)
        await asyncio.sleep(0.09)
        table.put_nowait("a", 2)
        assert stored(table, "a") is None
        await asyncio.sleep(0.02)
        assert stored(table, "a") == 2
        assert table.statistics()["flushes"] == 1


async def test_every_so_many_changes_are_stored() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_back(every=3))
        for key in "ab":
            table.put_nowait(key, 1)
        await asyncio.sleep(60)
        assert stored(table, "a") is None
        table.put_nowait("c", 1)
        await asyncio.sleep(0.001)
        assert [stored(table, key) for key in "abc"] == [1, 1, 1]


@pytest.mark.parametrize("durability", [write_back(on_request_end=True), write_through])
async def test_a_change_is_stored_at_the_end_of_the_turn(durability: Any) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability)
        table.put_nowait("a", 1)
        await asyncio.sleep(0.001)
        assert stored(table, "a") == 1


async def test_what_is_put_while_a_flush_is_under_way_is_in_the_next() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        await table.get("a")
        replica.store.slow(1.0)
        table.put_nowait("a", 1)
        first = asyncio.ensure_future(table.flush())
        await asyncio.sleep(0.5)
        table.put_nowait("a", 2)
        await table.flush()
        assert stored(table, "a") == 2
        assert first.done()
        assert at_once(table.get("a")) == 2
        assert table.cache.unstored == 0


async def test_a_put_through_returns_when_it_is_stored() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        replica.store.slow(1.0)
        await table.put("a", 1, durability=write_through)
        assert stored(table, "a") == 1
        assert rig.clock.now >= 2.0  # what it replaces was read before


async def test_puts_before_the_start_are_stored_after_it() -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table = replica.table()
        table.put_nowait("a", 1)
        await replica.start()
        await table.flush()
        assert stored(table, "a") == 1


async def test_a_full_cache_of_changes_makes_put_wait_and_put_nowait_raise() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(max_entries=2)
        for key in "ab":
            await table.get(key)
        replica.store.slow(1.0)
        for key in "ab":
            table.put_nowait(key, 1)
        with pytest.raises(StateFull, match="2 of 2 cached entries are changes not stored yet"):
            table.put_nowait("c", 1)
        waiting = asyncio.ensure_future(table.put("c", 1))
        await asyncio.sleep(0.9)
        assert not waiting.done()
        await waiting
        assert stored(table, "a") == stored(table, "b") == 1
        await table.flush()
        assert stored(table, "c") == 1


# --- conflicts


async def test_a_change_of_what_another_has_changed_is_lost_and_told() -> None:
    async with Rig() as rig:
        stopped, successor = await rig.two(write_back(every=100))
        lost: list[Any] = []
        stopped.on_conflict(lambda *told: lost.append(told))
        assert await stopped.get("a") is None
        # A replica that is stopped hears nothing meanwhile.
        rig.replicas[0].store.on_invalid = lambda table, keys: None
        stopped.put_nowait("a", 1)
        successor.put_nowait("a", 2)
        await successor.flush()
        await stopped.flush()
        assert lost == [("a", 1, 2)]
        assert (stored(stopped, "a"), await stopped.get("a"), stopped.statistics()["conflicts"]) == (2, 2, 1)


async def test_a_blind_put_replaces_what_stood_there_when_it_was_put() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_back(every=100))
        await one.update("a", lambda n: n, 1)
        await one.update("b", lambda n: n, 1)
        other.put_nowait("a", 2)
        other.put_nowait("b", 2)
        await asyncio.sleep(1)
        rig.replicas[1].store.on_invalid = lambda table, keys: None
        await one.update("b", lambda n: 3)
        await other.flush()
        assert (stored(one, "a"), stored(one, "b")) == (2, 3)
        assert other.statistics()["conflicts"] == 1


async def test_an_invalidated_change_meets_its_conflict_at_once() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_back(every=100))
        await other.get("a")
        other.put_nowait("a", 1)
        await one.update("a", lambda n: n, 2)
        await asyncio.sleep(0.001)
        assert await other.get("a") == 2
        assert other.statistics()["conflicts"] == 1


async def test_a_put_through_that_conflicts_raises() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await other.put("a", 1)
        rig.replicas[1].store.on_invalid = lambda table, keys: None
        await one.put("a", 2)
        lost: list[Any] = []
        other.on_conflict(lambda *told: lost.append(told))
        with pytest.raises(StateConflict, match="another replica has changed 'a'"):
            await other.put("a", 3)
        assert (await other.get("a"), lost) == (2, [])
        await other.put("a", 3)
        assert stored(one, "a") == 3


async def test_the_last_writer_wins_where_the_table_says_so() -> None:
    async with Rig() as rig:
        one, other = await rig.two(last_writer_wins=True)
        await other.get("a")
        other.put_nowait("a", 1)
        await one.put("a", 2, durability=write_through)
        await other.flush()
        assert stored(one, "a") == 1
        assert other.statistics()["conflicts"] == 0


async def test_a_flush_whose_answer_was_lost_is_no_conflict() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        errors: list[Any] = []
        table.on_error(lambda error, keys: errors.append((type(error), keys)))
        await table.get("a")
        replica.store.lose_answers(1)
        table.put_nowait("a", 1)
        await asyncio.sleep(0.101)
        assert errors == [(DurabilityUnknown, ["a"])]
        table.put_nowait("a", 2)
        await asyncio.sleep(10)
        assert (stored(table, "a"), table.cache.unstored, table.statistics()["conflicts"]) == (2, 0, 0)
        assert table.statistics()["recovered"] == 1


# --- what others change


async def test_what_another_replica_changes_is_read_again() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        changed: list[Any] = []
        other.on_change(lambda *told: changed.append(told))
        assert await other.get("a") is None
        await one.put("a", 1)
        await asyncio.sleep(0.001)
        assert await other.get("a") == 1
        await one.put("a", 2)
        await one.delete("a")
        await asyncio.sleep(0.001)
        assert await other.get("a") is None
        assert changed[0] == ("a", 1)
        assert changed[-1] == ("a", None)
        await one.put("b", 1)
        await asyncio.sleep(0.001)
        assert changed[-1][0] == "a", "told of a key that is not cached"


async def test_after_an_outage_nothing_stale_is_read() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await one.put("a", 1)
        assert await other.get("a") == 1
        rig.replicas[1].store.outage()
        await one.put("a", 2)
        assert at_once(other.get("a")) == 1
        rig.replicas[1].store.recover()
        assert await other.get("a") == 2


# --- update


async def test_updates_of_two_replicas_are_all_applied() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        for replica in rig.replicas:
            replica.store.slow(0.01)

        async def count(table: Any) -> None:
            for _ in range(50):
                await table.incr("n")

        await asyncio.gather(count(one), count(other), count(one))
        assert stored(one, "n") == 150
        assert one.statistics()["update_retries"] + other.statistics()["update_retries"] > 0


async def test_updates_of_one_key_are_combined() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        replica.store.slow(0.01)
        results = await asyncio.gather(*[table.incr("n", 2) for _ in range(100)])
        assert results == [2 * n for n in range(1, 101)]
        assert replica.store.statistics()["writes"] <= 2


async def test_an_update_begins_from_what_was_put_before() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_back(every=100))
        table.put_nowait("a", 5)
        assert await table.update("a", lambda n: n + 1) == 6
        table.put_nowait("b", 5)
        assert table.cache.dirty == 1, "only the updated key is flushed"


async def test_a_put_during_an_update_replaces_its_outcome() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        await table.get("a")
        replica.store.slow(0.5)
        updating = asyncio.ensure_future(table.update("a", lambda n: n + 1, 0))
        await asyncio.sleep(0.1)
        table.put_nowait("a", 10)
        assert await updating in (1, 11)
        await table.flush()
        assert stored(table, "a") in (10, 11)
        assert table.statistics()["conflicts"] == 0


async def test_an_update_whose_function_fails_harms_no_other() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        outcomes = await asyncio.gather(
            table.update("a", lambda n: n + 1),
            table.update("a", lambda n: n // 0, 1),
            table.update("a", lambda n: "x", 1),  # type: ignore[arg-type, return-value]
            table.update("a", lambda n: next(iter(())), 1),
            table.incr("a"),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [KeyError, ZeroDivisionError, ConfigError, RuntimeError, int]
        assert stored(table, "a") == 1


async def test_an_update_without_an_answer_is_unknown_and_not_repeated() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        assert await table.incr("n") == 1
        replica.store.lose_answers(1)
        with pytest.raises(DurabilityUnknown):
            await table.incr("n")
        assert (stored(table, "n"), await table.get("n"), await table.incr("n")) == (2, 2, 3)


async def test_an_update_that_the_store_refuses_changes_nothing() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        await table.incr("n")
        replica.store.refuse(1, StoreUnavailable("not now"))
        outcomes = await asyncio.gather(table.incr("n"), table.incr("n"), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable, StoreUnavailable]
        assert (stored(table, "n"), await table.incr("n")) == (1, 2)


async def test_incr_wants_a_number() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(value=str)
        await table.put("a", "x")
        with pytest.raises(ConfigError, match="str at 'a', expected int for incr"):
            await table.incr("a")


# --- levels


async def test_a_put_through_that_fails_raises_and_is_not_stored_later() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_through)
        await table.put("a", 1)
        replica.store.refuse(1, StoreUnavailable("not now"))
        with pytest.raises(StoreUnavailable, match="not now"):
            await table.put("a", 2)
        await asyncio.sleep(60)
        assert (stored(table, "a"), await table.get("a")) == (1, 1)
        replica.store.refuse(1, StoreUnavailable("not now"))
        table.put_nowait("a", 3)
        await asyncio.sleep(60)
        assert stored(table, "a") == 3, "nobody was told that it failed: it is tried again"


async def test_too_few_replicas_make_it_unknown() -> None:
    async with Rig(replicas=1) as rig:
        table, _ = await rig.table(replicated(1))
        await table.put("a", 1)
        assert await table.incr("n", durability=replicated(1)) == 1
        with pytest.raises(DurabilityUnknown):
            await table.put("a", 2, durability=replicated(2))
        with pytest.raises(DurabilityUnknown):
            await table.incr("n", durability=replicated(2))
        assert (await table.get("a"), await table.get("n")) == (2, 2)
        with pytest.raises(ConfigError, match="a call can ask for write_through or replicated"):
            await table.put("a", 1, durability=SOON)


# --- failures


async def test_what_fails_is_tried_again_ever_more_slowly() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        errors: list[float] = []
        table.on_error(lambda error, keys: errors.append(rig.clock.now))
        await table.get("a")
        replica.store.refuse(1000, StoreUnavailable("full"))
        table.put_nowait("a", 1)
        await asyncio.sleep(30)
        waits = [later - earlier for earlier, later in zip(errors, errors[1:], strict=False)]
        assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5], abs=0.02)
        assert table.statistics()["flush_failures"] == len(errors)
        assert (table.cache.unstored, at_once(table.get("a"))) == (1, 1)
        replica.store.refuse(0, StoreUnavailable(""))
        await asyncio.sleep(5)
        assert (stored(table, "a"), table.cache.unstored) == (1, 0)


async def test_a_blind_put_in_an_outage_is_stored_after_it() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        replica.store.outage()
        table.put_nowait("a", 1)
        await asyncio.sleep(60)
        assert (table.cache.unstored, at_once(table.get("a"))) == (1, 1)
        replica.store.recover()
        await asyncio.sleep(6)
        assert (stored(table, "a"), table.cache.unstored) == (1, 0)


async def test_a_drain_stores_all_that_it_can_and_tells_the_rest() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(interval_s=3600))
        for n in range(10_000):
            table.put_nowait(str(n), n)
        loop = asyncio.get_running_loop()
        assert await replica.tables.drain(loop.time() + 5) == {}
        assert stored(table, "9999") == 9999
        replica.store.outage()
        table.put_nowait("a", 1)
        before_s = loop.time()
        assert await replica.tables.drain(before_s + 5) == {"t": 1}
        assert loop.time() - before_s == pytest.approx(5, abs=0.1)


async def test_a_store_that_is_down_at_the_start_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table = replica.table()
        replica.store.outage("no route")
        table.put_nowait("a", 1)
        await replica.start()
        with pytest.raises(StoreUnavailable, match="no route"):
            await table.get("b")
        with pytest.raises(StoreUnavailable, match="no route"):
            await table.flush()
        assert replica.tables.statistics() == {"state": "down: no route"}
        assert "the store is down: no route" in caplog.text
        replica.store.recover()
        assert await table.get("b") is None
        await asyncio.sleep(1)
        assert (stored(table, "a"), replica.tables.statistics()["state"]) == (1, "up")


async def test_what_waits_when_the_vnf_stops_is_told() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_through)
        replica.store.outage()
        waiting = [table.get("a"), table.put("b", 1), table.incr("c"), table.flush()]
        tasks = [asyncio.ensure_future(one) for one in waiting]
        await asyncio.sleep(0.1)
        await replica.tables.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, StateError) for outcome in outcomes), outcomes
        with pytest.raises(RuntimeError, match="does not run"):
            await table.get("d")


# --- the rest of the calls


async def test_an_entry_expires_for_all_replicas() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        await one.put("a", 1, ttl_s=5, durability=write_through)
        assert (await other.get("a"), await other.ttl("a")) == (1, pytest.approx(5, abs=0.1))
        assert await other.update("a", lambda n: n + 1) == 2
        await asyncio.sleep(3)
        assert await one.ttl("a") == pytest.approx(2, abs=0.1)
        await asyncio.sleep(2)
        assert (await one.get("a"), other.get_nowait("a"), await other.ttl("a")) == (None, None, None)
        assert await one.update("a", lambda n: n + 1, 10) == 11
        assert await other.ttl("a") == inf


async def test_deleting_tells_whether_there_was_one() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_back(every=100))
        await one.put("a", 1, durability=write_through)
        assert not await other.delete("b")
        assert await other.delete("a")
        assert (await other.get("a"), stored(one, "a")) == (None, 1)
        assert not await other.delete("a", durability=write_through)
        assert stored(one, "a") is None
        one.put_nowait("c", 1)
        assert one.delete_nowait("c")
        assert not one.delete_nowait("d")
        await one.flush()
        assert stored(one, "c") is None


async def test_a_scan_has_what_this_replica_changed() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_back(every=10_000))
        for n in range(1500):
            one.put_nowait(str(n), n)
        await one.flush()
        other.put_nowait("x", -1)
        other.delete_nowait("7")
        found = dict([entry async for entry in other.scan()])
        assert found == {str(n): n for n in range(1500) if n != 7} | {"x": -1}
        await other.drop()
        await asyncio.sleep(0.001)
        assert [entry async for entry in one.scan()] == []
        assert await one.get("1") is None


async def test_a_pinned_entry_stays() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(max_entries=4)
        table.pin("a")
        await table.put("a", 1, durability=write_through)
        for n in range(20):
            await table.get(str(n))
        assert at_once(table.get("a")) == 1
        table.unpin("a")
        for n in range(20):
            await table.get(str(n))
        assert table.get_nowait("a") is None
