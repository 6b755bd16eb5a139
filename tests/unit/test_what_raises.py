"""What raises on the way of an answer harms nobody else: values that cannot be read again, those who are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from libvnf.errors import StateConflict, Unreadable
from libvnf.state import write_back, write_through
from tests.tables import Rig, stored
from tests.unit.test_lost_changes import foreign


def spoil(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "n": None}


async def test_a_value_that_cannot_be_read_again_fails_its_own_updates() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(value=dict[str, int])
        await table.update("a", spoil, {})
        for _ in range(2):
            with pytest.raises(Unreadable):
                async with asyncio.timeout(5):
                    await table.update("a", lambda values: values, {})
        assert await table.update("b", lambda values: {"n": 1}, {}) == {"n": 1}


async def test_an_update_of_what_was_put_and_cannot_be_read_ends() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_back(every=100), value=dict[str, int])
        table.put_nowait("a", spoil({}))
        table.put_nowait("b", {"n": 1})
        with pytest.raises(Unreadable):
            async with asyncio.timeout(5):
                await table.update("a", lambda values: values, {})
        await table.flush()
        assert (stored(table, "b"), table.cache.unstored) == ({"n": 1}, 0)


async def test_a_conflict_of_what_cannot_be_read_is_told_with_what_was_put() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(write_through, value=dict[str, int])
        told: list[Any] = []
        table.on_conflict(lambda *found: told.append(found))
        await table.put("a", {"n": 1})
        foreign(table, "a", {"n": 2})
        with pytest.raises(StateConflict):
            await table.put("a", spoil({}))
        assert told == [("a", {"n": None}, {"n": 2})]
        assert table.cache.unstored == 0


async def test_who_raises_when_told_keeps_nothing_from_others(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig() as rig:
        table, _ = await rig.table()
        flushed: list[Any] = []

        def raising(*_: Any) -> None:
            raise RuntimeError("of no use")

        entry = await table._read("a")
        table.put_nowait("a", 1)
        table.flusher.urgent(entry, 0, raising)
        table.flusher.urgent(entry, 0, flushed.append)
        table.reads.fetch("b", table.keys.pack("b"), raising)
        assert await table.get("b") is None
        await table.flush()
        assert (flushed, len(caplog.records)) == ([None], 2)
