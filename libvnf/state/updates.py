"""``update``: compare-and-set, again with the fresh value when another replica was faster.

Calls on one key that come while one is under way are combined: their functions run one after the other on its outcome,
and one write carries them all. So a writer has one update of a key under way at a time, as the store asks for, and a
hot key costs one round trip per write and not per call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import StateConflict, StateError
from .cache import Entry
from .store import Stored, Written, carried

if TYPE_CHECKING:
    from .shared import SharedTable

__all__ = ["Updates"]

SINGLY = 256
"""Up to so many updates of a turn go one by one, so that each is answered when its node answers. More go together."""

Call: TypeAlias = "tuple[Callable[[Any], Any], Any, int, asyncio.Future[Any]]"
"""The function, the default, how many replicas shall have it, and the outcome to come."""


class Update:
    """One key's: the calls that wait, and those that the write under way carries, with what they return."""

    __slots__ = ("base", "calls", "deadline_ms", "flying", "fresh", "key", "packed", "payload", "recent", "value")

    def __init__(self, key: Any, packed: bytes) -> None:
        self.key, self.packed = key, packed
        self.calls: list[Call] = []
        self.flying: list[tuple[Call, Any]] = []
        # The outcome so far, and what stood there before.
        self.value: Any = None
        self.payload = self.recent = b""
        self.base = self.deadline_ms = 0
        self.fresh = True  # nobody has changed the key since the write was begun


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
        future = self._table.future()
        update = self._keys.get(packed)
        if update is not None:
            update.calls.append((fn, default, replicas, future))
        else:
            update = self._keys[packed] = Update(key, packed)
            update.calls.append((fn, default, replicas, future))
            self._new.append(update)
            self._at_the_end_of_the_turn()
        return future

    def _at_the_end_of_the_turn(self) -> None:
        if not self._soon:
            self._soon = True
            self._table.soon(self._turn)

    def _turn(self) -> None:
        new, self._new = self._new, []
        for update in new:
            self._begin(update)
        self._soon = False
        ready, self._ready = self._ready, []
        self._send(ready)

    def overtaken(self, packed: bytes) -> None:
        """Another has changed the key: what is under way may have been before that."""
        if (update := self._keys.get(packed)) is not None:
            update.fresh = False

    def all_overtaken(self) -> None:
        for update in self._keys.values():
            update.fresh = False

    def close(self, error: StateError) -> None:
        """Who still waits is told."""
        for update in self._keys.values():
            calls = [call for call, _ in update.flying] + update.calls
            update.flying, update.calls = [], []
            _fail(calls, error)

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
        table, pack = self._table, self._table.values.pack
        calls, update.calls = update.calls, []
        try:
            value = table.value_of(base)
        except StateError as error:
            self._end(update, calls, error)
            return
        # What has expired has no deadline to keep.
        update.deadline_ms = 0 if value is None else base.deadline_ms
        update.base, update.recent = base.version, base.recent
        for call in calls:
            fn, default, _, future = call
            if future.done():
                continue  # who called has been cancelled
            try:
                new = default if value is None else value
                if new is None:
                    raise KeyError(update.key)
                new = fn(new)
                update.payload = pack(new)
            except StopIteration as error:  # which no future takes
                future.set_exception(RuntimeError(f"{fn!r} raised {error!r}"))
            except Exception as error:
                future.set_exception(error)
            else:
                value = new
                update.flying.append((call, new))
        update.value = value
        if not update.flying:
            self._end(update, [], None)
            return
        self._ready.append(update)
        self._at_the_end_of_the_turn()

    def _send(self, ready: list[Update]) -> None:
        if len(ready) <= SINGLY:
            for update in ready:
                self._write([update], max([call[2] for call, _ in update.flying]))
            return
        batches: dict[int, list[Update]] = {}
        for update in ready:
            batches.setdefault(max([call[2] for call, _ in update.flying]), []).append(update)
        for replicas, batch in batches.items():
            self._write(batch, replicas)

    def _write(self, batch: list[Update], replicas: int) -> None:
        table = self._table
        first = table.versions.take(len(batch))
        for update in batch:
            update.fresh = True
        try:
            table.store.write(
                table.handle,
                [update.packed for update in batch],
                [update.base for update in batch],
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
        if not written.conflicts and not written.failed:
            for version, update in enumerate(batch, first):
                self._stored(update, version)
            return
        conflicts, failed = dict(written.conflicts), dict(written.failed)
        for at, update in enumerate(batch):
            if at in failed:
                self._table.forget(update.key)
                calls, update.flying = [call for call, _ in update.flying], []
                self._end(update, calls, failed[at])
            elif at in conflicts:
                self._again(update, conflicts[at])
            else:
                self._stored(update, first + at)

    def _again(self, update: Update, stored: Stored | None) -> None:
        """Another replica was faster: its value is the base now."""
        self._table.counts["update_retries"] += 1
        update.calls = [call for call, _ in update.flying] + update.calls
        update.flying = []
        try:
            base = self._table.overtaken(update.key, update.packed, stored, fresh=update.fresh)
        except StateError as error:
            calls, update.calls = update.calls, []
            self._end(update, calls, error)
        else:
            self._from(update, base)

    def _stored(self, update: Update, version: int) -> None:
        stored = Stored(version, update.deadline_ms, carried(update.recent, version), update.payload)
        self._table.updated(update.key, update.packed, update.value, stored, fresh=update.fresh)
        flying, update.flying = update.flying, []
        for (_, _, _, future), value in flying:
            if not future.done():
                future.set_result(value)
        self._end(update, [], None)

    def _end(self, update: Update, calls: list[Call], error: StateError | None) -> None:
        """These calls failed. The key is done with, or the calls that came meanwhile begin."""
        if calls is update.calls:
            update.calls = []
        if error is not None:
            _fail(calls, error)
        if update.calls:
            self._begin(update)
        else:
            del self._keys[update.packed]


def _fail(calls: list[Call], error: StateError) -> None:
    for *_, future in calls:
        if not future.done():
            future.set_exception(error)
