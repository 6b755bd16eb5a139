"""Joins two connections. Kernel streams go to the native thread; any other pair is copied here, piece by piece.

Half-closes are passed on, and each direction waits for its receiver before it reads more.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from .. import _native

if TYPE_CHECKING:
    from ..connection import Connection

__all__ = ["splice"]


async def splice(left: Connection, right: Connection) -> tuple[int, int]:
    """Bytes moved left→right and right→left. Closes both; raises ``ConnectionError`` when one broke."""
    try:
        await left
        await right
        if _stream_socket(left) is not None and _stream_socket(right) is not None:
            return await _native_splice(left, right)
        return await _copy_both(left, right)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        left.abort(reason)
        right.abort(reason)
        raise
    finally:
        left.close()
        right.close()


def _stream_socket(connection: Connection) -> socket.socket | None:
    transport = connection.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.type & 0xF != socket.SOCK_STREAM:
        return None
    return sock  # type: ignore[no-any-return]


async def _native_splice(left: Connection, right: Connection) -> tuple[int, int]:
    """What Python has read already goes first; the loop has let go of both sockets until the thread is done."""
    moved = [0, 0]
    left.pause()
    right.pause()
    for number, (source, sink) in enumerate(((left, right), (right, left))):
        while (piece := source.take()) is not None and len(piece):
            sink.send(piece)
            moved[number] += len(piece)
    for connection in (left, right):
        await _flushed(connection)
    left_socket, right_socket = _stream_socket(left), _stream_socket(right)
    if left_socket is None or right_socket is None:
        raise ConnectionError("closed")
    native = _native.Splice(left_socket.fileno(), right_socket.fileno())
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_reader(native.done_fd, _settle, done)
    try:
        await done
    finally:
        loop.remove_reader(native.done_fd)
        native.close()
    forth, back, error = native.result()
    if error is not None:
        raise ConnectionError(error)
    return moved[0] + forth, moved[1] + back


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _flushed(connection: Connection) -> None:
    """Until the kernel has every byte sent so far: the thread's bytes must come after them."""
    while connection.buffered:
        await asyncio.sleep(0)  # the batch ends, and flushes
        await connection.wait("writable")
    await connection.wait("writable")


async def _copy_both(left: Connection, right: Connection) -> tuple[int, int]:
    async with asyncio.TaskGroup() as group:
        forth = group.create_task(_copy(left, right))
        back = group.create_task(_copy(right, left))
    return forth.result(), back.result()


async def _copy(source: Connection, sink: Connection) -> int:
    moved = 0
    async for piece in source:
        sink.send(piece)
        moved += len(piece)
        await sink.drain()
    sink.end()
    return moved
