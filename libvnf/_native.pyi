"""The native module: packets, connections, dispatch and the bypass engine, written in Rust.

VNF authors use the public classes of ``libvnf``; this page is the reference of what those stand on. Everything here
belongs to the thread of the event loop that its :class:`Core` was made for; a call from another thread raises
``RuntimeError``.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, Self, TypeVar, final

from typing_extensions import Buffer, disjoint_base

from ._native_frames import Batch, Column, Frame, attach_frames
from ._native_store import StoreClient

_F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "Batch",
    "Bridge",
    "Capture",
    "Client",
    "Column",
    "Connection",
    "Core",
    "DatagramProtocol",
    "Datagrams",
    "Delimiter",
    "Driver",
    "Endpoint",
    "Engine",
    "Field",
    "Fixed",
    "FlowTable",
    "Frame",
    "LengthPrefixed",
    "Packet",
    "Request",
    "SocketTarget",
    "Sockets",
    "Splice",
    "StoreClient",
    "Stream",
    "StreamProtocol",
    "Target",
    "attach_frames",
    "build_frame",
    "core_distance_ns",
    "drops",
    "generate_frames",
    "parse_frame",
    "pass_inbox",
    "port_check",
    "port_kinds",
    "port_option",
    "relay",
    "run_load",
    "trace_start",
    "trace_stop",
    "trace_take",
]

@disjoint_base
class Packet:
    """A read-only message. It holds its buffer while anything refers to it, slices and memoryviews included.

    Equal to, and hashes like, the ``bytes`` with the same content.
    """

    def __new__(cls, data: Buffer, /) -> Self: ...
    def __len__(self, /) -> int: ...
    def __getitem__(self, index: int | slice, /) -> Any: ...  # int for an index, Packet (a view) for a slice
    def __iter__(self, /) -> Iterator[int]: ...
    def __contains__(self, item: int | Buffer, /) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...
    def __add__(self, other: Buffer, /) -> bytes: ...
    def __radd__(self, other: Buffer, /) -> bytes: ...
    def __bytes__(self, /) -> bytes: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def find(self, sub: Buffer, start: int = 0, end: int | None = None, /) -> int: ...
    def startswith(self, prefix: Buffer, /) -> bool: ...
    def u8(self, offset: int, /) -> int:
        """The byte at ``offset``; IndexError past the end. So u16, u32, u64: big-endian."""
    def u16(self, offset: int, /) -> int: ...
    def u32(self, offset: int, /) -> int: ...
    def u64(self, offset: int, /) -> int: ...

@final
class Fixed:
    """Every message is ``size`` bytes (1 … 16 MiB). On datagrams: the size a datagram must have."""

    size: Final[int]
    def __new__(cls, size: int) -> Self: ...

@final
class LengthPrefixed:
    """A big-endian length field of ``size`` (1, 2, 3, 4 or 8) bytes at ``offset`` tells how many bytes follow it.

    ``adjust`` is added to the field's value (Diameter, whose length counts the header: ``adjust=-4``); ``strip`` leaves
    the header out of the message that is delivered. A message longer than ``limit`` closes the connection ("framing").
    """

    size: Final[int]
    offset: Final[int]
    adjust: Final[int]
    strip: Final[bool]
    limit: Final[int]
    def __new__(
        cls, size: int, offset: int = 0, adjust: int = 0, strip: bool = False, limit: int = 16777216
    ) -> Self: ...

@final
class Delimiter:
    """A message ends with ``delimiter``, which is not delivered; longer than ``limit`` closes the connection."""

    delimiter: Final[bytes]
    limit: Final[int]
    def __new__(cls, delimiter: bytes, limit: int = 65536) -> Self: ...

@final
class Field:
    """A big-endian unsigned number of ``size`` (1, 2, 4 or 8) bytes at ``offset`` of every message."""

    offset: Final[int]
    size: Final[int]
    def __new__(cls, offset: int, size: int) -> Self: ...

Framing = Fixed | LengthPrefixed | Delimiter | Callable[[bytes], int]

@disjoint_base
class Request:
    """The native half of ``libvnf.Request``: counts who carries it, and ends exactly once when nobody does."""

    def __new__(cls, *args: object, **kwargs: object) -> Self: ...
    @property
    def ended(self) -> bool: ...
    @property
    def id(self) -> int | bytes | str | None:
        """What the request-id extractor read; None without one."""
    @property
    def core(self) -> Core | None: ...
    def attributes(self, /) -> dict[str, Any]:
        """The dictionary of attributes, ``vars(request)``."""
    def end(self, /) -> None:
        """Ends it now, whoever still carries it. A second call does nothing."""
    def hold(self, /) -> None:
        """One more carrier (a timer, a task). RuntimeError once it has ended."""
    def release(self, /) -> None:
        """One carrier less; the last one ends the request. Does nothing once it has ended."""
    def on_end(self, function: Callable[[], object], /) -> bool:
        """Calls ``function()`` when it ends, once, however often it was given. False: it has ended, and nothing is."""
    # For what makes writes durable, where the server has ``commit="before_send"``:
    def await_commit(self, /) -> bool:
        """A write begins. Until ``committed`` or ``commit_failed`` has been called as often, what the request sends is
        held, also what it has sent in this step of its handler; the write carries the request.

        False where nobody waits for it: without ``commit=``, or when a write has failed already. Then call neither.
        """
    def committed(self, /) -> None:
        """A write is durable; after the last one what is held leaves in order, as ``send`` outside of handlers does.
        ``RuntimeError`` when none is under way."""
    def commit_failed(self, error: BaseException, /) -> None:
        """A write failed for good: what is held, and what the request still sends, is dropped and counted; ``on_error``
        is told, and the request ends, without ids its connection too (reason ``commit failed``)."""

@disjoint_base
class Connection:
    """The native half of ``libvnf.Connection``."""

    state: Any
    """The author's; anything."""
    request: Request | None
    """The request this connection carries: messages on it get this one instead of a new one."""

    def __new__(cls, core: Core, endpoint: Endpoint, /) -> Self: ...
    @property
    def core(self) -> Core: ...
    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def local(self) -> str:
        """``host:port``, ``[host]:port`` or a path; empty before it is connected."""
    @property
    def remote(self) -> str: ...
    @property
    def connected(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def busy(self) -> bool:
        """Closing it now would cut something off: a handler or session, an open request, unsent bytes."""
    @property
    def ended(self) -> bool:
        """``take`` has told the peer's end; until then an empty packet is an empty message."""
    @property
    def close_reason(self) -> str | None: ...
    @property
    def buffered(self) -> int:
        """Bytes sent by the author and not yet taken by the transport."""
    @property
    def kept(self) -> int:
        """Bytes of buffers that packets of this connection, kept by Python, occupy."""
    @property
    def transport(self) -> Any:
        """The Python transport it runs on (asyncio's interface), or None on a bypass port or before it is connected."""
    def send(self, /, *parts: Buffer) -> None:
        """Queues one message made of ``parts``; flushed at the end of the batch.

        Raises ``ConnectionError`` when closed and ``BufferFull`` over ``max_buffered_bytes`` (TCP). A datagram that a
        full ring cannot take is dropped and counted.
        """
    def end(self, /) -> None:
        """Half-close after what is queued."""
    def close(self, /) -> None:
        """Close after what is queued. A pooled connection goes back to its pool instead. Closing twice does nothing."""
    def spoil(self, /) -> None:
        """From now on ``close`` does not give it back to its pool: an answer may come that nobody waits for."""
    def abort(self, reason: str = "aborted", /) -> None:
        """Close at once; what is queued is lost (TCP: RST)."""
    def pause(self, /) -> None:
        """No more messages until ``resume``; a stream's peer is slowed down, datagrams are dropped and counted."""
    def resume(self, /) -> None: ...
    def on(self, event: str, handler: Callable[..., Any] | None, /) -> None:
        """Sets this connection's handler of ``accept connect data sent writable end close error``; None removes it."""
    def on_accept(self, handler: _F, /) -> _F:
        """``fn(conn, request)`` when it has been accepted. This and the next return the function: they decorate."""
    def on_connect(self, handler: _F, /) -> _F:
        """``fn(conn, request)`` when it is connected."""
    def on_data(self, handler: _F, /) -> _F:
        """``fn(conn, request, packet)`` per message."""
    def on_sent(self, handler: _F, /) -> _F:
        """``fn(conn, request)`` when the transport has taken everything sent so far."""
    def on_writable(self, handler: _F, /) -> _F:
        """``fn(conn, request)`` when it is below the high-water mark again."""
    def on_end(self, handler: _F, /) -> _F:
        """``fn(conn, request)`` when the peer sends no more."""
    def on_close(self, handler: _F, /) -> _F:
        """``fn(conn, request, reason)``, once."""
    def on_error(self, handler: _F, /) -> _F:
        """``fn(conn, request, error)`` when it could not be made, broke, or a handler raised."""
    def connect(
        self,
        url: str,
        /,
        *,
        framing: Framing | None = None,
        pool: int = 0,
        request: Request | None = None,
    ) -> Self:
        """A connection to ``url`` that carries this one's request. Usable at once: what is sent waits."""
    def take(self, until: bytes | None = None, size: int | None = None, limit: int = 65536, /) -> Packet | None:
        """From the inbox of a connection without ``data`` handler: the next message (with framing) or piece (without),
        up to and including ``until``, or exactly ``size`` bytes. None: not yet there. Empty: the peer has ended.

        Raises ``ConnectionError`` when the connection broke, ``MessageTooLong`` past ``limit``.
        """
    def wait(self, what: str, /) -> asyncio.Future[None]:
        """A future done once it is ``connected``, ``readable``, ``writable`` or ``closed``; now, if it is so."""
    # Called by Python transports:
    def failed(self, error: BaseException, /) -> None:
        """The connection could not be made."""
    # asyncio transport-side callbacks live on StreamProtocol and DatagramProtocol.

@final
class Core:
    """Dispatch for one event loop: pool, limits, request and connection counts, the flush at the end of each batch."""

    def __new__(
        cls,
        event_loop: asyncio.AbstractEventLoop,
        /,
        *,
        connection: type[Connection],
        request: type[Request],
        resolve: Callable[[str], Target | PythonTarget],
        on_failure: Callable[[Connection | None, Request | None, BaseException], None],
        limits: dict[str, float],
    ) -> Self:
        """``limits``: idle_s max_connections max_requests max_buffered_bytes max_kept_bytes
        max_kept_bytes_per_connection max_flows. ``on_failure`` logs what a handler raised. ``resolve(url)`` is asked
        once per url string and remembered; raises ``ConfigError``."""
    @property
    def open_connections(self) -> int: ...
    @property
    def open_requests(self) -> int: ...
    def connections(self, /) -> list[Connection]: ...
    def flush(self, /) -> None: ...
    def tick(self, /) -> None:
        """A second has passed: ends idle connections, and closing ones that never finish."""
    def empty_pools(self, /) -> None:
        """Closes the connections that wait in pools."""
    def unthrottle(self, /) -> int:
        """Lets streams go on that waited because Python kept their packets; returns how many still wait."""
    @property
    def throttled(self) -> int: ...
    def statistics(self, /) -> dict[str, int]: ...
    def pool_statistics(self, /) -> dict[str, dict[str, int]]:
        """Per size class ("256", "2048", …): slot_bytes, slots, free now, times exhausted."""
    def call(self, function: Callable[..., Any], /, *args: object, request: Request | None = None) -> None:
        """Calls a handler of the author as the engine does: coroutines stepped without a task, failures reported.
        In the name of ``request``, if that has not ended."""
    def current_request(self, /) -> Request | None:
        """The request whose handler runs; with ``commit="before_send"`` also in the tasks and timers it has started."""

@final
class Endpoint:
    """What all connections of one server, or of one client, have in common."""

    name: str
    handler: Callable[..., Any] | None
    """``fn(conn, request, packet)`` per message."""
    session: Callable[..., Coroutine[Any, Any, Any]] | None
    """``fn(conn)``, one coroutine per connection."""
    request: type[Request]
    accepting: bool
    """False: new connections are refused (draining)."""
    idle_s: float | None

    def __new__(
        cls,
        core: Core,
        name: str,
        /,
        *,
        datagram: bool = False,
        framing: Framing | None = None,
        request_id: Field | Callable[[Packet], Any] | Callable[[Frame], Any] | None = None,
        commit: bool = False,
    ) -> Self: ...
    @property
    def open_connections(self) -> int: ...
    @property
    def opened(self) -> int: ...
    @property
    def messages(self) -> int: ...
    def on(self, event: str, handler: Callable[..., Any] | None, /) -> None: ...

@final
class Target:
    """Where a native ``connect`` goes: an address on a bypass port."""

    @property
    def datagram(self) -> bool: ...
    def open(self, connection: Connection, /) -> None:
        """Makes the flow, or starts the handshake; a failure reaches the connection, never before the next turn."""

@final
class Sockets:
    """Every kernel socket of one VNF, behind one descriptor that the event loop watches."""

    def __new__(cls, core: Core, connect_s: float, /) -> Self: ...
    def fileno(self, /) -> int:
        """Readable when ``turn`` has something to do."""
    def turn(self, /) -> None:
        """Takes what is ready, as one batch."""
    def listen(self, fd: int, endpoint: Endpoint, /) -> None:
        """Owns a listening stream socket from now on, and accepts on it."""
    def serve_datagrams(self, fd: int, endpoint: Endpoint, /) -> None:
        """Owns a bound UDP socket from now on: a connection per peer address."""
    def target(self, scheme: str, address: str, url: str, /) -> SocketTarget:
        """``tcp`` or ``udp`` with ``ADDRESS:PORT``, ``unix`` with a path; ``url`` is for people."""
    def adopt(self, fd: int, connection: Connection, /) -> None:
        """Owns a connected socket from now on; ``connection`` is made over it."""
    def unlisten(self, /) -> None:
        """Accepts no more; datagram sockets stay."""
    def accept_again(self, /) -> None:
        """Called by a timer after descriptors ran out."""
    def expire(self, /) -> None:
        """Called by a timer: fails the connects that took too long."""
    def close(self, /) -> None: ...
    def statistics(self, /) -> dict[str, int]: ...

@final
class SocketTarget:
    """Where a connection over a kernel socket goes: an address or a path."""

    @property
    def datagram(self) -> bool: ...
    def open(self, connection: Connection, /) -> None:
        """Starts connecting; how it ends reaches the connection at the loop's next turn."""

@final
class Stream:
    """A connection's stream socket: what ``Connection.transport`` is on kernel sockets."""

    def get_extra_info(self, name: str, default: Any = None, /) -> Any:
        """ "socket", "sockname" or "peername", as asyncio's transports tell them; ``default`` once it is closed."""

@final
class Datagrams:
    """A UDP socket: what ``Connection.transport`` is on kernel sockets."""

    def get_extra_info(self, name: str, default: Any = None, /) -> Any: ...

class PythonTarget:
    """The shape ``resolve`` returns for transports written in Python (not a class of this module)."""

    datagram: bool
    def open(self, connection: Connection, /) -> None:
        """Starts connecting; ends in ``StreamProtocol(…, connection).connection_made`` or ``connection.failed``."""

@final
class StreamProtocol:
    """An ``asyncio.Protocol`` that feeds a byte stream into a connection: ``endpoint``'s new one, or the one given."""

    def __new__(cls, core: Core, endpoint: Endpoint | None, connection: Connection | None, /) -> Self: ...
    @property
    def connection(self) -> Connection | None: ...
    def connection_made(self, transport: Any, /) -> None: ...
    def data_received(self, data: bytes, /) -> None: ...
    def eof_received(self, /) -> bool: ...
    def connection_lost(self, error: BaseException | None, /) -> None: ...
    def pause_writing(self, /) -> None: ...
    def resume_writing(self, /) -> None: ...

@final
class DatagramProtocol:
    """An ``asyncio.DatagramProtocol``: a connection per peer address of ``endpoint``, or the one connection given."""

    def __new__(cls, core: Core, endpoint: Endpoint | None, connection: Connection | None, /) -> Self: ...
    def connection_made(self, transport: Any, /) -> None: ...
    def datagram_received(self, data: bytes, address: Any, /) -> None: ...
    def error_received(self, error: OSError, /) -> None: ...
    def connection_lost(self, error: BaseException | None, /) -> None: ...
    def pause_writing(self, /) -> None: ...
    def resume_writing(self, /) -> None: ...

@final
class Driver:
    """The coroutine an ``asyncio.Task`` gets when a handler's coroutine waits: each step is a batch of its own."""

    def send(self, value: Any, /) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None, /) -> Any: ...
    def close(self, /) -> None: ...
    def __await__(self, /) -> Self: ...
    def __iter__(self, /) -> Self: ...
    def __next__(self, /) -> Any: ...

@final
class Client:
    """Matches replies to requests by an id it writes itself, and gives back the caller's. Retransmits datagrams."""

    def __new__(
        cls,
        core: Core,
        endpoint: Endpoint,
        /,
        *,
        request_id: Field | Callable[[Packet], Any] | None,
        timeout_s: float,
        retries: int,
    ) -> Self: ...
    @property
    def outstanding(self) -> int: ...
    @property
    def connections(self) -> int: ...
    def add(self, connection: Connection, /) -> None:
        """One more connection to spread requests over (of ``endpoint``)."""
    def ask(self, packet: Buffer, /, timeout_s: float | None = None) -> asyncio.Future[Packet]: ...
    def send(self, packet: Buffer, request: Request | None, on_reply: Callable[..., Any], /) -> None:
        """The callback form: ``on_reply(conn, request, packet)``; a failure goes to the client's ``error`` handler."""
    def expire(self, now: float, /) -> float | None:
        """Retransmits and times out what is due at loop time ``now``; returns when it wants to be called next."""

@final
class Engine:
    """The bypass engine: ports, hosts and the polling loop. ``turn`` is called by the event loop."""

    def __new__(
        cls,
        core: Core,
        /,
        *,
        connect_s: float = 5.0,
        clock: Callable[[], float] | None = None,
        wake: Callable[[], object] | None = None,
    ) -> Self:
        """``connect_s``: how long a TCP connection may take to be made. ``clock`` returns seconds that never go back (a
        virtual loop's ``time``); with one, a turn handles what is there and polls no further. ``wake`` is called when
        ``turn`` is wanted sooner than the last one said: something outside of turns has sent, or set a deadline."""
    def add_port(self, name: str, options: dict[str, Any], /, *, capture: Capture | None = None) -> None:
        """Opens a port. ``options``: type and those of its kind (:func:`port_kinds`): texts, numbers, lists of texts.
        ``ValueError`` names the key; ``OSError`` when the system refuses."""
    def add_queue(self, name: str, options: dict[str, Any], /) -> None:
        """Opens a port of a simulated network: mtu, mac, address, virtual, gateway, seed; its frames are given and
        taken. With a ``seed`` (64 bits) the host's random numbers are those of every run."""
    def add_address(self, name: str, address: str, /) -> None:
        """One more own address (``10.0.0.3/32``) of the host on a port; the next turn announces it."""
    def give_frame(self, name: str, frame: bytes, /) -> None:
        """One frame for the host on a queue; the next turn receives it. Beyond 65,536 waiting ones it is dropped and
        counted."""
    def take_frames(self, name: str, /) -> list[bytes]:
        """The frames that the host on a queue has sent since. After a turn there may be some; ``wake`` is called when
        there are some without a turn."""
    def listen(self, port: str, host: str | None, number: int, endpoint: Endpoint, /) -> None:
        """Serves ``endpoint`` there: UDP when it is one of datagrams, else TCP."""
    def unlisten(self, port: str, number: int | None = None, /) -> None:
        """New TCP connections (to that number) are refused from now on; datagrams still come in."""
    def target(self, scheme: str, port: str, host: str, number: int, /) -> Target:
        """``tcp`` or ``udp``."""
    def wake_fds(self, /) -> list[int]: ...
    def turn(self, /) -> float | None:
        """One slice (about 50 µs) of polling. 0.0: call again soon; a number: sleep at most so many seconds, until a
        wake descriptor is readable; None: until a wake descriptor is readable."""
    def bridge(self, one: str, two: str, /) -> None:
        """Joins two ports: frames that no rule matches leave by the other one. ``ValueError`` when there is no such
        port, or it is bridged to a third."""
    def ports(self, /) -> list[dict[str, Any]]:
        """Per port: name, type, link ("up" or the reason), peer (its name, or None), mac, addresses, counters."""
    def statistics(self, /) -> dict[str, int]:
        """turns, sleeps, poll_budget_us: how the loop's time is spent. Drops are counted per port."""
    def close(self, /) -> None: ...

@final
class Capture:
    """A pcapng file of what comes and goes by ports. Traffic never waits for it: what it lacks is counted."""

    def __new__(cls, path: str, /) -> Self:
        """A new file, or a pipe that somebody reads already; ``OSError`` says why not."""
    @property
    def failure(self) -> str | None:
        """Why the last frames were not written; None while they are."""
    def close(self, /) -> None:
        """No further port. The file is complete once the ports are closed too: waits for that, two seconds at most."""

@final
class FlowTable:
    """The rules of an engine. Matches and actions are those of ``libvnf.flow``, read by their attributes; what is told
    of a match is a tuple of its fields, of a rule (packets, bytes, limited, failed, idle_s)."""

    def __new__(cls, engine: Engine, /) -> Self: ...
    def install(
        self, matching: Any, actions: Any, /, *, idle_s: float | None = None, hard_s: float | None = None
    ) -> bool:
        """True when it replaced the rule of an equal match. ``OverflowError`` over ``max_flows``, ``ValueError`` for a
        rule that cannot be or a port that is not there."""
    def remove(self, matching: Any, /) -> tuple[int, int, int, int, float] | None: ...
    def statistics(self, matching: Any, /) -> tuple[int, int, int, int, float] | None: ...
    def page(self, start: int, most: int, /) -> tuple[list[Any], int | None]:
        """Matches from place ``start`` on, and where the next page begins. Rules that stay are listed once."""
    def on_ended(
        self, told: Callable[[list[tuple[Any, str, tuple[int, int, int, int, float]]]], object] | None, /
    ) -> None:
        """``told`` is called with (match, "idle" or "hard", figures) of rules that have ended: a few at once.
        None: nobody is."""
    def counters(self, /) -> dict[str, int]: ...
    def __len__(self, /) -> int: ...

@final
class Bridge:
    """Ports that are joined in pairs, without a VNF."""

    def __new__(cls) -> Self: ...
    def add_port(self, name: str, options: dict[str, Any], /, *, capture: Capture | None = None) -> None:
        """As :meth:`Engine.add_port`."""
    def run(self, pairs: list[tuple[int, int]], progress: Callable[[list[dict[str, Any]]], object], /) -> None:
        """Passes frames on without the GIL. About ten times a second ``progress`` gets what ``ports`` returns; true
        ends it. What it raises, a signal's handler too, ends it as well."""
    def ports(self, /) -> list[dict[str, Any]]:
        """Per port: name, type, link ("up" or the reason), peer, counters. ``RuntimeError`` while it runs."""
    def close(self, /) -> None:
        """Closes the ports."""

@final
class Splice:
    """Moves bytes both ways between two kernel sockets in a native thread with splice(2), half-closes kept."""

    def __new__(cls, first: Connection, second: Connection, /) -> Self:
        """Starts at once, on duplicates of their descriptors; what is queued or unread is not looked at. The errors are
        those of ``relay``."""
    @property
    def done_fd(self) -> int:
        """A descriptor, readable once both directions have ended."""
    def result(self, /) -> tuple[int, int, str | None]:
        """Bytes first→second, bytes second→first, and the error that ended it, if any."""
    def close(self, /) -> None:
        """Stops it, if it still runs."""

def relay(first: Connection, second: Connection, /) -> asyncio.Future[tuple[int, int]]:
    """Joins two open streams on the loop's thread: what is unread here and what comes is sent there, half-closes
    included, and who is not read from there is not read from here. The handlers of data and end do not run meanwhile.

    The future has the bytes moved each way once both directions have ended; both are closed then. ``ConnectionError``
    when either connection is over before that; the other is aborted. Raises ``ConnectionError`` for one that is not
    open, ``ValueError`` for datagrams and for a connection with itself, ``RuntimeError`` for one that is relayed
    already.
    """

def pass_inbox(source: Connection, sink: Connection, /) -> int:
    """Queues what is unread on ``source`` on ``sink``, as it came; returns how many bytes. Raises as ``relay`` does."""

def drops(counters: dict[str, int], /) -> dict[str, int]:
    """Those of ``counters`` that are of packets that went no further, where there were some."""

def trace_start(engine: Engine, count: int, options: dict[str, Any], /) -> None:
    """Traces the next ``count`` (at most 10,000) frames that match: port (its name), vlan, kind (``"udp"``, ``"arp"``),
    protocol, ip and number (address or network, port number: of either side), src_ip, dst_ip, src_port, dst_port, teid,
    dropped (only those that something dropped). While it lasts frames are dealt with one by one. ``ValueError`` for
    what cannot be matched, ``RuntimeError`` while another trace runs."""

def trace_take(engine: Engine, /) -> tuple[list[dict[str, Any]], int, int]:
    """What was traced since, how many more are wanted, and how many frames came through at all.

    Each: at_s (since 1970), ns (from the ring until all that followed was done), frame and out (port, bytes, header
    fields; of out also what ``became`` of it), notes (who dealt with it), counters (those that rose, by port; the VNF's
    own under "")."""

def trace_stop(engine: Engine, /) -> None:
    """Ends the trace, if there is one: the ports are as before."""

def build_frame(layers: tuple[Any, ...], payload: Buffer, /) -> bytes:
    """The bytes of layers of :mod:`libvnf.packet`, from the outside in, around ``payload``."""

def parse_frame(data: Buffer, first: int, /) -> tuple[Any, ...]:
    """The layers of a frame (``first`` 0), of an IP packet (1), of one that an error quotes (2), and their payload."""

def port_kinds() -> list[tuple[str, list[str], int]]:
    """Every kind of port: its name, its keys, and how many of the first ones need no name in the one-line form."""

def port_check(options: dict[str, Any], /) -> None:
    """Whether these options (as for ``add_port``) make a whole port; ``ValueError`` names the key that is missing."""

def port_option(kind: str, key: str, value: Any, /) -> str | list[str]:
    """The value of one key of a port of that kind: a text, or a list of them where there may be many. ``ValueError``
    says what is allowed, and not what was found."""

def run_load(options: dict[str, Any], progress: Callable[[dict[str, Any]], bool], /) -> dict[str, Any]:
    """Runs the load generator (``vnf load``) and returns its report.

    ``progress`` is called about ten times a second; once it returns True the run ends and reports what was measured.
    Raises ``ValueError`` for options that contradict themselves, ``OSError`` when the endpoint is not reached.
    """

def generate_frames(options: dict[str, Any], progress: Callable[[dict[str, Any]], bool], /) -> dict[str, Any]:
    """Sends frames into one or two ports and counts what comes back, on the calling thread, without the GIL.

    Options, all but ``ports`` optional: ``ports`` (one, which echoes, or two, ``["memif:PATH", …]``; the first sends),
    ``both_ways`` (both send), ``size`` (60) of a UDP datagram over IPv4 or else ``frame``, the bytes of a template,
    ``flows`` (1), told apart by a number added to the 32-bit field ``vary_at`` (26: the IPv4 source) with the Internet
    checksums ``checksums_at`` ([24, 40]) kept right, both within the first 64 bytes; ``expect``, the bytes that must
    come back, but for what varies between flows; ``rate`` (frames per second) and ``outstanding`` (how many may be
    under way; one that is lost is so for ever), else as many as there is room for; ``duration_s`` (1), ``warmup_s``
    (0.3), ``timeout_s`` (5; how long a port may be without a peer at the beginning), ``cpu``.

    The report: ``rate`` and ``sent_rate`` (frames per second after the warm-up), ``seconds`` (of that time); of the
    whole run ``sent``, ``received`` (as expected; without ``expect`` all of the EtherType sent), ``received_bytes``,
    ``other`` (not as expected), and ``ports``, the counters of each.

    ``progress`` is called about ten times a second with ``{"received": …}``; once it returns True
    the run ends. Raises ``ValueError`` for options that contradict themselves, ``OSError`` when a port has no peer
    in time.
    """

def core_distance_ns() -> float:
    """The round trip of a cache line between cpu 0 and 1: the class ("near", "far") a measurement belongs to."""
