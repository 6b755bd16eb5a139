"""The virtual Ethernet: stations on one segment, what its wires do to frames, and who is told.

A station is a host of the fabric with a number; the number gives its link address and its IP addresses, so that they
are the same in every run. The segment is a switch that knows every station: a frame to one goes there alone, one to
many goes to all. Each pair of stations and direction is a wire with dice of its own.

The faults of a wire happen to frames. A corrupted frame has one bit flipped behind its Ethernet header, where IP's and
the transports' checksums look; ARP has none (Ethernet's check sequence guards it), so there corruption is loss.
"""

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..config import is_ip
from .capture import Capture
from .fabric import Fabric, Host
from .faults import Dice
from .frames import ACK, ARP, FIN, HEADER, RST, SYN, TCP, Frame, reset, too_big

__all__ = ["Residents", "Segment", "Station"]

MTU = 1500
QUEUE_BYTES = 4 << 20  # what may be under way on a wire in one direction; more is dropped
MOST_STATIONS = 65_000

Place = tuple[str, int]


class Station:
    """A host's place on the segment. ``give`` takes the frames for it while somebody is there."""

    def __init__(self, host: Host, number: int) -> None:
        self.host, self.number = host, number
        self.mac = struct.pack("!BBI", 0x02, 0x00, number)
        self.ipv4 = f"10.77.{number >> 8}.{number & 0xFF}"
        self.ipv6 = f"fd77::{number:x}"
        self.further: list[str] = []
        self.give: Callable[[bytes], None] | None = None

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def addresses(self) -> list[str]:
        return [self.ipv4, self.ipv6, *self.further]


@dataclass(eq=False, slots=True)
class Wire:
    """One direction between two stations."""

    sender: Station
    receiver: Station
    dice: Dice
    in_flight: int = 0


@dataclass(eq=False, slots=True)
class Stream:
    """A TCP connection as the wire sees it: by the acknowledgement numbers it can be reset from outside."""

    last: dict[Place, Frame] = field(default_factory=dict)
    ended: set[Place] = field(default_factory=set)  # whose FIN has left
    cut: bool = False

    @property
    def established(self) -> bool:
        return len(self.last) == 2 and not self.cut


class Residents(Protocol):
    """Who lives at the stations."""

    def settle(self, name: str) -> None:
        """Has a host there, which serves nothing: nobody has that name."""

    def vacate(self, name: str) -> bool:
        """Whether the host there has gone, because it serves nothing and nobody talks to it."""


class Segment:
    """All stations of one test network."""

    def __init__(self, fabric: Fabric, residents: Residents, *, ipv6: bool) -> None:
        self.fabric = fabric
        self.mtu = fabric.faults.mtu or MTU
        self._residents, self._ipv6 = residents, ipv6
        self._stations: dict[Host, Station] = {}
        self._by_mac: dict[bytes, Station] = {}
        self._by_address: dict[str, Station] = {}
        self._wires: dict[tuple[Station, Station], Wire] = {}
        self._streams: dict[frozenset[Place], Stream] = {}
        self._captures: list[tuple[Capture, bool]] = []
        self._next = 1

    # -- names and addresses

    def station(self, name: str) -> Station:
        """The station of the host of this name, made when new. An address is a name, and an address of its host."""
        host = self.fabric.host(name)
        if host not in self._stations:
            while (station := Station(host, self._next)).ipv4 in self._by_address or station.ipv6 in self._by_address:
                self._next += 1
            self._next += 1
            if self._next > MOST_STATIONS:
                raise OSError(f"a virtual segment has at most {MOST_STATIONS} hosts")
            if is_ip(host.name):
                station.further.append(literal(host.name))
            self._stations[host] = self._by_mac[station.mac] = station
            for address in station.addresses:
                self._by_address[address] = station
                self.fabric.rename(address, host)  # so that wires and partitions know it by its addresses, too
        return self._stations[host]

    def claim(self, station: Station, address: str) -> str | None:
        """Makes ``address`` one of the station's, and returns it if that is new. ``OSError`` if another has it."""
        address = literal(address)
        owner = self._by_address.get(address)
        if owner is station:
            return None
        if owner is not None and owner.give is not None and not self._residents.vacate(owner.name):
            raise OSError(f"{address} is an address of host {owner.name!r} already")
        self.fabric.rename(address, station.host)
        station.further.append(address)
        self._by_address[address] = station
        return address

    def resolve(self, name: str) -> tuple[Station, str]:
        """The station a name or an address belongs to, and its address. Where nobody has it, a host is made."""
        address = literal(name) if is_ip(name) else ""
        station = self._by_address.get(address) or self.station(address or name)
        if station.give is None:
            self._residents.settle(station.name)
        return station, address or (station.ipv6 if self._ipv6 else station.ipv4)

    # -- frames

    def transmit(self, sender: Station, data: bytes) -> None:
        """A frame leaves ``sender``."""
        self._record(data, arriving=False)
        frame = Frame.read(data)
        flow = self._flow(frame)
        if frame.protocol == TCP and self._intercepted(sender, frame, flow):
            return
        if data[0] & 1:
            for receiver in list(self._stations.values()):
                if receiver is not sender:
                    self._travel(sender, receiver, data, frame, flow)
        elif (known := self._by_mac.get(frame.destination_mac)) is not None:
            self._travel(sender, known, data, frame, flow)
        else:
            self.fabric.note("unheard", flow, len(data))

    def _travel(self, sender: Station, receiver: Station, data: bytes, frame: Frame, flow: str) -> None:
        fabric = self.fabric
        if fabric.severed(sender.name, receiver.name):
            return fabric.note("severed", flow, len(data))
        faults = fabric.faults_between(sender.name, receiver.name)
        wire = self._wires.get((sender, receiver)) or self._new_wire(sender, receiver)
        if faults.mtu is not None and len(data) - HEADER > faults.mtu:
            fabric.note("too long", flow, len(data))
            if frame.source[0] and not frame.may_be_cut:
                self._answer(sender, too_big(frame, data, faults.mtu))
            return
        if wire.in_flight + len(data) > QUEUE_BYTES:
            return fabric.note("overflowed", flow, len(data))
        if frame.ethertype == ARP:
            faults = replace(faults, loss=1 - (1 - faults.loss) * (1 - faults.corrupt), corrupt=0.0)
        word, copies = wire.dice.datagram(data, faults, intact=HEADER)
        fabric.note(word, flow, len(data))
        for delay_s, copy in copies:
            wire.in_flight += len(copy)
            fabric.after(delay_s, self._arrive, wire, copy, flow)

    def _new_wire(self, sender: Station, receiver: Station) -> Wire:
        dice = self.fabric.dice(f"frames {sender.name} > {receiver.name}")
        wire = self._wires[sender, receiver] = Wire(sender, receiver, dice)
        return wire

    def _arrive(self, wire: Wire, data: bytes, flow: str) -> None:
        wire.in_flight -= len(data)
        if self.fabric.severed(wire.sender.name, wire.receiver.name):
            return self.fabric.note("severed", flow, len(data))
        self._give(wire.receiver, data, flow)

    def _give(self, receiver: Station, data: bytes, flow: str) -> None:
        self._record(data, arriving=True)
        if receiver.give is None:
            return self.fabric.note("unheard", flow, len(data))
        self.fabric.note("delivered", flow, len(data))
        receiver.give(data)

    # -- cutting

    def _intercepted(self, sender: Station, frame: Frame, flow: str) -> bool:
        """Remembers where a stream stands; of a cut one nothing passes, and every segment is answered with a reset."""
        key = frozenset((frame.source, frame.destination))
        if frame.flags & (SYN | ACK) == SYN and frame.source[1]:
            known = self._streams.get(key)
            if known is None or known.cut or known.established:
                self._streams[key] = Stream()
        stream = self._streams.get(key)
        if stream is None:
            return False
        if stream.cut:
            self.fabric.note("cut", flow)
            if frame.flags & ACK and not frame.flags & RST:
                self._answer(sender, reset(frame))
            return True
        if frame.flags & ACK:
            stream.last[frame.source] = frame
        if frame.flags & FIN:
            stream.ended.add(frame.source)
        if frame.flags & RST or len(stream.ended) == 2:
            del self._streams[key]
        return False

    def cut(self, a: str, b: str | None = None) -> int:
        """Resets every established stream between a and b (without b: of a), as a firewall does: whatever its ends
        still send is answered with a reset made from their own numbers. Returns how many.
        """
        a, b = self.fabric.canonical(a), b and self.fabric.canonical(b)
        cut = 0
        for stream in [stream for stream in self._streams.values() if stream.established]:
            ends = [self._by_address[place[0]].name for place in stream.last]
            if a in ends and (b is None or b == ends[ends[0] == a]):
                stream.cut = True
                cut += 1
                for frame in stream.last.values():
                    self.fabric.note("cut", self._flow(frame))
                    self._answer(self._by_mac[frame.source_mac], reset(frame))
        return cut

    def _answer(self, station: Station, answer: bytes) -> None:
        """A frame of the wire's own; no fault touches it."""
        delay_s = self.fabric.faults_between(station.name, station.name).delay_s
        self.fabric.after(delay_s, self._give, station, answer, self._flow(Frame.read(answer)))

    # -- who is told

    def capture(self, capture: Capture, *, arriving: bool) -> None:
        self._captures.append((capture, arriving))

    def _record(self, data: bytes, *, arriving: bool) -> None:
        for capture, of_arrivals in self._captures:
            if of_arrivals is arriving and not capture.closed:
                capture.write(self.fabric.loop.time(), data)

    def _flow(self, frame: Frame) -> str:
        """For people: ``tcp://test:50000 > tcp://b:5000 [SYN]``."""
        if frame.source[1]:
            ends = [
                f"{frame.kind}://{self._host(address)}:{port}" for address, port in (frame.source, frame.destination)
            ]
        elif frame.source[0]:
            ends = [f"{frame.kind} {self._host(frame.source[0])}", self._host(frame.destination[0])]
        else:
            macs = (frame.source_mac, frame.destination_mac)
            names = [self._by_mac[mac].name if mac in self._by_mac else "all" for mac in macs]
            ends = [f"{frame.kind} {names[0]}", names[1]]
        return " > ".join(ends) + frame.remark

    def _host(self, address: str) -> str:
        """The host's name for the addresses the network gave, else the address."""
        station = self._by_address.get(address)
        if station is not None and address in (station.ipv4, station.ipv6):
            address = station.name
        return f"[{address}]" if ":" in address else address

    def close(self) -> None:
        """Completes what was captured."""
        for capture, _ in self._captures:
            capture.close()


def literal(address: str) -> str:
    """The one way to write it."""
    return str(ipaddress.ip_address(address))
