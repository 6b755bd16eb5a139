"""Who waits for a lock in this process, and what its holder is given: of the locks of every table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf, isfinite
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import ConfigError, LockLost
from ..task import current, is_same

if TYPE_CHECKING:
    import asyncio

__all__ = ["LEASE_LOST", "LEFT", "OVERSTAYED", "Held", "Line", "check_lock"]

K = TypeVar("K")
V = TypeVar("V")

LEASE_LOST = "its lease ran out, or another has it"
OVERSTAYED = "it was held for longer than max_hold_s"
LEFT = "its `async with` is over"

TURN_S = 1.0
"""How long one process's waiters have a lock from each other before others have a chance."""


class Held(ABC, Generic[K, V]):
    """What ``async with table.lock(key) as held`` gives."""

    def __init__(self, table: str, key: K, fence: int) -> None:
        self.key = key
        self.value: V | None = None
        """What stands there: read when the lock was taken, and what was put by it since. None: absent."""
        self.fence = fence
        """Greater than that of every earlier holder: for whatever else is written, and can refuse a smaller one."""
        self.why_lost = ""
        """Why this is no longer the holder; empty while it is not known."""
        self._name = table

    @property
    def lost(self) -> bool:
        """Known to be no longer the holder; what has only just happened to the lock a write finds out."""
        return bool(self.why_lost)

    @property
    @abstractmethod
    def ttl_s(self) -> float | None:
        """Seconds until the value expires, to be kept by ``put(…, ttl_s=held.ttl_s)``; None: it does not."""

    @abstractmethod
    async def put(self, value: V, *, ttl_s: float | None = None) -> None:
        """Returns once the store has it. :class:`LockLost`: this is no longer the holder, nothing was written.
        :class:`StateConflict`: somebody has written without the lock; ``value`` has that now, and it can be put over.
        :class:`DurabilityUnknown`: put it again, which is safe."""

    @abstractmethod
    async def delete(self) -> bool:
        """As ``put``. True when there was one."""

    def check(self) -> None:
        """Raises :class:`LockLost` when it is known that this is no longer the holder; before a step with no guard."""
        if self.why_lost:
            raise self.error(self.why_lost)

    def error(self, why: str) -> LockLost:
        """What is raised when it is held no longer."""
        return LockLost(f"table {self._name!r}: the lock of {self.key!r} is held no longer: {why}")


def check_lock(table: str, lease_s: float, max_hold_s: float, timeout_s: float | None) -> None:
    for setting, seconds, least in (("lease_s", lease_s, 0.05), ("max_hold_s", max_hold_s, lease_s)):
        if not (isfinite(seconds) and least <= seconds <= 86400):
            raise ConfigError(f"table {table!r}: lock({setting}={seconds}), expected {least}…86400 seconds")
    if timeout_s is not None and not timeout_s >= 0:
        raise ConfigError(f"table {table!r}: lock(timeout_s={timeout_s}), expected 0 seconds or more")


class _Waiters:
    __slots__ = ("since_s", "turns")

    def __init__(self) -> None:
        # Who they are of, as far as that is known.
        self.turns: dict[asyncio.Future[None], object | None] = {}
        self.since_s = inf


class Line(Generic[K]):
    """Per key, who waits for its turn: the first's future is done, the next one's will be when the first leaves."""

    def __init__(self) -> None:
        self._keys: dict[K, _Waiters] = {}

    def __len__(self) -> int:
        """Keys that somebody has or waits for."""
        return len(self._keys)

    def enter(self, key: K, turn: asyncio.Future[None], name: str) -> None:
        """``RuntimeError`` for who is the first already, and would wait for itself. ``name``: what to call the key."""
        line, who = self._keys.setdefault(key, _Waiters()), current()
        if is_same(who, next(iter(line.turns.values()), None)):
            raise RuntimeError(f"{name}: this task has that lock already, and would wait for itself")
        line.turns[turn] = who
        if len(line.turns) == 1:
            turn.set_result(None)

    def leave(self, key: K, turn: asyncio.Future[None]) -> None:
        """Wherever it stands; a second time does nothing."""
        line = self._keys.get(key)
        if line is None or turn not in line.turns:
            return
        del line.turns[turn]
        following = next(iter(line.turns), None)
        if following is None:
            del self._keys[key]
        elif not following.done():  # it is the first now; one that was cancelled leaves by itself, and comes by here
            following.set_result(None)

    def taken(self, key: K, now_s: float) -> None:
        if (line := self._keys.get(key)) is not None:
            line.since_s = min(line.since_s, now_s)

    def is_greedy(self, key: K, now_s: float) -> bool:
        """They have had it from each other for :data:`TURN_S`. Said once, then it counts anew."""
        line = self._keys.get(key)
        if line is None or now_s - line.since_s < TURN_S:
            return False
        line.since_s = inf
        return True

    def clear(self, error: Exception) -> None:
        for line in self._keys.values():
            for turn in line.turns:
                if not turn.done():
                    turn.set_exception(error)
        self._keys.clear()
