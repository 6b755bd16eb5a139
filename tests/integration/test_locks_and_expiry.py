"""Locks and ``on_expire`` of replicas that share a real Redis Cluster; the rest is in tests/unit."""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import AsyncExitStack
from typing import Any

import pytest

from libvnf.errors import LockLost
from libvnf.state import Tables, write_back
from tests.redis_cluster import RedisCluster

pytestmark = pytest.mark.needs("redis-server")


async def replicas(stack: AsyncExitStack, url: str, count: int, on_expire: Any = None) -> list[Any]:
    name, made = f"t{uuid.uuid4().hex}", []
    for _ in range(count):
        tables = Tables(logging.getLogger("vnf.test"))
        table = tables.add(name, str, int, write_back(interval_s=0.02), partitions=8)
        if on_expire is not None:
            table.on_expire(on_expire)
        await tables.start(url, lambda fn, *args: fn(*args), 10.0)
        stack.push_async_callback(tables.close)
        made.append(table)
    return made


async def test_two_replicas_count_under_a_lock(redis_cluster: RedisCluster) -> None:
    async with AsyncExitStack() as stack:
        tables = await replicas(stack, redis_cluster.url, 2)

        async def count(table: Any) -> None:
            for _ in range(10):
                async with table.lock("k") as held:
                    await held.put((held.value or 0) + 1)

        await asyncio.gather(*(count(table) for table in tables for _ in range(3)))
        async with tables[0].lock("k") as held:
            assert held.value == 60
        assert [table.counts["leases_lost"] for table in tables] == [0, 0]


async def test_a_lock_is_renewed_and_ends_natively_after_max_hold(redis_cluster: RedisCluster) -> None:
    async with AsyncExitStack() as stack:
        one, other = await replicas(stack, redis_cluster.url, 2)
        loop = asyncio.get_running_loop()
        with pytest.raises(LockLost):
            async with one.lock("k", lease_s=0.3, max_hold_s=1.0) as held:
                taken_s = loop.time()
                one.locks._holding[held.owner][2].cancel()  # only the native end is left
                async with other.lock("k") as successor:
                    assert loop.time() - taken_s > 0.7, "past the lease: it was renewed"
                    assert successor.fence > held.fence
                    await successor.put(2)
                    await held.put(1)
        assert await other.get("k") == 2
        assert held.lost


async def test_an_expired_entry_is_handled_by_one_replica(redis_cluster: RedisCluster) -> None:
    async with AsyncExitStack() as stack:
        gone: list[tuple[str, int]] = []
        all_gone = asyncio.Event()

        async def on_expire(key: str, value: int) -> None:
            gone.append((key, value))
            if len(gone) == 100:
                all_gone.set()

        one, other = await replicas(stack, redis_cluster.url, 2, on_expire)
        for n in range(100):
            one.put_nowait(f"k{n}", n, ttl_s=0.2)
        one.put_nowait("stays", 1)
        one.put_nowait("again", 1, ttl_s=0.2)
        one.put_nowait("again", 2, ttl_s=3600)
        await one.flush()
        await asyncio.wait_for(all_gone.wait(), 60)
        while one.sweeper.busy or other.sweeper.busy:
            await asyncio.wait([asyncio.ensure_future(table.flush()) for table in (one, other)])
        assert sorted(gone) == sorted((f"k{n}", n) for n in range(100))
        assert sorted([item async for item in other.scan()]) == [("again", 2), ("stays", 1)]
        assert one.counts["expired"] + other.counts["expired"] == 100
