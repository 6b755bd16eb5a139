"""A table that a store holds, and this replica caches: the calls. When changes are stored is ``flush.py``'s, what is
missing ``reads.py`` asks for, ``updates.py`` has the read-modify-writes.

A hit is one look-up in the cache's own dict: no future, no task, no call.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, StateConflict, StateError, StateFull, StoreUnavailable, Unreadable
from .answers import ignore, settle, settle_pair, settle_with
from .cache import UNKNOWN, Cache, Entry
from .catalogue import Description
from .durability import Durability, Request
from .expiry import EXPIRY_COUNTS, Sweeper
from .flush import Flusher
from .lock import LOCK_COUNTS, Lock, Locks
from .reads import Reads
from .record import KeyCodec, ValueCodec
from .store import Invalid, Store, Stored, Versions
from .table import Table, deadline_after
from .updates import Updates

if TYPE_CHECKING:
    from .tables import Tables

__all__ = ["MAX_BYTES", "MAX_ENTRIES", "SharedTable"]

K = TypeVar("K")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])

MAX_ENTRIES = 1 << 17
MAX_BYTES = 128 << 20
COUNTS = ("flushes", "flushed", "flush_failures", "recovered", "update_retries", "unreadable")
SCAN = 512


class SharedTable(Table[K, V]):
    """See :class:`Table`."""

    def __init__(
        self,
        tables: Tables,
        name: str,
        key: type[K],
        value: type[V],
        durability: Durability,
        *,
        schema: int = 1,
        upgrades: Mapping[int, Callable[[Any], Any]] | None = None,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        partitions: int = 64,
        last_writer_wins: bool = False,
    ) -> None:
        super().__init__(name, durability)
        self._tables, self.partitions, self.last_writer_wins = tables, partitions, last_writer_wins
        self.schema, self._kinds = schema, (key, value)
        self.keys: KeyCodec[K] = KeyCodec(name, key)
        self.values: ValueCodec[V] = ValueCodec(name, value, schema, upgrades)
        self.cache: Cache[K, V] = Cache(max_entries, max_bytes)
        self._entries, self._values_are_shared = self.cache.entries, self.values.shared
        self.counts = Counter(dict.fromkeys((*COUNTS, *LOCK_COUNTS, *EXPIRY_COUNTS), 0))
        self.flush_s = 0.0
        self._hits = 0
        self.handle = -1
        self._described = False
        self.refused: StateError | None = None
        self.flusher, self.reads, self.updates = Flusher(self), Reads(self), Updates(self)
        self._tells_each_change = self.flusher.of_each_change
        self.locks: Locks[K, V] = Locks(self, tables.chance)
        self.sweeper: Sweeper[K, V] | None = None

    # --- the VNF's side

    @property
    def running(self) -> bool:
        return self._tables.running

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._tables.loop

    @property
    def open(self) -> bool:
        """The store has answered, and is not closed."""
        return self.handle >= 0 and self._tables.running

    @property
    def store(self) -> Store:
        return self._tables.store

    @property
    def versions(self) -> Versions:
        return self._tables.versions

    @property
    def clock_ms(self) -> Callable[[], int]:
        return self._tables.clock_ms

    def future(self) -> asyncio.Future[Any]:
        return self._tables.future()

    def report(self, error: BaseException) -> None:
        self._tables.report(error)

    def request(self) -> Request | None:
        """Whose change this is, if it is a request's."""
        return self._tables.request()

    def soon(self, fn: Callable[[], object]) -> None:
        """At the end of this turn of the loop; once the store is open, if it is not."""
        if self.running:
            self.loop.call_soon(fn)

    def description(self) -> Description:
        """What all replicas must agree on."""
        key, value = (getattr(kind, "__name__", str(kind)) for kind in self._kinds)
        self._described = True
        return Description(self.partitions, "expire" in self.handlers, key, value, {self.schema: self.values.fields()})

    def opened(self) -> None:
        """There is a store now, and a writer's number."""
        on_expire = self.handlers.get("expire")
        keeps_expired = on_expire is not None
        self.handle = self.store.table(self.name, partitions=self.partitions, keeps_expired=keeps_expired)
        self.cache.is_ours = self.versions.took
        self.soon(self.reads.send)
        self.flusher.opened()
        if on_expire is not None:
            self.sweeper = Sweeper(self, on_expire, chance=self._tables.chance, report=self._tables.report)
            self.sweeper.start()

    def unavailable(self, error: StateError) -> None:
        """It cannot be opened yet: who waits for the store is told."""
        self.reads.fail(error)
        self.flusher.unavailable(error)

    async def drain(self, until_s: float) -> None:
        """Stores what is not stored, and what handlers still running put, until that time of the loop."""
        if self.sweeper is not None:
            self.sweeper.stop()
            await self.flusher.drain(until_s)
            await self.sweeper.drain(until_s)
        await self.flusher.drain(until_s)

    def refuse(self, error: StateError) -> None:
        """There will be no store for it: who waits is told, and who asks; what was changed before is lost."""
        self.refused = error
        if lost := [key for key, entry in self._entries.items() if entry.dirty]:
            self._tables.log.error("table %s: %d changes are lost: %s", self.name, len(lost), error)
            if "error" in self.handlers:
                self._tables.call(self.handlers["error"], error, lost)
        self.cache.clear()
        self.reads.fail(error)
        self.flusher.close(error)

    def closed(self) -> None:
        error = StoreUnavailable(f"table {self.name!r}: the VNF has stopped")
        if self.sweeper is not None:
            self.sweeper.close()
        self.locks.close(error)
        self.updates.close(error)
        self.reads.fail(error)
        self.flusher.close(error)

    # --- one entry

    async def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None or entry.deadline_ms or not self._values_are_shared:
            return self.value_of(await self._read(key))
        entry.visited = True
        self._hits += 1
        return entry.value

    def get_nowait(self, key: K) -> V | None:
        entry = self.present(key)
        if entry is None:
            self.keys.pack(key)
            self.cache.misses += 1
            return None
        self._hits += 1
        return self.value_of(entry)

    async def put(self, key: K, value: V, *, ttl_s: float | None = None, durability: Durability | None = None) -> None:
        asked = self.durability if durability is None else self.durability.for_call(durability, self.name)
        payload, deadline_ms = self.values.pack(value), 0
        if ttl_s is not None:
            deadline_ms = deadline_after(ttl_s, self._tables.clock_ms())
        request = self.awaiting() if self._tables.commits else None
        try:
            try:
                entry = self._change(key, value, payload, deadline_ms)
            except StateFull as full:
                entry = await self._change_later(full, key, value, payload, deadline_ms)
            if not asked.cached:
                await self._stored(entry, asked)
            elif request is not None:
                self._commit(entry)
        finally:
            if request is not None:
                request.committed()

    def put_nowait(self, key: K, value: V, *, ttl_s: float | None = None) -> None:
        payload = self.values.pack(value)
        entry = self._change(
            key, value, payload, 0 if ttl_s is None else deadline_after(ttl_s, self._tables.clock_ms())
        )
        if self._tables.commits:
            self._commit(entry)

    async def delete(self, key: K, *, durability: Durability | None = None) -> bool:
        asked = self.durability if durability is None else self.durability.for_call(durability, self.name)
        request = self.awaiting() if self._tables.commits else None
        try:
            entry = await self._read(key)
            found = self.value_of(entry) is not None
            if found:
                try:
                    entry = self._change(key, None, None, 0)
                except StateFull as full:
                    entry = await self._change_later(full, key, None, None, 0)
            if entry.dirty and not asked.cached:
                await self._stored(entry, asked)
            elif entry.dirty and request is not None:
                self._commit(entry)
            return found
        finally:
            if request is not None:
                request.committed()

    def delete_nowait(self, key: K) -> bool:
        entry = self.present(key)
        found = entry is not None and self.value_of(entry) is not None
        if found or entry is None:
            entry = self._change(key, None, None, 0)
            if self._tables.commits:
                self._commit(entry)
        return found

    async def update(
        self,
        key: K,
        fn: Callable[[V], V],
        default: V | None = None,
        *,
        durability: Durability | None = None,
    ) -> V:
        asked = self.durability if durability is None else self.durability.for_call(durability, self.name)
        request = self.awaiting() if self._tables.commits else None
        try:
            result: V = await self.updates.call(key, self.keys.pack(key), fn, default, asked.replicas)
            return result
        finally:
            if request is not None:
                request.committed()

    def lock(
        self, key: K, *, lease_s: float = 10.0, max_hold_s: float = 60.0, timeout_s: float | None = None
    ) -> Lock[K, V]:
        return Lock(self.locks, key, lease_s, max_hold_s, timeout_s)

    async def ttl(self, key: K) -> float | None:
        entry = await self._read(key)
        if self.value_of(entry) is None:
            return None
        return (entry.deadline_ms - self._tables.clock_ms()) / 1000 if entry.deadline_ms else inf

    def pin(self, key: K) -> None:
        self.keys.pack(key)
        self.cache.pin(key)

    def unpin(self, key: K) -> None:
        self.cache.unpin(key)

    # --- all of them

    def __len__(self) -> int:
        return len(self._entries)

    async def scan(self) -> AsyncIterator[tuple[K, V]]:
        """What this replica has changed is stored first."""
        await self.flush()
        cursor: object | None = None
        while True:
            future: asyncio.Future[Any] = self.future()
            self.store.scan(self.handle, cursor, SCAN, partial(settle_pair, future))
            cursor, found = await future
            if isinstance(found, StateError):
                raise found
            for packed, stored in found:
                try:
                    if isinstance(stored, Unreadable):
                        raise stored
                    key, value = self.keys.unpack(packed), self.values.unpack(stored.payload)
                except Unreadable:
                    self.counts["unreadable"] += 1
                    continue
                if not stored.deadline_ms or stored.deadline_ms > self._tables.clock_ms():
                    yield key, value
            if cursor is None:
                return

    async def flush(self) -> None:
        self.check_open()
        await self.flusher.flush()

    async def drop(self) -> None:
        self.check_open()
        future: asyncio.Future[None] = self.future()
        request = self.awaiting()
        self.cache.clear()
        self.flusher.pass_on()
        try:
            self.store.drop(self.handle, partial(settle, future))
            await future
        finally:
            if request is not None:
                request.committed()

    def statistics(self) -> Mapping[str, int | float]:
        return {"hits": self._hits, **self.cache.statistics(), **self.counts, "flush_s_now": self.flush_s}

    def check_open(self) -> None:
        if self.refused is not None:
            raise self.refused
        if not self.open:
            state = self._tables.state
            why = "it is not open yet" if state == "up" else f"the store is {state}"
            raise StoreUnavailable(f"table {self.name!r}: {why if self.running else 'the VNF does not run'}")

    def on_expire(self, fn: F) -> F:
        if self._described:
            raise ConfigError(f"table {self.name!r}: on_expire comes too late: entries are stored already")
        return super().on_expire(fn)

    # --- inside: changes

    def _change(self, key: K, value: V | None, payload: bytes | None, deadline_ms: int) -> Entry[K, V]:
        entry = self._entries.get(key)
        if entry is None:
            packed = self.keys.pack(key)
            if self.refused is not None:
                raise self.refused
            entry = self.cache.put_dirty(key, packed, value, payload, deadline_ms)
            self.flusher.read_base(entry)
            self.flusher.changed()
        elif self.cache.change(entry, value, payload, deadline_ms) or self._tells_each_change:
            self.flusher.changed()
        return entry

    async def _change_later(
        self, full: StateFull, key: K, value: V | None, payload: bytes | None, deadline_ms: int
    ) -> Entry[K, V]:
        """Waits for room, as long as there will be some."""
        again = False
        while self.running and self.cache.unstored:
            await self.flusher.room(again=again)
            try:
                entry = self._change(key, value, payload, deadline_ms)
            except StateFull as error:
                full, again = error, True
            except BaseException:
                self.flusher.pass_on()
                raise
            else:
                self.flusher.pass_on()
                return entry
        self.flusher.pass_on()
        raise full

    async def _stored(self, entry: Entry[K, V], asked: Durability) -> None:
        future: asyncio.Future[None] = self.future()
        self.flusher.urgent(entry, asked.replicas, partial(settle, future), author=True)
        await future

    def _commit(self, entry: Entry[K, V]) -> None:
        """The request whose change this is, if it waits for it, is told when it is stored."""
        request = self._tables.request()
        if request is not None and request.await_commit():
            self.flusher.urgent(entry, self.durability.replicas, partial(_committed, request))

    def awaiting(self) -> Request | None:
        """At the beginning of a call: the request that makes it, where what it has sent waits for the call's end. Then
        that is ``committed()``, also after a failure: whoever calls hears of it."""
        request = self._tables.request() if self._tables.commits else None
        return request if request is not None and request.await_commit() else None

    # --- inside: what stands where

    def present(self, key: K) -> Entry[K, V] | None:
        """The cached entry, but for one that has expired."""
        entry = self._entries.get(key)
        if entry is not None:
            if entry.deadline_ms and not entry.dirty and entry.deadline_ms <= self._tables.clock_ms():
                self.cache.invalidate(key)
                return None
            entry.visited = True
        return entry

    def value_of(self, entry: Entry[K, V]) -> V | None:
        """None: absent. A value that could be changed in place is the reader's own."""
        if entry.payload is None or (entry.deadline_ms and entry.deadline_ms <= self._tables.clock_ms()):
            return None
        return entry.value if self._values_are_shared else self.values.unpack(entry.payload)

    async def _read(self, key: K) -> Entry[K, V]:
        entry = self.present(key)
        if entry is not None:
            self._hits += 1
            return entry
        self.cache.misses += 1
        future: asyncio.Future[Entry[K, V]] = self._tables.future()
        self.reads.fetch(key, self.keys.pack(key), partial(settle_with, future))
        entry = await future
        # Another who waited for the same may have put something since.
        return self._entries.get(key, entry)

    def arrived(self, key: K, packed: bytes, stored: Stored | None, *, fresh: bool) -> Entry[K, V]:
        """What was read. What is cached by now came later than the read was begun, and stays. Here and below: what is
        not ``fresh`` another has changed since. It is cached for a step of those who waited, so that what they put
        replaces what they have read, and nothing else."""
        entry = self._entries.get(key)
        if entry is None:
            return self._cached(key, packed, stored, fresh=fresh)
        if entry.version == UNKNOWN:
            self.cache.based(entry, stored)
        return entry

    def _cached(self, key: K, packed: bytes, stored: Stored | None, *, fresh: bool) -> Entry[K, V]:
        """The entry, in the cache if there is room. ``Unreadable`` ones are not cached."""
        try:
            value = None if stored is None else self.values.unpack(stored.payload)
        except Unreadable:
            self.counts["unreadable"] += 1
            raise
        entry = self.cache.put_clean(key, packed, value, stored)
        if not fresh and entry.cached:
            self.loop.call_soon(self.loop.call_soon, self._overtaken, entry)
        return entry

    def _overtaken(self, entry: Entry[K, V]) -> None:
        """Those who waited for this have taken their step."""
        if self._entries.get(entry.key) is entry and self.cache.invalidate(entry.key) is not None:
            self.flusher.urgent(entry, 0, ignore)  # it meets its conflict now

    def overtaken(self, key: K, packed: bytes, stored: Stored | None, *, fresh: bool) -> Entry[K, V]:
        """An update met another version. What is dirty here meets it by itself."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.dirty else self._cached(key, packed, stored, fresh=fresh)

    def updated(self, key: K, packed: bytes, value: V | None, stored: Stored | None, *, fresh: bool) -> None:
        """An update was stored, or what the holder of a lock wrote. What was put meanwhile replaces that."""
        entry = self._entries.get(key)
        if entry is None or not entry.dirty:
            if fresh:
                self.cache.put_clean(key, packed, value, stored)
            else:
                self.forget(key)  # our own write is not told: it may be after what has been read since
        elif not entry.flying:
            self.cache.based(entry, stored)

    def forget(self, key: K) -> None:
        """What is cached may not be what stands in the store."""
        self.cache.invalidate(key)

    # --- inside: what others do, and what goes wrong

    def invalidated(self, keys: Invalid) -> None:
        if keys is None or callable(keys):
            if keys is None:
                self.cache.drop_clean()
            else:
                self.cache.drop_clean(keys)
            self.reads.all_overtaken()  # perhaps more than need be: what is under way is not believed, that is all
            self.updates.all_overtaken()
            return
        for packed in keys:
            self.reads.overtaken(packed)
            self.updates.overtaken(packed)
            try:
                key = self.keys.unpack(packed)
            except Unreadable:
                continue  # never read, so not cached
            known = key in self._entries
            entry = self.cache.invalidate(key)
            if entry is not None:
                self.flusher.urgent(entry, 0, ignore)  # it meets its conflict now
            elif known and "change" in self.handlers:
                self.reads.fetch(key, packed, partial(self._changed, key))

    def _changed(self, key: K, entry: Entry[K, V] | None, error: StateError | None) -> None:
        if entry is not None and not entry.dirty:
            self._tables.call(self.handlers["change"], key, self.value_of(entry))

    def conflict(self, entry: Entry[K, V], stored: Stored | None) -> StateConflict:
        """The store's value stands."""
        theirs: V | None = None
        try:
            theirs = self.value_of(self._cached(entry.key, entry.packed, stored, fresh=not entry.stale))
        except Unreadable:
            pass  # counted
        if "conflict" in self.handlers:
            try:
                ours = self.value_of(entry)
            except Unreadable:
                ours = entry.value  # as it was put
            self._tables.call(self.handlers["conflict"], entry.key, ours, theirs)
        return StateConflict(f"table {self.name!r}: another replica has changed {entry.key!r}: its value stands")

    def refusal(self, error: StateError | None) -> None:
        """The store is there and did not take changes; None: it has taken some since."""
        if error is None or type(error) is StateError:
            self._tables.refuses(None if error is None else str(error))

    def failed(self, error: StateError, keys: list[K], *, first: bool) -> None:
        if first and self.running:
            self._tables.log.warning("table %s: %d changes not stored, tried again: %s", self.name, len(keys), error)
        if "error" in self.handlers:
            self._tables.call(self.handlers["error"], error, keys)


def _committed(request: Request, error: StateError | None) -> None:
    if error is None:
        request.committed()
    else:
        request.commit_failed(error)
