"""The store contract (``store.py``) over the native client: a Redis server, a cluster, or an embedded server.

The client's thread does everything, and answers those who asked by their own ``done``. It begins what was called in one
turn of the loop at that turn's end. An embedded server that has ended is begun again by whoever notices first.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from binascii import crc_hqx
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from .._native import StoreClient
from ..errors import ConfigError, StateError, StoreUnavailable, VNFError
from .answers import ignore
from .embedded import Embedded
from .store import FULL, WRITER_BITS, Found, Invalid, Stored, Written
from .url import StoreURL

__all__ = ["RedisStore"]

WRITERS = "writers"
STRIDE = 4096
"""A writer's number is up to that much greater than the last one, by chance. A store that has forgotten the youngest (a
failover, a restart) would give them again otherwise, while those who have them still write."""
REVIVE_S = 1.0
"""Between attempts to begin an embedded server again."""


def _tls(url: StoreURL) -> dict[str, Any]:
    """What the client is told of TLS."""
    if not url.tls:
        return {}
    authorities = url.tls_ca or ssl.get_default_verify_paths().cafile
    if authorities is None:
        raise ConfigError(f"{url}: this system names no authorities: say tls_ca=FILE")
    try:
        given: dict[str, Any] = {"tls_ca": Path(authorities).read_bytes()}
        if url.tls_cert and url.tls_key:
            given["tls_identity"] = (Path(url.tls_cert).read_bytes(), Path(url.tls_key).read_bytes())
    except OSError as error:
        raise ConfigError(f"{url}: {error}") from None
    return given


class RedisStore:
    """See :class:`libvnf.state.store.Store`. ``limits`` are those of the native ``StoreClient``."""

    def __init__(self, url: StoreURL, **limits: Any) -> None:
        self.url, self.writer = url, 0
        self.on_invalid: Callable[[int, Invalid], object] = ignore
        self.on_state: Callable[[str], object] = ignore
        self.on_lock_lost: Callable[[int, bytes, int], object] = ignore
        """``(table handle, key, owner)``: the lease of a lock ran out unrenewed."""
        self._embedded = Embedded(url.directory) if url.scheme == "redis+embedded" else None
        nodes = [(self._embedded.socket, 0)] if self._embedded else list(url.nodes)
        self._client = StoreClient(
            nodes,
            cluster=url.cluster,
            username=url.username,
            password=url.password,
            namespace=url.namespace,
            **_tls(url),
            **limits,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._hopeless: Callable[[str], object] = ignore
        self._partitions: dict[int, int] = {}
        self._closed = False
        self._starting = self._embedded is not None
        self._going = False

    async def open(self, *, writes: bool = True) -> None:
        """``StoreUnavailable`` after the client's time-out: may be called again. ``StateError`` where waiting does not
        help: closed. Who does not mean to write yet needs no ``writer``, and no right to write: :meth:`enlist`."""
        self._loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = self._loop.create_future()
        try:
            if self._embedded and self._starting:
                await self._embedded.open()
                self._drain()
            self._starting = False
            self._loop.add_reader(self._client.wake_fd, self._drain)

            def settle(answer: Any) -> None:
                if not answered.done():
                    answered.set_result(answer)

            self._hopeless = lambda why: settle(StateError(why))
            name = f"{self.url.namespace}:{WRITERS}".encode()
            command = [b"INCRBY", name, b"%d" % random.randint(1, STRIDE)] if writes else [b"EXISTS", name]
            self._client.call(settle, command)
            self._client.go()
            answer = await answered
            if isinstance(answer, StateError):
                passes = type(answer) is not StateError or str(answer).startswith(FULL)
                raise (StoreUnavailable if passes else StateError)(f"{self.url}: {answer}")
            if not isinstance(answer, int):
                raise StateError(f"{self.url}: {command[0].decode()} was answered with {answer!r}")
            if writes:
                # Never 0, and thousands before one comes again.
                self.writer = (answer - 1) % ((1 << WRITER_BITS) - 1) + 1
        except StateError as error:
            if not isinstance(error, StoreUnavailable):
                await self.close()
            raise
        finally:
            self._hopeless = ignore

    async def enlist(self) -> int:
        """The ``writer``, of a store that was opened without."""
        if not self.writer:
            await self.open()
        return self.writer

    async def close(self) -> None:
        """Calls under way end before this returns."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._reviving:
                self._reviving.cancel()
                await asyncio.wait([self._reviving])
        finally:
            self._client.close()
        if self._loop:
            self._loop.remove_reader(self._client.wake_fd)
            self._drain()
        if self._embedded:
            self._embedded.close()

    def _drain(self) -> None:
        assert self._loop is not None
        # Answers first: a value that was read, and then changed by another, must be in the cache when that is told.
        errors, events = self._client.drain()
        for error in errors:
            self._raised(error)
        for event in events:
            match event:
                case "invalid", table, keys:
                    # After the step of who waited for such a value: what it puts replaces what it has read.
                    self._loop.call_soon(self._told, self.on_invalid, table, keys)
                case "deaf", table, partitions:
                    among = partial(self._is_in, table, frozenset(partitions))
                    self._loop.call_soon(self._told, self.on_invalid, table, among)
                case "state", text, hopeless if not self._closed:
                    if hopeless:
                        self._hopeless(text.removeprefix("down: "))
                    if text != "up" and self._starting:
                        continue  # what was not begun yet is not down
                    self._told(self.on_state, text)
                    if self._embedded and text != "up":
                        self._revive()
                case "lock_lost", table, key, owner:
                    self._told(self.on_lock_lost, table, key, owner)

    def _is_in(self, table: int, partitions: frozenset[int], key: bytes) -> bool:
        """Whether the key is in one of these; ``native/src/state/slots.rs`` says in which it is."""
        return crc_hqx(key, 0) % self._partitions[table] in partitions

    def _told(self, handler: Callable[..., object], *args: object) -> None:
        """One handler that raises does not keep what is to be told to others back."""
        try:
            handler(*args)
        except Exception as error:
            self._raised(error)

    def _raised(self, error: BaseException) -> None:
        assert self._loop is not None
        self._loop.call_exception_handler({"message": f"a handler of the store {self.url} raised", "exception": error})

    def _soon(self) -> None:
        """The client begins at the end of this turn, with all that was called in it."""
        if not self._going and self._loop is not None:
            self._going = True
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        self._going = False
        self._client.go()

    def _revive(self) -> None:
        assert self._loop is not None
        if self._reviving is None or self._reviving.done():
            self._reviving = self._loop.create_task(self._begin_again())

    async def _begin_again(self) -> None:
        assert self._embedded is not None
        while True:
            try:
                return await self._embedded.open()
            except VNFError as error:  # also that there is no server's program any more
                self._told(self.on_state, f"down: {error}")
            await asyncio.sleep(REVIVE_S)

    # --- the calls ----------------------------------------------------------------------------------------------------

    def table(self, name: str, *, partitions: int = 64, keeps_expired: bool = False) -> int:
        handle = self._client.table(name, partitions, keeps_expired)
        self._partitions[handle] = partitions
        return handle

    def read(self, table: int, keys: list[bytes], done: Callable[[list[Stored | StateError | None]], object]) -> None:
        self._client.read(done, table, keys)
        self._soon()

    def write(
        self,
        table: int,
        keys: list[bytes],
        expected: list[int] | None,
        first: int,
        payloads: list[bytes | None],
        done: Callable[[Written], object],
        *,
        deadlines: list[int] | None = None,
        recents: list[bytes] | None = None,
        update: bool = False,
        replicas: int = 0,
        guard: tuple[bytes, int] | None = None,
    ) -> None:
        self._client.write(done, table, keys, expected, first, payloads, deadlines, recents, update, replicas, guard)
        self._soon()

    def scan(
        self,
        table: int,
        cursor: object,
        count: int,
        done: Callable[[object | None, Found | StateError], object],
    ) -> None:
        def found(answer: Any) -> None:
            if isinstance(answer, StateError):
                done(cursor, answer)
            else:
                done(*answer)

        self._client.scan(found, table, cast("tuple[int, int, int] | None", cursor), count)
        self._soon()

    def drop(self, table: int, done: Callable[[StateError | None], object]) -> None:
        self._client.drop(done, table)
        self._soon()

    def claim_expired(
        self,
        table: int,
        now_ms: int,
        claim_ms: int,
        most: int,
        done: Callable[[list[tuple[bytes, Stored]] | StateError], object],
    ) -> None:
        self._client.claim_expired(done, table, now_ms, claim_ms, most)
        self._soon()

    def expired(
        self, table: int, keys: list[bytes], versions: list[int], done: Callable[[StateError | None], object]
    ) -> None:
        self._client.expired(done, table, keys, versions)
        self._soon()

    def lock(
        self,
        table: int,
        key: bytes,
        owner: int,
        lease_ms: int,
        done: Callable[[int | StateError | None], object],
        *,
        hold_ms: int = 0,
    ) -> None:
        self._client.lock(done, table, key, owner, lease_ms, hold_ms)
        self._soon()

    def unlock(self, table: int, key: bytes, owner: int, done: Callable[[StateError | None], object]) -> None:
        self._client.unlock(done, table, key, owner)
        self._soon()

    def beat(self) -> None:
        self._client.beat()

    def statistics(self) -> dict[str, int]:
        return self._client.statistics()
