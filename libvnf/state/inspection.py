"""A store as one sees it who has none of its tables' types: what its catalogue says, and entries by their bytes.

Nothing is enrolled. All that a store says is hostile: it ends in a value, or in an error of ``errors.py``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..errors import ConfigError, StateError, Unreadable
from .catalogue import CATALOGUE, KEYS, VALUES, Description
from .plain import Plain
from .redis import RedisStore
from .store import Stored
from .url import StoreURL

__all__ = ["Shelf"]

TIMEOUT_S = 5.0
"""For each question to the store: somebody waits at a terminal."""
STEP = 64
"""Entries asked for at once: with the longest values they are well below what the client takes of an answer."""
MOST_TABLES = 10_000


def readable(stored: Stored | Unreadable) -> Stored:
    if isinstance(stored, Unreadable):
        raise stored
    return stored


class Shelf:
    """The store, opened, and what its catalogue says."""

    def __init__(self, url: str | None) -> None:
        if not url:
            raise ConfigError("which store? --store URL, or VNF_STORE in the environment")
        place = StoreURL.parse(url)
        if not place.shared:
            raise ConfigError(f"{place}: is within one process, and nobody else can look into it")
        if place.scheme == "redis+embedded" and not os.path.isdir(place.directory):
            raise ConfigError(f"{place}: there is no such directory")  # opening it would make one
        self.store = RedisStore(place, timeout_s=TIMEOUT_S)

    async def __aenter__(self) -> Shelf:
        try:
            await self.store.open(writes=False)
        except BaseException:
            await self.store.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()

    async def ask(self, call: Callable[..., None], *args: Any, **options: Any) -> Any:
        """One call's answer; several values are a tuple."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(*answer: Any) -> None:
            if not answered.done():
                answered.set_result(answer[0] if len(answer) == 1 else answer)

        call(*args, done, **options)
        return await answered

    async def entries(self, handle: int) -> AsyncIterator[tuple[bytes, Stored | Unreadable]]:
        cursor: object | None = None
        while True:
            cursor, found = await self.ask(self.store.scan, handle, cursor, STEP)
            if isinstance(found, StateError):
                raise found
            for entry in found:
                yield entry
            if cursor is None:
                return

    async def entry(self, handle: int, key: bytes) -> Stored | Unreadable | None:
        [answer] = await self.ask(self.store.read, handle, [key])
        if isinstance(answer, StateError) and not isinstance(answer, Unreadable):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def tables(self) -> dict[str, Description | Unreadable]:
        """By name."""
        found: dict[str, Description | Unreadable] = {}
        async for packed, stored in self.entries(self.store.table(CATALOGUE, partitions=1)):
            if len(found) >= MOST_TABLES:
                raise StateError(f"more than {MOST_TABLES:,} tables")
            try:
                name = KEYS.unpack(packed)
            except Unreadable as error:
                found[f"0x{packed.hex()}"] = error
                continue
            try:
                found[name] = VALUES.unpack(readable(stored).payload)
            except Unreadable as error:
                found[name] = error
        return dict(sorted(found.items()))

    async def plain(self, name: str) -> tuple[Plain, int]:
        """A table that there is, and its handle."""
        handle = self.store.table(CATALOGUE, partitions=1)
        stored = await self.entry(handle, KEYS.pack(name))
        if stored is None:
            there = ", ".join(list(await self.tables())[:20]) or "none"
            raise ConfigError(f"no table {name!r} in {self.store.url}; there: {there}")
        return self.opened(name, VALUES.unpack(readable(stored).payload))

    def opened(self, name: str, description: Description) -> tuple[Plain, int]:
        try:
            handle = self.store.table(name, partitions=description.partitions, keeps_expired=description.keeps_expired)
        except (ConfigError, OverflowError) as error:
            raise StateError(f"table {name!r} is described as none can be: {error}") from None
        return Plain(name, description), handle
