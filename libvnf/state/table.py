"""A table of durability ``local``: this replica's memory only, lost with the process.

Nothing here waits, so an ``async`` call costs no future; the signatures are those of the durable tables to come.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

from ..errors import ConfigError, StateError

__all__ = ["Durability", "Table", "local"]

K = TypeVar("K")
V = TypeVar("V")


class Durability(Enum):
    """What a crash can lose. Only ``local`` so far."""

    LOCAL = "local"


local = Durability.LOCAL


class Table(Generic[K, V]):
    """``key: K`` → ``value: V``, both checked when written."""

    def __init__(self, name: str, key: type[K], value: type[V], durability: object = local) -> None:
        if durability is not local:
            raise StateError(f"table {name!r}: {durability!r} needs the state layer, which is not there yet; use local")
        self.name, self._key, self._value = name, key, value
        self._entries: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: K) -> V | None:
        """None when absent."""
        return self._entries.get(key)

    def get_nowait(self, key: K) -> V | None:
        """None when absent."""
        return self._entries.get(key)

    async def put(self, key: K, value: V) -> None:
        """``ConfigError`` when the types are not the table's."""
        self.put_nowait(key, value)

    def put_nowait(self, key: K, value: V) -> None:
        """``ConfigError`` when the types are not the table's."""
        if not isinstance(key, self._key) or not isinstance(value, self._value):
            raise ConfigError(
                f"table {self.name!r}: {type(key).__name__} -> {type(value).__name__}, "
                f"expected {self._key.__name__} -> {self._value.__name__}"
            )
        self._entries[key] = value

    async def delete(self, key: K) -> bool:
        """True when there was one."""
        return self.delete_nowait(key)

    def delete_nowait(self, key: K) -> bool:
        """True when there was one."""
        return self._entries.pop(key, None) is not None

    async def update(self, key: K, fn: Callable[[V], V], default: V | None = None) -> V:
        """``fn`` of the present value, or of ``default``; atomic. ``KeyError`` when there is neither."""
        value = self._entries.get(key, default)
        if value is None:
            raise KeyError(key)
        changed = fn(value)
        self.put_nowait(key, changed)
        return changed
