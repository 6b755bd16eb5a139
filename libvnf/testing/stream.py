"""Byte streams in memory: asyncio's ``Transport``, two of which are the ends of one ``tcp://`` or ``unix://`` stream.

A :class:`Stream` is one end and owns the direction that leaves it: a write buffer, what is in flight (sent and not yet
read over there), and what a partition holds back. What travels is a :class:`Parcel`; parcels of one direction arrive in
the order they were sent, the opening and the end included. An end is *lost* once its ``connection_lost`` is on its way:
then nothing more is told to its protocol.
"""

import asyncio
import enum
import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .faults import RETRANSMISSIONS, RETRANSMIT_S

if TYPE_CHECKING:
    from .fabric import Host, Place
    from .faults import Faults

__all__ = ["Stream", "StreamListener"]

HIGH_WATER, LOW_WATER = 65536, 16384  # asyncio's defaults
GIVE_UP_S = RETRANSMIT_S * 2**RETRANSMISSIONS  # of a partition, as of loss


class Kind(enum.Enum):
    SYN = "opening"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    DATA = "data"
    END = "end"
    RESET = "reset"


class Parcel(NamedTuple):
    kind: Kind
    data: bytes = b""


class StreamListener:
    """Accepts streams: each gets a protocol from ``factory``."""

    def __init__(self, host: "Host", factory: Callable[[], Any], place: "Place") -> None:
        self.host, self.factory, self.place = host, factory, place

    @property
    def port(self) -> int:
        return self.place.port

    def close(self) -> None:
        """Refuses what comes from now on; open streams go on."""
        if self.host.fabric.bound.get(self.place) is self:
            del self.host.fabric.bound[self.place]


class Stream(asyncio.Transport):
    """One end of a byte stream."""

    def __init__(self, host: "Host", local: "Place", remote: "Place", *, initiator: bool) -> None:
        super().__init__()
        self.host, self.local, self.remote, self.initiator = host, local, remote, initiator
        self.flow = f"{local if local.host else host.name} > {remote}"
        self._fabric = host.fabric
        self._dice = self._fabric.dice(self.flow)
        self._protocol: Any = None
        self._peer: Stream | None = None
        self._begin: tuple[Callable[[], Any], Callable[[OSError], None]] | None = None
        self._buffer = bytearray()
        self._high, self._low = HIGH_WATER, LOW_WATER
        self._in_flight = 0  # bytes sent and not yet read over there
        self._sent_bytes = 0
        self._held: deque[Parcel] = deque()
        self._holding = 0  # counts holdings, so that an old one's giving up is recognised
        self._last_arrival = 0.0
        self._inbox: deque[Parcel] = deque()
        self._reading = True
        self._told_to_pause = False
        self._launching = False
        self._draining = False
        self._end_wanted = self._end_sent = False
        self._closing = False
        self._lost = False
        self._fabric.streams[self] = None

    # -- opening

    def open(self, factory: Callable[[], Any], failed: Callable[[OSError], None]) -> None:
        """Calls ``factory`` once accepted, or ``failed`` with why not."""
        self._begin = factory, failed
        self._send(Parcel(Kind.SYN))

    def _on_syn(self) -> None:
        """Runs at the initiator's end, on behalf of the host addressed."""
        listener = self._fabric.find(self.remote)
        if listener is None:
            self._fabric.note("refused", self.flow)
            self._fabric.after(self.delay_s(), self._deliver, Parcel(Kind.REFUSED))
            return
        peer = Stream(listener.host, self.remote, self.local, initiator=False)
        self._peer, peer._peer = peer, self
        self._fabric.note("accepted", self.flow)
        peer._start(listener.factory())
        peer._send(Parcel(Kind.ACCEPTED))

    def _start(self, protocol: Any) -> None:
        self._protocol = protocol
        self._guarded(protocol.connection_made, self)

    def _fail(self, error: OSError) -> None:
        self._lost = self._closing = True
        self._fabric.streams.pop(self, None)
        if self._begin is not None:
            failed, self._begin = self._begin[1], None
            failed(error)

    # -- asyncio's interface: writing

    def write(self, data: Any) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            data = memoryview(data)  # TypeError names what is no buffer
        if self._end_wanted:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._closing or self._lost or not len(data):
            return
        self._buffer += data
        self._launch_soon()
        self._pause_or_resume()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not (self._end_wanted or self._closing or self._lost):
            self._end_wanted = True
            self._launch_soon()

    def get_write_buffer_size(self) -> int:
        """What was written and has found no room in flight."""
        return max(0, len(self._buffer) - max(0, self._faults().in_flight_bytes - self._in_flight))

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        high = (HIGH_WATER if low is None else 4 * low) if high is None else high
        low = high // 4 if low is None else low
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._pause_or_resume()

    # -- asyncio's interface: reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._drain_soon()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    # -- asyncio's interface: ending

    def close(self) -> None:
        """What was written leaves first."""
        if not self._closing:
            self._closing = True
            self._launch_soon()

    def abort(self) -> None:
        """What was written is lost; the other end is reset."""
        if self._lost:
            return
        if self._protocol is None:
            self._fail(ConnectionAbortedError("closed while connecting"))
        else:
            self._buffer.clear()
            self._send(Parcel(Kind.RESET))
            self._lose(None)

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sockname":
            return self.local.address
        return self.remote.address if name == "peername" else default

    # -- sending

    def _faults(self) -> "Faults":
        if self.local.kind == "unix":
            return self._fabric.local_faults
        return self._fabric.faults_between(self.host.name, self.remote.host)

    def delay_s(self) -> float:
        return self._dice.delay_s(self._faults())

    def _launch_soon(self) -> None:
        """At the loop's next turn, so that what one turn writes travels together."""
        if not self._launching:
            self._launching = True
            self._fabric.soon(self._launch)

    def _launch(self) -> None:
        self._launching = False
        if self._lost or self._protocol is None:
            return
        faults = self._faults()
        while self._buffer and self._in_flight < faults.in_flight_bytes:
            waiting = min(len(self._buffer), faults.in_flight_bytes - self._in_flight)
            size = self._dice.piece_bytes(waiting, faults)
            if self._dice.happens(faults.breaks):
                return self.break_off("broken")
            if faults.break_after_bytes is not None and self._sent_bytes + size > faults.break_after_bytes:
                return self.break_off("broken")
            self._in_flight += size
            self._sent_bytes += size
            self._send(Parcel(Kind.DATA, bytes(self._buffer[:size])))
            del self._buffer[:size]
        if not self._buffer and self._closing and any(parcel.kind is Kind.DATA for parcel in self._inbox):
            self._send(Parcel(Kind.RESET))  # closing on unread data: RFC 2525 §2.17
        elif not self._buffer and (self._end_wanted or self._closing) and not self._end_sent:
            self._end_sent = True
            self._send(Parcel(Kind.END))
        if not self._buffer and self._closing:
            self._lose(None)
        else:
            self._pause_or_resume()

    def _send(self, parcel: Parcel) -> None:
        faults = self._faults()
        late_s = self._dice.retransmissions_s(faults)
        if late_s is None:
            self._fabric.note("given up", self.flow)
            self._fabric.after(GIVE_UP_S, self._give_up)
            return
        self._fabric.note(parcel.kind.value, self.flow, len(parcel.data))
        if late_s:
            self._fabric.note("retransmitted", self.flow, len(parcel.data))
        arrival = max(self._last_arrival, self._fabric.loop.time() + self._dice.delay_s(faults) + late_s)
        self._last_arrival = self._fabric.at(arrival, self._arrive, parcel)

    def _arrive(self, parcel: Parcel) -> None:
        severed = self.local.kind != "unix" and self._fabric.severed(self.host.name, self.remote.host)
        if severed or self._held:
            if not self._held:
                self._holding += 1
                self._fabric.after(GIVE_UP_S, self._give_up, self._holding)
            self._held.append(parcel)
            self._fabric.hold(self)
        elif parcel.kind is Kind.SYN:
            if not self._lost:
                self._on_syn()
        elif self._peer is not None:
            self._peer._deliver(parcel)

    def release(self) -> None:
        """Sends again what a partition held."""
        if self._fabric.severed(self.host.name, self.remote.host):
            return self._fabric.hold(self)
        held, self._held = self._held, deque()
        for parcel in held:
            self._arrive(parcel)

    def _give_up(self, holding: int | None = None) -> None:
        if holding is None or (self._held and holding == self._holding):
            self._held.clear()
            self.break_off(
                "timed out",
                TimeoutError(errno.ETIMEDOUT, f"{self.flow}: given up after {GIVE_UP_S:g} s without an answer"),
            )

    def break_off(self, what: str, error: OSError | None = None) -> None:
        """Both ends are lost at once."""
        self._fabric.note(what, self.flow)
        for end in (self, self._peer):
            if end is not None:
                why = error or ConnectionResetError(errno.ECONNRESET, f"{end.flow}: {what} by the test network")
                end._buffer.clear()
                end._fail(why) if end._protocol is None else end._lose(why)

    # -- receiving

    def _deliver(self, parcel: Parcel) -> None:
        """A parcel of the other end has arrived here."""
        if self._lost:
            if parcel.kind is Kind.DATA and self._peer is not None and not self._peer._lost:
                self._send(Parcel(Kind.RESET))
        elif parcel.kind is Kind.REFUSED:
            self._fail(self._fabric.refusal(self.remote))
        elif parcel.kind is Kind.ACCEPTED:
            assert self._begin is not None
            factory, self._begin = self._begin[0], None
            self._start(factory())
        elif parcel.kind is Kind.RESET:  # overtakes what was not read
            self._buffer.clear()
            if self._protocol is None:
                self._fail(ConnectionResetError(errno.ECONNRESET, f"{self.flow}: reset while connecting"))
            else:
                self._lose(ConnectionResetError(errno.ECONNRESET, f"{self.flow}: connection reset by peer"))
        elif self._inbox or not self._reading:
            self._inbox.append(parcel)
        else:
            self._give(parcel)

    def _drain_soon(self) -> None:
        if self._inbox and not self._draining:
            self._draining = True
            self._fabric.soon(self._drain)

    def _drain(self) -> None:
        self._draining = False
        while self._inbox and self._reading and not self._closing and not self._lost:
            self._give(self._inbox.popleft())

    def _give(self, parcel: Parcel) -> None:
        if self._closing:  # asyncio reads nothing once closing; the close has yet to decide how it ends
            self._inbox.append(parcel)
        elif parcel.kind is Kind.END:
            self._fabric.note("ended", self.flow)
            if not self._guarded(self._protocol.eof_received):
                self.close()
        else:
            assert self._peer is not None
            self._peer._in_flight -= len(parcel.data)
            self._peer._launch_soon()
            self._fabric.note("read", self.flow, len(parcel.data))
            self._guarded(self._protocol.data_received, parcel.data)

    # -- the protocol

    def _pause_or_resume(self) -> None:
        if self._lost or self._protocol is None:
            return
        waiting = self.get_write_buffer_size()
        if not self._told_to_pause and waiting > self._high:
            self._told_to_pause = True
            self._guarded(self._protocol.pause_writing)
        elif self._told_to_pause and waiting <= self._low:
            self._told_to_pause = False
            self._guarded(self._protocol.resume_writing)

    def _guarded(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Calls the protocol; what it raises is reported and ends the stream, as asyncio's transports do."""
        try:
            return fn(*args)
        except Exception as error:
            self._fabric.loop.call_exception_handler(
                {
                    "message": f"protocol.{fn.__name__} failed",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            if not self._lost:
                self._send(Parcel(Kind.RESET))
                self._lose(error)
            return None

    def _lose(self, error: BaseException | None) -> None:
        if not self._lost:
            self._lost = self._closing = True
            self._inbox.clear()
            self._fabric.streams.pop(self, None)
            self._fabric.note("lost" if error else "closed", self.flow)
            self._fabric.soon(self._protocol.connection_lost, error)
