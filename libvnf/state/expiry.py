"""``on_expire``: the entries whose time is over, each handled by one of the replicas.

Every replica claims due entries, now and then and at times of its own; nobody else is given them for ``CLAIM_S``. The
handler of one that was claimed runs, and then the entry is removed where it is still the one that was handled. So an
entry is handled once in the ordinary case, and at least once always: whoever dies in between leaves it to the next.

A handler that raises, or takes so long that another replica may be given the entry, is reported. Its entry comes again
when the claim is over; with each further failure it is passed over for twice as long.

Until the entry is removed it stands in the store, and is read as absent. What is put under its key meanwhile counts: it
is a write like any other, based on the expired version, and the entry is then not the one that was handled.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import StateError
from .answers import ignore
from .store import Stored

if TYPE_CHECKING:
    import asyncio

    from .shared import SharedTable

__all__ = ["EXPIRY_COUNTS", "Sweeper"]

K = TypeVar("K")
V = TypeVar("V")

EXPIRY_COUNTS = ("expired", "expire_failures", "expire_late", "expire_passed_over", "claims_failed")
REMEMBERED = 4096
"""Keys whose handler failed; of more the oldest are forgotten, and come as if for the first time."""


INTERVAL_S = 1.0
"""About how often a replica looks, when there was nothing to do."""
CLAIM_S, HANDLER_S = 30.0, 20.0
"""How long an entry is nobody else's, and when its handler is cancelled: before another replica has the entry."""
MOST = 64
"""Entries that a replica has claimed and not removed: no more handlers run at once."""
LAST_DELAY_S = 3600.0


class Claim(Generic[K]):
    __slots__ = ("key", "late", "packed", "stored", "task", "timer", "until_ms")

    def __init__(self, key: K, packed: bytes, stored: Stored, until_ms: int) -> None:
        self.key, self.packed, self.stored, self.until_ms = key, packed, stored, until_ms
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.late = False


class Sweeper(Generic[K, V]):
    """Of one table. ``chance()`` is a random number from 0 to 1, ``report`` is told what handlers raise."""

    def __init__(
        self,
        table: SharedTable[K, V],
        handler: Callable[[K, V], Any],
        *,
        chance: Callable[[], float],
        report: Callable[[BaseException], object],
    ) -> None:
        self._table, self._handler, self._chance, self._report = table, handler, chance, report
        self._claims: dict[bytes, Claim[K]] = {}  # being handled, or handled and not yet removed
        self._waiting: list[tuple[bytes, Stored, int]] = []  # claimed, and no room for them yet
        self._handled: list[Claim[K]] = []  # to be removed
        self._failures: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # how many, and when it may run again
        self._timer: asyncio.TimerHandle | None = None
        self._asking = self._removing = self._stopped = False
        self._more = self._hurried = False  # the last claim found some; a sweep is due at once
        self._beginning = False  # there is room for some that wait
        self._idle: asyncio.Future[None] | None = None
        self._delay_s = 0.0  # while claims fail

    def start(self) -> None:
        self._arm(INTERVAL_S * self._chance())

    def stop(self) -> None:
        """No more claims; handlers that run come to their end."""
        self._stopped = True
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def drain(self, until_s: float) -> None:
        """No more claims; returns when the handlers that run have come to their end, or at that time of the loop."""
        self.stop()
        if not self._claims:
            return
        self._idle = self._table.future()
        timer = self._table.loop.call_at(until_s, self._wake)
        try:
            await self._idle
        finally:
            timer.cancel()

    def close(self) -> None:
        """Cancels the handlers that run; other replicas get their entries."""
        self.stop()
        for claim in list(self._claims.values()):
            if claim.task is not None:
                claim.task.cancel()
        self._wake()

    @property
    def busy(self) -> int:
        """Entries claimed and not yet removed."""
        return len(self._claims)

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _forget(self, claim: Claim[K]) -> None:
        """Dealt with, or left to the next who claims it."""
        self._claims.pop(claim.packed, None)
        if not self._claims:
            self._wake()
        if self._waiting and not self._beginning:
            self._beginning = True
            self._table.soon(self._begin_waiting)
        self._hurry()

    # --- claiming

    def _arm(self, delay_s: float) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._table.loop.call_later(delay_s, self._sweep)

    def _hurry(self) -> None:
        """Where some were due there may be more: as soon as there is room for a good many."""
        busy = len(self._claims) + len(self._waiting)
        if self._more and not self._hurried and not self._asking and busy <= MOST // 2:
            self._hurried = True
            self._arm(0.0)

    def _sweep(self) -> None:
        self._timer, self._hurried = None, False
        self._remove()
        self._begin_waiting()
        room = MOST - len(self._claims) - len(self._waiting)
        if self._asking or self._stopped:
            return
        if not self._table.open or room <= 0:
            self._arm(self._interval_s())
            return
        now_ms, claim_ms = self._table.clock_ms(), round(CLAIM_S * 1000)
        self._asking = True
        done = partial(self._claimed, now_ms + claim_ms)
        try:
            self._table.store.claim_expired(self._table.handle, now_ms, claim_ms, room, done)
        except StateError as error:
            self._claimed(0, error)

    def _claimed(self, until_ms: int, answer: list[tuple[bytes, Stored]] | StateError) -> None:
        """May be more than were asked for: they wait."""
        self._asking = False
        if self._stopped:
            return
        if isinstance(answer, StateError):
            self._table.counts["claims_failed"] += 1
            self._delay_s = min(CLAIM_S, 2 * self._delay_s) or INTERVAL_S
            self._arm(self._delay_s * (0.5 + self._chance()))
            return
        self._delay_s = 0.0
        self._waiting += [(packed, stored, until_ms) for packed, stored in answer]
        self._more = bool(answer)
        self._arm(self._interval_s())
        self._begin_waiting()
        self._hurry()

    def _interval_s(self) -> float:
        return INTERVAL_S * (0.5 + self._chance())

    # --- handling

    def _begin_waiting(self) -> None:
        self._beginning = False
        now_ms = self._table.clock_ms()
        while self._waiting and len(self._claims) < MOST and not self._stopped:
            packed, stored, until_ms = self._waiting.pop(0)
            spent_ms = round(HANDLER_S * 1000)
            if until_ms - now_ms >= spent_ms:  # else somebody may be given it before the handler is done
                self._begin(packed, stored, until_ms, now_ms)

    def _begin(self, packed: bytes, stored: Stored, until_ms: int, now_ms: int) -> None:
        if packed in self._claims:
            return  # its handler does not end, or what was handled could not be removed yet
        if not 0 < stored.deadline_ms <= now_ms:
            self._put_back([packed])
            return
        _, not_before_ms = self._failures.get(packed, (0, 0))
        if now_ms < not_before_ms:
            self._table.counts["expire_passed_over"] += 1
            return
        try:
            key, value = self._table.keys.unpack(packed), self._table.values.unpack(stored.payload)
        except StateError as error:  # newer code may know what it is
            self._table.counts["unreadable"] += 1
            self._failed(packed, error, until_ms)
            return
        entry = self._table.cache.peek(key)
        if entry is not None and entry.dirty:
            self._table.flusher.urgent(entry, 0, ignore)  # a change of ours is on its way: it says what becomes of it
            return
        claim = self._claims[packed] = Claim(key, packed, stored, until_ms)
        try:
            result = self._handler(key, value)
        except Exception as error:
            self._ended(claim, error)
            return
        if not inspect.iscoroutine(result):
            self._ended(claim, None)
            return
        loop = self._table.loop
        claim.task = loop.create_task(result, name=f"{self._table.name}.on_expire")
        claim.timer = loop.call_later(HANDLER_S, self._too_late, claim)
        claim.task.add_done_callback(partial(self._done, claim))

    def _too_late(self, claim: Claim[K]) -> None:
        claim.late = True
        if claim.task is not None:
            claim.task.cancel()

    def _done(self, claim: Claim[K], task: asyncio.Task[Any]) -> None:
        if claim.timer is not None:
            claim.timer.cancel()
        if not task.cancelled():
            self._ended(claim, task.exception())
        elif claim.late:
            why = f"on_expire of {claim.key!r} took longer than {HANDLER_S} seconds: cancelled"
            self._ended(claim, TimeoutError(f"table {self._table.name!r}: {why}"))
        elif self._stopped:
            self._forget(claim)
        else:
            self._ended(claim, StateError(f"table {self._table.name!r}: on_expire of {claim.key!r} was cancelled"))

    def _ended(self, claim: Claim[K], error: BaseException | None) -> None:
        self._table.counts["expire_late"] += claim.late
        if error is not None:
            self._failed(claim.packed, error, claim.until_ms)
            self._forget(claim)
        else:
            self._failures.pop(claim.packed, None)
            self._handled.append(claim)
            if len(self._handled) == 1:
                self._table.soon(self._remove)

    def _failed(self, packed: bytes, error: BaseException, until_ms: int) -> None:
        self._table.counts["expire_failures"] += 1
        failures = 1 + self._failures.pop(packed, (0, 0))[0]
        # It comes when the claim is over, then (with 2 failures) when the next one is, and so on.
        delay_s = min(LAST_DELAY_S, CLAIM_S * (2 ** min(failures - 1, 32) - 1))
        self._failures[packed] = failures, until_ms + round(delay_s * 1000)
        if len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)
        self._report(error)

    # --- removing

    def _remove(self) -> None:
        """What was handled. A change of ours that was put meanwhile (by the handler, say) goes to the store instead,
        based on what was handled; what is put from here on finds the key absent, and follows the removal."""
        if self._removing or not self._handled or not self._table.open:
            return
        handled, self._handled = self._handled, []
        batch: list[Claim[K]] = []
        for claim in handled:
            entry = self._table.cache.peek(claim.key)
            if entry is not None and entry.dirty:
                self._forget(claim)
                self._table.flusher.urgent(entry, 0, ignore)
                self._table.counts["expired"] += 1
                continue
            if entry is None or entry.version == claim.stored.version:
                self._table.cache.put_clean(claim.key, claim.packed, None, None)
            batch.append(claim)
        if not batch:
            return
        self._removing = True
        done = partial(self._removed, batch)
        keys, versions = [claim.packed for claim in batch], [claim.stored.version for claim in batch]
        try:
            self._table.store.expired(self._table.handle, keys, versions, done)
        except StateError as error:
            done(error)

    def _removed(self, batch: Sequence[Claim[K]], error: StateError | None) -> None:
        self._removing = False
        cache = self._table.cache
        for claim in batch:
            entry = cache.peek(claim.key)
            if entry is not None and not entry.version and not entry.dirty:
                cache.discard(entry)  # the store does not tell us when somebody puts one again
            elif error is not None and entry is not None and not entry.version and not entry.flying:
                cache.based(entry, claim.stored)
        if error is not None:
            self._handled += batch  # again with the next sweep; until then they take up room
            if self._timer is None and not self._asking:
                self._arm(self._interval_s())
            return
        self._table.counts["expired"] += len(batch)
        for claim in batch:
            self._forget(claim)
        if self._handled:
            self._table.soon(self._remove)

    def _put_back(self, keys: list[bytes]) -> None:
        """The deadline was moved: no entry has the version 0, so what stands there is due when it says."""
        try:
            self._table.store.expired(self._table.handle, keys, [0] * len(keys), ignore)
        except StateError:
            pass  # when the claim is over
