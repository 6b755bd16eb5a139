"""What must have a change before a call completes, and so what a crash can lose: one frozen value per table.

=====================  ===========================  =================================================================
durability             a ``put`` completes when     lost by the death of the replica
=====================  ===========================  =================================================================
``local``              it is in this process        everything
``write_back(…)``      it is in this process        changes not flushed yet: see :func:`write_back`
``write_through``      the store has it             nothing that completed; a store's failover may lose it
``replicated(n)``      and ``n`` of its replicas    nothing that completed; nor in a failover from ``n`` replicas
=====================  ===========================  =================================================================

A single call can ask for more than its table gives: ``put(key, value, durability=write_through)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import isfinite
from typing import Protocol

from ..errors import ConfigError

__all__ = ["Durability", "Level", "Request", "local", "replicated", "write_back", "write_through"]


class Request(Protocol):
    """Whose change it is: ``libvnf.Request``, as far as tables know it."""

    def await_commit(self, /) -> bool: ...
    def committed(self, /) -> None: ...
    def commit_failed(self, error: BaseException, /) -> None: ...
    def on_end(self, function: Callable[[], object], /) -> bool: ...


class Level(Enum):
    LOCAL = "local"
    WRITE_BACK = "write_back"
    WRITE_THROUGH = "write_through"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True)
class Durability:
    """Made by this module's functions; compared by value."""

    level: Level
    interval_s: float | None = None
    every: int | None = None
    on_request_end: bool = False
    replicas: int = 0
    cached: bool = field(init=False, repr=False, compare=False)
    """Whether a ``put`` completes before the store has it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cached", self.level in (Level.LOCAL, Level.WRITE_BACK))

    def for_call(self, asked: Durability | None, table: str) -> Durability:
        """What holds for one call on a table of this durability. ``ConfigError`` when that cannot be asked for."""
        if asked is None or asked == self:
            return self
        if self.level is Level.LOCAL:
            raise ConfigError(f"table {table!r} is local and has no store: {asked} cannot be asked of a call")
        if asked.level not in (Level.WRITE_THROUGH, Level.REPLICATED):
            raise ConfigError(f"table {table!r}: durability={asked}, a call can ask for write_through or replicated(n)")
        return asked

    def __str__(self) -> str:
        if self.level is Level.REPLICATED:
            return f"replicated({self.replicas})"
        if self.level is not Level.WRITE_BACK:
            return str(self.level.value)
        given = [
            ("interval_s", self.interval_s),
            ("every", self.every),
            ("on_request_end", self.on_request_end or None),
        ]
        return f"write_back({', '.join(f'{name}={value}' for name, value in given if value is not None)})"


local = Durability(Level.LOCAL)
write_through = Durability(Level.WRITE_THROUGH)


def write_back(
    interval_s: float | None = None, *, every: int | None = None, on_request_end: bool = False
) -> Durability:
    """Cached now, stored soon: ``interval_s`` after the first unflushed change, when the table has ``every`` of them,
    or when the request that made them ends; the first of those given. Without any: after 0.1 s.

    A replica that dies loses what it had not flushed: at most the changes of ``interval_s`` and of one flush, or
    ``every − 1`` and those of one flush, or those of unfinished requests. Draining, SIGTERM and ``flush()`` store all.
    """
    if interval_s is None and every is None and not on_request_end:
        interval_s = 0.1
    if interval_s is not None and not (isfinite(interval_s) and 0 < interval_s <= 3600):
        raise ConfigError(f"write_back(interval_s={interval_s}), expected more than 0 and at most 3600 seconds")
    if every is not None and (type(every) is not int or every < 1):
        raise ConfigError(f"write_back(every={every}), expected a whole number of changes, 1 or more")
    return Durability(Level.WRITE_BACK, interval_s, every, on_request_end)


def replicated(replicas: int) -> Durability:
    """As ``write_through``, and ``replicas`` replicas of the store's node have it too (WAIT). With fewer the call
    raises :class:`DurabilityUnknown`, though the change stands."""
    if type(replicas) is not int or not 1 <= replicas <= 16:
        raise ConfigError(f"replicated({replicas}), expected 1…16 replicas; write_through waits for none")
    return Durability(Level.REPLICATED, replicas=replicas)
