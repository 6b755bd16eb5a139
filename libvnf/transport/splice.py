"""Joins two connections, half-closes and back-pressure kept. No byte passes Python.

Two kernel sockets go to a native thread, where splice(2) moves their bytes inside the kernel. Any other pair (a bypass
port, the in-memory network) is relayed by the native connections themselves, on the loop's thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .. import _native

if TYPE_CHECKING:
    from ..connection import Connection

__all__ = ["splice"]

# Connections in a pair, or about to be: a second splice must not abort the first.
_spliced: set[Connection] = set()


async def splice(first: Connection, second: Connection) -> tuple[int, int]:
    """Bytes moved first→second and second→first. Closes both, also when it raises."""
    if first is second:
        raise ValueError("splice: a connection cannot be joined with itself")
    if first in _spliced or second in _spliced:
        raise RuntimeError("splice: the connection is spliced already")
    _spliced.update((first, second))
    try:
        await first
        await second
        if _kernel(first) and _kernel(second):
            return await _by_thread(first, second)
        return await _native.relay(first, second)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        first.abort(reason)
        second.abort(reason)
        raise
    finally:
        _spliced.difference_update((first, second))
        first.close()
        second.close()


def _kernel(connection: Connection) -> bool:
    return isinstance(connection.transport, _native.Stream)


async def _by_thread(first: Connection, second: Connection) -> tuple[int, int]:
    """What Python has read already goes first; the loop has let go of both sockets until the thread is done."""
    first.pause()
    second.pause()
    forth, back = _native.pass_inbox(first, second), _native.pass_inbox(second, first)
    await _flushed(first)
    await _flushed(second)
    native = _native.Splice(first, second)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_reader(native.done_fd, _settle, done)
    try:
        await done
    finally:
        loop.remove_reader(native.done_fd)
        native.close()
    more_forth, more_back, error = native.result()
    for which, connection in (("first", first), ("second", second)):
        if error is None and connection.closed:
            error = f"splice: the {which} connection closed: {connection.close_reason}"
    if error is not None:
        raise ConnectionError(error)
    return forth + more_forth, back + more_back


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _flushed(connection: Connection) -> None:
    """Until the kernel has every byte sent so far: the thread's bytes must come after them."""
    while connection.buffered:
        await asyncio.sleep(0)  # the batch ends, and flushes
        await connection.wait("writable")
    await connection.wait("writable")
