"""The transport of a VNF under test: its endpoints and connections, on one host of the in-memory network.

It keeps the contract of ``libvnf.transport.base`` and feeds the same native protocols as kernel sockets do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import _native
from ..config import EndpointURL
from ..errors import AddressInUse, ConfigError, Unsupported
from .fabric import Host, Place

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """See :class:`~libvnf.transport.base.Transport`."""

    name = "memory"
    carries_unix = True
    engine: _native.Engine | None = None

    def __init__(self, core: _native.Core, host: Host) -> None:
        self.core = core
        self.host = host
        self.counters = {"connects": 0, "connect_failures": 0}
        self._listeners: list[Any] = []

    async def listen(self, url: EndpointURL, endpoint: _native.Endpoint) -> list[str]:
        protocol = _native.DatagramProtocol if url.datagram else _native.StreamProtocol
        try:
            listener = self.host.listen(plain(url), lambda: protocol(self.core, endpoint, None))
        except OSError as error:
            raise AddressInUse(f"{url}: {error.strerror or error}") from None
        self._listeners.append(listener)
        return [str(listener.place)]

    def take_frames(self, connection: _native.Connection, batches: Callable[..., Any] | None) -> None:
        raise Unsupported("messages cross the in-memory network, not frames: vnf.test(stack=True) has those")

    def unlisten(self) -> None:
        """Streams are refused from now on; datagrams of known peers still come in."""
        for listener in self._listeners:
            if listener.place.kind != "udp":
                listener.close()

    def close_server(self, url: str, endpoint: _native.Endpoint) -> None:
        """One server less."""
        listener = self.host.fabric.find(Place.parse(url))
        if listener is not None:
            listener.close()

    def reaches(self, host: str) -> bool:
        return True

    def target(self, url: EndpointURL) -> MemoryTarget:
        if url.scheme != "unix" and not (url.host and url.port):
            raise ConfigError(f"{url}: on the in-memory network a connection needs the peer's name and port")
        return MemoryTarget(self, url)

    def describe(self) -> str:
        return f"memory:{self.host.name}"

    def statistics(self) -> dict[str, Any]:
        return dict(self.counters)

    def close(self) -> None:
        self.host.close()
        self._listeners.clear()


class MemoryTarget:
    """Where a connection goes: the shape that ``resolve`` returns."""

    __slots__ = ("_transport", "_url", "datagram")

    def __init__(self, transport: MemoryTransport, url: EndpointURL) -> None:
        self._transport, self._url, self.datagram = transport, plain(url), url.datagram

    def open(self, connection: _native.Connection, /) -> None:
        transport = self._transport
        transport.counters["connects"] += 1
        protocol = _native.DatagramProtocol if self.datagram else _native.StreamProtocol

        def failed(error: OSError) -> None:
            transport.counters["connect_failures"] += 1
            connection.failed(error if isinstance(error, ConnectionError) else ConnectionError(*error.args))

        transport.host.connect(self._url, lambda: protocol(transport.core, None, connection), failed)


def plain(url: EndpointURL) -> str:
    """Without ``?port=``: there is one network."""
    return str(EndpointURL(url.scheme, url.host, url.port, url.path))
