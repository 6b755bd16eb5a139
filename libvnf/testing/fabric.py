"""The in-memory network: hosts, who listens where, which wires are cut, and what happened.

Everything that travels is an entry of one schedule ordered by arrival and then by sending, so equal arrivals stay in
order, and is delivered in a context of its own. Protocols are called from there and from ``call_soon`` only, never from
within a call they make. Any name is a host; a name nobody took answers as a host where nobody listens.
"""

import asyncio
import contextvars
import errno
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .datagram import Datagrams
from .faults import ANY, GRID_S, Dice, Faults
from .stream import Stream, StreamListener

__all__ = ["Event", "Fabric", "Host", "Place"]

LOCAL_S = (
    32 * GRID_S
)  # one way of a unix:// stream: 31 µs; never nothing, or two ends could talk for ever at one instant
FIRST_EPHEMERAL_PORT = 49152  # RFC 6335 §6
_WILDCARDS = ("", "0.0.0.0", "::")

Factory = Callable[[], Any]


class Event(NamedTuple):
    """One thing that happened on the network."""

    at_s: float
    what: str
    flow: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.at_s:12.6f}  {self.flow}  {self.what}" + (f"  {self.size} B" if self.size else "")


class Place(NamedTuple):
    """Where an endpoint URL points: ``tcp`` or ``udp`` with host and port, ``unix`` with a path as its host."""

    kind: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "Place":
        parts = urlsplit(url)
        if parts.scheme == "unix":
            if not parts.path:
                raise ValueError(f"{url!r} names no path: expected unix:///path")
            return cls("unix", parts.netloc + parts.path, 0)
        if parts.scheme not in ("tcp", "udp"):
            raise ValueError(f"{url!r}: the in-memory network carries tcp://, udp:// and unix://")
        if parts.port is None:
            raise ValueError(f"{url!r} has no port")
        return cls(parts.scheme, parts.hostname or "", parts.port)

    @property
    def address(self) -> Any:
        """As ``get_extra_info("peername")`` gives it."""
        return self.host if self.kind == "unix" else (self.host, self.port)

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix://{self.host}"
        host = self.host.removeprefix(ANY)
        return f"{self.kind}://{f'[{host}]' if ':' in host else host}:{self.port}"


class Fabric:
    """One network. ``faults`` holds everywhere it is not overridden by :meth:`wire`."""

    def __init__(self, seed: int | str = 0, faults: Faults | None = None, *, trace_events: int = 10_000) -> None:
        self.seed = seed
        self.faults = faults or Faults()
        self.local_faults = replace(self.faults, loss=0.0, delay_s=LOCAL_S, jitter_s=0.0)
        self.trace: deque[Event] = deque(maxlen=trace_events)
        self.counters: Counter[str] = Counter()
        self.bound: dict[Place, Any] = {}
        self.streams: dict[Stream, None] = {}  # a set that remembers its order: cutting must be the same every time
        self.loop = asyncio.get_running_loop()
        self._names: dict[str, Host] = {}
        self._wires: dict[tuple[str, str], Faults] = {}
        self._partitions: set[frozenset[str]] = set()
        self._isolated: set[str] = set()
        self._held: dict[Stream, None] = {}
        self._flows: Counter[str] = Counter()
        self._schedule: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._context = contextvars.copy_context()
        self._closed = False

    # -- hosts and names

    def host(self, name: str, *, whole: bool = False) -> "Host":
        """The host of this name, made when new. ``whole``: streams to it are not split."""
        if name not in self._names:
            self._names[name] = Host(self, name, whole)
        return self._names[name]

    def alias(self, name: str, host: "Host") -> None:
        """One more name of a host, such as an address one of its servers listens on."""
        owner = self._names.setdefault(name, host)
        if owner is not host:
            raise OSError(f"{name!r} is a name of host {owner.name!r} already")

    def rename(self, name: str, host: "Host") -> None:
        """As ``alias``, but takes the name from whom had it."""
        self._names[name] = host

    def canonical(self, name: str) -> str:
        host = self._names.get(name)
        return host.name if host else name

    def find(self, place: Place) -> Any:
        """Who is bound there: that very name, else the wildcard of the host that has it; None when nobody."""
        return self.bound.get(place) or self.bound.get(Place(place.kind, ANY + self.canonical(place.host), place.port))

    def refusal(self, place: Place) -> ConnectionRefusedError:
        there = sorted(str(p) for p in self.bound if p.kind == place.kind and p.port < FIRST_EPHEMERAL_PORT)
        return ConnectionRefusedError(f"nobody listens on {place} (listening: {', '.join(there) or 'nobody'})")

    # -- wires

    def wire(self, a: str, b: str, **changes: Any) -> None:
        """Changes the faults between two hosts, both ways, for what is sent from now on."""
        for one, other in ((a, b), (b, a)):
            key = (self.canonical(one), self.canonical(other))
            self._wires[key] = replace(self._wires.get(key, self.faults), **changes)

    def faults_between(self, source: str, target: str) -> Faults:
        source, target = self.canonical(source), self.canonical(target)
        faults = self._wires.get((source, target), self.faults)
        host = self._names.get(target)
        return replace(faults, split=0.0) if host is not None and host.whole else faults

    def partition(self, a: str, b: str | None = None) -> None:
        """Nothing passes between a and b (without b: between a and anybody) until :meth:`heal`."""
        if b is None:
            self._isolated.add(self.canonical(a))
        else:
            self._partitions.add(frozenset((self.canonical(a), self.canonical(b))))
        self.note("partition", f"{a} | {b or 'everybody'}")

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Ends partitions: all, all of a, or the one between a and b. What streams held back is sent again."""
        a, b = a and self.canonical(a), b and self.canonical(b)
        if b is None:
            self._isolated = {name for name in self._isolated if a is not None and name != a}
        self._partitions = {
            pair for pair in self._partitions if (a is not None and a not in pair) or (b is not None and b not in pair)
        }
        self.note("heal", f"{a or 'everybody'} | {b or 'everybody'}")
        held, self._held = self._held, {}
        for stream in held:
            self.after(stream.delay_s(), stream.release)

    def severed(self, a: str, b: str) -> bool:
        a, b = self.canonical(a), self.canonical(b)
        return a != b and bool(a in self._isolated or b in self._isolated or frozenset((a, b)) in self._partitions)

    def hold(self, stream: "Stream") -> None:
        """Remembers a stream whose packets wait for :meth:`heal`."""
        self._held[stream] = None

    def cut(self, a: str, b: str | None = None) -> int:
        """Breaks every stream between a and b (without b: of a), both ends with ``ConnectionResetError``; how many."""
        a, b = self.canonical(a), b and self.canonical(b)
        cut = 0
        for stream in list(self.streams):
            ends = (self.canonical(stream.local.host), self.canonical(stream.remote.host))
            if stream.initiator and a in ends and (b is None or b == ends[ends[0] == a]):
                stream.break_off("cut")
                cut += 1
        return cut

    # -- time

    def after(self, delay_s: float, fn: Callable[..., None], *args: Any) -> float:
        """Calls ``fn`` so much later; returns when."""
        return self.at(self.loop.time() + delay_s, fn, *args)

    def at(self, when: float, fn: Callable[..., None], *args: Any) -> float:
        if not self._closed:
            self._scheduled += 1
            heapq.heappush(self._schedule, (when, self._scheduled, fn, args))
            if self._timer is None or when < self._timer.when():
                self._arm()
        return when

    def soon(self, fn: Callable[..., None], *args: Any) -> None:
        self.loop.call_soon(fn, *args, context=self._context.copy())

    def call_at(self, when: float, fn: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """As the loop's, in a context of its own."""
        return self.loop.call_at(when, fn, *args, context=self._context.copy())

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = (
            self.loop.call_at(self._schedule[0][0], self._deliver, context=self._context) if self._schedule else None
        )

    def _deliver(self) -> None:
        self._timer = None
        now = self.loop.time() + GRID_S / 2  # the loop may be early by less than its clock's resolution
        due = []
        while self._schedule and self._schedule[0][0] <= now:
            due.append(heapq.heappop(self._schedule))
        for _, _, fn, args in due:
            self._context.copy().run(fn, *args)
        if self._schedule and self._timer is None:
            self._arm()

    # -- what happened

    def note(self, what: str, flow: str, size: int = 0) -> None:
        self.trace.append(Event(self.loop.time(), what, flow, size))
        self.counters[what.replace(" ", "_")] += 1
        if size:
            self.counters["bytes_" + what.replace(" ", "_")] += size

    def dice(self, flow: str) -> Dice:
        """The dice of one more flow of this name."""
        self._flows[flow] += 1
        return Dice(self.seed, f"{flow}#{self._flows[flow]}")

    def close(self) -> None:
        """Drops what is under way and closes what is open; protocols still hear ``connection_lost``."""
        self._closed = True
        self._schedule.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for listener in list(self.bound.values()):
            listener.close()
        for stream in list(self.streams):
            stream.abort()


class Host:
    """One name on the network: where streams and datagrams begin and end."""

    def __init__(self, fabric: Fabric, name: str, whole: bool) -> None:
        self.fabric = fabric
        self.name = name
        self.whole = whole
        self._port = FIRST_EPHEMERAL_PORT - 1

    def listen(self, url: str, factory: Factory) -> "StreamListener | Datagrams":
        """Binds ``factory()`` (a protocol per stream, one for all datagrams) to a URL. An empty host, ``0.0.0.0`` or
        ``[::]`` is every name of this host; any other becomes one of its names. Raises ``OSError`` (EADDRINUSE) when
        taken.
        """
        place = Place.parse(url)
        if place.kind != "unix":
            if place.host in _WILDCARDS:
                place = place._replace(host=ANY + self.name)
            else:
                self.fabric.alias(place.host, self)
            if place.port == 0:
                place = place._replace(port=self.ephemeral_port())
        if place in self.fabric.bound:
            raise OSError(errno.EADDRINUSE, f"{place} is in use")
        if place.kind == "udp":
            listener: StreamListener | Datagrams = Datagrams(self, factory(), place)
        else:
            listener = StreamListener(self, factory, place)
        self.fabric.bound[place] = listener
        return listener

    def connect(self, url: str, factory: Factory, failed: Callable[[OSError], None]) -> None:
        """Starts connecting: ends in the new protocol's ``connection_made``, or in ``failed(error)``. Datagrams first
        hear at a later loop turn too.
        """
        place = Place.parse(url)
        if place.kind == "udp":
            local = Place("udp", self.name, self.ephemeral_port())
            self.fabric.bound[local] = Datagrams(self, factory(), local, place)
        else:
            local = Place("tcp", self.name, self.ephemeral_port()) if place.kind == "tcp" else Place("unix", "", 0)
            Stream(self, local, place, initiator=True).open(factory, failed)

    async def create_connection(self, factory: Factory, url: str) -> tuple[Any, Any]:
        """As asyncio's: the transport and its protocol, once connected."""
        made: asyncio.Future[None] = self.fabric.loop.create_future()
        protocol: Any = None

        def settle(error: OSError | None = None) -> None:
            if not made.done():
                made.set_exception(error) if error else made.set_result(None)

        def make() -> Any:
            nonlocal protocol
            protocol = factory()
            self.fabric.soon(settle)
            return protocol

        self.connect(url, make, settle)
        await made
        transport = next(t for t in self._open() if t.get_protocol() is protocol)
        return transport, protocol

    def ephemeral_port(self) -> int:
        self._port += 1
        return self._port

    def close(self) -> None:
        """Closes what listens here and aborts what is open."""
        for transport in list(self._open()):
            transport.abort() if isinstance(transport, Stream | Datagrams) else transport.close()

    def _open(self) -> Iterable[Any]:
        yield from [held for held in self.fabric.bound.values() if held.host is self]
        yield from [stream for stream in self.fabric.streams if stream.host is self]
