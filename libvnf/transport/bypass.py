"""Drives the native engine on the event loop: one engine holds all ports of a VNF, a transport is one of them.

``turn`` polls for about 50 µs. Busy, it is called again by ``call_soon``, so timers and tasks run in between; idle, the
loop sleeps on the engine's wake descriptors, with a timer where the engine has a deadline.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .. import _native
from ..config import EndpointURL, PortConfig, is_ip
from ..errors import AddressInUse, ConfigError, TransportError, Unsupported

__all__ = ["BypassTransport", "EngineDriver"]

LOG = logging.getLogger("vnf.capture")


class EngineDriver:
    """Calls ``Engine.turn`` when there is, or may be, something to do."""

    def __init__(self, core: _native.Core, *, connect_s: float = 5.0, capture: str | None = None) -> None:
        self.capture: _native.Capture | None = None
        self._captures_to = capture
        if capture is not None:
            try:
                self.capture = _native.Capture(capture)
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else str(error)
                raise ConfigError(why, key=f"--capture {capture}") from None
        self.engine = _native.Engine(core, connect_s=connect_s, wake=self.wake)
        self._loop = asyncio.get_running_loop()
        self._fds: set[int] = set()
        self._soon: asyncio.Handle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._closed = False

    def wake(self) -> None:
        """A turn as soon as the loop allows. Cheap when one is due already."""
        if self._soon is None and not self._closed:
            self._soon = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._soon = None
        if self._closed:
            return
        if self._later is not None:
            self._later.cancel()
            self._later = None
        delay = self.engine.turn()
        if delay == 0.0:
            self._soon = self._loop.call_soon(self._turn)
            return
        if delay is not None:
            self._later = self._loop.call_later(delay, self._turn)
        self._watch(set(self.engine.wake_fds()))

    def _watch(self, wanted: set[int]) -> None:
        """Descriptors change when a memif peer comes or goes."""
        if wanted == self._fds:
            return
        for fd in self._fds - wanted:
            self._loop.remove_reader(fd)
        for fd in wanted - self._fds:
            self._loop.add_reader(fd, self.wake)
        self._fds = wanted

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for handle in (self._soon, self._later):
            if handle is not None:
                handle.cancel()
        self._watch(set())
        lost = sum(port["counters"].get("capture_lost", 0) for port in self.engine.ports())
        self.engine.close()
        if self.capture is not None:
            why = self.capture.failure
            self.capture.close()
            if lost or why:
                LOG.warning("%s lacks %s frames%s", self._captures_to, f"{lost:,}", f": {why}" if why else "")


@contextmanager
def opening(port: PortConfig) -> Iterator[None]:
    """What goes wrong when a native port is opened, as one line of the operator's."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error), key=f"port.{port.name}") from None
    except OSError as error:
        kind = AddressInUse if error.errno == errno.EADDRINUSE else TransportError
        raise kind(f"{port}: {error.strerror or error}") from None


class BypassTransport:
    """One port. See :class:`~libvnf.transport.base.Transport`."""

    carries_unix = False

    def __init__(self, driver: EngineDriver, port: PortConfig) -> None:
        self.name = port.name
        self._driver, self._port = driver, port
        self.engine: _native.Engine | None = driver.engine
        self._networks = [ipaddress.ip_interface(text).network for text in port.options.get("address", ())]
        with opening(port):
            if port.type == "queue":
                driver.engine.add_queue(port.name, dict(port.options))
            else:
                driver.engine.add_port(port.name, {"type": port.type, **port.options}, capture=driver.capture)
        driver.wake()

    def describe(self) -> str:
        return str(self._port)

    def statistics(self) -> dict[str, Any]:
        """The port's own figures, and under ``engine`` those of the engine that polls all ports of the VNF."""
        port = next((port for port in self._driver.engine.ports() if port["name"] == self.name), {})
        return {**port, "engine": self._driver.engine.statistics()}

    def reaches(self, host: str) -> bool:
        """Is ``host`` on one of the port's own networks, or behind its gateway?"""
        if not is_ip(host):
            return False
        address = ipaddress.ip_address(host)
        gateways = map(ipaddress.ip_address, self._port.options.get("gateway", ()))
        return any(address in network for network in self._networks) or any(
            gateway.version == address.version for gateway in gateways
        )

    def _check(self, url: EndpointURL) -> None:
        if url.supported().host and not is_ip(url.host):
            raise Unsupported(f"{url}: names are not resolved on {self.describe()}; write the address")
        if not (self._networks or self._port.options.get("virtual")):
            raise ConfigError(f"{url}: {self.describe()} has no address: expected address=10.0.0.2/24 or the like")

    async def listen(self, url: EndpointURL, endpoint: _native.Endpoint) -> list[str]:
        self._check(url)
        if not url.port:
            raise Unsupported(f"{url}: port 0 is not supported on {self.describe()}; write the port")
        host = url.host or None
        try:
            self._driver.engine.listen(self.name, host, url.port, endpoint)
        except ValueError as error:
            raise TransportError(f"{url}: {error}") from None
        except OSError as error:
            raise AddressInUse(f"{url}: {error.strerror or error}") from None
        self._driver.wake()
        if host is not None:
            return [str(url)]
        own = [text.partition("/")[0] for text in self._port.options.get("address", ())]
        own += self._port.options.get("virtual", ())
        return [str(EndpointURL(url.scheme, address, url.port)) for address in own] or [str(url)]

    def take_frames(self, connection: _native.Connection, batches: Callable[..., Any] | None) -> None:
        try:
            _native.attach_frames(self._driver.engine, self.name, connection, batches)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def unlisten(self) -> None:
        """TCP is refused. Datagrams of known peers still come in: the endpoint refuses new ones (``accepting``)."""
        self._driver.engine.unlisten(self.name)

    def target(self, url: EndpointURL) -> _native.Target:
        self._check(url)
        if not url.host or not url.port:
            raise Unsupported(f"{url}: on {self.describe()} a connection needs the peer's address and port")
        try:
            return self._driver.engine.target(url.scheme, self.name, url.host, url.port)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{url}: {error}") from None

    def close(self) -> None:
        self._driver.close()  # the ports of a VNF close together
