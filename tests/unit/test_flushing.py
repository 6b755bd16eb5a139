"""When changes are flushed: levels of durability in requests, refused entries beside others, a full client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from libvnf.errors import StateError, StateFull, StoreUnavailable
from libvnf.state import write_back, write_through
from libvnf.state.store import Written
from tests.tables import Replica, Rig, stored


class Asked:
    """A request, as tables know it; nobody waits for its writes."""

    def __init__(self) -> None:
        self.ends: list[Callable[[], object]] = []

    def on_end(self, function: Callable[[], object], /) -> bool:
        if function not in self.ends:
            self.ends.append(function)
        return True

    def await_commit(self) -> bool:
        return False

    def committed(self) -> None: ...
    def commit_failed(self, error: BaseException) -> None: ...

    def end(self) -> None:
        for function in self.ends:
            function()


def refuse(replica: Replica, refused: bytes, times: int = 1 << 30) -> list[list[bytes]]:
    """The store takes no change of this key, so often; the keys of each write."""
    write, flights = replica.store.write, list[list[bytes]]()

    def picky(
        table: int, keys: list[bytes], expected: Any, first: int, payloads: Any, done: Any, **options: Any
    ) -> None:
        nonlocal times
        flights.append(keys)
        if refused not in keys or not times:
            write(table, keys, expected, first, payloads, done, **options)
            return
        times -= 1
        at = keys.index(refused)
        others = [each for each in range(len(keys)) if each != at]

        def answered(written: Written) -> None:
            assert not written.failed and not written.conflicts
            done(Written([], [(at, StateError("garbage stands there"))]))

        for one in others:
            write(table, [keys[one]], [expected[one]], first + one, [payloads[one]], lambda written: None, **options)
        write(table, [], [], first, [], answered, **options)

    replica.store.write = picky  # type: ignore[method-assign]
    return flights


# --- requests


async def test_an_interval_holds_for_requests_that_do_not_end() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(interval_s=0.1, on_request_end=True))
        replica.tables.request = Asked
        table.put_nowait("a", 1)
        await asyncio.sleep(0.05)
        assert stored(table, "a") is None
        await asyncio.sleep(0.06)
        assert stored(table, "a") == 1


async def test_the_end_of_a_request_stores_its_change_of_what_another_has_changed() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(on_request_end=True))
        open_one, ended = Asked(), Asked()
        replica.tables.request = lambda: open_one
        table.put_nowait("a", 1)
        replica.tables.request = lambda: ended
        table.put_nowait("a", 2)
        ended.end()
        await asyncio.sleep(0.001)
        assert stored(table, "a") == 2


async def test_changes_of_one_key_count_each() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_back(every=3))
        for value in (1, 2):
            table.put_nowait("a", value)
        await asyncio.sleep(60)
        assert stored(table, "a") is None
        table.put_nowait("a", 3)
        await asyncio.sleep(0.001)
        assert stored(table, "a") == 3


# --- refused entries


async def test_an_entry_that_is_refused_delays_no_other() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(interval_s=0.1))
        errors: list[float] = []
        table.on_error(lambda error, keys: errors.append(rig.clock.now))
        await asyncio.gather(*map(table.get, ("bad", "good", "through")))
        refuse(replica, table.keys.pack("bad"), times=20)
        table.put_nowait("bad", 1)
        for number in range(100):
            table.put_nowait("good", number)
            await asyncio.sleep(0.101)
            assert stored(table, "good") == number
            before = rig.clock.now
            await table.put("through", number, durability=write_through)
            assert rig.clock.now - before < 0.001
        assert 5 <= len(errors) <= 12, "ever more slowly"
        assert table.cache.unstored == 1
        await asyncio.sleep(100)
        assert (stored(table, "bad"), table.cache.unstored) == (1, 0)


async def test_a_flush_tells_of_an_entry_that_is_refused() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(every=1000))
        flights = refuse(replica, table.keys.pack("bad"), times=3)
        await table.get("bad")
        for _ in range(3):
            table.put_nowait("bad", 1)
            (outcome,) = await asyncio.gather(table.flush(), return_exceptions=True)
            assert isinstance(outcome, StateError)
        await table.flush()
        assert len(flights) == 4 and stored(table, "bad") == 1


async def test_a_put_on_a_refused_entry_is_tried_at_once() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(interval_s=0.1))
        await table.get("bad")
        refuse(replica, table.keys.pack("bad"), times=2)
        table.put_nowait("bad", 1)
        await asyncio.sleep(0.101)
        (outcome,) = await asyncio.gather(table.put("bad", 2, durability=write_through), return_exceptions=True)
        assert isinstance(outcome, StateError)
        await table.put("bad", 3, durability=write_through)
        assert (stored(table, "bad"), rig.clock.now < 0.2) == (3, True)


async def test_failures_that_come_together_are_one() -> None:
    """Eight flights that fail wait as long as one."""
    async with Rig() as rig:
        table, replica = await rig.table()
        keys = list("abcdefgh")
        await asyncio.gather(*map(table.get, keys))
        replica.store.slow(0.01)
        replica.store.refuse(len(keys), StoreUnavailable("not now"))
        calls = []
        for key in keys:
            calls.append(asyncio.ensure_future(table.put(key, 1, durability=write_through)))
            await asyncio.sleep(0.001)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        await asyncio.sleep(0.2)
        assert table.cache.unstored == 0


# --- a client that is full


async def test_what_does_not_fit_the_client_waits_for_what_does() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_back(interval_s=0.1))
        errors: list[Any] = []
        table.on_error(lambda *told: errors.append(told))
        keys = [f"k{number}" for number in range(1000)]
        await asyncio.gather(*map(table.get, keys))
        replica.store._max_waiting = 300
        replica.store.slow(0.01)
        for key in keys:
            table.put_nowait(key, 1)
        await table.flush()
        assert rig.clock.now < 0.5
        assert {stored(table, key) for key in keys} == {1}
        assert (errors, table.statistics()["flush_failures"], table.cache.unstored) == ([], 0, 0)


async def test_a_put_through_that_does_not_fit_the_client_waits() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(write_through)
        await table.get("a")
        write, full = replica.store.write, [True] * 3

        def sometimes(*told: Any, **options: Any) -> None:
            if full:
                full.pop()
                raise StateFull("all is full")
            write(*told, **options)

        replica.store.write = sometimes  # type: ignore[method-assign]
        await table.put("a", 1)
        assert stored(table, "a") == 1


async def test_puts_that_wait_for_room_have_it_in_turn() -> None:
    """Each looks for it about once, however many wait; those who are cancelled keep nobody waiting."""
    async with Rig() as rig:
        table, replica = await rig.table(last_writer_wins=True, max_entries=100)
        replica.store.outage()
        puts = [asyncio.ensure_future(table.put(f"{number}", number)) for number in range(5000)]
        await asyncio.sleep(0)
        for put in puts[200::3]:
            put.cancel()
        replica.store.recover()
        for put in puts[201::9]:  # some of them when it was their turn
            await asyncio.sleep(0)
            put.cancel()
        done = await asyncio.gather(*puts, return_exceptions=True)
        await table.flush()
        kept = [number for number, outcome in enumerate(done) if outcome is None]
        assert len(kept) > 2000 and {type(one) for one in done} <= {type(None), asyncio.CancelledError}
        assert all(stored(table, f"{number}") == number for number in kept)
        assert table.statistics()["full"] < 2 * 5000


async def test_who_waits_for_room_has_it_when_all_is_dropped() -> None:
    async with Rig() as rig:
        table, replica = await rig.table(last_writer_wins=True, max_entries=2)
        replica.store.refuse(1 << 30, StoreUnavailable("not now"))
        puts = [asyncio.ensure_future(table.put(key, 1)) for key in "abcd"]
        await asyncio.sleep(0.1)
        replica.store.refuse(0, StoreUnavailable(""))
        table.cache.clear()
        await table.drop()
        await asyncio.gather(*puts)
