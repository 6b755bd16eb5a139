"""The locks of a table that is this replica's alone: no store, so no lease; only the line and ``max_hold_s``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isinf
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from .held import LEFT, OVERSTAYED, Held, Line, check_lock

if TYPE_CHECKING:
    import asyncio

    from .table import LocalTable

__all__ = ["LocalLock", "LocalLocks"]

K = TypeVar("K")
V = TypeVar("V")


class LocalLocks(Generic[K, V]):
    """Of one table."""

    def __init__(self, table: LocalTable[K, V], future: Callable[[], asyncio.Future[None]]) -> None:
        self.table, self.future = table, future
        self.line: Line[K] = Line()
        self.fence = 0


class LocalHeld(Held[K, V]):
    def __init__(self, locks: LocalLocks[K, V], key: K, ttl_s: float | None) -> None:
        super().__init__(locks.table.name, key, locks.fence)
        self._table = locks.table
        self._ttl_s = ttl_s

    @property
    def ttl_s(self) -> float | None:
        return self._ttl_s

    async def put(self, value: V, *, ttl_s: float | None = None) -> None:
        self.check()
        self._table.put_nowait(self.key, value, ttl_s=ttl_s)
        self.value, self._ttl_s = value, ttl_s

    async def delete(self) -> bool:
        self.check()
        self.value = self._ttl_s = None
        return self._table.delete_nowait(self.key)


class LocalLock(Generic[K, V]):
    """``async with`` it, once. See :meth:`Table.lock`."""

    def __init__(
        self, locks: LocalLocks[K, V], key: K, lease_s: float, max_hold_s: float, timeout_s: float | None
    ) -> None:
        check_lock(locks.table.name, lease_s, max_hold_s, timeout_s)
        locks.table.check_key(key)
        self._locks, self._key = locks, key
        self._max_hold_s, self._timeout_s = max_hold_s, timeout_s
        self._turn: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held: LocalHeld[K, V] | None = None

    async def __aenter__(self) -> Held[K, V]:
        if self._turn is not None:
            raise RuntimeError("a lock is entered once: call table.lock(…) again")
        locks = self._locks
        self._turn = turn = locks.future()
        loop = turn.get_loop()
        locks.line.enter(self._key, turn, f"table {locks.table.name!r}: lock({self._key!r})")
        timer = None if self._timeout_s is None else loop.call_later(self._timeout_s, self._late, turn)
        try:
            await turn
            ttl_s = await locks.table.ttl(self._key)
        except BaseException:
            locks.line.leave(self._key, turn)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        locks.fence += 1
        held = self._held = LocalHeld(locks, self._key, None if ttl_s is None or isinf(ttl_s) else ttl_s)
        held.value = locks.table.get_nowait(self._key)
        self._timer = loop.call_later(self._max_hold_s, partial(self._end, OVERSTAYED))
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._held is not None
        lost = self._held.why_lost
        self._end(LEFT)
        if lost and kind is None:
            raise self._held.error(lost)

    def _end(self, why: str) -> None:
        assert self._held is not None and self._turn is not None and self._timer is not None
        self._timer.cancel()
        self._held.why_lost = self._held.why_lost or why
        self._locks.line.leave(self._key, self._turn)

    def _late(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            name = self._locks.table.name
            turn.set_exception(
                TimeoutError(f"table {name!r}: no lock of {self._key!r} within {self._timeout_s} seconds")
            )
