"""Replicas that share tables over a store in memory, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

import pytest

from libvnf.state import Record, Tables, write_back
from libvnf.state.memory import Memory, MemoryStore
from libvnf.state.shared import SharedTable
from libvnf.testing.clock import Clock

EPOCH_MS = 1_700_000_000_000
SOON = write_back(interval_s=0.1)


class Session(Record):
    user: str
    hits: int = 0


class Replica:
    """One VNF's tables, and its client of the store."""

    def __init__(self, rig: Rig) -> None:
        self.store = MemoryStore(rig.memory, asyncio.get_running_loop())
        self.tables = Tables(logging.getLogger("vnf.test"))
        self.tables.clock_ms, self.tables.store = rig.clock_ms, self.store
        self.reads: list[int] = []
        self._count_reads()

    def _count_reads(self) -> None:
        read = self.store.read

        def counted(table: int, keys: list[bytes], done: Any) -> None:
            self.reads.append(len(keys))
            read(table, keys, done)

        self.store.read = counted  # type: ignore[method-assign]

    def table(self, durability: Any = SOON, *, name: str = "t", value: Any = int, **options: Any) -> Any:
        return self.tables.add(name, str, value, durability, **options)

    async def start(self) -> None:
        await self.tables.start("memory://", lambda fn, *args: fn(*args), 1.0)
        self.reads.clear()


class Rig:
    """A store, time, and replicas that are closed in the end."""

    def __init__(self, replicas: int = 0) -> None:
        self.clock, self.replicas = Clock(), list[Replica]()
        self.memory = Memory(self.clock_ms, replicas=replicas)

    def clock_ms(self) -> int:
        return EPOCH_MS + round(self.clock.now * 1000)

    async def __aenter__(self) -> Self:
        self.clock.install()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replica in self.replicas:
            await replica.tables.close()
        self.clock.uninstall()

    def replica(self) -> Replica:
        self.replicas.append(Replica(self))
        return self.replicas[-1]

    async def table(self, durability: Any = SOON, **options: Any) -> tuple[SharedTable[str, Any], Replica]:
        replica = self.replica()
        table = replica.table(durability, **options)
        await replica.start()
        return table, replica

    async def two(self, durability: Any = SOON, **options: Any) -> tuple[Any, Any]:
        """The same table in two replicas."""
        one, _ = await self.table(durability, **options)
        other, _ = await self.table(durability, **options)
        return one, other


def stored(table: SharedTable[str, Any], key: str) -> Any:
    """What a replica that has cached nothing would read."""
    memory = table.store._memory  # type: ignore[attr-defined]
    found = memory.tables[table.handle].entries.get(table.keys.pack(key))
    return None if found is None else table.values.unpack(found.payload)


def at_once(coroutine: Any) -> Any:
    """What it returns without having waited for anything."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value
