"""Keys and values that are too long, or that cannot be: every call refuses them at once, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from libvnf.errors import ConfigError, StateError
from libvnf.state import write_back, write_through
from libvnf.state.record import MAX_KEY_BYTES, MAX_VALUE_BYTES
from tests.tables import Rig

KEY, VALUE = "k" * MAX_KEY_BYTES, "v" * MAX_VALUE_BYTES
FITS = "k" * (MAX_KEY_BYTES - 3), "v" * (MAX_VALUE_BYTES - 7)
"""As long as may be, with their heads: 3 octets of MessagePack, 5 and the schema."""


async def enter(lock: Any) -> None:
    async with lock:
        pass


async def put_under_lock(table: Any, key: Any, value: Any) -> None:
    async with table.lock(key) as held:
        await held.put(value)


# Each with a key and a value; what is none of the call's own is of the right kind.
WITH_KEY: dict[str, Callable[[Any, Any], Any]] = {
    "get": lambda table, key: table.get(key),
    "get_nowait": lambda table, key: table.get_nowait(key),
    "put": lambda table, key: table.put(key, "v"),
    "put_nowait": lambda table, key: table.put_nowait(key, "v"),
    "delete": lambda table, key: table.delete(key),
    "delete_nowait": lambda table, key: table.delete_nowait(key),
    "update": lambda table, key: table.update(key, lambda value: value, "v"),
    "incr": lambda table, key: table.incr(key),
    "lock": lambda table, key: enter(table.lock(key)),
    "ttl": lambda table, key: table.ttl(key),
    "pin": lambda table, key: table.pin(key),
}
WITH_VALUE: dict[str, Callable[[Any, Any], Any]] = {
    "put": lambda table, value: table.put("k", value),
    "put_nowait": lambda table, value: table.put_nowait("k", value),
    "update": lambda table, value: table.update("k", lambda _: value, "v"),
    "update from a default": lambda table, value: table.update("new", lambda it: it, value),
    "held.put": lambda table, value: put_under_lock(table, "k", value),
}
durable = pytest.mark.parametrize("durability", [write_back(interval_s=0.1), write_through], ids=str)


async def outcome(call: Callable[[], Any]) -> None:
    answer = call()
    if answer is not None and hasattr(answer, "__await__"):
        await answer


@durable
@pytest.mark.parametrize("call", WITH_KEY.values(), ids=WITH_KEY)
async def test_a_key_that_is_too_long_is_refused_at_the_call(call: Any, durability: Any) -> None:
    async with Rig() as rig:
        table, replica = await rig.table(durability, value=str)
        with pytest.raises(StateError, match=f"table 't': key of {MAX_KEY_BYTES + 3} bytes, at most {MAX_KEY_BYTES}"):
            await outcome(lambda: call(table, KEY))
        for wrong in (7, b"k", ("k",), None, 1.5):
            with pytest.raises(ConfigError, match=r"table 't': key of type \w+, expected str"):
                await outcome(lambda wrong=wrong: call(table, wrong))
        await table.flush()
        assert (len(table), table.cache.unstored, replica.reads) == (0, 0, [])


@durable
@pytest.mark.parametrize("call", WITH_VALUE.values(), ids=WITH_VALUE)
async def test_a_value_that_is_too_long_is_refused_at_the_call(call: Any, durability: Any) -> None:
    async with Rig() as rig:
        table, _ = await rig.table(durability, value=str)
        await table.put("k", "before")
        with pytest.raises(StateError, match=f"table 't': value of {MAX_VALUE_BYTES + 7} bytes, at most"):
            await outcome(lambda: call(table, VALUE))
        for wrong in (7, b"v", ["v"], "\ud800"):
            with pytest.raises(ConfigError, match="table 't': value"):
                await outcome(lambda wrong=wrong: call(table, wrong))
        await table.flush()
        assert await table.get("k") == "before"
        assert table.cache.unstored == 0


@durable
async def test_what_just_fits_is_stored(durability: Any) -> None:
    async with Rig() as rig:
        one, other = await rig.two(durability, value=str)
        key, value = FITS
        await one.put(key, value)
        await one.flush()
        assert await other.get(key) == value
        assert [item async for item in other.scan()] == [(key, value)]


async def test_a_value_that_is_longer_than_the_cache_is_refused_at_the_call() -> None:
    async with Rig() as rig:
        table, _ = await rig.table(value=str, max_bytes=10_000)
        with pytest.raises(StateError, match=r"an entry of .* bytes, the cache holds 10000 in"):
            table.put_nowait("k", "v" * 20_000)
        with pytest.raises(StateError, match=r"an entry of .* bytes, the cache holds 10000 in"):
            await table.put("k", "v" * 20_000)
        # One that is only read is not cached.
        large, _ = await rig.table(write_through, value=str)
        await large.put("k", "v" * 20_000)
        assert await table.get("k") == "v" * 20_000
        assert len(table) == 0
