"""A VNF's tables and their store: opened once, however long that takes; what is not stored when it ends is told."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, StateError, StoreUnavailable
from .catalogue import enrol, passes
from .durability import Durability, Level, Request, local
from .store import Invalid, Store, Versions
from .table import LocalTable, Table
from .url import StoreURL

if TYPE_CHECKING:
    from .shared import SharedTable

__all__ = ["Tables", "make_store"]

K = TypeVar("K")
V = TypeVar("V")

FIRST_DELAY_S, LAST_DELAY_S = 0.1, 5.0


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def make_store(url: str, loop: asyncio.AbstractEventLoop, clock_ms: Callable[[], int]) -> Store:
    """The client of the store at ``url``; it is not open yet."""
    place = StoreURL.parse(url)
    if place.shared:
        # A VNF without a store needs neither the client nor what starts a server.
        from .redis import RedisStore

        return RedisStore(place)
    from .memory import Memory, MemoryStore

    return MemoryStore(Memory(clock_ms), loop)


class Tables:
    """Of one VNF. ``store`` and ``clock_ms`` may be set before it starts. ``commits``: requests wait for their writes;
    ``request`` tells whose a write is."""

    def __init__(self, log: logging.Logger) -> None:
        self.log, self.commits = log, False
        self.request: Callable[[], Request | None] = lambda: None
        self.clock_ms: Callable[[], int] = wall_ms
        self.chance: Callable[[], float] = random.random
        self.report: Callable[[BaseException], object] = self._report
        self.state = "not open"
        self._all: dict[str, Table[Any, Any]] = {}
        self._shared: list[SharedTable[Any, Any]] = []
        self._store: Store | None = None
        self._versions: Versions | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._call: Callable[..., Any] | None = None
        self._handles: dict[int, SharedTable[Any, Any]] = {}
        self._url = "memory://"

    def add(self, name: str, key: type[K], value: type[V], durability: object = local, **options: Any) -> Table[K, V]:
        """``ConfigError`` for what cannot be."""
        if name in self._all:
            raise ConfigError(f"there is a table {name!r} already")
        if not name or len(name) > 200 or not name.isprintable() or set(name) & set("{}:") or name[0] == ".":
            raise ConfigError(
                f"{name!r} is not a table's name: expected up to 200 characters, none of {{ }} : and no . in front"
            )
        if not isinstance(durability, Durability):
            raise ConfigError(
                f"table {name!r}: durability={durability!r}, "
                "expected local, write_back(…), write_through or replicated(n)"
            )
        table: Table[K, V]
        if durability.level is Level.LOCAL:
            if options:
                raise ConfigError(f"table {name!r}: {', '.join(options)} is for tables in a store, this one is local")
            table = LocalTable(self, name, key, value, durability)
        else:
            # A VNF that stores nothing needs none of what this imports.
            from .shared import SharedTable

            table = shared = SharedTable(self, name, key, value, durability, **options)
            self._shared.append(shared)
            if self.running and self._versions is not None:
                self._joining(shared)
            elif self.running and self._opening is None:
                self._begin()
        self._all[name] = table
        return table

    def __iter__(self) -> Any:
        return iter(self._all.values())

    # --- its life

    @property
    def running(self) -> bool:
        return self._loop is not None and not self._closing

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Also of one that has stopped: the store still answers what was under way."""
        assert self._loop is not None
        return self._loop

    def future(self) -> asyncio.Future[Any]:
        """For a call that waits; ``RuntimeError`` while there is nothing to wait for."""
        if self._loop is None or self._closing:
            raise RuntimeError("the VNF does not run: what waits for a store is called while it does")
        return self._loop.create_future()

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    @store.setter
    def store(self, store: Store) -> None:
        self._store = store

    @property
    def versions(self) -> Versions:
        assert self._versions is not None
        return self._versions

    def call(self, fn: Callable[..., Any], *args: object) -> None:
        """A handler of the author's."""
        if self._call is not None:
            self._call(fn, *args)

    def _report(self, error: BaseException) -> None:
        self.log.error("%s", error, exc_info=error)

    def soon(self, fn: Callable[..., Any], *args: object) -> None:
        """A handler of the author's, at the end of this turn of the loop."""
        if self.running:
            self.loop.call_soon(self.call, fn, *args)

    async def start(self, url: str, call: Callable[..., Any], patience_s: float) -> None:
        """Opens the store where a table needs one. ``StateError`` when it refuses; one that does not answer is waited
        for, ``patience_s`` before this returns, and then in the background."""
        self._loop, self._call, self._url = asyncio.get_running_loop(), call, url
        for table in self._local():
            table.started()
        if self._shared:
            task = self._begin()
            await asyncio.wait([task], timeout=patience_s)
            if task.done():
                task.result()

    def _local(self) -> list[LocalTable[Any, Any]]:
        return [table for table in self._all.values() if isinstance(table, LocalTable)]

    def _begin(self) -> asyncio.Task[None]:
        if self._store is None:
            self._store = make_store(self._url, self.loop, self.clock_ms)
        self._store.on_invalid, self._store.on_state = self._invalid, self._told
        self._store.on_lock_lost = self._lock_lost
        self._opening = self.loop.create_task(self._open())
        self._tasks.add(self._opening)
        self._opening.add_done_callback(self._opened)
        return self._opening

    def _joining(self, table: SharedTable[Any, Any]) -> asyncio.Task[None]:
        task = self.loop.create_task(self._join(table))
        self._tasks.add(task)
        task.add_done_callback(partial(self._joined, table))
        return task

    async def _open(self) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            try:
                await self.store.open()
            except StoreUnavailable as error:
                self._told(f"down: {error}")
                for table in self._shared:
                    table.unavailable(error)
                await asyncio.sleep(delay_s)
                delay_s = min(LAST_DELAY_S, 2 * delay_s)
            else:
                break
        self._versions = Versions(self.store.writer, self.chance())
        self._told("up")
        joining = [self._joining(table) for table in self._shared]
        if joining:
            await asyncio.wait(joining, return_when=asyncio.FIRST_EXCEPTION)
        for task in joining:
            if task.done():
                task.result()

    async def _join(self, table: SharedTable[Any, Any]) -> None:
        """The table can be used once all replicas agree on what it is."""
        delay_s = FIRST_DELAY_S
        while (error := await self._enrol(table)) is not None:
            if not passes(error):
                raise error
            table.unavailable(error)
            await asyncio.sleep(delay_s)
            delay_s = min(LAST_DELAY_S, 2 * delay_s)
        table.opened()
        self._handles[table.handle] = table

    async def _enrol(self, table: SharedTable[Any, Any]) -> StateError | ConfigError | None:
        done: asyncio.Future[StateError | ConfigError | None] = self.future()

        def settle(error: StateError | ConfigError | None) -> None:
            if not done.done():
                done.set_result(error)

        try:
            enrol(self.store, self.versions, table.name, table.description(), table.values.learn, settle)
        except StateError as error:
            return error
        return await done

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._versions is None:
            for table in self._shared:
                self._refuse(table, error)

    def _joined(self, table: SharedTable[Any, Any], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._refuse(table, error)

    def _refuse(self, table: SharedTable[Any, Any], error: BaseException) -> None:
        self._told(f"refused: {error}")
        table.refuse(StateError(str(error)))

    def refuses(self, why: str | None) -> None:
        """The store is there and does not take changes (it is full, or this user may not); None: it does again."""
        if why is not None and self.state == "up":
            self._told(f"refusing: {why}")
        elif why is None and self.state.startswith("refusing: "):
            self._told("up")

    def _told(self, state: str) -> None:
        if state != self.state and not self._closing:
            self.state = state
            self.log.log(logging.INFO if state == "up" else logging.WARNING, "the store is %s", state)

    def _invalid(self, handle: int, names: Invalid) -> None:
        if (table := self._handles.get(handle)) is not None:
            table.invalidated(names)

    def _lock_lost(self, handle: int, _key: bytes, owner: int) -> None:
        if (table := self._handles.get(handle)) is not None:
            table.locks.lost(owner)

    @property
    def unstored(self) -> dict[str, int]:
        """How many changes of which table the store does not have."""
        return {table.name: table.cache.unstored for table in self._shared if table.cache.unstored}

    def hurry(self) -> None:
        """What is not stored is flushed now, whatever its table says."""
        for table in self._shared:
            table.flusher.opened()

    async def drain(self, until_s: float) -> dict[str, int]:
        """Stores what is not stored until that time of the loop; :attr:`unstored` afterwards."""
        await asyncio.gather(*(table.drain(until_s) for table in self._shared if table.open))
        return self.unstored

    async def close(self) -> None:
        """At once: what is not stored is lost, and logged."""
        if not self.running:
            return
        self._closing = True
        for name, count in self.unstored.items():
            self.log.error("table %s: %d changes were not stored", name, count)
        for task in list(self._tasks):
            task.cancel()
        if self._store is not None:
            await self._store.close()
        for table in self._shared:
            table.closed()
        for private in self._local():
            private.closed()

    def statistics(self) -> Mapping[str, Any]:
        """The store's."""
        if self._store is None or self._versions is None:
            return {"state": self.state}
        return {"state": self.state, **self._store.statistics()}
