"""When changes go to the store, and what becomes of them.

A flush takes dirty entries, all of them or those that somebody waits for, and is conditional on the version that each
was read at. An entry is in one flight at a time; what is put meanwhile is in the next. What conflicts gives way to the
store's value. What fails is dirty again and tried later, with growing delays: everything waits for a store that is out
of reach, an entry that the store refuses waits by itself. What the client has no room for waits for a landing.

A conflict that the cache does not call one is with ourselves: an unanswered write arrived, or an ``update`` was faster.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..errors import StateConflict, StateError, StateFull, Unreadable
from .answers import ignore
from .cache import UNKNOWN, Entry
from .catalogue import passes
from .store import Stored, Written

if TYPE_CHECKING:
    from .shared import SharedTable

__all__ = ["Flusher"]

BATCH = 4096
"""Entries of one flight: the loop serves others between two."""
FIRST_DELAY_S, LAST_DELAY_S = 0.05, 5.0

Waiter: TypeAlias = Callable[[StateError | None], object]


class Waiting(NamedTuple):
    """For an entry that no flight has taken yet."""

    waiter: Waiter
    replicas: int
    author: bool
    payload: bytes | None
    """What an author has put."""


class Flight:
    """Entries on their way to the store, and who waits for them."""

    __slots__ = (
        "authored",
        "barriers",
        "blind",
        "entries",
        "first",
        "reads",
        "replicas",
        "sent_s",
        "unread",
        "waiters",
    )

    def __init__(self, entries: list[Entry[Any, Any]], replicas: int, *, blind: bool = False) -> None:
        self.entries, self.replicas, self.blind = entries, replicas, blind
        self.waiters: dict[Any, list[Waiter]] = {}
        # What was put by somebody who waits for it.
        self.authored: dict[Any, bytes | None] = {}
        self.barriers: list[Barrier] = []
        self.first, self.reads, self.sent_s = 0, 0, 0.0
        # Those of which it could not be read what they replace.
        self.unread: list[tuple[Entry[Any, Any], StateError]] = []

    def join(self, key: Any, waiting: list[Waiting]) -> None:
        """They wait for what it carries."""
        self.waiters.setdefault(key, []).extend(one.waiter for one in waiting)
        for one in waiting:
            if one.author:
                self.authored[key] = one.payload

    def is_its_authors(self, entry: Entry[Any, Any]) -> bool:
        """Whether somebody has put what it carries, and learns what becomes of it."""
        return entry.key in self.authored and self.authored[entry.key] is entry.payload


class Barrier:
    """Done when all that it waits for is; with the first error there was."""

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.count = 1  # who adds to it, until all is added
        self._error: StateError | None = None

    def one(self, error: StateError | None) -> None:
        self.count -= 1
        if not isinstance(error, StateConflict):
            self._error = self._error or error
        if not self.count and not self.future.done():
            if self._error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(self._error)


class Flusher:
    """Of one table."""

    def __init__(self, table: SharedTable[Any, Any]) -> None:
        self._table, self._cache, self._durability = table, table.cache, table.durability
        self._every = table.durability.every or 0
        self.of_each_change = bool(self._every or table.durability.on_request_end)
        self._flights: set[Flight] = set()
        self._waiting: dict[Any, list[Waiting]] = {}
        self._changes = 0  # since a flight was taken
        self._batch = BATCH  # less, once the client had no room for so many
        self._full = False  # it had none for the last flight
        self._all_soon = self._urgent_soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None  # until then nothing is sent
        self._delay_s = 0.0
        # Refused, and still flying as far as the cache knows: nobody takes them before their time.
        self._aside: dict[Any, Entry[Any, Any]] = {}
        self._aside_timer: asyncio.TimerHandle | None = None
        self._aside_delay_s = 0.0
        self._refused: set[Any] = set()  # keys of those, until they are stored
        self._refusing = False  # the store took none of the last ones
        self._landing: list[asyncio.Future[None]] = []
        self._room: deque[asyncio.Future[None]] = deque()
        self._at_end = self._soon  # the same object each time: a request calls it once

    # --- when

    def changed(self) -> None:
        """An entry became dirty; with ``every`` and ``on_request_end`` also: a dirty one was put again."""
        if self._all_soon or (self._timer is not None and not self.of_each_change):
            return  # the usual case
        self._changes += 1
        self._arm()

    def _arm(self) -> None:
        """What is dirty will be stored in time."""
        when = self._durability
        if self._retry is not None or not self._table.running:
            return
        if not when.cached or 0 < self._every <= self._changes:
            self._soon()
            return
        if when.on_request_end:
            request = self._table.request()
            if request is None or not request.on_end(self._at_end):
                self._soon()
                return
        if when.interval_s is not None and self._timer is None:
            self._timer = self._table.loop.call_later(when.interval_s, self._flush_all)

    def urgent(self, entry: Entry[Any, Any], replicas: int, waiter: Waiter, *, author: bool = False) -> None:
        """Flushes this entry at the end of the turn; ``waiter`` is told when what it has now is stored. ``author``:
        who put it, and learns from that what became of it."""
        self._waiting.setdefault(entry.key, []).append(Waiting(waiter, replicas, author, entry.payload))
        self._urgently()

    def unavailable(self, error: StateError) -> None:
        """The store cannot be opened yet: who waits for it is told, as by a flight that failed."""
        flight = Flight([], 0)
        flight.sent_s = self._table.loop.time()
        for key in list(self._waiting):
            entry = self._cache.peek(key)
            if entry is None or not self._cache.take(entry):
                self._tell_those_behind(key, error)
                continue
            flight.entries.append(entry)
            flight.join(key, self._waiting.pop(key))
        if flight.entries:
            self._landed(flight, Written([], [(at, error) for at in range(len(flight.entries))]))

    def opened(self) -> None:
        """The store is there: what was changed before goes to it."""
        self._stop_waiting()
        if self._waiting or self._cache.dirty:
            self._soon()

    def read_base(self, entry: Entry[Any, Any]) -> None:
        """It was put before it was read: what it replaces is found out now, and not when it is flushed."""
        if not self._table.last_writer_wins:
            self._table.reads.fetch(entry.key, entry.packed, ignore)  # the flight that wants to know reads again

    async def flush(self) -> None:
        """All that is dirty now."""
        self._stop_waiting()
        barrier = Barrier(self._table.future())
        for flight in list(self._flights):
            for entry in flight.entries:
                if entry.changed:  # the next flight takes it
                    self._join(barrier, entry)
        left = self._cache.dirty
        while True:
            taken = self._take_off()
            left -= taken
            for flight in self._flights:
                if barrier not in flight.barriers:
                    flight.barriers.append(barrier)
                    barrier.count += 1
            if left <= 0 or not (taken or self._full):
                break
            await (self.landing() if self._full else asyncio.sleep(0))
        barrier.one(None)
        await barrier.future

    async def landing(self) -> None:
        """Returns when a flight has landed."""
        self._soon()
        future = self._table.future()
        self._landing.append(future)
        await future

    async def room(self, *, again: bool = False) -> None:
        """Returns when a flight has landed, or another who waited here had room: the cache may have some more. In turn;
        who is here ``again`` goes before those who have not had theirs. Who has returned calls :meth:`pass_on`."""
        self._soon()
        future = self._table.future()
        if again:
            self._room.appendleft(future)
        else:
            self._room.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.pass_on()
            raise

    def pass_on(self) -> None:
        """It is the next one's turn to see whether there is room."""
        while self._room:
            future = self._room.popleft()
            if not future.done():
                future.set_result(None)
                return

    async def drain(self, until_s: float) -> None:
        """Stores everything, again and again until that time of the loop."""
        loop = self._table.loop
        while self._cache.unstored and (left_s := until_s - loop.time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self.flush()
            except (StateError, TimeoutError):
                await asyncio.sleep(min(FIRST_DELAY_S, max(0.0, until_s - loop.time())))

    def close(self, error: StateError) -> None:
        """Who still waits is told."""
        for timer in (self._timer, self._retry, self._aside_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._retry = self._aside_timer = None
        for key in list(self._waiting):
            self._tell_those_behind(key, error)
        self._wake()

    def _soon(self) -> None:
        if not self._all_soon:
            self._all_soon = True
            self._table.soon(self._flush_all)

    def _urgently(self) -> None:
        if not self._urgent_soon:
            self._urgent_soon = True
            self._table.soon(self._flush_urgent)

    def _stop_waiting(self) -> None:
        """What failed is tried now and not later."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._release()

    # --- taking off

    def _flush_all(self) -> None:
        self._all_soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._retry is None and self._table.open and self._take_off() and self._cache.dirty:
            self._soon()

    def _take_off(self) -> int:
        """One flight, and those that somebody waits for; how many the one took and the client had room for."""
        self._flush_urgent()
        self._changes = 0
        entries = [] if self._full else self._cache.take_dirty(self._batch)
        if entries:
            self._fly(Flight(entries, self._durability.replicas))
        return 0 if self._full else len(entries)

    def _flush_urgent(self) -> None:
        self._urgent_soon = False
        if self._table.refused is not None:
            self.close(self._table.refused)
        if not self._waiting or self._retry is not None or not self._table.open:
            return
        flights: dict[int, Flight] = {}
        taken = 0
        for key, waiting in list(self._waiting.items()):
            entry = self._cache.peek(key)
            if entry is not None and entry.flying:
                if self._aside.pop(key, None) is None:
                    continue  # looked at again when it has landed
                self._cache.failed(entry)
            if entry is None or not self._cache.take(entry):
                self._tell_those_behind(key, None)
                continue
            del self._waiting[key]
            replicas = max(self._durability.replicas, *(one.replicas for one in waiting))
            flight = flights.setdefault(replicas, Flight([], replicas))
            flight.entries.append(entry)
            flight.join(key, waiting)
            taken += 1
            if taken == self._batch:
                self._urgently()
                break
        for flight in flights.values():
            self._fly(flight)

    def _fly(self, flight: Flight) -> None:
        """Once it is known what each entry replaces."""
        self._flights.add(flight)
        entries = flight.entries
        unread = [] if self._table.last_writer_wins else [entry for entry in entries if entry.version == UNKNOWN]
        if not unread:
            self._send(flight)
            return
        flight.reads = len(unread)
        for entry in unread:
            self._table.reads.fetch(entry.key, entry.packed, partial(self._read, flight, entry))

    def _read(
        self, flight: Flight, entry: Entry[Any, Any], _found: Entry[Any, Any] | None, error: StateError | None
    ) -> None:
        if entry.version == UNKNOWN:
            flight.unread.append((entry, error or StateError(f"{entry.key!r} was not read")))
        flight.reads -= 1
        if flight.reads:
            return
        failed = {entry.key for entry, _ in flight.unread}
        foreign = [entry for entry, why in flight.unread if isinstance(why, Unreadable) and entry.cached]
        flight.entries = [entry for entry in flight.entries if entry.key not in failed]
        for entry in flight.entries + foreign:
            if entry.changed:  # what was put meanwhile goes along, and who waits for that
                waiting = self._waiting.pop(entry.key, [])
                flight.join(entry.key, waiting)
                flight.replicas = max(flight.replicas, *(one.replicas for one in waiting), 0)
            self._cache.sent(entry)
        if foreign:
            self._replace(flight, foreign)
        self._send(flight)

    def _replace(self, flight: Flight, foreign: list[Entry[Any, Any]]) -> None:
        """What stands under these keys is no entry: it has no version, and nobody's value is lost with it."""
        flight.unread = [(entry, why) for entry, why in flight.unread if entry not in foreign]
        blind = Flight(foreign, flight.replicas, blind=True)
        blind.waiters = {e.key: flight.waiters.pop(e.key) for e in foreign if e.key in flight.waiters}
        blind.authored = {e.key: flight.authored.pop(e.key) for e in foreign if e.key in flight.authored}
        blind.barriers = flight.barriers[:]
        for barrier in blind.barriers:
            barrier.count += 1
        self._flights.add(blind)
        self._send(blind)

    def _send(self, flight: Flight) -> None:
        table, entries = self._table, flight.entries
        flight.sent_s = table.loop.time()
        if not entries:
            self._landed(flight, Written([], []))
            return
        flight.first = table.versions.take(len(entries))
        deadlines = [entry.deadline_ms for entry in entries]
        recents = [entry.recent for entry in entries]
        try:
            table.store.write(
                table.handle,
                [entry.packed for entry in entries],
                None if table.last_writer_wins or flight.blind else [entry.version for entry in entries],
                flight.first,
                [entry.payload for entry in entries],
                partial(self._landed, flight),
                deadlines=deadlines if any(deadlines) else None,
                recents=recents if any(recents) else None,
                replicas=flight.replicas,
            )
        except StateFull:
            self._put_back(flight)
        except StateError as error:
            self._landed(flight, Written([], [(at, error) for at in range(len(entries))]))

    def _put_back(self, flight: Flight) -> None:
        """The client has no room for it: when something has landed, or soon, in smaller flights."""
        self._flights.discard(flight)
        self._batch, self._full = max(1, len(flight.entries) // 2), True
        for entry in flight.entries:
            self._cache.failed(entry)
            self._again_urgent(flight, entry)
        if flight.unread:
            self._failed(flight.unread, flight)
        for barrier in flight.barriers:
            barrier.one(flight.unread[0][1] if flight.unread else None)
        if self._retry is None and self._table.running:
            self._retry = self._table.loop.call_later(FIRST_DELAY_S, self._again)

    # --- landing

    def _landed(self, flight: Flight, written: Written) -> None:
        table = self._table
        self._flights.discard(flight)
        conflicts, failed = dict(written.conflicts), dict(written.failed)
        failures = flight.unread
        if not conflicts and not failed:
            self._cache.flushed_all(flight.entries, flight.first)
        else:
            for at, entry in enumerate(flight.entries):
                if at in conflicts:
                    self._conflict(flight, entry, conflicts[at])
                elif isinstance(failed.get(at), Unreadable):
                    self._again_unread(flight, entry)
                elif at in failed:
                    failures.append((entry, failed[at]))
                else:
                    self._cache.flushed(entry, flight.first + at)
        table.counts["flushes"] += 1
        table.counts["flushed"] += len(flight.entries) - len(conflicts) - len(failed)
        table.flush_s = table.loop.time() - flight.sent_s
        if self._full:
            self._full = False
            self._stop_waiting()
            self._soon()
        if failures:
            self._failed(failures, flight)
        else:
            self._batch = min(BATCH, 2 * self._batch)
            if self._retry is None:
                self._delay_s = 0.0
            if self._refused:
                self._refused.difference_update([entry.key for entry in flight.entries])
            if not self._refused:
                self._aside_delay_s = 0.0
            if self._refusing:
                self._refusing = False
                table.refusal(None)
        for waiters in flight.waiters.values():
            self._tell(waiters, None)
        for barrier in flight.barriers:
            barrier.one(failures[0][1] if failures else None)
        if self._cache.dirty:
            self._arm()
        if self._waiting:
            self._urgently()
        self._wake()

    def _conflict(self, flight: Flight, entry: Entry[Any, Any], stored: Stored | None) -> None:
        """Another version stands in the store than the one this entry was based on."""
        if self._cache.conflicted(entry, stored, self._table.clock_ms()):
            error = self._table.conflict(entry, stored)
            self._refused.discard(entry.key)
            self._tell(flight.waiters.pop(entry.key, []), error)
            self._tell_those_behind(entry.key, error)  # what they put is lost with it
            return
        self._table.counts["recovered"] += 1
        self._soon()
        self._again_urgent(flight, entry)

    def _again_unread(self, flight: Flight, entry: Entry[Any, Any]) -> None:
        """What was read there is gone, and what stands there now is no entry."""
        self._cache.failed(entry)
        entry.version = UNKNOWN
        self._soon()
        self._again_urgent(flight, entry)

    def _again_urgent(self, flight: Flight, entry: Entry[Any, Any]) -> None:
        """Who waited for this entry's flight waits for its next."""
        author = flight.is_its_authors(entry)
        for waiter in flight.waiters.pop(entry.key, []):
            self.urgent(entry, flight.replicas, waiter, author=author)
        for barrier in flight.barriers:
            self._join(barrier, entry)

    def _failed(self, failures: list[tuple[Entry[Any, Any], StateError]], flight: Flight) -> None:
        """They are dirty and tried again later; but for those whose author is told, where a put stores or raises."""
        kept, out_of_reach = [], False
        for entry, error in failures:
            given_up = flight.is_its_authors(entry) and not entry.changed and not self._durability.cached
            if given_up or entry.changed or passes(error):
                self._cache.failed(entry)
                out_of_reach |= passes(error) and not given_up
            elif entry.flying:
                self._aside[entry.key] = entry
                self._refused.add(entry.key)
            if given_up:
                self._cache.discard(entry)
                self._refused.discard(entry.key)
            else:
                kept.append(entry.key)
            self._tell(flight.waiters.pop(entry.key, []), error)
            if given_up:
                self._tell_those_behind(entry.key, error)
        self._table.counts["flush_failures"] += len(failures)
        self._refusing = True
        self._table.refusal(failures[0][1])
        first, loop = False, self._table.loop
        if out_of_reach and self._retry is None and self._table.running:
            first, self._delay_s = not self._delay_s, min(LAST_DELAY_S, 2 * self._delay_s) or FIRST_DELAY_S
            self._retry = loop.call_later(self._delay_s, self._again)
        if self._aside and self._aside_timer is None and self._table.running:
            first |= not self._aside_delay_s
            self._aside_delay_s = min(LAST_DELAY_S, 2 * self._aside_delay_s) or FIRST_DELAY_S
            self._aside_timer = loop.call_later(self._aside_delay_s, self._aside_again)
        if kept:
            self._table.failed(failures[0][1], kept, first=first)

    def _again(self) -> None:
        self._retry, self._full = None, False
        self._flush_all()

    def _release(self) -> None:
        """What was refused is dirty like others."""
        if self._aside_timer is not None:
            self._aside_timer.cancel()
            self._aside_timer = None
        aside, self._aside = self._aside, {}
        for entry in aside.values():
            self._cache.failed(entry)

    def _aside_again(self) -> None:
        self._release()
        self._soon()

    def _tell(self, waiters: list[Waiter], error: StateError | None) -> None:
        """One that raises does not keep others from being told."""
        for waiter in waiters:
            try:
                waiter(error)
            except Exception as raised:
                self._table.report(raised)

    def _tell_those_behind(self, key: Any, error: StateError | None) -> None:
        """Who waits for a flight of this entry, and there will be none."""
        self._tell([one.waiter for one in self._waiting.pop(key, ())], error)

    def _join(self, barrier: Barrier, entry: Entry[Any, Any]) -> None:
        barrier.count += 1
        self.urgent(entry, 0, barrier.one)

    def _wake(self) -> None:
        landing, self._landing = self._landing, []
        for future in landing:
            if not future.done():
                future.set_result(None)
        self.pass_on()
