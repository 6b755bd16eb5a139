"""What the holder of a lock does with its key. Every write goes to the store at once, and names the lock: the store
refuses it when the lock is another's by then, or nobody's.

Writes are conditional on the version that was read, too. Somebody who writes without the lock is not overwritten
unseen; and a write that had no answer is recognised when it is met.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..errors import DurabilityUnknown, LockLost, StateConflict, StateError, Unreadable
from .held import LEASE_LOST, LEFT, Held
from .store import Stored, Written
from .table import deadline_after

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .shared import SharedTable

__all__ = ["Guarded"]

K = TypeVar("K")
V = TypeVar("V")


class Guarded(Held[K, V]):
    """Of a table in a store. ``over(owner)`` is told when the lock is lost."""

    def __init__(
        self, table: SharedTable[K, V], over: Callable[[int], object], key: K, packed: bytes, owner: int, fence: int
    ) -> None:
        super().__init__(table.name, key, fence)
        self.packed, self.owner = packed, owner
        self._table, self._over = table, over
        self._stored: Stored | None = None
        self._tried: set[int] = set()  # versions of ours that may stand there
        self._deleted = False  # a delete of ours may have been carried out

    @property
    def ttl_s(self) -> float | None:
        if self._stored is None or not self._stored.deadline_ms:
            return None
        return max(0.001, (self._stored.deadline_ms - self._table.clock_ms()) / 1000)

    async def put(self, value: V, *, ttl_s: float | None = None) -> None:
        payload = self._table.values.pack(value)
        await self._write(value, payload, deadline_after(ttl_s, self._table.clock_ms()))

    async def delete(self) -> bool:
        self.check()
        found = self.value is not None
        if self._stored is not None or self._tried:
            await self._write(None, None, 0)
        return found

    # --- inside

    async def _write(self, value: V | None, payload: bytes | None, deadline_ms: int) -> None:
        table = self._table
        while True:
            self.check()
            future: asyncio.Future[bool] = table.future()
            version, stored, watch = table.versions.take(), self._stored, object()
            table.store.write(
                table.handle,
                [self.packed],
                None if table.last_writer_wins else [0 if stored is None else stored.version],
                version,
                [payload],
                partial(self._written, future, watch, version, value, payload, deadline_ms),
                deadlines=[deadline_ms] if deadline_ms else None,
                recents=None if stored is None else [stored.recent],
                replicas=table.durability.replicas,
                guard=(self.packed, self.owner),
            )
            self._tried.add(version)
            table.reads.watch(self.packed, watch)
            if await future:
                return

    def _written(
        self,
        future: asyncio.Future[bool],
        watch: object,
        version: int,
        value: V | None,
        payload: bytes | None,
        deadline_ms: int,
        written: Written,
    ) -> None:
        """Also when nobody waits for it any more. False: to be tried again, what was met is our own doing."""
        error: StateError | None = None
        stored = True
        fresh = self._table.reads.unwatch(self.packed, watch)
        if not (written.failed and isinstance(written.failed[0][1], DurabilityUnknown)):
            self._tried.discard(version)
        if written.failed:
            error = written.failed[0][1]
            self._table.forget(self.key)
            self._deleted |= payload is None
            if isinstance(error, LockLost):
                error = self.error(LEASE_LOST)
                self.lose(LEASE_LOST)
        elif written.conflicts:
            error, stored = self._conflict(written.conflicts[0][1], fresh=fresh), False
        else:
            recent = b"" if self._stored is None else self._stored.recent
            self.value = value
            self._stored = None if payload is None else Stored(version, deadline_ms, recent, payload)
            self._table.updated(self.key, self.packed, value, self._stored, fresh=fresh)
        if future.done():
            return
        if error is None:
            future.set_result(stored)
        else:
            future.set_exception(error)

    def _conflict(self, stored: Stored | None, *, fresh: bool) -> StateError | None:
        before = self._stored
        if stored is None:
            expired = before is not None and 0 < before.deadline_ms <= self._table.clock_ms()
            ours = self._deleted or expired
        else:
            ours = stored.version in self._tried or (before is not None and stored.version == before.version)
        try:
            self.read(stored, fresh=fresh)
        except Unreadable as error:
            return error
        if ours:
            return None
        return StateConflict(
            f"table {self._name!r}: somebody has changed {self.key!r} without its lock, see held.value"
        )

    def read(self, stored: Stored | None, *, fresh: bool) -> None:
        """What stands in the store. ``Unreadable`` is counted by the table."""
        self._stored = stored
        self._table.overtaken(self.key, self.packed, stored, fresh=fresh)
        value = None
        if stored is not None and not 0 < stored.deadline_ms <= self._table.clock_ms():
            value = self._table.values.unpack(stored.payload)
        self.value = value

    def lose(self, why: str) -> None:
        if not self.why_lost:
            self.why_lost = why
            if why is not LEFT:
                self._table.counts["leases_lost"] += 1
            self._over(self.owner)
