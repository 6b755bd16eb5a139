"""The asynchronous layer over the native connection: waits, the session reader, ``async with``, ``async for``.

No fields of its own: sending, events, limits and the inbox are native. A wait is one future; a timeout is a timer that
fails that future, so nothing here needs a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _native

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

__all__ = ["Connection"]

HIGH_WATER = 64 << 10
"""Bytes queued in one batch before ``drain`` lets it end."""

# How long ask waits, per core: the VNF's limits.ask_s. (The native core has no use for it.)
ASK_S: dict[_native.Core, float] = {}
# Connections in the middle of an ask. The native object has no field for it, and most connections never ask.
_asking: set[Connection] = set()


class Connection(_native.Connection):
    """A connection in or out, on any transport. ``state`` is the author's; all of it belongs to the loop's thread."""

    __slots__ = ()

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _wait(self, what: str, timeout_s: float | None) -> None:
        future = self.wait(what)
        if timeout_s is None:
            await future
            return
        timer = future.get_loop().call_later(max(0.0, timeout_s), _expire, future, what, timeout_s)
        try:
            await future
        finally:
            timer.cancel()

    async def _until_connected(self) -> Self:
        if not self.connected:
            await self.wait("connected")
            if not self.connected:
                raise ConnectionError(self.close_reason or "closed")
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._until_connected().__await__()

    async def __aenter__(self) -> Self:
        """At once: what is sent waits until it is connected, and a failure shows where the reply is awaited."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            self.spoil()
        self.close()

    # --- reading -------------------------------------------------------------------------------------------------

    async def receive(
        self,
        until: bytes | None = None,
        size: int | None = None,
        limit: int = 65536,
        timeout_s: float | None = None,
    ) -> _native.Packet:
        """The next message (with framing) or piece, up to and including ``until``, or exactly ``size`` bytes.

        Empty when the peer has ended. Raises ``ConnectionError``, ``MessageTooLong`` past ``limit``, ``TimeoutError``.
        """
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        while (packet := self.take(until, size, limit)) is None:
            await self._wait("readable", None if deadline is None else deadline - asyncio.get_running_loop().time())
        return packet

    async def ask(self, /, *parts: Buffer, timeout_s: float | None = None) -> _native.Packet:
        """Sends one message and waits for the next one from there: one at a time, a second raises ``RuntimeError``.

        After ``TimeoutError`` (``limits.ask_s`` unless given), or cancelled, the connection is closed: the reply may
        still come, and must not answer the next question. ``ConnectionError`` when the peer ends instead.
        """
        if self in _asking:
            raise RuntimeError(
                "ask: this connection still waits for an answer; vnf.client(…, request_id=…) can have many"
            )
        _asking.add(self)
        try:
            self.send(*parts)
            packet = self.take()
            if packet is None:
                packet = await self.receive(timeout_s=ASK_S.get(self.core) if timeout_s is None else timeout_s)
        except TimeoutError:
            self.abort("ask timed out")
            raise
        except asyncio.CancelledError:
            self.abort("ask cancelled")
            raise
        finally:
            _asking.discard(self)
        if self.ended and not len(packet):
            raise ConnectionError("the peer ended before it answered")
        return packet

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _native.Packet:
        packet = await self.receive()
        if self.ended and not len(packet):
            raise StopAsyncIteration
        return packet

    # --- writing -------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Until what is queued is below the high-water mark. ``ConnectionError`` when it closes instead."""
        if self.buffered >= HIGH_WATER:
            await asyncio.sleep(0)  # the batch ends, and flushes
        await self.wait("writable")

    async def splice(self, other: Connection) -> tuple[int, int]:
        """Joins the two until both directions have ended; returns the bytes moved each way. Closes both.

        Half-closes are passed on and a slow side slows the other. Between kernel streams no byte passes Python.
        """
        from .transport.splice import splice

        return await splice(self, other)


def _expire(future: asyncio.Future[None], what: str, timeout_s: float) -> None:
    if not future.done():
        future.set_exception(TimeoutError(f"not {what} within {timeout_s:g} s"))
