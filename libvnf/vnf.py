"""A VNF: what its author registers, and its life on one event loop.

Registrations are made when the file is loaded, before there is a loop; ``start`` turns them into native endpoints and
listening transports, ``close`` undoes that. Registrations made while it runs take effect at once.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from . import _native, failures
from .client import Client
from .config import Config, EndpointURL, Limits, PortConfig, T, closest
from .connection import ASK_S, Connection
from .errors import ConfigError
from .flows import Flows
from .frames import Frames
from .request import Request, Timer
from .server import Server
from .state import Durability, Table, Tables, local
from .transport.base import Transport

__all__ = ["VNF"]

K = TypeVar("K")
V = TypeVar("V")

TICK_S = 1.0
"""How often the core looks for what is idle."""

RequestId = _native.Field | Callable[[_native.Packet], Any]


class VNF:
    """One network function. ``VNF("b")`` in a file that ``vnf run`` loads, or that ends with ``vnf.run()``."""

    def __init__(self, name: str, limits: Limits | None = None, *, program: bool | None = None) -> None:
        if not name or not all(part.isalnum() or part in "-_" for part in name) or not name.isascii():
            raise ConfigError(f"{name!r} is not a name: expected letters, digits, - and _")
        from . import runtime

        # In `python b.py` this program's own options count already for setting(): its value is final.
        if program is None:
            program = sys._getframe(1).f_globals.get("__name__") == "__main__"
        self.config: Config = runtime.configuration(program)
        self.name = name
        self.limits = self.config.limits(name, limits or Limits())
        self.log = logging.getLogger(f"vnf.{name}")
        self.closed = False
        self._over = asyncio.Event()
        self._settings: set[str] = set()
        self._servers: list[Server] = []
        self._clients: list[Client] = []
        self._frames: list[Frames] = []
        self.tables = Tables(self.log)
        self.tables.report = partial(self.failed, None, None)
        self.flows = Flows(self)
        self._bridges: list[tuple[str, str]] = []
        self._engine: _native.Engine | None = None
        self._early_timers: list[EarlyTimer] = []
        self._timers: weakref.WeakSet[Timer] = weakref.WeakSet()
        self._transports: list[Transport] = []
        self._unix: list[Transport] = []
        self._core: _native.Core | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures = failures.Reporter(self.log)
        runtime.loaded(self)

    def __repr__(self) -> str:
        return f"<VNF {self.name}>"

    # --- what an author registers --------------------------------------------------------------------------------

    def setting(self, key: str, default: T) -> T:
        """The final value, typed by its default: ``--set key=…`` over ``VNF_NAME_KEY`` over the TOML file."""
        self._settings.add(key)
        return self.config.setting(self.name, key, default)

    def server(
        self,
        url: str,
        *,
        framing: _native.Framing | None = None,
        request_id: RequestId | None = None,
        idle_s: float | None = None,
        commit: str | None = None,
    ) -> Server:
        """A server at ``url``; decorate its message handler ``fn(conn, request, packet)``.

        ``commit="before_send"``: what a request sends, to whomever, is held until what it wrote to tables is durable.
        """
        server = Server(self, url, framing=framing, request_id=request_id, idle_s=idle_s, commit=commit)
        self.tables.commits |= commit is not None
        return self._add(server)

    def session(self, url: str, *, framing: _native.Framing | None = None, idle_s: float | None = None) -> Server:
        """A server at ``url``; decorate ``async fn(conn)``, run once per connection."""
        return self._add(Server(self, url, framing=framing, idle_s=idle_s, session=True))

    def frames(
        self,
        port: str,
        *,
        per_packet: bool = False,
        request_id: _native.Field | Callable[[_native.Frame], Any] | None = None,
    ) -> Frames:
        """The frames of a port; decorate their handler: ``fn(batch)``, or per packet ``fn(port, request, packet)``.

        What the handler does not ``accept`` the port's own host does not get. Needs NumPy unless ``per_packet``.
        """
        if self._core is not None:
            raise RuntimeError(f"frames of {port}: are taken before the VNF starts")
        frames = Frames(self, port, per_packet=per_packet, request_id=request_id)
        self._frames.append(frames)
        return frames

    def _add(self, server: Server) -> Server:
        EndpointURL.parse(server.url).supported()
        self._servers.append(server)
        if self._core is not None:
            # The handlers that decorate it are registered before this callback runs.
            self.spawn(self._listen(server))
        return server

    def client(
        self,
        url: str,
        *,
        framing: _native.Framing | None = None,
        request_id: RequestId | None = None,
        pool: int = 1,
        timeout_s: float = 1.0,
        retries: int = 3,
    ) -> Client:
        """A long-lived client of ``pool`` connections. ``retries`` are retransmissions, of datagrams only."""
        EndpointURL.parse(url).supported()
        if pool < 1 or timeout_s <= 0 or retries < 0:
            raise ConfigError(f"client {url}: expected pool >= 1, timeout_s > 0 and retries >= 0")
        client = Client(
            self, url, framing=framing, request_id=request_id, pool=pool, timeout_s=timeout_s, retries=retries
        )
        self._clients.append(client)
        if self._core is not None:
            client.start()
        return client

    def table(
        self,
        name: str,
        *,
        key: type[K],
        value: type[V],
        durability: Durability = local,
        schema: int = 1,
        upgrades: Mapping[int, Callable[[Any], Any]] | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        partitions: int | None = None,
        last_writer_wins: bool = False,
    ) -> Table[K, V]:
        """A table, in this replica's memory or (``durability=``) in the store.

        ``schema`` and ``upgrades`` are of :class:`~libvnf.state.record.ValueCodec`. ``max_entries`` and ``max_bytes``
        bound what is cached. ``partitions`` are the slots that a cluster spreads it over: part of the stored format.
        ``last_writer_wins``: what others have written meanwhile is overwritten, not a conflict.
        """
        given = {
            "schema": None if schema == 1 else schema,
            "upgrades": upgrades,
            "max_entries": max_entries,
            "max_bytes": max_bytes,
            "partitions": partitions,
            "last_writer_wins": last_writer_wins or None,
        }
        options = {name: option for name, option in given.items() if option is not None}
        return self.tables.add(name, key, value, durability, **options)

    def bridge(self, one: str, two: str) -> None:
        """Joins two ports: what comes by one leaves by the other, natively, unless a rule of ``flows`` says otherwise.

        Their own hosts get no frames any more, but those that a rule accepts.
        """
        if one == two:
            raise ConfigError(f"a bridge from {one!r} to itself: expected two ports")
        for pair in self._bridges:
            if len({one, two, *pair}) == 3:
                raise ConfigError(f"bridge {one!r}, {two!r}: {pair[0]!r} and {pair[1]!r} are bridged to each other")
        if self._core is not None:
            self._join(one, two)
        else:
            self.check_port(one)
            self.check_port(two)
        self._bridges.append((one, two))

    def check_port(self, name: str) -> None:
        """Before it runs: against the ports it is configured with, where it has any."""
        known = [port.name for port in self.config.transports if port.type != "kernel"]
        if known and name not in known:
            raise ConfigError(f"there is no port {name!r}: expected {', '.join(known)}{closest(name, known)}")

    def _join(self, one: str, two: str) -> None:
        if self._engine is None:
            raise ConfigError(f"bridge {one!r}, {two!r}: kernel sockets have no frames: expected two ports")
        try:
            self._engine.bridge(one, two)
        except ValueError as error:
            raise ConfigError(f"bridge: {error}") from None

    def after(self, seconds: float, fn: Callable[..., Any], *args: object) -> Timer | EarlyTimer:
        """Calls ``fn(*args)``, ``def`` or ``async def``, once; a :class:`Timer` with ``cancel()``."""
        return self._timer(seconds, fn, args, every=False)

    def every(self, seconds: float, fn: Callable[..., Any], *args: object) -> Timer | EarlyTimer:
        """Calls ``fn(*args)`` again and again, first after ``seconds``."""
        if seconds <= 0:
            raise ConfigError(f"every({seconds!r}): expected more than 0 seconds")
        return self._timer(seconds, fn, args, every=True)

    def _timer(
        self, seconds: float, fn: Callable[..., Any], args: tuple[object, ...], every: bool
    ) -> Timer | EarlyTimer:
        if not callable(fn):
            raise ConfigError(f"{fn!r} is not a function")
        if self._core is not None:
            timer = Timer(self._core, seconds, fn, args, every=every)
            self._timers.add(timer)
            return timer
        early = EarlyTimer(seconds, fn, args, every)
        self._early_timers.append(early)
        return early

    # --- connections out -----------------------------------------------------------------------------------------

    def connect(
        self,
        url: str,
        *,
        framing: _native.Framing | None = None,
    ) -> Connection:
        """A connection outside any other: ``await`` it, use it with ``async with``, or at once."""
        datagram = EndpointURL.parse(url).supported().datagram
        endpoint = _native.Endpoint(self.core, url, datagram=datagram, framing=framing)
        return self.open(url, endpoint)

    def open(self, url: str, endpoint: _native.Endpoint) -> Connection:
        """An unconnected connection of ``endpoint`` on its way to ``url``."""
        connection = Connection(self.core, endpoint)
        self.resolve(url).open(connection)
        return connection

    def resolve(self, url: str) -> Any:
        """Where connections to ``url`` go: by ``?port=NAME``, else the first transport that reaches the address."""
        parsed = EndpointURL.parse(url).supported()
        return self._transport_for(parsed).target(parsed)

    def _transport_for(self, url: EndpointURL) -> Transport:
        candidates = self._carriers(url)
        if len(candidates) == 1:
            return candidates[0]
        # A port's networks say more than the system, which claims to reach everything.
        for transport in sorted(candidates, key=lambda one: one.carries_unix):
            if transport.reaches(url.host):
                return transport
        return candidates[0]

    def _carriers(self, url: EndpointURL) -> list[Transport]:
        """The transports that ``url`` is for: all, the one it names, or the one that carries ``unix://``."""
        if url.scheme == "unix":
            local = [transport for transport in self._transports if transport.carries_unix]
            return local[:1] or self._unix or [self._kernel()]
        if not url.via or len(self._transports) == 1:
            return self._transports
        named = [transport for transport in self._transports if transport.name == url.via]
        if not named:
            names = ", ".join(transport.name for transport in self._transports)
            raise ConfigError(f"{url}: there is no port {url.via!r}: expected one of {names}")
        return named

    def _kernel(self) -> Transport:
        """For ``unix://`` where no kernel sockets were asked for: no other endpoint may end up on them."""
        from .transport.kernel import KernelTransport

        transport = KernelTransport(self.core, "unix", connect_s=self.limits.connect_s)
        self._unix.append(transport)
        return transport

    # --- its life ------------------------------------------------------------------------------------------------

    @property
    def core(self) -> _native.Core:
        """The native core it runs on; ``RuntimeError`` while it does not."""
        if self._core is None:
            raise RuntimeError(f"{self.name} does not run yet: connect from a handler, a timer or after start")
        return self._core

    @property
    def running(self) -> bool:
        """Between ``start`` and ``close``."""
        return self._core is not None

    async def start(
        self,
        ports: Sequence[PortConfig] | None = None,
        *,
        transports: Callable[[_native.Core], Sequence[Transport]] | None = None,
    ) -> list[tuple[Server | Frames, str, str]]:
        """Starts on the running loop: every server listens, clients connect, timers run. Undone whole when it fails.

        Returns (server, url, transport) per listening address, and per port whose frames are taken. ``transports``
        makes other ones than ``ports`` say.
        """
        if self._core is not None or self.closed:
            raise RuntimeError(f"{self.name} runs already, or has run")
        self.config.check_known(self.name, self._settings)
        self._loop = asyncio.get_running_loop()
        self._core = core = _native.Core(
            self._loop,
            connection=Connection,
            request=Request,
            resolve=self.resolve,
            on_failure=self.failed,
            limits=self.limits.native(),
        )
        ASK_S[core] = self.limits.ask_s
        try:
            if transports is not None:
                self._transports.extend(transports(core))
            else:
                self._open(ports or self.config.transports)
            # Before anything is served: a handler may ask a table at once.
            self.tables.request = core.current_request
            await self.tables.start(self.config.store, core.call, self.limits.connect_s)
            self._engine = next((t.engine for t in self._transports if t.engine is not None), None)
            self.flows.start(self._engine)
            for pair in self._bridges:
                self._join(*pair)
            listening: list[tuple[Server | Frames, str, str]] = [
                (frames, f"frames of {frames.port}", self._take(frames)) for frames in self._frames
            ]
            for server in list(self._servers):
                listening += await self._listen(server)
            for client in self._clients:
                client.start()
            for early in self._early_timers:
                if (timer := early.start(core)) is not None:
                    self._timers.add(timer)
        except BaseException:
            await self.close()
            raise
        self._tick = self._loop.call_later(TICK_S, self._on_tick)
        return listening

    def _open(self, ports: Sequence[PortConfig]) -> None:
        driver = None
        for port in ports:
            if port.type == "kernel":
                from .transport.kernel import KernelTransport

                mapping = port.options.get("map")
                transport = KernelTransport(self.core, port.name, mapping, connect_s=self.limits.connect_s)
                self._transports.append(transport)
            else:
                from .transport.bypass import BypassTransport, EngineDriver

                driver = driver or EngineDriver(self.core, connect_s=self.limits.connect_s, capture=self.config.capture)
                self._transports.append(BypassTransport(driver, port))

    def _take(self, frames: Frames) -> str:
        """Gives the port's frames to ``frames``; the transport, for people."""
        named = [transport for transport in self._transports if transport.name == frames.port]
        if not named and len(self._transports) > 1:
            names = ", ".join(transport.name for transport in self._transports)
            raise ConfigError(f"there is no port {frames.port!r}: expected one of {names}")
        transport = (named or self._transports)[0]
        frames.start(self.core, transport)
        return transport.describe()

    async def _listen(self, server: Server) -> list[tuple[Server, str, str]]:
        url = EndpointURL.parse(server.url)
        endpoint = server.make_endpoint(self.core, url.datagram)
        places = []
        for transport in self._carriers(url):
            for place in await transport.listen(url, endpoint):
                server.listening.append(place)
                places.append((server, place, transport.describe()))
        return places

    def _on_tick(self) -> None:
        assert self._loop is not None
        self._tick = self._loop.call_later(TICK_S, self._on_tick)
        self.core.tick()

    def spawn(self, coroutine: Any) -> None:
        """Runs it as a task of the VNF's: what it raises is reported, and it ends with the VNF."""
        assert self._loop is not None
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)

        def done(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.failed(None, None, error)

        task.add_done_callback(done)

    def endpoints(self) -> set[_native.Endpoint]:
        """Of its servers."""
        return {server.endpoint for server in self._servers if server.endpoint is not None}

    def refuse(self) -> None:
        """Draining: no new connections, no new peers."""
        for server in self._servers:
            if server.endpoint is not None:
                server.endpoint.accepting = False
        for transport in self._transports + self._unix:
            transport.unlisten()

    async def close(self) -> None:
        """Stops at once; what is still open is reset. Closing twice does nothing."""
        core, self.closed = self._core, True
        if core is None:
            return
        for client in self._clients:
            client.stop()
        if self._tick is not None:
            self._tick.cancel()
        for timer in list(self._timers):
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        for connection in core.connections():
            connection.abort("the VNF stops")
        core.empty_pools()
        self.flows.close()
        self._engine = None
        for transport in self._transports + self._unix:
            transport.close()
        await self.tables.close()
        ASK_S.pop(core, None)
        self._core = None
        self._over.set()
        await asyncio.sleep(0)  # aborted transports report connection_lost in the next round of the loop

    async def wait_closed(self) -> None:
        """Until ``close`` was called, by whomever."""
        await self._over.wait()

    def failed(
        self, connection: _native.Connection | None, request: _native.Request | None, error: BaseException
    ) -> None:
        """Logs what a handler raised, limited per cause."""
        self._failures.report(connection, request, error)

    def call_threadsafe(self, fn: Callable[..., Any], *args: object) -> None:
        """Calls ``fn(*args)`` on the loop's thread; the only method that another thread may use."""
        if self._loop is None or self._core is None:
            raise RuntimeError(f"{self.name} does not run")
        self._loop.call_soon_threadsafe(self._core.call, fn, *args)

    def statistics(self) -> Mapping[str, Any]:
        """Every counter by name, nested and frozen: core, pool, transports, servers, clients, failures."""
        core, servers = self._core, [server for server in self._servers if server.endpoint is not None]
        counters: Mapping[str, Any] = frozen(
            {
                "core": {} if core is None else core.statistics(),
                "pool": {} if core is None else core.pool_statistics(),
                "transports": {transport.name: transport.statistics() for transport in self._transports + self._unix},
                "servers": {s.url: {"open_connections": s.open_connections} for s in servers},
                "clients": {
                    c.url: {"connected": c.connected, "outstanding": c.outstanding, "reconnects": c.reconnects}
                    for c in self._clients
                },
                "flows": self.flows.counters(),
                "store": self.tables.statistics(),
                "tables": {table.name: table.statistics() for table in self.tables},
                "failures": self._failures.count,
            }
        )
        return counters

    def ports(self) -> dict[str, Any]:
        """What ``vnf ports`` shows: counters and drops, those of each port and the ``core``'s, and when that was."""
        told = []
        for transport in self._transports + self._unix:
            found = transport.statistics()
            port: dict[str, Any] = found if "counters" in found else {"type": "kernel", "counters": found}
            names = {"name": transport.name, "place": transport.describe()}
            told.append({**port, **names, "drops": _native.drops(port["counters"])})
        core = self.core.statistics()
        return {"ports": told, "core": core, "drops": _native.drops(core), "at_s": time.monotonic()}

    def engine(self) -> _native.Engine | None:
        """What polls its ports; None without ports."""
        return next((one.engine for one in self._transports if one.engine is not None), None)

    def run(self) -> None:
        """At the end of a file: ``python b.py`` is then ``vnf run b.py``, with the same options."""
        from . import runtime

        runtime.run_program(self)

    def test(self, **options: Any) -> Any:
        """``async with vnf.test(seed=7) as net:`` an in-memory network with virtual time; see ``libvnf.testing``."""
        from . import testing

        return testing.network(self, **options)


class EarlyTimer:
    """A timer asked for before there is a loop; it starts counting when the VNF starts."""

    def __init__(self, seconds: float, fn: Callable[..., Any], args: tuple[object, ...], every: bool) -> None:
        self._asked, self._cancelled = (seconds, fn, args, every), False
        self._timer: Timer | None = None

    def start(self, core: _native.Core) -> Timer | None:
        seconds, fn, args, every = self._asked
        if not self._cancelled:
            self._timer = Timer(core, seconds, fn, args, every=every)
        return self._timer

    def cancel(self) -> None:
        self._cancelled = True
        if self._timer is not None:
            self._timer.cancel()


def frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(item) for key, item in value.items()})
    return value
