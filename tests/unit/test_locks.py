"""Locks over a store in memory, in virtual time: who has one, for how long, and what a holder can write."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from libvnf.errors import (
    ConfigError,
    DurabilityUnknown,
    LockLost,
    StateConflict,
    StateError,
    StoreUnavailable,
    Unreadable,
)
from libvnf.state import local, write_through
from libvnf.state.store import Stored
from tests.tables import Rig, Session, stored


async def holding(table: Any, order: list[Any], name: Any, *, for_s: float = 1.0, **options: Any) -> None:
    async with table.lock("k", **options):
        order.append(name)
        await asyncio.sleep(for_s)
        order.append(f"-{name}")


async def soon() -> None:
    """Whatever can happen without time."""
    for _ in range(20):
        await asyncio.sleep(0)


def free(table: Any, key: str = "k") -> bool:
    """Whether the store knows of no holder, and this replica of no waiter."""
    memory = table.store._memory
    held = memory.tables[table.handle]
    return table.store._standing(held, table.keys.pack(key)) is None and not table.locks.line


# --- taking and giving back


async def test_a_holder_has_the_fresh_value_and_writes_it() -> None:
    async with Rig() as rig:
        one, other = await rig.two(value=Session)
        await one.put("k", Session("x", 1), durability=write_through)
        assert await other.get("k") == Session("x", 1)
        async with one.lock("k") as held:
            assert held.value == Session("x", 1)
            await held.put(held.value.replace(hits=2))
            assert held.value == Session("x", 2) == one.get_nowait("k") == stored(one, "k")
        await soon()
        assert await other.get("k") == Session("x", 2)
        assert free(one)


async def test_a_value_changed_elsewhere_is_fresh_before_this_replica_has_heard_of_it() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await one.put("k", 1)
        one.store.on_invalid = lambda table, keys: None  # it never hears
        await other.put("k", 2)
        assert one.get_nowait("k") == 1
        async with one.lock("k") as held:
            assert held.value == 2
        assert one.get_nowait("k") == 2


async def test_a_dirty_value_is_stored_before_the_fresh_one_is_read() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        one.put_nowait("k", 5)
        async with one.lock("k") as held:
            assert held.value == 5 == stored(one, "k")
            await held.put(6)
        async with other.lock("k") as held:
            assert held.value == 6


async def test_a_dirty_value_that_conflicts_gives_way() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        await one.get("k")
        one.store.on_invalid = lambda table, keys: None  # it has not heard yet
        await other.put("k", 7, durability=write_through)
        one.put_nowait("k", 5)
        async with one.lock("k") as held:
            assert held.value == 7


async def test_a_lock_of_an_absent_key_can_make_and_remove_it() -> None:
    async with Rig() as rig:
        one, _ = await rig.table()
        async with one.lock("k") as held:
            assert held.value is None
            assert await held.delete() is False
            await held.put(1, ttl_s=5)
            assert stored(one, "k") == 1 and held.ttl_s == 5
            assert await held.delete() is True
            assert held.value is None and held.ttl_s is None
            assert one.cache.peek("k").value is None and stored(one, "k") is None
            await held.put(2)
        assert await one.get("k") == 2


async def test_keys_do_not_wait_for_each_other() -> None:
    async with Rig() as rig:
        one, _ = await rig.table()
        async with one.lock("k"), one.lock("l", timeout_s=0.1):
            pass


async def test_each_holder_has_a_greater_fence() -> None:
    async with Rig() as rig:
        fences = []
        for table in (*await rig.two(), *await rig.two()):
            async with table.lock("k") as held:
                fences.append(held.fence)
        assert fences == sorted(set(fences))


@pytest.mark.parametrize("durability", [local, write_through])
async def test_waiters_of_one_replica_come_in_their_order(durability: Any) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability)
        order: list[Any] = []
        await asyncio.gather(*(holding(table, order, n) for n in range(1, 5)))
        assert order == [1, "-1", 2, "-2", 3, "-3", 4, "-4"]
        assert 4.0 <= rig.clock.now < 4.5


async def test_another_replica_waits_and_has_it_soon_after() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        order: list[Any] = []
        first = asyncio.ensure_future(holding(one, order, "one", for_s=5))
        await soon()
        await holding(other, order, "other")
        await first
        assert order == ["one", "-one", "other", "-other"]
        assert rig.clock.now < 6.2
        assert other.counts["lock_polls"] > 10


async def test_a_busy_replica_lets_others_have_a_chance() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        order: list[Any] = []

        async def again_and_again() -> None:
            while "other" not in order:
                async with one.lock("k"):
                    await asyncio.sleep(0.02)

        busy = [asyncio.ensure_future(again_and_again()) for _ in range(3)]
        await soon()
        await holding(other, order, "other", for_s=0)
        await asyncio.gather(*busy)
        assert rig.clock.now < 1.5


# --- every way out


@pytest.mark.parametrize("durability", [local, write_through])
@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError()])
async def test_a_lock_is_given_back_when_its_holder_raises(durability: Any, error: BaseException) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability)
        with pytest.raises(type(error)):
            async with table.lock("k"):
                raise error
        async with table.lock("k", timeout_s=0):
            pass


@pytest.mark.parametrize("durability", [local, write_through])
async def test_waiting_ends_with_its_timeout(durability: Any) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability)
        async with table.lock("k"):
            with pytest.raises(TimeoutError, match=r"table 't': no lock of 'k' within 0.5 seconds"):
                await asyncio.ensure_future(holding(table, [], "late", timeout_s=0.5))
            assert rig.clock.now == pytest.approx(0.5)
        async with table.lock("k", timeout_s=1):
            pass


async def test_waiting_for_another_replica_ends_with_its_timeout() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        async with one.lock("k"):
            with pytest.raises(TimeoutError):
                await holding(other, [], "late", timeout_s=0.5)
            assert rig.clock.now == pytest.approx(0.5)
            assert not other.locks.line
        assert free(one)


@pytest.mark.parametrize("after_s", [0, 0.05, 0.1, 0.15, 0.25])
async def test_one_who_is_cancelled_while_waiting_leaves_nothing_behind(after_s: float) -> None:
    """Whether its question to the store, the answer, or the reading of the value was under way."""
    async with Rig() as rig:
        table, replica = await rig.table()
        replica.store.slow(0.1)
        task = asyncio.ensure_future(holding(table, [], "x"))
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.5)
        assert free(table)


async def test_one_who_is_cancelled_as_the_answer_comes_leaves_nothing_behind() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        task = asyncio.ensure_future(holding(table, [], "x"))
        for turns in range(12):
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await soon()
            assert free(table)
            task = asyncio.ensure_future(holding(table, [], "x"))
        task.cancel()


async def test_a_timeout_while_the_store_is_silent_gives_the_lock_back_when_it_speaks() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        replica.store.slow(2.0)
        with pytest.raises(TimeoutError):
            await holding(table, [], "x", timeout_s=1)
        replica.store.slow(0.0)
        await asyncio.sleep(5)
        assert free(table)


async def test_a_cancelled_waiter_in_the_line_is_passed_over() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        order: list[Any] = []
        tasks = [asyncio.ensure_future(holding(table, order, n)) for n in (1, 2, 3)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert order == [1, "-1", 3, "-3"]


async def test_an_unreadable_value_gives_the_lock_back() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        rig.memory.set(rig.memory.tables[table.handle], table.keys.pack("k"), Stored(1, 0, b"", b"\xff\xff"), None)
        with pytest.raises(Unreadable):
            await holding(table, [], "x")
        await soon()
        assert free(table) and table.counts["unreadable"] == 1


async def test_without_a_store_a_lock_is_an_error_at_once() -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table = replica.table()
        with pytest.raises(StoreUnavailable):
            await holding(table, [], "x")


async def test_a_store_that_goes_away_is_told_to_who_asks_and_the_lock_is_left_to_its_lease() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        async with table.lock("k", max_hold_s=1000):
            replica.store.outage()
            with pytest.raises(StoreUnavailable):
                async with table.lock("l"):
                    pass
        assert table.counts["unlock_failures"] == 1
        replica.store.recover()
        await soon()
        assert free(table)


async def test_a_lock_is_entered_once() -> None:
    async with Rig() as rig:
        for durability in (local, write_through):
            table, _ = await rig.table(durability, name=str(durability))
            lock = table.lock("k")
            async with lock:
                with pytest.raises(RuntimeError, match="once"):
                    await lock.__aenter__()


@pytest.mark.parametrize("durability", [local, write_through])
async def test_who_would_wait_for_itself_is_told_at_once(durability: Any) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability)
        async with table.lock("k") as held:
            with pytest.raises(RuntimeError, match=r"table 't': lock\('k'\): this task has that lock already"):
                await holding(table, [], "x")
            child = asyncio.ensure_future(holding(table, order := [], "child"))
            await soon()
            assert order == []
            async with table.lock("l"):
                await held.put(1)
        await child
        async with table.lock("k", timeout_s=0):
            pass


@pytest.mark.parametrize("durability", [local, write_through])
async def test_who_has_lost_a_lock_may_ask_for_it_again(durability: Any) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability)
        with pytest.raises(LockLost, match="max_hold_s"):
            async with table.lock("k", lease_s=1, max_hold_s=1):
                await asyncio.sleep(2)
                async with table.lock("k", timeout_s=0.1) as again:
                    await again.put(1)
        assert await table.get("k") == 1


@pytest.mark.parametrize("options", [{"lease_s": 0}, {"lease_s": 20, "max_hold_s": 10}, {"timeout_s": -1}])
async def test_a_lock_that_cannot_be_is_a_configuration_error(options: Any) -> None:
    async with Rig() as rig:
        for durability in (local, write_through):
            table, _ = await rig.table(durability, name=str(durability))
            with pytest.raises(ConfigError):
                table.lock("k", **options)
            with pytest.raises(ConfigError):
                table.lock(1)


# --- losing it


async def test_a_holder_that_stood_still_past_its_lease_writes_nothing() -> None:
    async with Rig() as rig:
        one, other = await rig.two(last_writer_wins=True)
        with pytest.raises(LockLost, match="its lease ran out"):
            async with one.lock("k", lease_s=2) as held:
                one.store.outage()  # neither beats nor renewals
                await asyncio.sleep(3)
                async with other.lock("k") as successor:
                    await successor.put(2)
                    one.store.recover()
                    await held.put(1)
        assert stored(one, "k") == 2
        assert held.lost and one.counts["leases_lost"] == 1


async def test_who_only_read_is_told_at_the_end_that_the_lock_was_lost() -> None:
    async with Rig() as rig:
        one, _ = await rig.table()
        with pytest.raises(LockLost):
            async with one.lock("k", lease_s=2):
                one.store.outage()
                await asyncio.sleep(3)
                one.store.recover()
        assert one.counts["leases_lost"] == 1


async def test_what_the_holder_raises_is_not_hidden_by_the_loss() -> None:
    async with Rig() as rig:
        one, _ = await rig.table()
        with pytest.raises(ValueError, match="mine"):
            async with one.lock("k", lease_s=2):
                one.store.outage()
                await asyncio.sleep(3)
                one.store.recover()
                raise ValueError("mine")
        await soon()
        assert one.counts["leases_lost"] == 1


async def test_a_loop_that_lives_keeps_its_lock_past_the_lease_and_the_stall_limit() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        async with one.lock("k", lease_s=1, max_hold_s=1000) as held:
            with pytest.raises(TimeoutError):
                await holding(other, [], "x", timeout_s=300)
            await held.put(1)
        assert stored(one, "k") == 1


async def test_a_loop_that_stands_still_loses_it_after_the_stall_limit() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        with pytest.raises(LockLost):
            async with one.lock("k", lease_s=1, max_hold_s=1000) as held:
                one.store.beat = lambda: None  # as if nothing here ran
                started_s = rig.clock.now
                async with other.lock("k"):
                    assert 120 < rig.clock.now - started_s < 123
                await held.put(1)


@pytest.mark.parametrize("durability", [local, write_through])
async def test_max_hold_ends_a_lock_whatever_its_holder_does(durability: Any) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability)
        order: list[Any] = []
        waiter = asyncio.ensure_future(holding(table, order, "next"))
        await asyncio.sleep(2)
        waiter.cancel()
        with pytest.raises(LockLost, match="max_hold_s"):
            async with table.lock("k", lease_s=1, max_hold_s=3) as held:
                waiter = asyncio.ensure_future(holding(table, order, "after"))
                await asyncio.sleep(3.5)
                assert order[-1] == "after" and held.lost
                await held.put(1)
        await waiter
        assert await table.get("k") is None


async def test_max_hold_holds_in_the_store_when_the_holder_cannot_tell_it() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        with pytest.raises(LockLost, match="its lease ran out"):
            async with one.lock("k", lease_s=1, max_hold_s=3) as held:
                one.locks._holding[held.owner][2].cancel()  # no timer of this loop comes
                async with other.lock("k", timeout_s=4):
                    assert 3 <= rig.clock.now < 3.3
                await held.put(1)
        assert await other.get("k") is None


async def test_two_who_wait_for_each_other_come_free() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        lost = []

        async def both(first: str, second: str) -> None:
            try:
                async with table.lock(first, lease_s=1, max_hold_s=5):
                    await asyncio.sleep(1)
                    async with table.lock(second, lease_s=1, max_hold_s=5):
                        pass
            except LockLost:
                lost.append(first)

        await asyncio.gather(both("k", "l"), both("l", "k"))
        assert lost and free(table, "k") and free(table, "l")
        assert rig.clock.now < 11


async def test_a_store_that_tells_of_a_lost_lock_is_believed() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        with pytest.raises(LockLost):
            async with table.lock("k") as held:
                replica.store.on_lock_lost(table.handle, held.packed, held.owner)
                assert held.lost
        assert table.counts["leases_lost"] == 1


async def test_a_holder_writes_nothing_after_its_end() -> None:
    async with Rig() as rig:
        for durability in (local, write_through):
            table, _ = await rig.table(durability, name=str(durability))
            async with table.lock("k") as held:
                await held.put(1)
            with pytest.raises(LockLost, match="is over"):
                await held.put(2)
            with pytest.raises(LockLost, match="is over"):
                await held.delete()
            assert await table.get("k") == 1


# --- writing


async def test_who_writes_without_the_lock_is_not_overwritten_unseen() -> None:
    async with Rig() as rig:
        one, other = await rig.two()
        async with one.lock("k") as held:
            assert await other.update("k", lambda n: n + 1, 10) == 11
            with pytest.raises(StateConflict, match="without its lock"):
                await held.put(1)
            assert held.value == 11 == stored(one, "k")
            await held.put(held.value + 1)
        assert stored(one, "k") == 12


async def test_a_write_whose_answer_was_lost_is_put_again() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        async with table.lock("k") as held:
            for write in (lambda: held.put(1), lambda: held.put(2), held.delete, lambda: held.put(3)):
                replica.store.lose_answers(1)
                with pytest.raises(DurabilityUnknown):
                    await write()
                await write()
        assert stored(table, "k") == 3


async def test_two_writes_at_once_of_one_holder_both_land() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        async with table.lock("k") as held:
            await asyncio.gather(held.put(1), held.put(2))
            assert stored(table, "k") == held.value
            await held.put(3)
        assert stored(table, "k") == 3


async def test_what_expires_under_its_holder_can_be_put_again() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        await table.put("k", 1, ttl_s=2, durability=write_through)
        async with table.lock("k") as held:
            assert held.value == 1 and held.ttl_s == pytest.approx(2)
            await asyncio.sleep(3)
            await held.put(2, ttl_s=9)
        assert await table.ttl("k") == pytest.approx(9)


async def test_a_put_of_another_type_is_refused_and_the_lock_stays() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        async with table.lock("k") as held:
            with pytest.raises(ConfigError):
                await held.put("text")
            await held.put(1)
        assert stored(table, "k") == 1


async def test_waiters_are_told_when_the_vnf_stops() -> None:
    async with Rig() as rig:
        table, replica = await rig.table()
        async with table.lock("k"):
            waiter = asyncio.ensure_future(holding(table, [], "x"))
            await soon()
            await replica.tables.close()
            with pytest.raises(StateError, match="stopped"):
                await waiter
