"""Misses: those of one key are one read; a few of one turn of the loop are asked for one by one, many together.

What others change is told at once, and may overtake the answer to what was asked before: that answer is handed to who
waits for it, and cached for no longer than their next step, since the store tells of a change only once. Who asks after
the change was told has a read of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import StateError, Unreadable
from .cache import Entry
from .store import Stored

if TYPE_CHECKING:
    from .shared import SharedTable

__all__ = ["Reads", "Waiter"]

SINGLY = 256
"""Up to so many reads go one by one, and each is answered when its node answers. More go together: by far less of the
nodes' time, but the slowest node's answer is then that of all."""

Waiter: TypeAlias = Callable[[Entry[Any, Any] | None, StateError | None], object]
"""Gets the entry, cached or not, absent ones too; or why there is none."""

Read: TypeAlias = tuple[Any, bytes, list[Waiter]]
"""The key, as it is and packed, and who waits for it."""


class Reads:
    """What one table waits for."""

    def __init__(self, table: SharedTable[Any, Any]) -> None:
        self._table = table
        # By key, those that nothing has overtaken: reads, and whatever else is under way and says what stands there.
        self._waiting: dict[bytes, list[Waiter]] = {}
        self._watched: dict[bytes, list[object]] = {}
        self._queue: list[Read] = []

    def fetch(self, key: Any, packed: bytes, waiter: Waiter) -> None:
        """Reads the key, or joins the read that is under way."""
        waiters = self._waiting.get(packed)
        if waiters is not None:
            waiters.append(waiter)
            return
        waiters = self._waiting[packed] = [waiter]
        self._queue.append((key, packed, waiters))
        if len(self._queue) == 1:
            self._table.soon(self.send)

    def send(self) -> None:
        """At the end of a turn; not before the store is open."""
        if self._table.refused is not None:
            self.fail(self._table.refused)
        if not self._table.open or not self._queue:
            return
        queue, self._queue = self._queue, []
        handle, read = self._table.handle, self._table.store.read
        for part in [queue] if len(queue) > SINGLY else [[one] for one in queue]:
            try:
                read(handle, [packed for _, packed, _ in part], partial(self._arrived, part))
            except StateError as error:
                self._arrived(part, [error] * len(part))

    def fail(self, error: StateError) -> None:
        """The store cannot be opened: who waits is told."""
        queue, self._queue = self._queue, []
        self._arrived(queue, [error] * len(queue))

    def _arrived(self, part: list[Read], answers: list[Stored | StateError | None]) -> None:
        for (key, packed, waiters), answer in zip(part, answers, strict=True):
            entry: Entry[Any, Any] | None = None
            error: StateError | None = None
            fresh = self._waiting.get(packed) is waiters
            if fresh:
                del self._waiting[packed]
            if isinstance(answer, Unreadable):
                self._table.counts["unreadable"] += 1
                error = Unreadable(f"table {self._table.name!r}, {key!r}: {answer}")
            elif isinstance(answer, StateError):
                error = answer
            else:
                try:
                    entry = self._table.arrived(key, packed, answer, fresh=fresh)
                except StateError as caught:
                    error = caught
            for waiter in waiters:
                try:
                    waiter(entry, error)
                except Exception as raised:  # the others, and the other keys, are told all the same
                    self._table.report(raised)

    # --- what others change meanwhile

    def watch(self, packed: bytes, what: object) -> None:
        """``what`` is under way, and its answer will say what stands there."""
        self._watched.setdefault(packed, []).append(what)

    def unwatch(self, packed: bytes, what: object) -> bool:
        """It was answered. False: it has been overtaken."""
        watched = self._watched.get(packed, [])
        if what not in watched:
            return False
        watched.remove(what)
        if not watched:
            del self._watched[packed]
        return True

    def overtaken(self, packed: bytes) -> None:
        self._waiting.pop(packed, None)
        self._watched.pop(packed, None)

    def all_overtaken(self) -> None:
        self._waiting.clear()
        self._watched.clear()
