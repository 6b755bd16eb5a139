"""Misses: those of one turn of the loop go to the store together, those of one key are one read."""

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

Waiter: TypeAlias = Callable[[Entry[Any, Any] | None, StateError | None], object]
"""Gets the entry, cached or not, absent ones too; or why there is none."""


class Reads:
    """What one table waits for."""

    def __init__(self, table: SharedTable[Any, Any]) -> None:
        self._table = table
        self._waiting: dict[bytes, tuple[Any, list[Waiter]]] = {}
        self._queue: list[bytes] = []

    def fetch(self, key: Any, packed: bytes, waiter: Waiter) -> None:
        """Reads the key, or joins the read that is under way."""
        found = self._waiting.get(packed)
        if found is not None:
            found[1].append(waiter)
            return
        self._waiting[packed] = (key, [waiter])
        self._queue.append(packed)
        if len(self._queue) == 1:
            self._table.soon(self.send)

    def send(self) -> None:
        """At the end of a turn; not before the store is open."""
        if self._table.refused is not None:
            self.fail(self._table.refused)
        if not self._table.open or not self._queue:
            return
        queue, self._queue = self._queue, []
        try:
            self._table.store.read(self._table.handle, queue, partial(self._arrived, queue))
        except StateError as error:
            self._arrived(queue, [error] * len(queue))

    def fail(self, error: StateError) -> None:
        """The store cannot be opened: who waits is told."""
        queue, self._queue = self._queue, []
        self._arrived(queue, [error] * len(queue))

    def _arrived(self, queue: list[bytes], answers: list[Stored | StateError | None]) -> None:
        for packed, answer in zip(queue, answers, strict=True):
            key, waiters = self._waiting.pop(packed)
            entry: Entry[Any, Any] | None = None
            error: StateError | None = None
            if isinstance(answer, Unreadable):
                self._table.counts["unreadable"] += 1
                error = Unreadable(f"table {self._table.name!r}, {key!r}: {answer}")
            elif isinstance(answer, StateError):
                error = answer
            else:
                try:
                    entry = self._table.arrived(key, packed, answer)
                except StateError as caught:
                    error = caught
            for waiter in waiters:
                waiter(entry, error)
