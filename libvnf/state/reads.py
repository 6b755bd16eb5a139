"""Misses: those of one turn of the loop go to the store together, those of one key are one read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import StateError
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


class Reads:
    """What one table waits for."""

    def __init__(self, table: SharedTable[Any, Any]) -> None:
        self._table = table
        self._waiting: dict[bytes, list[Waiter]] = {}
        self._queue: list[tuple[Any, bytes]] = []

    def fetch(self, key: Any, packed: bytes, waiter: Waiter) -> None:
        """Reads the key, or joins the read that is under way."""
        waiters = self._waiting.get(packed)
        if waiters is not None:
            waiters.append(waiter)
            return
        self._waiting[packed] = [waiter]
        self._queue.append((key, packed))
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
                read(handle, [packed for _, packed in part], partial(self._arrived, part))
            except StateError as error:
                self._arrived(part, [error] * len(part))

    def fail(self, error: StateError) -> None:
        """The store cannot be opened: who waits is told."""
        queue, self._queue = self._queue, []
        self._arrived(queue, [error] * len(queue))

    def _arrived(self, part: list[tuple[Any, bytes]], answers: list[Stored | StateError | None]) -> None:
        for (key, packed), answer in zip(part, answers, strict=True):
            entry = error = None
            if isinstance(answer, StateError):
                error = answer
            else:
                try:
                    entry = self._table.arrived(key, packed, answer)
                except StateError as caught:
                    error = caught
            for waiter in self._waiting.pop(packed):
                waiter(entry, error)
