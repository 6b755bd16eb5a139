"""``update``: compare-and-set, again with the fresh value when another replica was faster.

Calls on one key that come while one is under way are combined: their functions run one after the other on its outcome,
and one write carries them all. So a writer has one update of a key under way at a time, as the store asks for, and a
hot key costs one round trip per write and not per call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StateConflict, StateError
from .cache import Entry
from .store import Stored, Written, carried

if TYPE_CHECKING:
    from .shared import SharedTable

__all__ = ["Updates"]


class Call(NamedTuple):
    fn: Callable[[Any], Any]
    default: Any
    replicas: int
    future: asyncio.Future[Any]


class Update:
    """One key's: the calls that wait, and those that the write under way carries."""

    __slots__ = ("calls", "deadline_ms", "flying", "key", "packed", "payload", "recent", "results", "value", "version")

    def __init__(self, key: Any, packed: bytes) -> None:
        self.key, self.packed = key, packed
        self.calls: list[Call] = []
        self.flying: list[Call] = []
        self.results: list[Any] = []
        # The outcome so far, and what the entry had that it is made from.
        self.value: Any = None
        self.payload, self.recent = b"", b""
        self.version, self.deadline_ms = 0, 0


class Updates:
    """Of one table."""

    def __init__(self, table: SharedTable[Any, Any]) -> None:
        self._table = table
        self._keys: dict[bytes, Update] = {}
        self._new: list[Update] = []
        self._ready: list[Update] = []
        self._soon = False

    def call(
        self, key: Any, packed: bytes, fn: Callable[[Any], Any], default: Any, replicas: int
    ) -> asyncio.Future[Any]:
        """The outcome of one call, to come."""
        call = Call(fn, default, replicas, self._table.future())
        update = self._keys.get(packed)
        if update is not None:
            update.calls.append(call)
        else:
            update = self._keys[packed] = Update(key, packed)
            update.calls.append(call)
            self._new.append(update)
            self._at_the_end_of_the_turn()
        return call.future

    def _at_the_end_of_the_turn(self) -> None:
        if not self._soon:
            self._soon = True
            self._table.soon(self._turn)

    def close(self, error: StateError) -> None:
        """Who still waits is told."""
        for update in self._keys.values():
            for call in update.flying + update.calls:
                if not call.future.done():
                    call.future.set_exception(error)
            update.flying, update.calls = [], []

    def _turn(self) -> None:
        new, self._new = self._new, []
        for update in new:
            self._begin(update)
        self._soon = False
        ready, self._ready = self._ready, []
        if ready:
            self._send(ready)

    def _begin(self, update: Update) -> None:
        """From the value that stands in the store: what this replica has changed goes there first."""
        entry = self._table.present(update.key)
        if entry is None:
            self._table.reads.fetch(update.key, update.packed, partial(self._fetched, update))
        else:
            self._from(update, entry)

    def _fetched(self, update: Update, entry: Entry[Any, Any] | None, error: StateError | None) -> None:
        if entry is None:
            self._end(update, update.calls, error)
        else:
            self._from(update, entry)

    def _from(self, update: Update, entry: Entry[Any, Any]) -> None:
        if entry.dirty:
            self._table.flusher.urgent(entry, 0, partial(self._flushed, update))
        else:
            self._attempt(update, entry)

    def _flushed(self, update: Update, error: StateError | None) -> None:
        # After a conflict the store's value stands, as it does after any flush.
        if error is None or isinstance(error, StateConflict):
            self._begin(update)
        else:
            self._end(update, update.calls, error)

    # --- one attempt

    def _attempt(self, update: Update, base: Entry[Any, Any]) -> None:
        """Runs the functions on ``base``; the outcome is written at the end of the turn."""
        table, values = self._table, self._table.values
        calls, update.calls = update.calls, []
        update.version, update.deadline_ms, update.recent = base.version, base.deadline_ms, base.recent
        update.value, update.flying, update.results = table.value_of(base), [], []
        if update.value is None:
            update.deadline_ms = 0  # of one that has expired
        for call in calls:
            if call.future.done():
                continue  # who called has been cancelled
            try:
                value = call.default if update.value is None else update.value
                if value is None:
                    raise KeyError(update.key)
                value = call.fn(value)
                update.payload = values.pack(value)
            except StopIteration as error:  # which no future takes
                call.future.set_exception(RuntimeError(f"{call.fn!r} raised {error!r}"))
            except Exception as error:
                call.future.set_exception(error)
            else:
                update.value = value
                update.flying.append(call)
                update.results.append(value)
        if not update.flying:
            self._end(update, [], None)
            return
        self._ready.append(update)
        self._at_the_end_of_the_turn()

    def _send(self, ready: list[Update]) -> None:
        for batch in [[u] for u in ready]:
            replicas = max(call.replicas for call in batch[0].flying)
            first = self._table.versions.take(len(batch))
            try:
                self._table.store.write(
                    self._table.handle,
                    [update.packed for update in batch],
                    [update.version for update in batch],
                    first,
                    [update.payload for update in batch],
                    partial(self._written, batch, first),
                    deadlines=[update.deadline_ms for update in batch],
                    recents=[update.recent for update in batch],
                    update=True,
                    replicas=replicas,
                )
            except StateError as error:
                self._written(batch, first, Written([], [(at, error) for at in range(len(batch))]))

    def _written(self, batch: list[Update], first: int, written: Written) -> None:
        conflicts, failed = dict(written.conflicts), dict(written.failed)
        for at, update in enumerate(batch):
            if at in failed:
                self._table.forget(update.key)
                self._end(update, update.flying, failed[at])
            elif at in conflicts:
                self._again(update, conflicts[at])
            else:
                self._stored(update, first + at)

    def _again(self, update: Update, stored: Stored | None) -> None:
        """Another replica was faster: its value is the base now."""
        self._table.counts["update_retries"] += 1
        update.calls = update.flying + update.calls
        try:
            base = self._table.overtaken(update.key, update.packed, stored)
        except StateError as error:
            self._end(update, update.calls, error)
        else:
            self._from(update, base)

    def _stored(self, update: Update, version: int) -> None:
        stored = Stored(version, update.deadline_ms, carried(update.recent, version), update.payload)
        self._table.updated(update.key, update.packed, update.value, stored)
        for call, value in zip(update.flying, update.results, strict=True):
            if not call.future.done():
                call.future.set_result(value)
        update.flying = []
        self._end(update, [], None)

    def _end(self, update: Update, calls: list[Call], error: StateError | None) -> None:
        """These calls failed. The key is done with, or the calls that came meanwhile begin."""
        if calls is update.calls:
            update.calls = []
        update.flying = []
        for call in calls:
            if not call.future.done():
                assert error is not None
                call.future.set_exception(error)
        if update.calls:
            self._begin(update)
        else:
            del self._keys[update.packed]
