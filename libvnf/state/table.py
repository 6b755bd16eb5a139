"""What an author holds: :class:`Table`. Here also the one of durability ``local``; ``shared.py`` has those of a store.

Nothing of a local table waits, so its ``async`` calls cost no future: an author may change the durability of a table
without changing a line that uses it.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ..errors import ConfigError
from ..handlers import check_arity
from .durability import Durability
from .held import Held
from .locallock import LocalLock, LocalLocks
from .record import KeyCodec, ValueCodec

if TYPE_CHECKING:
    from .tables import Tables

__all__ = ["LocalTable", "Table", "deadline_after"]

K = TypeVar("K")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])

MAX_TTL_S = 100 * 365 * 86400.0


def deadline_after(ttl_s: float | None, now_ms: int) -> int:
    """The deadline of an entry put now; 0 is none."""
    if ttl_s is None:
        return 0
    if not (isfinite(ttl_s) and 0 < ttl_s <= MAX_TTL_S):
        raise ConfigError(f"ttl_s={ttl_s}, expected more than 0 and at most {MAX_TTL_S:.0f} seconds")
    return now_ms + max(1, round(ttl_s * 1000))


class Table(ABC, Generic[K, V]):
    """``key: K`` → ``value: V``, made by ``vnf.table(…)``. Values are not changed in place: put another one.

    What waits, waits for the store: never with ``local``, and not for what is cached. A call raises ``ConfigError`` for
    a key or value of another type, ``StateError`` (and what is below it) for what the store or the cache refuses.
    """

    def __init__(self, name: str, durability: Durability) -> None:
        self.name, self.durability = name, durability
        self.handlers: dict[str, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"<Table {self.name} {self.durability}>"

    # --- one entry

    @abstractmethod
    async def get(self, key: K) -> V | None:
        """None when absent."""

    @abstractmethod
    def get_nowait(self, key: K) -> V | None:
        """The cached value; None when absent, or not cached: then it is not asked for."""

    @abstractmethod
    async def put(self, key: K, value: V, *, ttl_s: float | None = None, durability: Durability | None = None) -> None:
        """Returns once it is as durable as asked, the table's durability if nothing is. Without ``ttl_s`` it stays for
        ever. While the cache is full of changes that the store does not have, it waits.

        Raises :class:`StateConflict` where it waited for the store and another replica has changed the key since this
        one read it; :class:`DurabilityUnknown` where nobody can say whether it was stored.
        """

    @abstractmethod
    def put_nowait(self, key: K, value: V, *, ttl_s: float | None = None) -> None:
        """Now in the cache, stored soon. :class:`StateFull` while the cache is full of changes that the store does not
        have. What becomes of it ``on_conflict`` and ``on_error`` are told."""

    @abstractmethod
    async def delete(self, key: K, *, durability: Durability | None = None) -> bool:
        """As ``put``. True when there was one."""

    @abstractmethod
    def delete_nowait(self, key: K) -> bool:
        """As ``put_nowait``. True when one was cached."""

    @abstractmethod
    async def update(
        self,
        key: K,
        fn: Callable[[V], V],
        default: V | None = None,
        *,
        durability: Durability | None = None,
    ) -> V:
        """``fn`` of the present value, or of ``default``; what it returned and is stored now. Atomic among all
        replicas: ``fn`` is pure, and runs again when another one was faster. The entry's deadline stays.

        ``KeyError`` when there is neither value nor default. :class:`DurabilityUnknown` where nobody can say whether
        it was applied.
        """

    async def incr(self, key: K, by: int = 1, *, durability: Durability | None = None) -> int:
        """Adds to a whole number, from 0 where there is none; the sum. Atomic, as ``update``."""

        def add(value: V) -> V:
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"table {self.name!r}: {type(value).__name__} at {key!r}, expected int for incr")
            return cast(V, value + by)

        return cast(int, await self.update(key, add, cast(V, 0), durability=durability))

    @abstractmethod
    def lock(
        self, key: K, *, lease_s: float = 10.0, max_hold_s: float = 60.0, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[Held[K, V]]:
        """``async with table.lock(key) as held``: the only holder among all replicas, with the fresh ``held.value``.
        Whoever asks first in one replica has it first. It is not reentrant: ``RuntimeError`` for a task that asks for
        what it has.

        The lease is renewed while the loop is alive: a replica that dies gives up the lock within ``lease_s``, one
        that stands still two minutes after that. ``max_hold_s`` after it was asked for the lock ends whatever
        its holder does, so that holders who wait for each other come free.

        Raises ``TimeoutError`` after ``timeout_s``, :class:`LockLost` at the end where it was lost in between.
        """

    @abstractmethod
    async def ttl(self, key: K) -> float | None:
        """Seconds until it expires: ``inf`` if it does not, None when absent."""

    # --- all of them

    @abstractmethod
    def __len__(self) -> int:
        """Entries in this replica's memory."""

    @abstractmethod
    def scan(self) -> AsyncIterator[tuple[K, V]]:
        """Every (key, value). What stands there throughout comes at least once, what changes meanwhile comes or not."""

    @abstractmethod
    async def flush(self) -> None:
        """Returns once all changes made so far are stored. ``StateError`` when that failed; it is tried again later."""

    @abstractmethod
    async def drop(self) -> None:
        """Removes all entries, for every replica; not at one instant."""

    def pin(self, key: K) -> None:
        """Keeps the entry cached once it is, until ``unpin``."""

    def unpin(self, key: K) -> None:
        """It may be evicted again."""

    @abstractmethod
    def statistics(self) -> Mapping[str, int | float]:
        """Counters, and gauges (``entries``, ``dirty`` …)."""

    # --- what it tells

    def on_conflict(self, fn: F) -> F:
        """``fn(key, ours, theirs)``: a change was not stored, because another replica has changed the key since this
        one read it. The store's value, ``theirs``, stays; None is an absent one."""
        return self._handler("conflict", fn, ("key", "ours", "theirs"))

    def on_error(self, fn: F) -> F:
        """``fn(error, keys)``: the store did not take changes of these keys. They stay cached and are tried again."""
        return self._handler("error", fn, ("error", "keys"))

    def on_change(self, fn: F) -> F:
        """``fn(key, value)``: another replica changed a key that is cached here; None: it is absent now."""
        return self._handler("change", fn, ("key", "value"))

    def on_expire(self, fn: F) -> F:
        """``fn(key, value)``, also ``async``: the entry's time is over. On one of the replicas, within seconds; once in
        the ordinary case, at least once always, also when who put it has died. The entry is removed afterwards, unless
        it was put again. One that raises is called again later, one that takes longer than 20 seconds is cancelled; of
        a ``local`` table the entry is gone by then. Every replica has the handler, from the start."""
        return self._handler("expire", fn, ("key", "value"))

    def _handler(self, event: str, fn: F, told: tuple[str, ...]) -> F:
        check_arity(fn, told)
        self.handlers[event] = fn
        return fn


class LocalTable(Table[K, V]):
    """A dict with types and deadlines; it is not bounded."""

    def __init__(self, tables: Tables, name: str, key: type[K], value: type[V], durability: Durability) -> None:
        super().__init__(name, durability)
        self._tables = tables
        self.keys: KeyCodec[K] = KeyCodec(name, key)
        self._values: ValueCodec[V] = ValueCodec(name, value)
        self._entries: dict[K, V] = {}
        self._deadlines: dict[K, int] = {}
        self._due: list[tuple[int, int, K]] = []
        self._puts = 0
        self._timer: Any = None
        self._locks: LocalLocks[K, V] = LocalLocks(self, tables.future)

    def __len__(self) -> int:
        self._expire()
        return len(self._entries)

    async def get(self, key: K) -> V | None:
        return self.get_nowait(key)

    def get_nowait(self, key: K) -> V | None:
        if self._deadlines:
            self._expire()
        return self._entries.get(key)

    async def put(self, key: K, value: V, *, ttl_s: float | None = None, durability: Durability | None = None) -> None:
        self.durability.for_call(durability, self.name)
        self.put_nowait(key, value, ttl_s=ttl_s)

    def put_nowait(self, key: K, value: V, *, ttl_s: float | None = None) -> None:
        self.keys.check(key)
        self._values.check(value)
        if self._deadlines:
            self._expire()
        if ttl_s is not None:
            deadline_ms = deadline_after(ttl_s, self._tables.clock_ms())
            self._puts += 1
            heapq.heappush(self._due, (deadline_ms, self._puts, key))
            self._deadlines[key] = deadline_ms
            if len(self._due) > 2 * len(self._deadlines) + 1024:
                self._due = [(at_ms, number, key) for number, (key, at_ms) in enumerate(self._deadlines.items())]
                heapq.heapify(self._due)
            if self._due[0][2] is key:
                self._arm()
        elif self._deadlines:
            self._deadlines.pop(key, None)
        self._entries[key] = value

    async def delete(self, key: K, *, durability: Durability | None = None) -> bool:
        self.durability.for_call(durability, self.name)
        return self.delete_nowait(key)

    def delete_nowait(self, key: K) -> bool:
        found = self.get_nowait(key) is not None
        self._deadlines.pop(key, None)
        self._entries.pop(key, None)
        return found

    async def update(
        self,
        key: K,
        fn: Callable[[V], V],
        default: V | None = None,
        *,
        durability: Durability | None = None,
    ) -> V:
        self.durability.for_call(durability, self.name)
        value = self.get_nowait(key)
        if value is None and (value := default) is None:
            raise KeyError(key)
        deadline_ms = self._deadlines.get(key)
        changed = fn(value)
        self.put_nowait(key, changed)
        if deadline_ms is not None:
            self._deadlines[key] = deadline_ms
        return changed

    def lock(
        self, key: K, *, lease_s: float = 10.0, max_hold_s: float = 60.0, timeout_s: float | None = None
    ) -> LocalLock[K, V]:
        return LocalLock(self._locks, key, lease_s, max_hold_s, timeout_s)

    async def ttl(self, key: K) -> float | None:
        if self.get_nowait(key) is None:
            return None
        deadline_ms = self._deadlines.get(key)
        return inf if deadline_ms is None else (deadline_ms - self._tables.clock_ms()) / 1000

    async def scan(self) -> AsyncIterator[tuple[K, V]]:
        self._expire()
        for key, value in list(self._entries.items()):
            yield key, value

    async def flush(self) -> None:
        """There is nothing to store."""

    async def drop(self) -> None:
        self._entries.clear()
        self._deadlines.clear()
        self._due.clear()

    def statistics(self) -> Mapping[str, int | float]:
        return {"entries_now": len(self)}

    def started(self) -> None:
        """There is a loop now."""
        self._arm()

    def closed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        """Where somebody is to be told, entries expire in time, and not when they are looked for."""
        if "expire" in self.handlers and self._due and self._tables.running:
            self.closed()
            delay_s = (self._due[0][0] - self._tables.clock_ms()) / 1000
            self._timer = self._tables.loop.call_later(max(0.001, delay_s), self._timer_over)

    def _timer_over(self) -> None:
        self._timer = None
        self._expire()
        if self._timer is None:  # the clock is not as far as the timer is: it has been set, or counts in milliseconds
            self._arm()

    def on_expire(self, fn: F) -> F:
        super().on_expire(fn)
        self._arm()
        return fn

    def _expire(self) -> None:
        """Removes what is due. A deadline that was put off has another place in the heap."""
        now_ms = self._tables.clock_ms() if self._due else 0
        if not self._due or self._due[0][0] > now_ms:
            return
        tell = self.handlers.get("expire")
        while self._due and self._due[0][0] <= now_ms:
            deadline_ms, _, key = heapq.heappop(self._due)
            if self._deadlines.get(key) == deadline_ms:
                del self._deadlines[key]
                value = self._entries.pop(key)
                if tell is not None:
                    self._tables.soon(tell, key, value)
        self._arm()
