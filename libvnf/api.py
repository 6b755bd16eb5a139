"""The papers' functions by their names (Table 2 of the APSys'17 paper, and the later release), over ``VNF``.

A connID is a ``Connection`` (or, for a server, what ``createServer`` returned), a request object is a ``Request``, so
both faces mix. ``interface`` names a port: with several transports it chooses the one of that name, a single one is
meant whatever it is called. On kernel sockets a server's address on a named interface is that of the network the file
was written for: it listens on loopback; a client connects to the address as written. A ``map`` says otherwise::

    [port.data0]
    type = "kernel"
    map = { "10.0.0.2:5000" = "127.0.0.1:5000", "10.0.0.3:5000" = "127.0.0.1:6000" }
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .config import EndpointURL
from .connection import Connection
from .errors import ConfigError, Unsupported
from .frames import Frames
from .request import Request, Timer
from .server import Server
from .state import Table, write_through
from .vnf import VNF, EarlyTimer

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "LOCAL",
    "REMOTE",
    "SCTP",
    "TCP",
    "UDP",
    "addReqCtxt",
    "allocReqCtxt",
    "closeConn",
    "createClient",
    "createServer",
    "delState",
    "freeReqCtxt",
    "getRefPtr",
    "getState",
    "putState",
    "registerCallback",
    "registerPacketBoundary",
    "registerRequestIdExtractor",
    "registerTimer",
    "sendData",
    "startEventLoop",
]

TCP, UDP, SCTP = "tcp", "udp", "sctp"
LOCAL, REMOTE = "local", "remote"

EVENTS = {"accept": "on_accept", "read": "on_data", "sent": "on_sent", "close": "on_close", "error": "on_error"}

Callback = Callable[..., Any]


class Boundary:
    """The framing of a client's stream, set after the connection is made; until then pieces as they come."""

    def __init__(self) -> None:
        self.fn: Callable[[bytes], int] = len

    def __call__(self, buffered: bytes) -> int:
        return self.fn(buffered)


_vnf: VNF | None = None
_request: Request | None = None
_boundaries: WeakKeyDictionary[Connection, Boundary] = WeakKeyDictionary()
_timer_callbacks: WeakKeyDictionary[Server | Frames | Connection, Callback] = WeakKeyDictionary()
_tables: WeakKeyDictionary[VNF, dict[tuple[str, str], Table[Any, Any]]] = WeakKeyDictionary()


def _default() -> VNF:
    """The VNF that the file's calls make up; it is called what the file is called."""
    global _vnf
    if _vnf is None or _vnf.closed:
        module = sys.modules.get("__vnf__") or sys.modules["__main__"]
        stem = os.path.splitext(os.path.basename(getattr(module, "__file__", None) or "vnf"))[0]
        name = re.sub(r"[^A-Za-z0-9_-]", "_", stem) or "vnf"
        _vnf = VNF(name, program=module.__name__ == "__main__")
    return _vnf


def _url(interface: str, address: str | None, port: int | None, protocol: str) -> str:
    if address is None or port is None:
        raise Unsupported(f"{interface}: a null address (the whole interface as one connection) is for createServer")
    if protocol not in (TCP, UDP, SCTP):
        raise ConfigError(f"{protocol!r} is not a protocol: expected TCP, UDP or SCTP")
    url = EndpointURL.parse(f"{protocol}://{f'[{address}]' if ':' in address else address}:{port}?port={interface}")
    return str(url.supported())


def createServer(
    interface: str, localServerIP: str | None, localServerPort: int | None, protocol: str | None
) -> Server | Frames:
    """A server; ``registerCallback(serverID, "read", fn)`` gives it its handler.

    With a null address and port the whole interface is one connection, and each frame a message on it.
    """
    if localServerIP is None and localServerPort is None:
        return _default().frames(interface, per_packet=True)
    if protocol is None:
        raise ConfigError(f"{interface}: expected TCP, UDP or SCTP with an address")
    return _default().server(_url(interface, localServerIP, localServerPort, protocol))


def createClient(interface: str, remoteServerIP: str | None, remoteServerPort: int | None, protocol: str) -> Connection:
    """A connection out, usable at once: what is sent waits until it is connected."""
    boundary = Boundary() if protocol == TCP else None
    connection = _default().connect(_url(interface, remoteServerIP, remoteServerPort, protocol), framing=boundary)
    if boundary is not None:
        _boundaries[connection] = boundary
    return connection


def registerCallback(connID: Server | Frames | Connection, event: str, fn: Callback) -> None:
    """``fn(connID, request, packet)``; for "close" and "error" the third is the reason, the error.

    "timer": ``fn(connID, request, None)``, called by ``registerTimer(seconds, connID, request)``.
    """
    if event == "timer":
        _timer_callbacks[connID] = fn
    elif event not in EVENTS:
        raise ConfigError(f"{event!r} is not an event: expected {', '.join([*EVENTS, 'timer'])}")
    else:
        getattr(connID, EVENTS[event])(_of_three(fn) if event in ("accept", "sent") else _noting(fn))


def _noting(fn: Callback) -> Callback:
    """Notes whose request it is, for ``getState`` and its like, which the papers call without naming it."""
    if asyncio.iscoroutinefunction(fn):
        return fn

    @functools.wraps(fn)
    def handler(connID: Connection, request: Request, packet: Any) -> None:
        global _request
        before, _request = _request, request
        try:
            fn(connID, request, packet)
        finally:
            _request = before

    return handler


def _of_three(fn: Callback) -> Callback:
    @functools.wraps(fn)
    def handler(connID: Connection, request: Request) -> Any:
        return fn(connID, request, None)

    handler.__dict__.pop("__wrapped__", None)  # its own signature is what counts
    return handler


def sendData(connID: Connection, packet: Buffer, size: int | None = None) -> None:
    """Queues ``packet``, or its first ``size`` bytes."""
    connID.send(packet if size is None else memoryview(packet)[:size])


def closeConn(connID: Connection) -> None:
    """Closes it after what is queued."""
    connID.close()


# --- state ---------------------------------------------------------------------------------------------------------


def _table(name: str, where: str) -> Table[Any, Any]:
    """The VNF's table of that name and place, of anything; made when first asked for."""
    if where not in (LOCAL, REMOTE):
        raise ConfigError(f"{where!r}: expected LOCAL or REMOTE")
    vnf = _default()
    mine = _tables.setdefault(vnf, {})
    if (name, where) not in mine:
        mine[name, where] = (
            vnf.table(name, key=object, value=object, durability=write_through)
            if where == REMOTE
            else vnf.table(f"{name} (local)", key=object, value=object)
        )
    return mine[name, where]


async def _answer(operation: Awaitable[Any], fn: Callback | None, connID: Any, request: Any, told: Any) -> None:
    """The callback runs once it is done, and is told its outcome, or what else it is to be told."""
    global _request
    try:
        outcome = await operation
        if fn is None:
            return
        value = outcome if told is _answer else told
        if asyncio.iscoroutinefunction(fn):
            await fn(connID, request, value)
            return
        before, _request = _request, request
        try:
            fn(connID, request, value)
        finally:
            _request = before
    finally:
        if request is not None:
            request.release()


def _ask(operation: Awaitable[Any], fn: Callback | None, connID: Connection | None, told: Any = _answer) -> None:
    """What is at hand is answered now, before anything else can change it; else the request waits with it."""
    if _request is not None:
        _request.hold()
    _default().core.call(_answer, operation, fn, connID, _request, told)


def getState(table: str, key: Any, where: str, fn: Callback, connID: Connection | None) -> None:
    """Calls ``fn(connID, request, value)``; the value is None when absent. What the store refuses is logged, and ends
    the request."""
    _ask(_table(table, where).get(key), fn, connID)


def putState(table: str, key: Any, value: Any, where: str, fn: Callback | None, connID: Connection | None) -> None:
    """Stores, then calls ``fn(connID, request, value)``."""
    _ask(_table(table, where).put(key, value), fn, connID, value)


def delState(table: str, key: Any, where: str, fn: Callback | None, connID: Connection | None) -> None:
    """Deletes, then calls ``fn(connID, request, value)`` with what was there."""
    _ask(_remove(_table(table, where), key), fn, connID)


async def _remove(table: Table[Any, Any], key: Any) -> Any:
    value = await table.get(key)
    await table.delete(key)
    return value


# --- requests, timers, boundaries ------------------------------------------------------------------------------------


def registerTimer(
    seconds: float, fn: Callback | Server | Frames | Connection, requestObj: Request | None = None
) -> Timer | EarlyTimer:
    """Calls ``fn(requestObj)`` after ``seconds``; a connID instead of a function: its "timer" callback."""
    if isinstance(fn, (Server, Frames, Connection)):
        if fn not in _timer_callbacks:
            raise ConfigError('registerCallback(connID, "timer", fn) comes before registerTimer(seconds, connID)')
        args: tuple[object, ...] = (fn, requestObj, None)
        call = _timer_callbacks[fn]
    else:
        args, call = (requestObj,), fn
    if requestObj is not None:
        return Timer(_default().core, seconds, call, args, request=requestObj)
    return _default().after(seconds, call, *args)


def allocReqCtxt(connID: Connection) -> Request:
    """A new request, carried by ``connID``."""
    request = Request()
    connID.request = request
    return request


def freeReqCtxt(requestObj: Request) -> None:
    """Ends it now."""
    requestObj.end()


def addReqCtxt(connID: Connection, requestObj: Request) -> None:
    """``connID`` carries the request from now on: its messages come with it."""
    connID.request = requestObj


def getRefPtr(packet: Any) -> Any:
    """The packet: a Python reference already holds its buffer."""
    return packet


def registerRequestIdExtractor(connID: Server | Frames | Connection, fn: Callable[..., Any]) -> None:
    """``fn(packet) -> id``, or a ``Field``, for a server before it runs."""
    if isinstance(connID, Frames) and connID.connection is None:
        connID.request_id = fn
        return
    if not isinstance(connID, Server) or connID.endpoint is not None:
        raise ConfigError("registerRequestIdExtractor is for a server that does not run yet")
    connID.request_id = fn


def registerPacketBoundary(connID: Server | Frames | Connection, fn: Any) -> None:
    """``fn(buffered) -> int``, the size of the first message (0: more needed); on a server ``Fixed(…)`` too."""
    if isinstance(connID, Frames):
        raise ConfigError("registerPacketBoundary: on a whole interface each frame is a message")
    if isinstance(connID, Connection):
        boundary = _boundaries.get(connID)
        if boundary is None or not callable(fn):
            raise ConfigError("registerPacketBoundary: expected a function, and a connection of createClient(…, TCP)")
        boundary.fn = fn
    elif connID.endpoint is not None:
        raise ConfigError("registerPacketBoundary comes before the server runs")
    else:
        connID.framing = fn


def startEventLoop() -> None:
    """Runs until a signal, as ``vnf run`` does; under ``vnf run`` it only marks the end of the registrations."""
    _default().run()
