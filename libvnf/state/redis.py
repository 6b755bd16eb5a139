"""The store contract (``store.py``) over the native client: a Redis server, a cluster, or an embedded server.

The client's thread does everything; here answers are handed to those who asked. The token of a native call is its
``done``, so nothing has to be looked up. An embedded server that has ended is begun again by whoever notices first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from binascii import crc_hqx
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from .._native import StoreClient
from ..errors import ConfigError, StateError, StoreUnavailable
from .embedded import Embedded
from .store import FULL, WRITER_BITS, Found, Invalid, Stored, Written
from .url import StoreURL

__all__ = ["RedisStore"]

WRITERS = "writers"
REVIVE_S = 1.0
"""Between attempts to begin an embedded server again."""


def _ignore(*_: object) -> None:
    pass


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
        self.on_invalid: Callable[[int, Invalid], object] = _ignore
        self.on_state: Callable[[str], object] = _ignore
        self.on_lock_lost: Callable[[int, bytes, int], object] = _ignore
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
        self._hopeless: Callable[[str], object] = _ignore
        self._partitions: dict[int, int] = {}
        self._closed = False
        self._starting = self._embedded is not None

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
            command = b"INCR" if writes else b"EXISTS"
            self._client.call(settle, [command, f"{self.url.namespace}:{WRITERS}".encode()])
            answer = await answered
            if isinstance(answer, StateError):
                passes = type(answer) is not StateError or str(answer).startswith(FULL)
                raise (StoreUnavailable if passes else StateError)(f"{self.url}: {answer}")
            if not isinstance(answer, int):
                raise StateError(f"{self.url}: {command.decode()} was answered with {answer!r}")
            if writes:
                # Never 0, and every number once before one comes again.
                self.writer = (answer - 1) % ((1 << WRITER_BITS) - 1) + 1
        except StateError as error:
            if not isinstance(error, StoreUnavailable):
                await self.close()
            raise
        finally:
            self._hopeless = _ignore

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
        if self._reviving:
            self._reviving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reviving
        self._client.close()
        if self._loop:
            self._loop.remove_reader(self._client.wake_fd)
            self._drain()
        if self._embedded:
            self._embedded.close()

    def _drain(self) -> None:
        done, events = self._client.drain()
        # Answers first: a value that was read, and then changed by another, must be in the cache when that is told.
        for token, answer in done:
            self._told(cast("Callable[[object], object]", token), answer)
        for event in events:
            match event:
                case "invalid", table, keys:
                    self._told(self.on_invalid, table, keys)
                case "deaf", table, partitions:
                    self._told(self.on_invalid, table, partial(self._is_in, table, frozenset(partitions)))
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
        """One handler that raises does not keep the answers of the others back."""
        try:
            handler(*args)
        except Exception as error:
            assert self._loop is not None
            self._loop.call_exception_handler(
                {"message": f"a handler of the store {self.url} raised", "exception": error}
            )

    def _revive(self) -> None:
        assert self._loop is not None
        if self._reviving is None or self._reviving.done():
            self._reviving = self._loop.create_task(self._begin_again())

    async def _begin_again(self) -> None:
        assert self._embedded is not None
        while True:
            try:
                return await self._embedded.open()
            except StateError as error:
                self._told(self.on_state, f"down: {error}")
            await asyncio.sleep(REVIVE_S)

    # --- the calls ----------------------------------------------------------------------------------------------------

    def table(self, name: str, *, partitions: int = 64, keeps_expired: bool = False) -> int:
        handle = self._client.table(name, partitions, keeps_expired)
        self._partitions[handle] = partitions
        return handle

    def read(self, table: int, keys: list[bytes], done: Callable[[list[Stored | StateError | None]], object]) -> None:
        self._client.read(done, table, keys)

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

    def drop(self, table: int, done: Callable[[StateError | None], object]) -> None:
        self._client.drop(done, table)

    def claim_expired(
        self,
        table: int,
        now_ms: int,
        claim_ms: int,
        most: int,
        done: Callable[[list[tuple[bytes, Stored]] | StateError], object],
    ) -> None:
        self._client.claim_expired(done, table, now_ms, claim_ms, most)

    def expired(
        self, table: int, keys: list[bytes], versions: list[int], done: Callable[[StateError | None], object]
    ) -> None:
        self._client.expired(done, table, keys, versions)

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

    def unlock(self, table: int, key: bytes, owner: int, done: Callable[[StateError | None], object]) -> None:
        self._client.unlock(done, table, key, owner)

    def beat(self) -> None:
        self._client.beat()

    def statistics(self) -> dict[str, int]:
        return self._client.statistics()
