"""What ``vnf.server`` and ``vnf.session`` return: a server's url and handlers, before and while it runs."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from . import _native
from .errors import ConfigError
from .handlers import check_arity, check_handler
from .request import Request

if TYPE_CHECKING:
    from .vnf import VNF

__all__ = ["Server", "request_type"]

F = TypeVar("F", bound=Callable[..., Any])


def request_type(fn: Callable[..., Any]) -> type[Request]:
    """The class of a handler's requests: what its second parameter is annotated with, else ``Request``."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return Request
    annotation = parameters[1].annotation if len(parameters) > 1 else inspect.Parameter.empty
    if isinstance(annotation, str):
        # from __future__ import annotations: only names the handler can see at its registration.
        try:
            annotation = eval(annotation, getattr(fn, "__globals__", {}), _enclosed(fn))
        except NameError:
            return Request
    if annotation in (inspect.Parameter.empty, Any) or annotation is _native.Request:
        return Request
    if isinstance(annotation, type) and issubclass(annotation, Request):
        return annotation
    code = getattr(fn, "__code__", None)
    raise ConfigError(
        f"{getattr(fn, '__qualname__', fn)}: its request is annotated {annotation!r}: expected libvnf.Request",
        file=code and code.co_filename,
        line=code and code.co_firstlineno,
    )


def _enclosed(fn: Callable[..., Any]) -> dict[str, Any]:
    """The names ``fn`` has from the functions around it; one that is bound later is not there yet."""
    found = {}
    code = getattr(fn, "__code__", None)
    for name, cell in zip(getattr(code, "co_freevars", ()), getattr(fn, "__closure__", None) or (), strict=False):
        with contextlib.suppress(ValueError):
            found[name] = cell.cell_contents
    return found


class Server:
    """As a decorator it sets the handler and returns the function unchanged; ``on_*`` set the events' handlers."""

    def __init__(
        self,
        vnf: VNF,
        url: str,
        *,
        framing: _native.Framing | None = None,
        request_id: _native.Field | Callable[[_native.Packet], Any] | None = None,
        idle_s: float | None = None,
        commit: str | None = None,
        session: bool = False,
    ) -> None:
        if commit not in (None, "before_send"):
            raise ConfigError(f"{url}: commit={commit!r}: expected None or 'before_send'")
        self.url, self.framing, self.request_id, self.idle_s = url, framing, request_id, idle_s
        self.commit = commit
        self.listening: list[str] = []
        self._vnf, self._session = vnf, session
        self._handlers: dict[str, Callable[..., Any]] = {}
        self.endpoint: _native.Endpoint | None = None

    def __call__(self, fn: F) -> F:
        return self.on_session(fn) if self._session else self.on_data(fn)

    def on_data(self, fn: F) -> F:
        """``fn(conn, request, packet)`` per message, ``def`` or ``async def``."""
        return self._on("data", fn)

    def on_session(self, fn: F) -> F:
        """``async fn(conn)`` per connection; returning closes it."""
        check_arity(fn, ("conn",))
        if not inspect.iscoroutinefunction(inspect.unwrap(fn)):
            code = getattr(fn, "__code__", None)
            name = getattr(fn, "__qualname__", repr(fn))
            raise ConfigError(
                f"{name} must be async: a session is one coroutine per connection",
                file=code and code.co_filename,
                line=code and code.co_firstlineno,
            )
        return self._set("session", fn)

    def on_accept(self, fn: F) -> F:
        """``fn(conn, request)``: a new connection."""
        return self._on("accept", fn)

    def on_sent(self, fn: F) -> F:
        """``fn(conn, request)``: everything sent so far has been taken by the transport."""
        return self._on("sent", fn)

    def on_writable(self, fn: F) -> F:
        """``fn(conn, request)``: below the high-water mark again."""
        return self._on("writable", fn)

    def on_end(self, fn: F) -> F:
        """``fn(conn, request)``: the peer sends no more."""
        return self._on("end", fn)

    def on_close(self, fn: F) -> F:
        """``fn(conn, request, reason)``."""
        return self._on("close", fn)

    def on_error(self, fn: F) -> F:
        """``fn(conn, request, error)``."""
        return self._on("error", fn)

    def _on(self, event: str, fn: F) -> F:
        check_handler(event, fn)
        if event == "data":
            request_type(fn)
        return self._set(event, fn)

    def _set(self, event: str, fn: F) -> F:
        if self._vnf.closed:
            raise RuntimeError(f"{self._vnf.name} has stopped")
        self._handlers[event] = fn
        if self.endpoint is not None:
            self._apply(self.endpoint, event, fn)
        return fn

    @staticmethod
    def _apply(endpoint: _native.Endpoint, event: str, fn: Callable[..., Any]) -> None:
        if event == "data":
            endpoint.handler = fn
            endpoint.request = request_type(fn)
        elif event == "session":
            endpoint.session = fn
        else:
            endpoint.on(event, fn)

    @property
    def open_connections(self) -> int:
        """Of this server, now."""
        return 0 if self.endpoint is None else self.endpoint.open_connections

    def make_endpoint(self, core: _native.Core, datagram: bool) -> _native.Endpoint:
        """The native half, with every handler registered so far."""
        endpoint = _native.Endpoint(
            core,
            self.url,
            datagram=datagram,
            framing=self.framing,
            request_id=self.request_id,
            commit=self.commit is not None,
        )
        if self.idle_s is not None:
            endpoint.idle_s = self.idle_s
        for event, fn in self._handlers.items():
            self._apply(endpoint, event, fn)
        self.endpoint = endpoint
        return endpoint
