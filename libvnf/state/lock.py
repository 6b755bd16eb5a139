"""Locks: one holder of a key among all replicas, first come first served within this one.

Exclusion is the store's. Each write of a holder names its lock, and the store refuses it when that is another's by
then, or nobody's: a holder that stood still past its lease loses its own writes, and never its successor's. A lock ends
with its ``async with``, by a lease that nobody renewed (the loop stood still, the store was out of reach), and
``max_hold_s`` after it was asked for, whatever its holder does.

Here is who waits. Of one key's waiters in this process only the first asks the store, so that no two of them compete;
with other replicas it competes by asking again and again. A replica whose own waiters had the lock from each other for
a second lets the others have a chance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import LockLost, StateConflict, StateError
from .answers import ignore, settle, settle_with
from .guarded import Guarded
from .held import LEASE_LOST, LEFT, OVERSTAYED, Held, Line, check_lock
from .store import Stored

if TYPE_CHECKING:
    import asyncio

    from .shared import SharedTable

__all__ = ["LOCK_COUNTS", "Lock", "Locks"]

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

FIRST_POLL_S, LAST_POLL_S = 0.01, 0.1
BEAT_S = 1.0
LOCK_COUNTS = ("locks", "lock_polls", "leases_lost", "unlock_failures")


class Lock(Generic[K, V]):
    """``async with`` it, once. See :meth:`Table.lock`."""

    def __init__(self, locks: Locks[K, V], key: K, lease_s: float, max_hold_s: float, timeout_s: float | None) -> None:
        check_lock(locks.table.name, lease_s, max_hold_s, timeout_s)
        self._locks, self._table, self._key, self._packed = locks, locks.table, key, locks.table.keys.pack(key)
        self._lease_s, self._max_hold_s, self._timeout_s = lease_s, max_hold_s, timeout_s
        self._until_s: float | None = None
        self._turn: asyncio.Future[None] | None = None
        self._held: Guarded[K, V] | None = None

    async def __aenter__(self) -> Held[K, V]:
        if self._turn is not None:
            raise RuntimeError("a lock is entered once: call table.lock(…) again")
        self._table.check_open()
        self._until_s = None if self._timeout_s is None else self._table.loop.time() + self._timeout_s
        self._turn = turn = self._table.future()
        self._locks.line.enter(self._packed, turn, f"table {self._table.name!r}: lock({self._key!r})")
        try:
            await self._within(turn)
            held = self._held = await self._take()
        except BaseException:
            self._locks.line.leave(self._packed, turn)
            raise
        try:
            await self._read(held)
        except BaseException:
            if (released := self._locks.release(held.owner)) is not None:
                released.cancel()
            raise
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Given back on every way out. :class:`LockLost` where the holder does not know yet that it lost it."""
        assert self._held is not None
        held = self._held
        why_lost, released = held.why_lost, self._locks.release(held.owner)
        if kind is not None:
            if released is not None:
                released.cancel()
        elif released is None:
            raise held.error(why_lost)
        else:
            await released

    # --- inside

    async def _take(self) -> Guarded[K, V]:
        """Asks the store until the lock is ours."""
        table, locks = self._table, self._locks
        owner, delay_s = table.versions.take(), FIRST_POLL_S
        if locks.line.is_greedy(self._packed, table.loop.time()):
            await self._sleep(LAST_POLL_S)
        while True:
            asked_s = table.loop.time()
            answer: asyncio.Future[int | None] = table.future()
            table.store.lock(
                table.handle,
                self._packed,
                owner,
                round(self._lease_s * 1000),
                partial(self._answered, answer, owner),
                hold_ms=round(self._max_hold_s * 1000),
            )
            try:
                fence = await self._within(answer)
            except BaseException:
                locks.give_back(self._packed, owner)  # it may be on its way
                raise
            if fence is not None:
                assert self._turn is not None
                held = Guarded(table, locks.over, self._key, self._packed, owner, fence)
                locks.taken(owner, held, self._turn, asked_s + self._max_hold_s)
                return held
            table.counts["lock_polls"] += 1
            await self._sleep(delay_s * (0.5 + locks.chance() / 2))
            delay_s = min(LAST_POLL_S, 2 * delay_s)

    def _answered(self, answer: asyncio.Future[int | None], owner: int, got: int | StateError | None) -> None:
        if got is not None and answer.done():
            self._locks.give_back(self._packed, owner)  # nobody waits for it any more
        if answer.done():
            return
        if isinstance(got, StateError):
            answer.set_exception(got)
        else:
            answer.set_result(got)

    async def _read(self, held: Guarded[K, V]) -> None:
        """What this replica has changed is stored first; then what stands there is read, whatever is cached."""
        table = self._table
        entry = table.cache.peek(self._key)
        if entry is not None and entry.dirty:
            stored: asyncio.Future[None] = table.future()
            table.flusher.urgent(entry, 0, partial(settle, stored))
            try:
                await self._within(stored)
            except StateConflict:
                pass  # the store's value stands, and is read now
        answer: asyncio.Future[list[Stored | StateError | None]] = table.future()
        table.store.read(table.handle, [self._packed], partial(settle_with, answer))
        table.reads.watch(self._packed, answer)
        try:
            [found] = await self._within(answer)
        finally:
            fresh = table.reads.unwatch(self._packed, answer)
        if isinstance(found, StateError):
            raise found
        held.read(found, fresh=fresh)

    async def _sleep(self, delay_s: float) -> None:
        awake: asyncio.Future[None] = self._table.future()
        timer = self._table.loop.call_later(delay_s, partial(settle, awake, None))
        try:
            await self._within(awake)
        finally:
            timer.cancel()

    async def _within(self, future: asyncio.Future[T]) -> T:
        """Its result, or ``TimeoutError`` when the time for all of it is over."""
        if self._until_s is None:
            return await future
        timer = self._table.loop.call_at(self._until_s, self._late, future)
        try:
            return await future
        finally:
            timer.cancel()

    def _late(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            name = self._table.name
            future.set_exception(
                TimeoutError(f"table {name!r}: no lock of {self._key!r} within {self._timeout_s} seconds")
            )


class Locks(Generic[K, V]):
    """Of one table. ``chance()`` is a random number from 0 to 1."""

    def __init__(self, table: SharedTable[K, V], chance: Callable[[], float]) -> None:
        self.table, self.chance = table, chance
        self.line: Line[bytes] = Line()
        self._holding: dict[int, tuple[Guarded[K, V], asyncio.Future[None], asyncio.TimerHandle]] = {}
        self._beating: asyncio.TimerHandle | None = None

    def taken(self, owner: int, held: Guarded[K, V], turn: asyncio.Future[None], until_s: float) -> None:
        self.table.counts["locks"] += 1
        self.line.taken(held.packed, self.table.loop.time())
        timer = self.table.loop.call_at(until_s, self._overstayed, held)
        self._holding[owner] = held, turn, timer
        if self._beating is None:
            self._beat()

    def release(self, owner: int) -> asyncio.Future[None] | None:
        """Gives it back now; the future tells what the store says to that. None: it is over already."""
        if owner not in self._holding:
            return None
        held = self._holding[owner][0]
        future: asyncio.Future[None] = self.table.loop.create_future()
        self._unlock(held.packed, owner, partial(self._released, future, held))
        held.lose(LEFT)
        return future

    def over(self, owner: int) -> None:
        """Given back or lost: whoever is next has its turn."""
        found = self._holding.pop(owner, None)
        if found is None:
            return
        held, turn, timer = found
        timer.cancel()
        self.line.leave(held.packed, turn)

    def give_back(self, packed: bytes, owner: int) -> None:
        """What may have been taken, and nobody wants any more."""
        self._unlock(packed, owner, ignore)

    def lost(self, owner: int) -> None:
        """The store says so."""
        if owner in self._holding:
            self._holding[owner][0].lose(LEASE_LOST)

    def close(self, error: StateError) -> None:
        """Locks are left to their leases."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        for _, _, timer in self._holding.values():
            timer.cancel()
        self.line.clear(error)

    # --- inside

    def _beat(self) -> None:
        self._beating = None
        if self._holding and self.table.open:
            self.table.store.beat()
            self._beating = self.table.loop.call_later(BEAT_S, self._beat)

    def _overstayed(self, held: Guarded[K, V]) -> None:
        self.give_back(held.packed, held.owner)
        held.lose(OVERSTAYED)

    def _unlock(self, packed: bytes, owner: int, done: Callable[[StateError | None], object]) -> None:
        try:
            self.table.store.unlock(self.table.handle, packed, owner, done)
        except StateError as error:
            done(error)

    def _released(self, future: asyncio.Future[None], held: Guarded[K, V], error: StateError | None) -> None:
        if isinstance(error, LockLost):
            self.table.counts["leases_lost"] += 1
            held.why_lost = LEASE_LOST
            if not future.done():
                future.set_exception(held.error(LEASE_LOST))
            return
        if error is not None:
            self.table.counts["unlock_failures"] += 1  # it is left to its lease
        if not future.done():
            future.set_result(None)
