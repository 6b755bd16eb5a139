"""What ``vnf.frames`` returns: the handler of a port's frames, before and while it runs."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from . import _native
from .connection import Connection
from .errors import ConfigError
from .handlers import check_arity, check_handler
from .server import request_type

if TYPE_CHECKING:
    from .transport.base import Transport
    from .vnf import VNF

__all__ = ["Frames"]

F = TypeVar("F", bound=Callable[..., Any])


class Frames:
    """As a decorator it sets the handler and returns the function unchanged; ``on_*`` set the events' handlers.

    A :class:`Connection` stands for the port: handlers get it, and ``send(frame)`` on it sends a frame of any kind.
    """

    def __init__(
        self,
        vnf: VNF,
        port: str,
        *,
        per_packet: bool = False,
        request_id: _native.Field | Callable[[_native.Frame], Any] | None = None,
    ) -> None:
        if request_id is not None and not per_packet:
            raise ConfigError(f"frames of {port}: request_id= is for per_packet=True")
        self.port, self.per_packet, self.request_id = port, per_packet, request_id
        self.connection: Connection | None = None
        self._vnf = vnf
        self._handlers: dict[str, Callable[..., Any]] = {}

    def __call__(self, fn: F) -> F:
        """``fn(port, request, packet)`` per frame, ``def`` or ``async def``; without ``per_packet``, ``fn(batch)``."""
        return self.on_data(fn)

    def on_data(self, fn: F) -> F:
        """As calling it."""
        if self.per_packet:
            check_arity(fn, ("port", "request", "packet"))
            request_type(fn)
        else:
            check_batch_handler(fn)
        return self._set("data", fn)

    def on_accept(self, fn: F) -> F:
        """``fn(port, request)``: the port is open, and frames may be sent."""
        return self._on("accept", fn)

    def on_sent(self, fn: F) -> F:
        """``fn(port, request)``: what was sent has been handed to the port."""
        return self._on("sent", fn)

    def on_close(self, fn: F) -> F:
        """``fn(port, request, reason)``."""
        return self._on("close", fn)

    def on_error(self, fn: F) -> F:
        """``fn(port, request, error)``: a handler raised. The port goes on."""
        return self._on("error", fn)

    def _on(self, event: str, fn: F) -> F:
        check_handler(event, fn)
        return self._set(event, fn)

    def _set(self, event: str, fn: F) -> F:
        if self._vnf.closed or self.connection is not None:
            raise RuntimeError(f"frames of {self.port}: handlers are registered before the VNF starts")
        self._handlers[event] = fn
        return fn

    def start(self, core: _native.Core, transport: Transport) -> None:
        """Takes the port's frames from now on."""
        handler = self._handlers.get("data")
        if handler is None:
            raise ConfigError(f"frames of {self.port} have no handler: @vnf.frames({self.port!r}) decorates one")
        endpoint = _native.Endpoint(core, f"frames of {self.port}", datagram=True, request_id=self.request_id)
        endpoint.idle_s = None
        if self.per_packet:
            endpoint.handler, endpoint.request = handler, request_type(handler)
        for event, fn in self._handlers.items():
            if event != "data":
                endpoint.on(event, fn)
        self.connection = connection = Connection(core, endpoint)
        transport.take_frames(connection, None if self.per_packet else handler)


def check_batch_handler(fn: Callable[..., Any]) -> None:
    """Refuses a handler of batches that cannot be one here, with its line."""
    check_arity(fn, ("batch",))
    problem = None
    if inspect.iscoroutinefunction(inspect.unwrap(fn)):
        problem = "must be def: a batch is over when its handler returns; per_packet=True may be async"
    elif importlib.util.find_spec("numpy") is None:
        problem = 'needs NumPy for its columns: pip install "libvnf[columns]", or per_packet=True, which needs none'
    if problem is not None:
        code = getattr(inspect.unwrap(fn), "__code__", None)
        name = getattr(fn, "__qualname__", repr(fn))
        raise ConfigError(f"{name} {problem}", file=code and code.co_filename, line=code and code.co_firstlineno)
