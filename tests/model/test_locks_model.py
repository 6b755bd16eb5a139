"""Lockers of three replicas, played with stalls, cuts and cancellations: whatever happens, one holder writes at a time.

The oracle is the store's own history: fences in the order they were given out, writes in the order they landed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libvnf.errors import LockLost, StateConflict, StateError
from libvnf.state import write_through
from tests.tables import Rig, stored

LEASE_S, MOST_S, STALL_S = 1.0, 6.0, 3.0

steps = st.lists(
    st.tuples(
        st.floats(0, 2.5),
        st.integers(0, 2),
        st.one_of(
            st.tuples(st.just("lock"), st.floats(0, 4), st.integers(1, 3)),
            st.tuples(st.just("lock"), st.floats(4, 9), st.integers(1, 2)),
            st.tuples(st.sampled_from(["outage", "recover", "stall", "wake", "cancel"])),
            st.tuples(st.just("slow"), st.floats(0, 2)),
        ),
    ),
    min_size=3,
    max_size=30,
)


class Play:
    """``granted``: fences, as the store gave them out. ``landed``: (fence, value) as they were written."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.granted: list[int] = []
        self.landed: list[list[int]] = []
        self.acknowledged = 0
        self.tasks: list[tuple[int, asyncio.Task[None]]] = []
        self.unexpected: list[BaseException] = []

    async def begin(self, **options: Any) -> None:
        self.tables: list[Any] = [(await self.rig.table(write_through, value=list, **options))[0] for _ in range(3)]
        self.beats = []
        for table in self.tables:
            store = table.store
            store._stall_ms = round(STALL_S * 1000)
            self.beats.append(store.beat)
            self._watch_lock(store)
        write, memory = self.rig.memory.set, self.rig.memory

        def landed(table: Any, key: bytes, found: Any, by: Any) -> None:
            write(table, key, found, by)
            self.landed.append(self.tables[0].values.unpack(found.payload))

        memory.set = landed  # type: ignore[method-assign]

    def _watch_lock(self, store: Any) -> None:
        lock = store.lock

        def watched(table: int, key: bytes, owner: int, lease_ms: int, done: Any, **options: Any) -> None:
            def seen(got: Any) -> None:
                if isinstance(got, int) and got not in self.granted:
                    self.granted.append(got)
                done(got)

            lock(table, key, owner, lease_ms, seen, **options)

        store.lock = watched

    async def locker(self, number: int, hold_s: float, puts: int) -> None:
        """Reads, waits, writes what it read with its fence behind it."""
        try:
            async with self.tables[number].lock("k", lease_s=LEASE_S, max_hold_s=MOST_S, timeout_s=20) as held:
                for _ in range(puts):
                    await asyncio.sleep(hold_s / puts)
                    await held.put([*(held.value or []), held.fence])
                    self.acknowledged += 1
        except (LockLost, TimeoutError, StateError) as error:
            if isinstance(error, StateConflict):
                self.unexpected.append(error)

    async def step(self, number: int, action: tuple[Any, ...]) -> None:
        table = self.tables[number]
        store: Any = table.store
        match action:
            case "lock", hold_s, puts:
                self.tasks.append((number, asyncio.ensure_future(self.locker(number, hold_s, puts))))
            case ("outage",):
                store.outage()
            case ("recover",):
                store.recover()
            case ("stall",):
                store.beat = lambda: None
            case ("wake",):
                store.beat = self.beats[number]
            case ("cancel",):
                for owner, task in self.tasks:
                    if owner == number and not task.done():
                        task.cancel()
                        break
            case "slow", latency_s:
                store.slow(latency_s)

    async def end(self) -> None:
        for number, table in enumerate(self.tables):
            store: Any = table.store
            store.recover()
            store.slow(0.0)
            store.beat = self.beats[number]
        if self.tasks:
            await asyncio.wait([task for _, task in self.tasks])
        await asyncio.sleep(MOST_S + LEASE_S)  # answers that nobody waits for any more, leases that nobody ends

    def check(self) -> None:
        assert self.unexpected == []
        assert self.granted == sorted(self.granted)
        before: list[int] = []
        for value in self.landed:
            assert value[:-1] == before, "somebody wrote without having seen the write before"
            before = value
        assert before == sorted(before), "a holder wrote after its successor"
        assert len(before) >= self.acknowledged
        for table in self.tables:
            assert len(table.locks.line) == 0 and table.locks._holding == {}
        first = self.tables[0]
        assert first.store._standing(self.rig.memory.tables[first.handle], first.keys.pack("k")) is None
        assert (stored(self.tables[0], "k") or []) == before


async def play(schedule: list[tuple[float, int, tuple[Any, ...]]], **options: Any) -> None:
    async with Rig() as rig:
        game = Play(rig)
        await game.begin(**options)
        for delay_s, number, action in schedule:
            await asyncio.sleep(delay_s)
            await game.step(number, action)
        await game.end()
        game.check()


@pytest.mark.parametrize("last_writer_wins", [True, False])
@given(schedule=steps)
@settings(max_examples=150, deadline=None)
def test_one_holder_writes_at_a_time(last_writer_wins: bool, schedule: Any) -> None:
    """With ``last_writer_wins`` no version protects: the guard alone does."""
    asyncio.run(play(schedule, last_writer_wins=last_writer_wins))
