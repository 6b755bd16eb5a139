"""A long-lived, shared client: keeps its connections open, matches replies to requests.

The matching, the ids on the wire and the retransmissions are native; here are the connections' lives and the one timer
that calls ``expire``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from . import _native
from .config import EndpointURL
from .connection import Connection
from .handlers import check_arity, check_handler
from .request import Request

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .vnf import VNF

__all__ = ["Client"]

F = TypeVar("F", bound=Callable[..., Any])

BACKOFF_S = (0.05, 2.0)
"""First and longest pause between attempts to connect; each is multiplied by a random 0.5 … 1.5."""


class Client:
    """What ``vnf.client(…)`` returns."""

    def __init__(
        self,
        vnf: VNF,
        url: str,
        *,
        framing: _native.Framing | None,
        request_id: _native.Field | Callable[[_native.Packet], Any] | None,
        pool: int,
        timeout_s: float,
        retries: int,
    ) -> None:
        self.url, self.pool = url, pool
        self._vnf, self._framing, self._request_id = vnf, framing, request_id
        self._timeout_s, self._retries = timeout_s, retries
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._native: _native.Client | None = None
        self._endpoint: _native.Endpoint | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._up: set[Connection] = set()
        self._waiting: asyncio.Future[None] | None = None
        self._wanted = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timely = False  # the timer fires before anything sent from now on without a time-out of its own is due
        self.reconnects = 0

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, packet: Buffer, timeout_s: float | None = None) -> Awaitable[_native.Packet]:
        """The reply with the request's id. Retransmits datagrams. Raises ``TimeoutError``, ``ConnectionError``."""
        if not self._up or self._native is None:
            return self._ask_later(packet, timeout_s)
        future = self._native.ask(packet, timeout_s)
        if timeout_s is not None or not self._timely:
            self._arm(self._timeout_s if timeout_s is None else timeout_s)
        return future

    async def _ask_later(self, packet: Buffer, timeout_s: float | None) -> _native.Packet:
        await self._connected(self._vnf.limits.ask_s)
        return await self.ask(packet, timeout_s)

    def send(self, packet: Buffer, request: Request | None, on_reply: Callable[..., Any]) -> None:
        """The callback form: ``on_reply(conn, request, packet)``. A failure goes to ``on_error``.

        Raises ``ConnectionError`` at once while no connection is up.
        """
        if not self._up or self._native is None:
            self._wanted.set()
            raise ConnectionError(f"{self.url}: not connected")
        self._native.send(packet, request, on_reply)
        if not self._timely:
            self._arm(self._timeout_s)

    @property
    def outstanding(self) -> int:
        """Requests that wait for their reply."""
        return 0 if self._native is None else self._native.outstanding

    @property
    def connected(self) -> int:
        """Connections that take requests now."""
        return len(self._up)

    async def _connected(self, timeout_s: float) -> None:
        if self._up:
            return
        self._wanted.set()
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        waiting = self._waiting
        # wait, not wait_for: the future is everybody's who waits, and must survive one's timeout.
        await asyncio.wait([waiting], timeout=timeout_s)
        if not waiting.done():
            raise ConnectionError(f"{self.url}: not connected within {timeout_s:g} s")

    def _arm(self, timeout_s: float) -> None:
        """One timer for everything outstanding; a shorter deadline brings it forward."""
        assert self._loop is not None
        now = self._loop.time()
        if self._timer is None or now + timeout_s < self._timer.when() - 0.001:
            self._call_expire(now, now + timeout_s)

    def _expire(self) -> None:
        self._timer, self._timely = None, False
        assert self._native is not None and self._loop is not None
        now = self._loop.time()
        due = self._native.expire(now)
        if due is not None:
            # Not more often than the coarse clock ticks: a timer per millisecond would be all the loop does.
            self._call_expire(now, max(due, now + 0.005))

    def _call_expire(self, now: float, due: float) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._expire)
        self._timely = due <= now + self._timeout_s

    # --- events --------------------------------------------------------------------------------------------------

    def _on(self, event: str, fn: F) -> F:
        check_handler(event, fn)
        self._handlers[event] = fn
        return fn

    def on_connect(self, fn: F) -> F:
        """``fn(conn)``, ``def`` or ``async def``, the handshake: until it is done the connection takes no requests."""
        check_arity(fn, ("conn",))  # a handshake, before there is any request
        self._handlers["connect"] = fn
        return fn

    def on_data(self, fn: F) -> F:
        """``fn(conn, request, packet)``: what nobody asked for."""
        return self._on("data", fn)

    def on_error(self, fn: F) -> F:
        """``fn(conn, request, error)``: a request sent with ``send`` failed, or a connection broke."""
        return self._on("error", fn)

    # --- its connections -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens its connections; called by the VNF when it starts."""
        core = self._vnf.core
        url = EndpointURL.parse(self.url)
        self._endpoint = _native.Endpoint(core, self.url, datagram=url.datagram, framing=self._framing)
        for event in ("data", "error"):
            self._endpoint.on(event, self._handlers.get(event))
        self._native = _native.Client(
            core, self._endpoint, request_id=self._request_id, timeout_s=self._timeout_s, retries=self._retries
        )
        self._vnf.resolve(self.url)  # a wrong url is an error now, not at the first reconnect
        loop = self._loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(), name=f"client {self.url} {n}") for n in range(self.pool)]

    def stop(self) -> None:
        """No more reconnecting; called by the VNF when it closes."""
        for task in self._tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timely = None, False

    async def _keep(self) -> None:
        """One of ``pool`` connections, made again whenever it is lost."""
        pause = BACKOFF_S[0]
        while True:
            try:
                assert self._endpoint is not None and self._native is not None
                connection = self._vnf.open(self.url, self._endpoint)
                try:
                    await connection
                    await self._shake_hands(connection)
                    pause = BACKOFF_S[0]
                    await self._serve(connection)
                finally:
                    self._up.discard(connection)
                    connection.abort("client")
            except (OSError, TimeoutError) as error:
                self._vnf.log.debug("client %s: %s", self.url, error)
            except Exception as error:
                self._vnf.failed(None, None, error)
            self.reconnects += 1
            pause = await self._pause(pause)

    async def _pause(self, pause: float) -> float:
        """Waits before the next attempt; the next pause. A request that finds nothing connected cuts it short."""
        await asyncio.sleep(BACKOFF_S[0] * (0.5 + random.random()))
        try:
            async with asyncio.timeout((pause - BACKOFF_S[0]) * (0.5 + random.random())):
                await self._wanted.wait()
        except TimeoutError:
            return min(pause * 2, BACKOFF_S[1])
        self._wanted.clear()
        return BACKOFF_S[0]

    async def _shake_hands(self, connection: Connection) -> None:
        handler = self._handlers.get("connect")
        if handler is not None:
            result = handler(connection)
            if asyncio.iscoroutine(result):
                async with asyncio.timeout(self._vnf.limits.connect_s):
                    await result

    async def _serve(self, connection: Connection) -> None:
        assert self._native is not None
        self._native.add(connection)
        self._up.add(connection)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        await connection.wait("closed")
