"""Entries put, moved, deleted and expired on two replicas, against a dict: each that stood at its deadline is handled,
once, with the value it had, and no other."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from libvnf.state import write_through
from tests.tables import Rig

keys = st.sampled_from("abc")
steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.4, 1.7, 5.3, 11.0]),
        st.integers(0, 1),
        st.one_of(
            st.tuples(st.just("put"), keys, st.sampled_from([None, 1.05, 3.35, 8.15, 40.25])),
            st.tuples(st.just("delete"), keys),
            st.tuples(st.just("update"), keys),
            st.tuples(st.just("get"), keys),
            st.tuples(st.just("fail"), st.integers(1, 3)),
        ),
    ),
    max_size=30,
)


class Model:
    def __init__(self) -> None:
        self.entries: dict[str, tuple[int, float | None]] = {}
        self.due: list[tuple[str, int]] = []

    def until(self, now_s: float) -> None:
        for key, (value, until_s) in list(self.entries.items()):
            if until_s is not None and until_s <= now_s:
                del self.entries[key]
                self.due.append((key, value))


async def play(schedule: list[tuple[float, int, tuple[Any, ...]]]) -> None:
    async with Rig() as rig:
        model, handled, failing, written = Model(), list[tuple[str, int]](), 0, 0

        async def on_expire(key: str, value: int) -> None:
            nonlocal failing
            await asyncio.sleep(0.01)
            if failing:
                failing -= 1
                raise ValueError(key)
            handled.append((key, value))

        tables: list[Any] = []
        overwritten: set[tuple[str, int]] = set()
        for _ in range(2):
            replica = rig.replica()
            replica.tables.report = lambda error: None
            table = replica.table(write_through)
            table.on_expire(on_expire)
            await replica.start()
            tables.append(table)
        for delay_s, number, (what, *rest) in schedule:
            await asyncio.sleep(delay_s)
            model.until(rig.clock.now)
            table = tables[number]
            match what, *rest:
                case "fail", count:
                    failing += count
                case "put", key, ttl_s:
                    written += 1
                    overwritten |= {due for due in model.due if due[0] == key and due not in handled}
                    await table.put(key, written, ttl_s=ttl_s)
                    model.entries[key] = written, None if ttl_s is None else rig.clock.now + ttl_s
                case "delete", key:
                    assert await table.delete(key) == (model.entries.pop(key, None) is not None)
                case "update", key:
                    written += 1
                    overwritten |= {due for due in model.due if due[0] == key and due not in handled}
                    await table.update(key, lambda value, now=written: now, -1)
                    model.entries[key] = written, model.entries.get(key, (0, None))[1]
                case "get", key:
                    assert await table.get(key) == model.entries.get(key, (None, None))[0]
        failing = 0
        await asyncio.sleep(1000)  # as long again as any delay can have become
        model.until(rig.clock.now)
        assert len(handled) == len(set(handled))
        assert set(handled) <= set(model.due)
        # What was due, and put again before its handler came, is another entry by then.
        assert set(model.due) - set(handled) <= overwritten
        for table in tables:
            assert sorted([key async for key, _ in table.scan()]) == sorted(model.entries)
            assert table.sweeper.busy == 0


@given(schedule=steps)
@settings(max_examples=200, deadline=None)
def test_what_stood_at_its_deadline_is_handled_once(schedule: Any) -> None:
    asyncio.run(play(schedule))
