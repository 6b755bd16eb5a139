"""Answers that are overtaken by the invalidation of what they tell: they are handed on, and not kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from libvnf.errors import StateConflict
from libvnf.state import write_through
from tests.tables import Rig, stored


async def overtaken(rig: Rig, call: Any, meanwhile: Any) -> Any:
    """What the second replica's call gives, which is carried out, and answered when the other has happened."""
    rig.replicas[1].store.slow(0.0, answers_s=1.0)
    calling = asyncio.ensure_future(call)
    await asyncio.sleep(0.5)
    await meanwhile
    results = await asyncio.gather(calling, return_exceptions=True)
    rig.replicas[1].store.slow(0.0)
    return results[0]


@pytest.mark.parametrize("how", ["changed", "cut off"])
async def test_a_read_that_was_overtaken_is_not_cached(how: str) -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await one.put("a", 1)

        async def change() -> None:
            if how == "cut off":
                rig.replicas[1].store.outage()
                rig.replicas[1].store.recover()
            await one.put("a", 2)

        assert await overtaken(rig, other.get("a"), change()) == 1
        assert await other.get("a") == 2


async def test_who_asks_after_a_change_was_told_has_a_read_of_its_own() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await one.put("a", 1)
        later: list[Any] = []

        async def change() -> None:
            await one.put("a", 2)
            await asyncio.sleep(0.1)
            later.append(asyncio.ensure_future(other.get("a")))

        assert await overtaken(rig, other.get("a"), change()) == 1
        assert (await later[0], await other.get("a")) == (2, 2)


async def test_what_is_put_in_the_step_of_an_overtaken_read_replaces_only_what_was_read() -> None:
    """By one of those who waited; the others see what that one has put."""
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        seen: list[Any] = []

        async def claim(name: int) -> None:
            seen.append(found := await other.get("a"))
            if found is None:
                await other.put("a", name)

        claims = asyncio.gather(claim(2), claim(3), claim(4), return_exceptions=True)
        results = await overtaken(rig, asyncio.wait_for(claims, 60), one.put("a", 1))
        assert ([type(result) for result in results], seen) == ([StateConflict, type(None), type(None)], [None, 2, 2])
        assert await other.get("a") == stored(one, "a") == 1


@pytest.mark.parametrize("first", [None, 5])
async def test_an_update_that_was_overtaken_is_not_cached(first: int | None) -> None:
    """Also one that meets a conflict, and then is."""
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        assert await other.get("a") is None
        if first is not None:
            rig.replicas[1].store.on_invalid = lambda table, keys: None
            await one.put("a", first)
            await asyncio.sleep(0.1)
            rig.replicas[1].store.on_invalid = rig.replicas[1].tables._invalid

        result = await overtaken(rig, other.incr("a"), one.update("a", lambda n: n + 10, 10))
        assert result == (first or 0) + (1 if first is None else 11)
        assert await other.get("a") == stored(one, "a") == (first or 0) + 11


async def test_what_a_flush_met_is_not_cached_when_it_was_overtaken() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await other.put("a", 1)
        rig.replicas[1].store.on_invalid = lambda table, keys: None
        await one.put("a", 2)
        await asyncio.sleep(0.1)
        rig.replicas[1].store.on_invalid = rig.replicas[1].tables._invalid
        assert isinstance(await overtaken(rig, other.put("a", 3), one.put("a", 4)), StateConflict)
        assert await other.get("a") == 4


async def test_what_was_put_under_a_lock_is_not_cached_when_it_was_overtaken() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        async with other.lock("a") as held:
            assert await overtaken(rig, held.put(1), one.put("a", 2)) is None
            assert held.value == 1
            assert await other.get("a") == 2


async def test_what_a_lock_has_read_is_not_cached_when_it_was_overtaken() -> None:
    async with Rig() as rig:
        one, other = await rig.two(write_through)
        await one.put("a", 1)

        async def change() -> None:
            await asyncio.sleep(1.0)  # the lock is taken, and then it reads
            await one.put("a", 2)

        async with other.lock("b"):
            held = await overtaken(rig, other.lock("a").__aenter__(), change())
        assert held.value == 1
        assert await other.get("a") == 2
