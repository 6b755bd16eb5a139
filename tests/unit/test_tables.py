"""Tables over a store in memory: what is cached, when it is stored, and in conflict; in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from libvnf.errors import ConfigError, DurabilityUnknown, StateConflict, StateError, StateFull, Unreadable
from libvnf.state import Table, Tables, local, write_back, write_through
from tests.tables import Rig, Session, at_once, stored

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


async def test_a_handler_of_other_arguments_is_refused_when_it_is_registered() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        for register in (table.on_conflict, table.on_error, table.on_change):
            with pytest.raises(ConfigError, match="is called as"):
                register(lambda: None)


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


async def test_misses_of_one_key_are_one_read() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        await one.update("a", lambda n: n, 1)
        reads = rig.replicas[1].reads
        assert await asyncio.gather(*[other.get(key) for key in "aaabbc"]) == [1, 1, 1, None, None, None]
        assert reads == [1, 1, 1]


async def test_many_misses_of_one_turn_are_one_batch() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        keys = [f"key {number}" for number in range(300)]
        assert await asyncio.gather(*map(table.get, keys)) == [None] * 300
        assert replica.reads == [300]


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
        assert (await other.get("a"), lost) == (2, [("a", 3, 2)])
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
        reading = asyncio.ensure_future(other.get("a"))
        await asyncio.sleep(1)
        assert not reading.done()
        rig.replicas[1].store.recover()
        assert await reading == 2
