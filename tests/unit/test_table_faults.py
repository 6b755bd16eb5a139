"""Tables over a store in memory: updates, levels of durability, failures, and the other calls; in virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from math import inf
from typing import Any

import pytest

from libvnf.errors import ConfigError, DurabilityUnknown, StateConflict, StateError, StoreUnavailable
from libvnf.state import Record, replicated, write_back, write_through
from tests.tables import SOON, Rig, Session, at_once, stored


class Reordered(Record):
    hits: int
    user: str


class Newer(Record):
    name: str
    seen: int


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
        writes = replica.store.statistics()["writes"]
        results = await asyncio.gather(*[table.incr("n", 2) for _ in range(100)])
        assert results == [2 * n for n in range(1, 101)]
        assert replica.store.statistics()["writes"] - writes <= 2


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


async def test_what_is_put_while_a_change_flies_that_conflicts_is_told_so_too() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await one.put("a", 1)
        one.store.on_invalid = lambda table, keys: None  # it has not heard yet
        await other.put("a", 2)
        rig.replicas[0].store.slow(0.1)
        flying = asyncio.ensure_future(one.put("a", 3))
        await asyncio.sleep(0.05)
        later = asyncio.ensure_future(one.put("a", 4))
        await asyncio.wait([flying, later])
        assert [type(put.exception()) for put in (flying, later)] == [StateConflict, StateConflict]
        assert stored(one, "a") == 2 == await one.get("a")


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
        waits = [later - earlier for earlier, later in pairwise(errors)]
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


async def test_a_put_through_that_finds_no_store_raises_and_is_not_stored_later() -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table = replica.table(write_through)
        replica.store.outage("no route")
        await replica.start()
        outcomes = await asyncio.gather(table.put("a", 1), table.incr("b"), table.get("c"), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["no route"] * 3
        table.put_nowait("d", 4)
        replica.store.recover()
        await asyncio.sleep(6)
        assert (stored(table, "a"), stored(table, "b"), stored(table, "d")) == (None, None, 4)


async def test_a_store_that_takes_no_changes_is_told_once_and_when_it_does_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Rig() as rig:
        caplog.set_level("INFO")
        table, replica = await rig.table()
        replica.store.refuse(1000, StateError("OOM"))
        for n in range(100):
            table.put_nowait(str(n), n)
            await asyncio.sleep(0.1)
        assert replica.tables.statistics()["state"] == "refusing: OOM"
        replica.store.refuse(0, StateError(""))
        await asyncio.sleep(6)
        assert (replica.tables.statistics()["state"], stored(table, "99")) == ("up", 99)
        told = [record.getMessage() for record in caplog.records]
        assert told.count("the store is refusing: OOM") == 1
        assert told[-1] == "the store is up"


async def test_a_full_store_at_the_start_is_waited_for() -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table = replica.table()
        replica.store.refuse(3, StateError("OOM command not allowed"))
        await replica.start()
        await asyncio.sleep(6)
        assert await table.get("a") is None


async def test_a_table_that_is_not_open_yet_says_so() -> None:
    async with Rig() as rig:
        _, replica = await rig.table()
        late = replica.table(name="late")
        for call in (late.flush(), late.drop(), late.lock("a").__aenter__()):
            with pytest.raises(StoreUnavailable, match="table 'late': it is not open yet"):
                await call
        await asyncio.sleep(1)
        await late.flush()


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


# --- what replicas must agree on


async def test_a_table_that_is_stored_otherwise_is_refused() -> None:
    async with Rig() as rig:
        await rig.table(write_through, value=Session)
        other = rig.replica()
        other.table(write_through, value=Reordered)
        with pytest.raises(ConfigError, match="is stored with the fields user, hits"):
            await other.start()
        assert other.tables.statistics()["state"].startswith("refused: ")


async def test_a_table_made_later_that_is_refused_answers_with_that() -> None:
    async with Rig() as rig:
        await rig.table(write_through, value=Session)
        _, other = await rig.table(write_through, name="another")
        late = other.table(write_through, value=Reordered)
        for call in (late.get("a"), late.put("a", Reordered(1, "x")), late.update("a", lambda r: r), late.flush()):
            with pytest.raises(StateError, match=r"is stored with the fields user, hits|refused"):
                await call


async def test_a_table_that_is_refused_harms_no_other() -> None:
    async with Rig() as rig:
        await rig.table(write_through, value=Session)
        other = rig.replica()
        good, bad = other.table(name="good"), other.table(write_back(every=100), value=Reordered, max_entries=2)
        errors: list[Any] = []
        bad.on_error(lambda error, keys: errors.append(keys))
        bad.put_nowait("a", Reordered(1, "x"))
        good.put_nowait("a", 1)
        with pytest.raises(ConfigError, match="is stored with the fields user, hits"):
            await other.start()
        assert await good.incr("a") == 2
        assert errors == [["a"]]
        for call in (lambda: bad.put_nowait("b", Reordered(1, "x")), lambda: bad.delete_nowait("a")):
            with pytest.raises(StateError, match="is stored with the fields user, hits"):
                call()
        for key in "abc":
            with pytest.raises(StateError, match="is stored with the fields user, hits"):
                async with asyncio.timeout(5):
                    await bad.put(key, Reordered(1, "x"))
        assert stored(good, "a") == 2


async def test_a_table_made_later_is_as_good() -> None:
    async with Rig() as rig:
        _, replica = await rig.table()
        late = replica.table(name="late")
        assert await late.incr("a") == 1
        fresh = rig.replica()
        await fresh.start()
        table = fresh.table(name="late")
        assert await table.incr("a") == 2


async def test_an_upgrade_gets_the_fields_by_name() -> None:
    async with Rig() as rig:
        old, _ = await rig.table(write_through, value=Session)
        await old.put("a", Session("x", 3))
        upgrades = {1: lambda fields: {"name": fields["user"].upper(), "seen": fields["hits"]}}
        new, _ = await rig.table(write_through, value=Newer, schema=2, upgrades=upgrades)
        assert await new.get("a") == Newer("X", 3)
