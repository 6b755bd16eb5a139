"""Changes that do not reach the store, and who is told: puts on one key that wait together, deadlines, refusals."""

from __future__ import annotations

import asyncio
from typing import Any

from libvnf.errors import StateConflict, StoreUnavailable
from libvnf.state import write_back, write_through
from libvnf.state.store import Written
from tests.tables import Rig, stored

FOREIGN = 7 << 40


def foreign(table: Any, key: str, value: Any, version: int = FOREIGN) -> None:
    """Another replica's write, of which nobody is told."""
    memory = table.store._memory
    held = memory.tables[table.handle]
    held.readers.pop(table.keys.pack(key), None)
    other = table.store.__class__(memory, table.store._loop)
    done: list[Written] = []
    other.write(table.handle, [table.keys.pack(key)], None, version, [table.values.pack(value)], done.append)
    other._run()
    assert done == [Written([], [])]


async def test_a_put_that_waited_behind_a_conflict_is_told_of_it() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_through)
        await table.put("a", 1)
        foreign(table, "a", 2)
        replica.store.slow(1.0)
        first = asyncio.ensure_future(table.put("a", 3))
        await asyncio.sleep(0.5)
        second = asyncio.ensure_future(table.put("a", 4))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StateConflict, StateConflict]
        assert stored(table, "a") == 2


async def test_a_put_that_joined_a_failed_one_is_told_of_it() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_through)
        replica.store.slow(1.0)
        first = asyncio.ensure_future(table.put("a", 1))
        await asyncio.sleep(0.5)  # what stands there is still being read
        second = asyncio.ensure_future(table.put("a", 2))
        await asyncio.sleep(1.0)
        replica.store.refuse(1, StoreUnavailable("not now"))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable, StoreUnavailable]
        await asyncio.sleep(60)
        assert (stored(table, "a"), await table.get("a")) == (None, None)


async def test_what_nobody_waits_for_is_not_given_up_with_a_put_that_failed() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_through)
        replica.store.slow(1.0)
        put = asyncio.ensure_future(table.put("a", 1))
        await asyncio.sleep(0.5)
        table.put_nowait("a", 2)
        await asyncio.sleep(1.0)
        replica.store.refuse(1, StoreUnavailable("not now"))
        assert [type(one) for one in await asyncio.gather(put, return_exceptions=True)] == [StoreUnavailable]
        await asyncio.sleep(60)
        assert stored(table, "a") == 2


# --- deadlines


async def test_a_put_replaces_what_has_expired_in_the_store() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_through)
        await table.put("a", 1, ttl_s=1)
        await asyncio.sleep(1.5)
        await table.put("a", 2, ttl_s=1)
        assert (stored(table, "a"), table.statistics()["conflicts"]) == (2, 0)


async def test_an_entry_put_again_before_its_end_and_stored_after_it_stays() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_back(interval_s=1.0))
        await table.put("a", 1, ttl_s=2, durability=write_through)
        await asyncio.sleep(1.5)
        table.put_nowait("a", 2, ttl_s=2)
        await asyncio.sleep(1.1)
        assert (stored(table, "a"), table.statistics()["conflicts"]) == (2, 0)


async def test_an_entry_put_again_while_it_flew_outlives_what_flew() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(interval_s=0.1))
        await table.get("a")
        table.put_nowait("a", 1, ttl_s=1)
        replica.store.slow(0.5)
        await asyncio.sleep(0.2)
        table.put_nowait("a", 2, ttl_s=10)
        await asyncio.sleep(0.2)
        replica.store.outage()
        await asyncio.sleep(5)
        replica.store.recover()
        await asyncio.sleep(5)
        assert (stored(table, "a"), table.statistics()["conflicts"]) == (2, 0)


async def test_what_was_stored_without_an_answer_and_has_expired_is_no_conflict() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_through)
        await table.put("a", 1)
        replica.store.lose_answers(1)
        table.put_nowait("a", 2, ttl_s=1)
        await asyncio.sleep(0.01)
        replica.store.outage()
        await asyncio.sleep(5)
        table.put_nowait("a", 3)
        replica.store.recover()
        await asyncio.sleep(10)
        assert (stored(table, "a"), table.statistics()["conflicts"]) == (3, 0)


async def test_what_another_has_removed_before_its_end_is_a_conflict() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_back(interval_s=1.0))
        await one.put("a", 1, ttl_s=60, durability=write_through)
        rig.replicas[0].store.on_invalid = lambda table, keys: None
        await other.delete("a", durability=write_through)
        one.put_nowait("a", 2)
        await one.flush()
        assert (stored(one, "a"), one.statistics()["conflicts"]) == (None, 1)
