"""``on_expire`` over a store in memory, in virtual time: which replica handles what, how often, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from libvnf.errors import ConfigError, DurabilityUnknown, StoreUnavailable, Unreadable
from libvnf.state import local, write_through
from libvnf.state.expiry import MOST, REMEMBERED
from libvnf.state.store import Stored
from tests.tables import SOON, Replica, Rig, stored

Gone = list[tuple[str, int]]


async def sweeping(rig: Rig, handler: Callable[..., Any], durability: Any = write_through) -> tuple[Any, Replica]:
    replica = rig.replica()
    table = replica.table(durability)
    table.on_expire(handler)
    replica.reported = []  # type: ignore[attr-defined]
    replica.tables.report = replica.reported.append  # type: ignore[attr-defined]
    await replica.start()
    return table, replica


def keeper(gone: Gone) -> Callable[[str, int], None]:
    return lambda key, value: gone.append((key, value))


# --- which, when and how often


async def test_an_entry_is_handled_once_and_removed() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, _ = await sweeping(rig, keeper(gone))
        await table.put("k", 1, ttl_s=5)
        await table.put("other", 2)
        await asyncio.sleep(4.9)
        assert gone == []
        await asyncio.sleep(2)
        assert gone == [("k", 1)]
        await asyncio.sleep(100)
        assert gone == [("k", 1)] and stored(table, "k") is None and await table.get("other") == 2
        assert table.counts["expired"] == 1 and table.sweeper.busy == 0 and "k" not in table.cache.entries


async def test_one_of_the_replicas_handles_it() -> None:
    async with Rig() as rig:
        gone: Gone = []
        tables = [(await sweeping(rig, keeper(gone)))[0] for _ in range(3)]
        for n in range(300):
            await tables[n % 3].put(f"k{n}", n, ttl_s=5)
        await asyncio.sleep(10)
        assert sorted(gone) == sorted((f"k{n}", n) for n in range(300))
        assert sum(table.counts["expired"] for table in tables) == 300


async def test_an_entry_is_handled_when_who_put_it_has_died() -> None:
    async with Rig() as rig:
        gone: Gone = []
        writer, dying = await sweeping(rig, keeper([]))
        await writer.put("k", 1, ttl_s=5)
        await sweeping(rig, keeper(gone))
        await dying.tables.close()
        await asyncio.sleep(7)
        assert gone == [("k", 1)]


async def test_who_dies_while_handling_leaves_it_to_the_next() -> None:
    async with Rig() as rig:
        gone: Gone = []
        started = asyncio.Event()

        async def never(key: str, value: int) -> None:
            started.set()
            await asyncio.Event().wait()

        writer, dying = await sweeping(rig, never)
        await writer.put("k", 1, ttl_s=1)
        await started.wait()
        await sweeping(rig, keeper(gone))
        dying.store.outage()
        await dying.tables.close()
        await asyncio.sleep(28)
        assert gone == []
        await asyncio.sleep(5)
        assert gone == [("k", 1)]


async def test_a_deadline_that_was_moved_counts() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, _ = await sweeping(rig, keeper(gone))
        other, _ = await sweeping(rig, keeper(gone))
        await table.put("k", 1, ttl_s=5)
        await table.put("kept", 1, ttl_s=5)
        await other.put("k", 2, ttl_s=20)
        await other.put("kept", 2)
        await asyncio.sleep(15)
        assert gone == []
        await asyncio.sleep(10)
        assert gone == [("k", 2)] and await table.get("kept") == 2


async def test_a_stale_claim_does_not_expire_what_was_moved() -> None:
    """A store may tell of an entry whose deadline it has not looked at again."""
    async with Rig() as rig:
        gone: Gone = []
        table, replica = await sweeping(rig, keeper(gone))
        await table.put("k", 1, ttl_s=5)
        held = rig.memory.tables[table.handle]
        found = held.entries[table.keys.pack("k")]
        rig.memory.due(held, table.keys.pack("k"), rig.clock_ms() + 1000)
        held.claims[table.keys.pack("k")] = rig.clock_ms() + 1000
        await asyncio.sleep(4)
        assert gone == [] and replica.reported == [] and held.entries[table.keys.pack("k")] == found
        await asyncio.sleep(3)
        assert gone == [("k", 1)]


async def test_many_are_handled_without_delay_and_only_so_many_at_once() -> None:
    async with Rig() as rig:
        running, most, gone = 0, 0, []

        async def slowly(key: str, value: int) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.1)
            running -= 1
            gone.append(key)

        table, _ = await sweeping(rig, slowly)
        for n in range(1000):
            await table.put(f"k{n}", n, ttl_s=5)
        await asyncio.sleep(5 + 1.5 + 1000 / 64 * 0.1 + 1.5)
        assert len(gone) == len(set(gone)) == 1000
        assert most == MOST


async def test_more_claims_than_were_asked_for_wait() -> None:
    """A store of many partitions gives one of each."""
    async with Rig() as rig:
        running, most, gone = 0, 0, []

        async def slowly(key: str, value: int) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(1)
            running -= 1
            gone.append(key)

        table, replica = await sweeping(rig, slowly)
        claim = replica.store.claim_expired

        def generous(table: int, now_ms: int, claim_ms: int, most: int, done: Any) -> None:
            claim(table, now_ms, claim_ms, 10 * most, done)

        replica.store.claim_expired = generous
        for n in range(500):
            await table.put(f"k{n}", n, ttl_s=1)
        await asyncio.sleep(20)
        assert len(gone) == len(set(gone)) == 500
        assert most == MOST


async def test_a_claim_that_has_waited_too_long_is_left_to_others() -> None:
    async with Rig() as rig:
        gone: list[str] = []

        async def slowly(key: str, value: int) -> None:
            await asyncio.sleep(15)
            gone.append(key)

        table, replica = await sweeping(rig, slowly)
        claim = replica.store.claim_expired
        replica.store.claim_expired = lambda table, now, ms, most, done: claim(table, now, ms, 1000, done)
        for n in range(130):
            await table.put(f"k{n}", n, ttl_s=1)
        await asyncio.sleep(20)
        assert len(gone) == 64
        await asyncio.sleep(80)
        assert len(gone) == len(set(gone)) == 130


# --- handlers that fail


@pytest.mark.parametrize("kind", ["def", "async"])
async def test_a_handler_that_raises_is_reported_and_called_again_later(kind: str) -> None:
    async with Rig() as rig:
        calls: list[float] = []

        def fail(key: str, value: int) -> None:
            calls.append(rig.clock.now)
            if len(calls) < 4:
                raise ValueError(f"{key} {value}")

        async def fail_later(key: str, value: int) -> None:
            await asyncio.sleep(0)
            fail(key, value)

        table, replica = await sweeping(rig, fail if kind == "def" else fail_later)
        await table.put("k", 1, ttl_s=1)
        await asyncio.sleep(400)
        assert [str(error) for error in replica.reported] == ["k 1"] * 3
        waits = [later - before for before, later in pairwise(calls)]
        assert [round(wait / 30) for wait in waits] == [1, 2, 4]
        assert table.counts["expire_failures"] == 3 and table.counts["expired"] == 1
        assert stored(table, "k") is None


async def test_one_that_fails_does_not_hold_up_others() -> None:
    async with Rig() as rig:
        gone: Gone = []

        def fail(key: str, value: int) -> None:
            if value < 200:
                raise ValueError(key)
            gone.append((key, value))

        table, replica = await sweeping(rig, fail)
        for n in range(300):
            await table.put(f"k{n}", n, ttl_s=1)
        await asyncio.sleep(3)
        assert len(gone) == 100 and len(replica.reported) == 200


async def test_what_is_remembered_of_failures_is_bounded() -> None:
    async with Rig() as rig:

        def fail(key: str, value: int) -> None:
            raise ValueError(key)

        table, _ = await sweeping(rig, fail)
        for n in range(REMEMBERED + 100):
            await table.put(f"k{n}", n, ttl_s=1)
        await asyncio.sleep(20)
        assert table.counts["expire_failures"] >= REMEMBERED + 100
        assert len(table.sweeper._failures) == REMEMBERED


async def test_a_handler_that_takes_too_long_is_cancelled_and_called_again() -> None:
    async with Rig() as rig:
        calls: list[float] = []

        async def hang(key: str, value: int) -> None:
            calls.append(rig.clock.now)
            await asyncio.sleep(100 if len(calls) == 1 else 0)

        table, replica = await sweeping(rig, hang)
        await table.put("k", 1, ttl_s=1)
        await asyncio.sleep(50)
        assert [type(error) for error in replica.reported] == [TimeoutError]
        assert "longer than 20.0 seconds" in str(replica.reported[0])
        assert len(calls) == 2 and 30 <= calls[1] - calls[0] < 33
        assert table.counts["expire_late"] == 1 and stored(table, "k") is None


async def test_an_unreadable_value_is_reported_and_left_to_newer_code() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, replica = await sweeping(rig, keeper(gone))
        key = table.keys.pack("k")
        held = rig.memory.tables[table.handle]
        rig.memory.set(held, key, Stored(1, rig.clock_ms() + 1000, b"", b"\0\x09\x01"), None)
        await asyncio.sleep(10)
        assert [type(error) for error in replica.reported] == [Unreadable]
        assert gone == [] and key in held.entries and table.counts["unreadable"] == 1


# --- what happens meanwhile


async def test_an_expired_entry_is_read_as_absent_at_once() -> None:
    async with Rig() as rig:

        async def slowly(key: str, value: int) -> None:
            assert await table.get(key) is None
            await asyncio.sleep(10)

        table, replica = await sweeping(rig, slowly)
        other, _ = await sweeping(rig, slowly)
        await table.put("k", 1, ttl_s=5)
        assert await other.get("k") == 1
        await asyncio.sleep(5)
        for one in (table, other):
            assert await one.get("k") is None and one.get_nowait("k") is None and await one.ttl("k") is None
            assert [key async for key, _ in one.scan()] == []
            assert await one.delete("absent") is False
        await asyncio.sleep(20)
        assert replica.reported == []


async def test_without_a_handler_an_entry_is_read_as_absent_at_its_deadline() -> None:
    async with Rig() as rig:
        table, other = await rig.two()
        await table.put("k", 1, ttl_s=5, durability=write_through)
        assert await other.get("k") == 1
        await asyncio.sleep(4.9)
        assert table.get_nowait("k") == other.get_nowait("k") == 1
        await asyncio.sleep(0.2)
        for one in (table, other):
            assert one.get_nowait("k") is None and await one.get("k") is None
            assert await one.update("k", lambda n: n + 1, 0) >= 1
            await one.delete("k", durability=write_through)


@pytest.mark.parametrize("durability", [SOON, write_through])
async def test_a_handler_can_put_the_entry_again(durability: Any) -> None:
    async with Rig() as rig:
        calls: list[int] = []

        async def prolong(key: str, value: int) -> None:
            calls.append(value)
            if value < 3:
                await table.put(key, value + 1, ttl_s=5)

        table, replica = await sweeping(rig, prolong, durability)
        await table.put("k", 1, ttl_s=5)
        await asyncio.sleep(60)
        assert calls == [1, 2, 3] and replica.reported == [] and stored(table, "k") is None
        assert table.cache.conflicts == 0


@pytest.mark.parametrize("delay_s", [0, 0.001, 0.01, 0.02, 0.05, 0.1])
async def test_what_is_put_while_the_entry_is_being_removed_stays(delay_s: float) -> None:
    async with Rig() as rig:
        handled = asyncio.Event()
        table, replica = await sweeping(rig, lambda key, value: handled.set(), SOON)
        replica.store.slow(0.02)
        await table.put("k", 1, ttl_s=5)
        await handled.wait()
        await asyncio.sleep(delay_s)
        await table.put("k", 2)
        await asyncio.sleep(5)
        assert await table.get("k") == 2 == stored(table, "k")
        assert table.cache.conflicts == 0


async def test_what_another_replica_puts_while_it_is_handled_stays() -> None:
    async with Rig() as rig:
        started, go = asyncio.Event(), asyncio.Event()

        async def wait(key: str, value: int) -> None:
            started.set()
            await go.wait()

        table, _ = await sweeping(rig, wait)
        await table.put("k", 1, ttl_s=5)
        await started.wait()
        other, replica = await sweeping(rig, wait)
        await other.put("k", 2, ttl_s=100)
        go.set()
        await asyncio.sleep(50)
        assert stored(table, "k") == 2 == await table.get("k")
        assert replica.reported == []


async def test_a_change_on_its_way_says_what_becomes_of_an_entry() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, _ = await sweeping(rig, keeper(gone), SOON)
        await table.put("k", 1, ttl_s=5, durability=write_through)
        table.flusher._durability = local  # nothing flushes it but the sweep
        await asyncio.sleep(4)
        table.put_nowait("k", 2, ttl_s=20)
        await asyncio.sleep(10)
        assert gone == [] and stored(table, "k") == 2


async def test_a_removal_that_failed_is_tried_again_and_not_the_handler() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, replica = await sweeping(rig, lambda key, value: (gone.append((key, value)), replica.store.outage()))
        await table.put("k", 1, ttl_s=5)
        await asyncio.sleep(60)
        assert gone == [("k", 1)] and stored(table, "k") == 1 and table.sweeper.busy == 1
        replica.store.recover()
        await asyncio.sleep(40)
        assert gone == [("k", 1)] and stored(table, "k") is None and table.sweeper.busy == 0


async def test_what_is_put_while_a_removal_fails_is_stored() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, replica = await sweeping(rig, keeper(gone), SOON)
        await table.put("k", 1, ttl_s=5, durability=write_through)
        expired = replica.store.expired
        replica.store.expired = lambda table, keys, versions, done: asyncio.get_running_loop().call_later(
            2, done, StoreUnavailable("not now")
        )
        await asyncio.sleep(7)
        assert gone == [("k", 1)]
        table.flusher._durability = local
        table.put_nowait("k", 2, ttl_s=50)
        await asyncio.sleep(3)
        replica.store.expired = expired
        await table.flush()
        await asyncio.sleep(10)
        assert stored(table, "k") == 2 and table.cache.conflicts == 0 and table.sweeper.busy == 0


async def test_claims_that_fail_are_counted_and_come_less_often() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, replica = await sweeping(rig, keeper(gone))
        await table.put("k", 1, ttl_s=1)
        replica.store.refuse(6, DurabilityUnknown("no"))
        await asyncio.sleep(20)
        assert 3 <= table.counts["claims_failed"] <= 6 and gone == []
        await asyncio.sleep(100)
        assert gone == [("k", 1)]


# --- from the beginning to the end


async def test_the_handler_is_there_from_the_start() -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        with pytest.raises(ConfigError, match="too late"):
            table.on_expire(print)


async def test_nothing_is_handled_after_the_end() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, replica = await sweeping(rig, keeper(gone))
        await table.put("k", 1, ttl_s=5)
        await replica.tables.close()
        await asyncio.sleep(100)
        assert gone == []


async def test_draining_lets_handlers_end_and_stores_what_they_put() -> None:
    async with Rig() as rig:
        started = asyncio.Event()

        async def slowly(key: str, value: int) -> None:
            started.set()
            await asyncio.sleep(2)
            table.put_nowait("log", value)

        table, replica = await sweeping(rig, slowly, SOON)
        await table.put("k", 1, ttl_s=1)
        await started.wait()
        now_s = rig.clock.now
        assert await replica.tables.drain(now_s + 10) == {}
        assert rig.clock.now == pytest.approx(now_s + 2, abs=0.5)
        assert stored(table, "log") == 1 and stored(table, "k") is None and table.sweeper.busy == 0


async def test_draining_ends_in_time_whatever_handlers_do() -> None:
    async with Rig() as rig:
        started = asyncio.Event()

        async def hang(key: str, value: int) -> None:
            started.set()
            await asyncio.sleep(19)

        table, replica = await sweeping(rig, hang)
        await table.put("k", 1, ttl_s=1)
        await started.wait()
        now_s = rig.clock.now
        await replica.tables.drain(now_s + 3)
        assert rig.clock.now == pytest.approx(now_s + 3)
        await replica.tables.close()
        await asyncio.sleep(0.1)
        assert table.sweeper.busy == 0 and replica.reported == []


# --- local


async def test_a_local_entry_is_handled_in_time() -> None:
    async with Rig() as rig:
        gone: Gone = []
        table, _ = await sweeping(rig, keeper(gone), local)
        await table.put("k", 1, ttl_s=5)
        await table.put("sooner", 2, ttl_s=2)
        await table.put("moved", 3, ttl_s=1)
        await table.put("moved", 4)
        await asyncio.sleep(2.01)
        assert gone == [("sooner", 2)]
        await asyncio.sleep(3)
        assert gone == [("sooner", 2), ("k", 1)] and await table.get("moved") == 4


async def test_a_local_entry_put_before_the_start_is_handled() -> None:
    async with Rig() as rig:
        gone: Gone = []
        replica = rig.replica()
        table = replica.table(local)
        table.put_nowait("k", 1, ttl_s=5)
        table.on_expire(keeper(gone))
        await replica.start()
        await asyncio.sleep(6)
        assert gone == [("k", 1)]


async def test_deadlines_that_are_put_off_again_and_again_take_no_memory() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(local)
        for _ in range(10_000):
            await table.put("k", 1, ttl_s=3600)
        assert len(table._due) < 3000


async def test_a_replica_without_the_handler_is_refused() -> None:
    async with Rig() as rig:
        await sweeping(rig, keeper([]))
        with pytest.raises(ConfigError, match="without on_expire, it is stored with: every replica has"):
            await rig.table(write_through)
