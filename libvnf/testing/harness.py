"""``Network``: what a test holds. VNFs started on it, the peers the test plays, faults, time and what happened.

Entering makes the loop's time virtual and seeds ``random``, leaving gives both back. Leaving without an exception
closes the test's own ends, lets the VNFs finish, and then asks that nothing is left open in them.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, TypeAlias

from .. import _native, runtime
from ..config import Config, EndpointURL, Limits
from ..connection import ASK_S, Connection
from ..errors import ConfigError, VNFError
from ..handlers import check_handler
from ..request import Request
from ..server import Server, request_type
from ..vnf import VNF
from .capture import Capture
from .clock import Clock
from .fabric import Event, Fabric, Place
from .faults import STACK_ONLY, STREAM_ONLY, Faults
from .segment import Segment
from .stack import StackTransport
from .store import SharedStore
from .transport import MemoryTransport

__all__ = ["LeakError", "Network", "Peer", "Served", "network"]

Startable: TypeAlias = "VNF | str | os.PathLike[str] | Callable[[], VNF]"
Framing: TypeAlias = "_native.Framing | Literal['as the server'] | None"

EPOCH_MS = 1_800_000_000_000  # where the network's time begins, for tables
SETTLE_S = 60.0  # how long VNFs may take to finish once the test's own ends are closed
NOTED_EVENTS = 25


class LeakError(VNFError, AssertionError):
    """When the test had ended, something of a VNF was still open; the message names it."""


def network(*vnfs: Startable, **options: Any) -> Network:
    """What ``vnf.test(…)`` calls: a :class:`Network` that starts ``vnfs`` when it is entered."""
    return Network(*vnfs, **options)


class Network:
    """``async with Network(vnf, seed=7, loss=0.01) as net:``

    ``faults`` are the fields of :class:`~libvnf.testing.faults.Faults`. ``seed`` determines everything that is not the
    real world's. ``check_leaks=False`` leaves out the checks at the end; ``limit_s`` bounds the virtual time of a test.

    With ``stack=True`` every host has the user-space stack, on one virtual Ethernet: what travels, and suffers faults,
    are frames. ``ipv6=True`` then has names resolve to IPv6 addresses.
    """

    def __init__(
        self,
        *vnfs: Startable,
        seed: int | str = 0,
        check_leaks: bool = True,
        limit_s: float = 86400.0,
        patience_s: float = 5.0,
        stack: bool = False,
        ipv6: bool = False,
        **faults: Any,
    ) -> None:
        unknown = sorted(faults.keys() - Faults.names())
        if unknown:
            raise TypeError(f"{unknown[0]!r} is no fault: expected some of {', '.join(sorted(Faults.names()))}")
        if ipv6 and not stack:
            raise TypeError("ipv6=True goes with stack=True: in the in-memory model there are no addresses")
        self._stack, self._ipv6 = stack, ipv6
        self._check_faults(faults)
        self.seed, self.check_leaks = seed, check_leaks
        self.clock = Clock(limit_s=limit_s, patience_s=patience_s)
        self.failures: list[BaseException] = []
        """What the handlers of :meth:`serve` raised; leaving raises the first."""
        self._faults, self._first = Faults(**faults), vnfs
        self._fabric: Fabric | None = None
        self._segment: Segment | None = None
        self._running: dict[str, tuple[VNF, _native.Core]] = {}
        self._framings: dict[Any, _native.Framing | None] = {}
        self._peers: dict[str, Peer] = {}
        self._random: Any = None
        self._store: SharedStore | None = None
        self._closing = False

    # -- life

    async def __aenter__(self) -> Self:
        self.clock.install(asyncio.current_task())
        self._random = random.getstate()
        random.seed(f"{self.seed}/random")
        self._fabric = Fabric(self.seed, self._faults)
        if self._stack:
            self._segment = Segment(self._fabric, self, ipv6=self._ipv6)
        try:
            for vnf in self._first:
                await self.start(vnf)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        leaks: list[str] = []
        try:
            if error is None:
                await self._settle()
                leaks = self._open_requests() if self.check_leaks else []
        finally:
            cores = {name: core for name, (_, core) in self._running.items()}
            await self._close()
            try:
                self.clock.judge(error)
            except AssertionError as verdict:
                self._annotate(verdict)
                raise
        if error is not None:
            return self._annotate(error)
        for failure in self.failures:
            if not isinstance(failure, OSError):
                raise self._annotated(failure)
        leaks += self._kept_packets(cores) if self.check_leaks else []
        if leaks:
            raise self._annotated(LeakError("; ".join(leaks)))

    async def _settle(self) -> None:
        """The test's ends close; the VNFs see that and finish."""
        for peer in self._peers.values():
            peer.close()
        end_s, step_s = self.clock.now + SETTLE_S, 0.01
        for vnf, _ in self._running.values():
            await vnf.tables.drain(end_s)
        while self._fabric is not None:
            await asyncio.sleep(step_s)
            busy = any(core.open_requests for _, core in self._running.values())
            if self.clock.now >= end_s or (not busy and step_s > 1.0):
                return
            step_s = min(2 * step_s, max(0.01, end_s - self.clock.now))

    async def _close(self) -> None:
        try:
            for peer in self._peers.values():
                peer.abort()
            for vnf, _ in reversed(self._running.values()):
                await vnf.close()
        finally:
            if self._fabric is not None:
                self._fabric.close()
            if self._segment is not None:
                self._segment.close()
            for _ in range(3):  # connection_lost, what it resumes, and what that ends
                await asyncio.sleep(0)
            self.clock.uninstall()
            random.setstate(self._random)

    # -- the VNFs

    async def start(
        self, vnf: Startable, *, settings: Mapping[str, object] | None = None, host: str | None = None
    ) -> VNF:
        """Starts a VNF, the one in a file, or the one a function makes, on the host of its name, or on ``host``.

        ``settings`` are those of ``vnf run --set``. They are final once a VNF's file is loaded, so they go with a file
        or a function: ``await net.start("b.py", settings={"c": "tcp://c:5000"})``.
        """
        made = made_with(vnf, settings)
        name = host or made.name
        if name in self._running:
            raise ConfigError(f"a VNF runs on host {name!r} already: give one of them host=")
        if self._segment is not None and name in self._peers and not self.vacate(name):
            raise ConfigError(f"host {name!r} is the test's already: start the VNF first, or give it another host=")
        made.tables.clock_ms, made.tables.store = self.clock_ms, self.store.client()
        listening = await made.start(transports=lambda core: [self._transport(core, name, made.limits)])
        self._running[name] = made, made.core
        for server, url, _ in listening:
            if isinstance(server, Server):
                self._framings[self._found(url)] = server.framing
        return made

    def _transport(
        self, core: _native.Core, host: str, limits: Limits, *, whole: bool = False
    ) -> MemoryTransport | StackTransport:
        if self._segment is not None:
            return StackTransport(core, self._segment, host, connect_s=limits.connect_s)
        return MemoryTransport(core, self.fabric.host(host, whole=whole))

    # -- the peers that the test plays

    def peer(self, host: str = "test") -> Peer:
        """The test's own end on a host: made when first asked for."""
        if host in self._running:
            raise ConfigError(f"host {host!r} is the VNF's: the test's peers need another")
        if host not in self._peers:
            self._peers[host] = Peer(self, host)
        return self._peers[host]

    async def connect(self, url: str, *, framing: Framing = "as the server", host: str = "test") -> Connection:
        """A connection of the test, from ``host``, once connected. Messages are cut as the server there cuts them
        unless ``framing`` says otherwise. Raises ``ConnectionRefusedError`` where nobody listens, or another
        ``OSError``.
        """
        return await self.peer(host).connect(url, framing)

    async def serve(
        self, url: str, handler: Callable[..., Any], *, framing: _native.Framing | None = None, host: str | None = None
    ) -> Served:
        """The test plays a server: ``fn(conn, request, packet)`` per message or ``async fn(conn)`` per connection. Its
        host is the one the url names.
        """
        parsed = EndpointURL.parse(url)
        return await self.peer(host or parsed.host or "test").serve(parsed, handler, framing)

    def framing_of(self, url: str) -> _native.Framing | None:
        """What the server at ``url`` cuts messages with."""
        return self._framings.get(self._found(url))

    def _found(self, url: str) -> Any:
        """What stands for the server at ``url``: what is bound there; on the stack the place itself."""
        place = Place.parse(url)
        if self._segment is None or place.kind == "unix":
            return self.fabric.find(place)
        return place._replace(host=self.fabric.canonical(place.host))

    # -- on the stack, hosts that nobody is

    def settle(self, name: str) -> None:
        """A host that serves nothing, where a VNF addressed one nobody has: connecting to it is refused. That of a VNF
        that has stopped is down, and answers nothing.
        """
        if name not in self._running:
            self.peer(name)

    def vacate(self, name: str) -> bool:
        """Whether that host has gone, because it serves nothing and has no connection."""
        peer = self._peers.get(name)
        if peer is None or not peer.idle:
            return False
        del self._peers[name]
        peer.abort()
        return True

    # -- time

    async def run_for(self, seconds: float) -> None:
        """Lets so much virtual time pass; it does not count against ``limit_s``."""
        self.clock.limit_s += seconds
        await asyncio.sleep(seconds)

    # -- faults

    @property
    def fabric(self) -> Fabric:
        """The network itself, for tests of plain asyncio protocols."""
        if self._fabric is None:
            raise RuntimeError("enter the network first: async with …")
        return self._fabric

    def wire(self, a: str, b: str, **faults: Any) -> None:
        """Other faults between two hosts, both ways, for what is sent from now on."""
        self._check_faults(faults)
        self.fabric.wire(a, b, **faults)

    def _check_faults(self, faults: Mapping[str, Any]) -> None:
        wrong = sorted(faults.keys() & (STREAM_ONLY if self._stack else STACK_ONLY))
        if wrong and self._stack:
            raise TypeError(f"{wrong[0]!r} is of modelled streams: with stack=True TCP cuts and breaks them itself")
        if wrong:
            raise TypeError(f"{wrong[0]!r} goes with stack=True: in the in-memory model there are no frames")

    def partition(self, a: str, b: str | None = None) -> None:
        """Nothing passes between a and b (without b: anybody) until :meth:`heal`. Streams wait, datagrams are lost."""
        self.fabric.partition(a, b)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Ends that partition, all of a's, or all."""
        self.fabric.heal(a, b)

    def cut(self, a: str, b: str | None = None) -> int:
        """Resets every open stream between a and b (without b: of a); returns how many."""
        return self.fabric.cut(a, b) + (self._segment.cut(a, b) if self._segment is not None else 0)

    # -- what happened

    @property
    def trace(self) -> list[Event]:
        """The last 10,000 things that happened on the network."""
        return list(self.fabric.trace)

    def capture(self, path: str | os.PathLike[str], *, arriving: bool = False) -> Capture:
        """Writes every frame from now on to a pcap file, for Wireshark and tshark: as it leaves its host, before any
        fault, or with ``arriving=True`` as it reaches one. Complete once closed, or when the network is left.
        """
        if self._segment is None:
            raise RuntimeError("capture goes with stack=True, and needs the network entered: else there are no frames")
        capture = Capture(path)
        self._segment.capture(capture, arriving=arriving)
        return capture

    def statistics(self) -> Mapping[str, Any]:
        """``network``: how often what happened, and ``bytes_…`` of it. ``vnfs``: each VNF's own statistics."""
        vnfs = {name: vnf.statistics() for name, (vnf, _) in self._running.items()}
        return MappingProxyType(
            {"network": MappingProxyType(dict(self.fabric.counters)), "vnfs": MappingProxyType(vnfs)}
        )

    @property
    def store(self) -> SharedStore:
        """The store of all VNFs' tables, for outages: ``net.store.outage(seconds=5)``."""
        if self._store is None:
            self._store = SharedStore(self.clock_ms)
        return self._store

    def clock_ms(self) -> int:
        """The time of tables: the network's, since a day that is always the same."""
        return EPOCH_MS + round(self.clock.now * 1000)

    def _annotate(self, error: BaseException) -> None:
        """Adds the seed and the last events to an error, for whoever reads the failure."""
        if self._fabric is not None:
            error.add_note(self.story())

    def story(self, events: int = NOTED_EVENTS) -> str:
        """The seed, the time and the last events, for people."""
        last = [str(event) for event in self.fabric.trace][-events:]
        kind = "virtual" if self._stack else "in-memory"
        return "\n".join([f"{kind} network: seed={self.seed!r}, now={self.clock.now:.6f} s; last events:", *last])

    def _annotated(self, error: BaseException) -> BaseException:
        self._annotate(error)
        return error

    # -- leaks

    def _open_requests(self) -> list[str]:
        return [
            f"{name}: {core.open_requests} request(s) still open {SETTLE_S:g} s after the test ended"
            for name, (_, core) in self._running.items()
            if core.open_requests
        ]

    def _kept_packets(self, cores: dict[str, _native.Core]) -> list[str]:
        found = list(kept(cores))
        if found:
            forget_logged_frames()
            gc.collect()  # a kept packet may be part of a cycle that nobody refers to
            found = list(kept(cores))
        return found


def kept(cores: dict[str, _native.Core]) -> Iterator[str]:
    """Packets that somebody still refers to: their bytes count as kept, and their slots are missing in the pool."""
    for name, core in cores.items():
        size = core.statistics()["kept_bytes"]
        missing = sum(row["slots"] - row["free"] for row in core.pool_statistics().values())
        if size or missing:
            yield f"{name}: packets are still kept: {size} bytes, {missing} slot(s) of the pool"


def forget_logged_frames() -> None:
    """Whoever captures logs (pytest does) keeps the frames of logged exceptions, and what their variables refer to."""
    for record in gc.get_objects():
        if isinstance(record, logging.LogRecord) and record.exc_info and record.exc_info[2]:
            traceback.clear_frames(record.exc_info[2])


def made_with(vnf: Startable, settings: Mapping[str, object] | None) -> VNF:
    """The VNF, loaded or made with these settings and without those of this process's environment."""
    if isinstance(vnf, VNF):
        if settings:
            raise ConfigError(f"the settings of {vnf.name} are final: give start its file, or a function that makes it")
        return vnf
    texts = {key: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for key, v in (settings or {}).items()}
    config = Config.read(sets=[f"{key}={value}" for key, value in texts.items()], environment={})
    if not callable(vnf):
        return runtime.load(os.fspath(vnf), config)
    with runtime.configured(config):
        return vnf()


class Peer:
    """The test's end on one host: a core of its own, so that what the test keeps is not the VNF's leak."""

    def __init__(self, net: Network, host: str) -> None:
        self._net = net
        limits = Limits()
        self._core = _native.Core(
            asyncio.get_running_loop(),
            connection=Connection,
            request=Request,
            resolve=self._target,
            on_failure=lambda connection, request, error: net.failures.append(error),
            limits=limits.native(),
        )
        ASK_S[self._core] = limits.ask_s
        self._transport = net._transport(self._core, host, limits, whole=True)
        self._served: list[Served] = []

    def _target(self, url: str) -> Any:
        return self._transport.target(EndpointURL.parse(url))

    async def connect(self, url: str, framing: Framing) -> Connection:
        parsed = EndpointURL.parse(url).supported()
        if isinstance(framing, str):
            framing = self._net.framing_of(url)
        endpoint = _native.Endpoint(self._core, url, datagram=parsed.datagram, framing=framing)
        connection = Connection(self._core, endpoint)
        self._transport.target(parsed).open(connection)
        try:
            return await connection
        except ConnectionError as error:
            if type(error) is ConnectionError and error.errno is not None:
                raise OSError(*error.args) from None  # of the class that its number has
            raise

    async def serve(self, url: EndpointURL, handler: Callable[..., Any], framing: _native.Framing | None) -> Served:
        endpoint = _native.Endpoint(self._core, str(url), datagram=url.supported().datagram, framing=framing)
        if inspect.iscoroutinefunction(handler) and len(inspect.signature(handler).parameters) == 1:
            endpoint.session = handler
        else:
            check_handler("data", handler)
            endpoint.handler, endpoint.request = handler, request_type(handler)
        [place] = await self._transport.listen(url, endpoint)
        self._served.append(Served(place, endpoint, self._transport))
        return self._served[-1]

    @property
    def idle(self) -> bool:
        """It serves nothing and has no connection."""
        return not (self._served or self._core.open_connections)

    def close(self) -> None:
        for connection in self._core.connections():
            connection.close()

    def abort(self) -> None:
        for connection in self._core.connections():
            connection.abort("the test has ended")
        self._transport.close()
        ASK_S.pop(self._core, None)


class Served:
    """A server that the test plays."""

    def __init__(self, url: str, endpoint: _native.Endpoint, transport: MemoryTransport | StackTransport) -> None:
        self.url, self.endpoint = url, endpoint
        self._transport = transport

    @property
    def open_connections(self) -> int:
        """Streams, or datagram peers that are remembered."""
        return self.endpoint.open_connections

    def close(self) -> None:
        """Refuses new connections from now on; open streams go on, datagrams do not."""
        self._transport.close_server(self.url, self.endpoint)
