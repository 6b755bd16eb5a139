"""A table in a faulty store against a dict: what was put is read, and is stored once the faults are over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from libvnf.errors import DurabilityUnknown, StateError, StateFull, StoreUnavailable
from libvnf.state import write_back, write_through
from tests.tables import Replica, Rig, stored

KEYS = [f"k{n}" for n in range(6)]
ABSENT = None

numbers = st.integers(0, 1000)
keys = st.sampled_from(KEYS)
calls = st.one_of(
    st.tuples(st.sampled_from(["put", "put_nowait", "put_through"]), keys, numbers),
    st.tuples(st.sampled_from(["get", "delete", "incr", "get", "incr"]), keys, st.just(0)),
    st.tuples(st.just("flush"), st.just(""), st.just(0)),
)
faults = st.tuples(
    st.sampled_from(["outage", "recover", "lose", "refuse", "slow", "late", "fast", "wait"]),
    st.just(""),
    st.integers(1, 3),
)


def fault(replica: Replica, what: str, number: int) -> None:
    match what:
        case "outage":
            replica.store.outage()
        case "recover":
            replica.store.recover()
        case "lose":
            replica.store.lose_answers(number)
        case "refuse":
            replica.store.refuse(number, StoreUnavailable("refused"))
        case "slow":
            replica.store.slow(0.03 * number)
        case "late":
            replica.store.slow(0.0, answers_s=0.03 * number)
        case "fast":
            replica.store.slow(0)


def heal(replica: Replica) -> None:
    replica.store.recover()
    replica.store.lose_answers(0)
    replica.store.refuse(0, StoreUnavailable(""))
    replica.store.slow(0)


class Oracle:
    """What each key may hold: one value, or several where nobody can know."""

    def __init__(self, table: Any) -> None:
        self.table = table
        self.values: dict[str, set[int | None]] = {key: {ABSENT} for key in KEYS}

    def seen(self, key: str, value: int | None) -> None:
        assert value in self.values[key], (key, value, self.values[key])
        self.values[key] = {value}

    async def call(self, what: str, key: str, number: int) -> None:
        table, may = self.table, self.values
        try:
            match what:
                case "get":
                    self.seen(key, await self.waiting(table.get(key)))
                case "put_nowait":
                    table.put_nowait(key, number)
                    may[key] = {number}
                case "put":
                    await self.waiting(table.put(key, number))
                    may[key] = {number}
                case "put_through":
                    before = may[key]
                    may[key] = before | {number}
                    await self.waiting(table.put(key, number, durability=write_through))
                    may[key] = {number}
                case "delete":
                    before = may[key]
                    may[key] = before | {ABSENT}
                    await self.waiting(table.delete(key))
                    may[key] = {ABSENT}
                case "incr":
                    before = may[key]
                    may[key] = before | {(value or 0) + 1 for value in before}
                    self.seen(key, await self.waiting(table.incr(key)))
                case "flush":
                    await self.waiting(table.flush())
        except (StoreUnavailable, StateFull):
            if what == "incr":
                may[key] = before  # nothing was changed
        except (DurabilityUnknown, TimeoutError):
            pass

    async def waiting(self, call: Awaitable[Any]) -> Any:
        async with asyncio.timeout(15):
            return await call


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(st.one_of(calls, calls, faults), max_size=40), room=st.integers(2, 8))
def test_a_table_is_a_dict_whatever_its_store_does(steps: list[tuple[str, str, int]], room: int) -> None:
    async def play() -> None:
        async with Rig() as rig:
            table, replica = await rig.table(write_back(interval_s=0.1), max_entries=room)
            oracle = Oracle(table)
            for what, key, number in steps:
                if not key and what not in ("flush", "wait"):
                    fault(replica, what, number)
                elif what == "wait":
                    await asyncio.sleep(0.04 * number)
                else:
                    await oracle.call(what, key, number)
                assert len(table) <= room
            heal(replica)
            await asyncio.sleep(30)
            for key in KEYS:
                oracle.seen(key, stored(table, key))
                oracle.seen(key, await table.get(key))
            found = table.statistics()
            assert (found["dirty_now"], found["flying_now"], found["conflicts"]) == (0, 0, 0)

    asyncio.run(play())


@settings(deadline=None, max_examples=100)
@given(
    rounds=st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4)), max_size=4), st.integers(0, 1), faults),
        max_size=15,
    )
)
def test_every_update_of_two_replicas_counts_once(rounds: list[Any]) -> None:
    async def play() -> None:
        async with Rig() as rig:
            tables = await rig.two()
            sure, unsure = 0, 0

            async def count(table: Any) -> None:
                nonlocal sure, unsure
                try:
                    await table.incr("n")
                    sure += 1
                except DurabilityUnknown:
                    unsure += 1
                except StateError:
                    pass  # nothing was changed

            calls = []
            for updates, which, (what, _, number) in rounds:
                calls += [asyncio.ensure_future(count(tables[at])) for at, times in updates for _ in range(times)]
                fault(rig.replicas[which], what, number)
                await asyncio.sleep(0.01 * number)
            for replica in rig.replicas:
                heal(replica)
            await asyncio.gather(*calls)
            total = stored(tables[0], "n") or 0
            assert sure <= total <= sure + unsure
            assert [await table.get("n") or 0 for table in tables] == [total, total]

    asyncio.run(play())


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.integers(0, 1),
                st.sampled_from(["put_nowait", "put_through", "put_through", "incr", "get", "flush"]),
                st.sampled_from(KEYS[:2]),
            ),
            st.tuples(st.integers(0, 1), st.sampled_from(["lose", "refuse", "slow", "late", "fast"]), st.just("")),
            st.tuples(st.just(0), st.sampled_from(["wait", "wait longer"]), st.just("")),
        ),
        max_size=40,
    ),
    ttl_s=st.sampled_from([None, 0.3]),
    slow=st.tuples(*[st.sampled_from(["fast", "slow", "late"])] * 2),
)
@example(  # two puts, one flight, and another's write that it meets
    steps=[
        (0, "get", "k0"),
        (0, "wait longer", ""),
        (0, "put_through", "k0"),
        (1, "put_through", "k0"),
        (0, "put_through", "k0"),
    ],
    ttl_s=None,
    slow=("slow", "fast"),
)
@example(  # a put on what has expired
    steps=[(0, "put_through", "k0"), (0, "wait longer", ""), (0, "wait longer", ""), (0, "put_through", "k0")],
    ttl_s=0.3,
    slow=("fast", "fast"),
)
@example(  # a read that another's write overtakes
    steps=[(1, "get", "k0"), (0, "wait", ""), (0, "put_through", "k0"), (0, "wait longer", "")],
    ttl_s=None,
    slow=("fast", "late"),
)
def test_a_change_is_stored_or_told_to_be_lost(
    steps: list[tuple[int, str, str]], ttl_s: float | None, slow: tuple[str, str]
) -> None:
    """Each put has a value of its own: all but those that were overwritten here are seen in the store, or told of.
    Nobody waits for a call before the next is made."""

    async def play() -> None:
        async with Rig() as rig:
            tables = await rig.two(write_back(interval_s=0.05))
            written = history(rig, tables[0])
            lost = [dict[str, list[int]](), dict[str, list[int]]()]
            vanished: list[str] = []
            for at in (0, 1):

                def on_conflict(key: str, ours: int, _theirs: Any, at: int = at) -> None:
                    lost[at].setdefault(key, []).append(ours)

                tables[at].on_conflict(on_conflict)
                tables[at].cache.conflicted = partial(met, tables[at].cache.conflicted, vanished)
            puts: list[dict[str, list[int]]] = [{}, {}]
            calls: list[asyncio.Future[Any]] = []
            unstored: list[int] = []

            def begin(call: Any) -> asyncio.Future[Any]:
                calls.append(asyncio.ensure_future(call))
                return calls[-1]

            def returned(puts: list[int], written: set[int], value: int, call: asyncio.Future[None]) -> None:
                if call.exception() is None and not written & set(puts[puts.index(value) :]):
                    unstored.append(value)

            for replica, how in zip(rig.replicas, slow, strict=True):
                fault(replica, how, 1)
            for number, (at, what, key) in enumerate(steps):
                table, value = tables[at], 1000 * (number + 1)
                try:
                    match what:
                        case "put_nowait":
                            table.put_nowait(key, value, ttl_s=ttl_s)
                            puts[at].setdefault(key, []).append(value)
                        case "put_through":
                            put = table.put(key, value, ttl_s=ttl_s, durability=write_through)
                            puts[at].setdefault(key, []).append(value)
                            begin(put).add_done_callback(partial(returned, puts[at][key], written[key], value))
                        case "incr" if ttl_s is None:  # an entry of its own has no deadline
                            begin(table.incr(key))
                        case "get":
                            begin(table.get(key))
                        case "flush":
                            begin(table.flush())
                        case "wait":
                            await asyncio.sleep(0.02)
                        case "wait longer":
                            await asyncio.sleep(0.2)
                        case _:
                            fault(rig.replicas[at], what, 2)
                except StateFull:
                    pass
                await asyncio.sleep(0)
            for replica in rig.replicas:
                heal(replica)
            await asyncio.sleep(30)
            assert all(isinstance(call.exception(), StateError | None) for call in calls)
            assert unstored == [], "these puts have returned"
            for key in KEYS:
                values = {await table.get(key) for table in tables}
                assert values == {stored(tables[0], key)}
            assert vanished == [], "nobody deletes: where there is nothing an entry has expired"
            for at in (0, 1):
                told = sum(len(ours) for ours in lost[at].values())
                found = tables[at].statistics()
                assert found["conflicts"] == told
                assert (found["dirty_now"], found["flying_now"]) == (0, 0)

    asyncio.run(play())


def met(conflicted: Any, vanished: list[str], entry: Any, found: Any, now_ms: int) -> bool:
    """As ``Cache.conflicted``; where a change is lost to nothing its key is noted."""
    lost: bool = conflicted(entry, found, now_ms)
    if lost and found is None:
        vanished.append(entry.key)
    return lost


def history(rig: Rig, table: Any) -> dict[str, set[int]]:
    """Every value that ever stood under each key, from now on."""
    written: dict[str, set[int]] = {key: set() for key in KEYS}
    write = rig.memory.set

    def landed(held: Any, key: bytes, found: Any, by: Any) -> None:
        write(held, key, found, by)
        if found is not None:
            written[table.keys.unpack(key)].add(table.values.unpack(found.payload))

    rig.memory.set = landed  # type: ignore[method-assign, assignment]
    return written
