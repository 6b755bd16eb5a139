"""Datagrams in memory: asyncio's ``DatagramTransport``, bound to a name and port, or connected to one."""

import asyncio
import errno
from collections import deque
from typing import TYPE_CHECKING, Any

from .faults import ANY

if TYPE_CHECKING:
    from .fabric import Host, Place
    from .faults import Dice

__all__ = ["Datagrams"]

LARGEST = 65507  # what fits an IPv4 packet behind the IP and UDP headers (RFC 768)
_QUEUE = 64  # datagrams under way may be this many times a stream's in_flight_bytes


class Datagrams(asyncio.DatagramTransport):
    def __init__(self, host: "Host", protocol: Any, local: "Place", remote: "Place | None" = None) -> None:
        super().__init__()
        self.host = host
        self.local = local
        self.remote = remote
        self._fabric = host.fabric
        self._protocol = protocol
        self._dice: dict[Any, tuple[str, Dice]] = {}
        self._in_flight: dict[Any, int] = {}
        self._inbox: deque[tuple[bytes, tuple[str, int]]] = deque()
        self._inbox_bytes = 0
        self._reading = True
        self._closing = False
        self._fabric.soon(self._begin)

    def _begin(self) -> None:
        self._protocol.connection_made(self)

    @property
    def place(self) -> "Place":
        return self.local

    # -- asyncio's interface

    def sendto(self, data: Any, addr: Any = None) -> None:
        from_remote = self.remote.address if self.remote else None
        if addr is None:
            addr = from_remote
        elif self.remote is not None and tuple(addr[:2]) != from_remote:
            raise ValueError(f"this transport is connected to {self.remote}: it cannot send to {addr!r}")
        if addr is None:
            raise ValueError("an unconnected datagram transport needs an address to send to")
        data = bytes(data)
        if self._closing:
            return
        if len(data) > LARGEST:
            error = OSError(errno.EMSGSIZE, f"a datagram carries at most {LARGEST} bytes, not {len(data)}")
            self._fabric.soon(self._error, error)
            return
        self._send(data, self.local._replace(host=addr[0], port=addr[1]))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if self._fabric.bound.get(self.local) is self:
                del self._fabric.bound[self.local]
            self._fabric.soon(self._protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        """What arrives waits, as in a socket's buffer, and is dropped when that is full."""
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._fabric.soon(self._drain)

    def is_closing(self) -> bool:
        return self._closing

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sockname":
            return (self.local.host.removeprefix(ANY), self.local.port)
        if name == "peername" and self.remote is not None:
            return self.remote.address
        return default

    # -- the wire

    def _send(self, data: bytes, target: "Place") -> None:
        flow, dice = self._dice.get(target) or self._new_flow(target)
        here = self.host.name
        faults = self._fabric.faults_between(here, target.host)
        if self._fabric.severed(here, target.host):
            self._fabric.note("severed", flow, len(data))
            return
        if self._in_flight.get(target, 0) + len(data) > faults.in_flight_bytes * _QUEUE:
            self._fabric.note("overflowed", flow, len(data))
            return
        word, copies = dice.datagram(data, faults)
        self._fabric.note(word, flow, len(data))
        for delay_s, copy in copies:
            self._in_flight[target] = self._in_flight.get(target, 0) + len(copy)
            self._fabric.after(delay_s, self._arrive, copy, target, flow)

    def _new_flow(self, target: "Place") -> "tuple[str, Dice]":
        flow = f"{self.local} > {target}"
        self._dice[target] = flow, self._fabric.dice(flow)
        return self._dice[target]

    def _arrive(self, data: bytes, target: "Place", flow: str) -> None:
        self._in_flight[target] -= len(data)
        if self._fabric.severed(self.host.name, target.host):
            self._fabric.note("severed", flow, len(data))
            return
        receiver = self._fabric.find(target)
        source = self.local.host.removeprefix(ANY), self.local.port
        if receiver is None:
            self._fabric.note("refused", flow, len(data))
            if self.remote is not None:  # ICMP port unreachable reaches connected sockets only (RFC 1122 §4.1.3.3)
                delay_s = self._fabric.faults_between(target.host, self.host.name).delay_s
                self._fabric.after(delay_s, self._error, self._fabric.refusal(target))
        else:
            self._fabric.note(receiver.receive(data, source), flow, len(data))

    def receive(self, data: bytes, source: tuple[str, int]) -> str:
        """Gives a datagram to the protocol, if it is for this socket; returns what became of it."""
        if self.remote is not None:  # known by the name it was called, whatever the sender calls itself
            same = self._fabric.canonical(self.remote.host) == self._fabric.canonical(source[0])
            if not same or self.remote.port != source[1]:
                return "unexpected"
            source = (self.remote.host, self.remote.port)
        if not self._reading or self._inbox:
            if self._inbox_bytes + len(data) > self._fabric.faults.in_flight_bytes * _QUEUE:
                return "overflowed"
            self._inbox.append((data, source))
            self._inbox_bytes += len(data)
            return "delivered"
        self._give(data, source)
        return "delivered"

    def _drain(self) -> None:
        while self._inbox and self._reading and not self._closing:
            data, source = self._inbox.popleft()
            self._inbox_bytes -= len(data)
            self._give(data, source)

    def _give(self, data: bytes, source: tuple[str, int]) -> None:
        try:
            self._protocol.datagram_received(data, source)
        except Exception as error:  # as asyncio's: reported, and the transport closes
            self._fabric.loop.call_exception_handler(
                {
                    "message": "datagram_received failed",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self.close()

    def _error(self, error: OSError) -> None:
        if not self._closing:
            self._protocol.error_received(error)
