"""The transport of a VNF under test on the user-space stack: its native engine, with a port on the virtual Ethernet.

The engine, its hosts and :class:`~libvnf.transport.bypass.BypassTransport` are those of production. What differs: the
clock is the virtual loop's, the port is a queue whose frames the segment carries, and names are resolved.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable
from typing import Any

from .. import _native
from ..config import EndpointURL, PortConfig, is_ip
from ..errors import AddressInUse, ConfigError, Unsupported
from ..transport.bypass import BypassTransport, EngineDriver
from .faults import GRID_S
from .segment import Segment, Station
from .transport import MemoryTransport

__all__ = ["StackTransport"]

PORT = "port0"
FIRST_CHOSEN_PORT = 10_000  # for port 0; below the stack's ephemeral ports
WILDCARDS = ("", "0.0.0.0", "::")


class VirtualDriver(EngineDriver):
    """Turns the engine when the segment gives it a frame, when something was sent, and at its deadlines."""

    def __init__(self, core: _native.Core, segment: Segment, station: Station, connect_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._segment, self._station = segment, station
        self._due = self._closed = False
        self._later: asyncio.TimerHandle | None = None
        self.engine = _native.Engine(core, connect_s=connect_s, clock=self._loop.time, wake=self.wake)

    def give(self, frame: bytes) -> None:
        self.engine.give_frame(PORT, frame)

    def wake(self) -> None:
        if not self._due and not self._closed:
            self._due = True
            self._segment.fabric.soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        if self._closed:
            return
        if self._later is not None:
            self._later.cancel()
            self._later = None
        delay_s = self.engine.turn()
        self._hand_over()
        if delay_s == 0.0:
            self.wake()
        elif delay_s is not None:
            # On the grid, and never early: an engine called before its deadline would do nothing and ask again.
            when = -(-(self._loop.time() + delay_s) // GRID_S) * GRID_S
            self._later = self._segment.fabric.call_at(when, self._turn)

    def _hand_over(self) -> None:
        for frame in self.engine.take_frames(PORT):
            self._segment.transmit(self._station, frame)

    def close(self) -> None:
        """What the VNF said last still leaves."""
        if self._closed:
            return
        self._turn()
        self._closed = True
        if self._later is not None:
            self._later.cancel()
        if self._station.give == self.give:
            self._station.give = None
        self.engine.close()


class StackTransport:
    """See :class:`~libvnf.transport.base.Transport`. ``unix://`` stays in memory: it is no network."""

    name = PORT
    carries_unix = True

    def __init__(self, core: _native.Core, segment: Segment, host: str, *, connect_s: float) -> None:
        self.segment, self.station = segment, segment.station(host)
        self._memory = MemoryTransport(core, self.station.host)
        self._driver = VirtualDriver(core, segment, self.station, connect_s)
        self.engine: _native.Engine | None = self._driver.engine
        self._chosen = FIRST_CHOSEN_PORT
        # Every address is on the link: a literal in a URL may come from any network.
        addresses = [f"{self.station.ipv4}/0", f"{self.station.ipv6}/0", *map(alone, self.station.further)]
        options = {
            "address": addresses,
            "mac": self.station.mac.hex(":"),
            "mtu": segment.mtu,
            "seed": random.Random(f"{segment.fabric.seed}/host/{host}").getrandbits(64),
        }
        self._port = BypassTransport(self._driver, PortConfig(name=PORT, type="queue", options=options))
        self.station.give = self._driver.give

    async def listen(self, url: EndpointURL, endpoint: _native.Endpoint) -> list[str]:
        if url.scheme == "unix":
            return await self._memory.listen(url, endpoint)
        number = url.port or self._choose()
        host = "" if url.host in WILDCARDS else url.host
        try:
            if is_ip(host):
                if (address := self.segment.claim(self.station, host)) is not None:
                    self._driver.engine.add_address(PORT, alone(address))
            elif host:
                self.segment.fabric.alias(host, self.station.host)
        except OSError as error:
            raise AddressInUse(f"{url}: {error}") from None
        await self._port.listen(EndpointURL(url.scheme, host if is_ip(host) else "", number), endpoint)
        return [str(EndpointURL(url.scheme, host or self.station.name, number))]

    def take_frames(self, connection: _native.Connection, batches: Callable[..., Any] | None) -> None:
        self._port.take_frames(connection, batches)

    def close_server(self, url: str, endpoint: _native.Endpoint) -> None:
        """One server less: connections are refused, datagrams of new peers dropped."""
        parsed = EndpointURL.parse(url)
        if parsed.scheme == "unix":
            return self._memory.close_server(url, endpoint)
        endpoint.accepting = False
        if not parsed.datagram:
            self._driver.engine.unlisten(PORT, parsed.port)

    def _choose(self) -> int:
        self._chosen += 1
        return self._chosen

    def unlisten(self) -> None:
        self._port.unlisten()
        self._memory.unlisten()

    def reaches(self, host: str) -> bool:
        return True

    def target(self, url: EndpointURL) -> Any:
        if url.scheme == "unix":
            return self._memory.target(url)
        if not (url.host and url.port):
            raise ConfigError(f"{url}: on the virtual network a connection needs the peer's name and port")
        station, address = self.segment.resolve(url.host)
        if station is self.station:
            raise Unsupported(f"{url}: host {station.name!r} is this one; over its own port it reaches only others")
        return self._port.target(EndpointURL(url.scheme, address, url.port))

    def describe(self) -> str:
        return f"virtual:{self.station.name}"

    def statistics(self) -> dict[str, Any]:
        return self._port.statistics()

    def close(self) -> None:
        self._memory.close()
        self._port.close()


def alone(address: str) -> str:
    """With the prefix that holds no other address: what leads to others is the host's own network."""
    return str(ipaddress.ip_interface(address))
