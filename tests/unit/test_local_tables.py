"""Tables of durability ``local``: they take what those in a store take, and tell in time of what has expired."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from libvnf.errors import ConfigError
from libvnf.state import local, write_back
from tests.tables import Rig, Session


@pytest.mark.parametrize("durability", [local, write_back()])
@pytest.mark.parametrize(
    ("key", "value", "good", "bad"),
    [
        (tuple[str, int], int, [(("a", 1), 1)], [(("a", "b"), 1), ("a", 1), (("b", True), 1)]),
        (str, dict[str, int], [("a", {"b": 1})], [("a", [1])]),
        (str, float, [("a", 1.5), ("a", 1)], [("a", True), ("a", "1")]),
        (int, int, [(2, 1)], [(True, 1), (2, True), (1.0, 1)]),
        (object, object, [("a", [1]), ((1, b"x"), "y")], [(1.5, 1), ("a", None)]),
        (bytes, Session, [(b"a", Session("x"))], [(b"a", ("x", 0)), ("a", Session("x"))]),
    ],
)
async def test_local_tables_take_what_others_take(
    durability: Any, key: Any, value: Any, good: list[Any], bad: list[Any]
) -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table: Any = replica.tables.add("t", key, value, durability)
        await replica.start()
        for k, v in good:
            table.put_nowait(k, v)
            assert await table.get(k) == v
        for k, v in bad:
            with pytest.raises(ConfigError, match="table 't': "):
                table.put_nowait(k, v)


async def test_a_clock_that_was_set_back_delays_no_handler_for_ever() -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table: Any = replica.tables.add("t", str, int, local)
        gone: list[str] = []
        table.on_expire(lambda key, value: gone.append(key))
        await replica.start()
        table.put_nowait("a", 1, ttl_s=1)
        steady = replica.tables.clock_ms
        replica.tables.clock_ms = lambda: steady() - 5000
        await asyncio.sleep(3)
        assert gone == []
        await asyncio.sleep(3.1)
        assert gone == ["a"]


async def test_a_handler_that_comes_later_is_told_in_time() -> None:
    async with Rig() as rig:
        replica = rig.replica()
        table: Any = replica.tables.add("t", str, int, local)
        await replica.start()
        table.put_nowait("a", 1, ttl_s=1)
        gone: list[str] = []
        table.on_expire(lambda key, value: gone.append(key))
        await asyncio.sleep(1.1)
        assert gone == ["a"]
