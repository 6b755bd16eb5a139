"""Kernel sockets: TCP, UDP and Unix streams.

``_native.Sockets`` drives them: the event loop watches that one descriptor. Here they are bound, named and resolved;
only a connection to a name costs a task.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable, Mapping
from typing import Any

from .. import _native
from ..config import EndpointURL, is_ip, join_host
from ..errors import AddressInUse, TransportError, Unsupported

__all__ = ["KernelTransport"]

BACKLOG = 4096
UDP_BUFFER_BYTES = 4 << 20


class KernelTransport:
    """See :class:`~libvnf.transport.base.Transport`."""

    carries_unix = True
    engine: _native.Engine | None = None

    def __init__(
        self,
        core: _native.Core,
        name: str = "kernel",
        mapping: Mapping[str, str] | None = None,
        *,
        connect_s: float = 5.0,
    ) -> None:
        self.name, self._connect_s = name, connect_s
        self._map = dict(mapping or {})
        self._loop = asyncio.get_running_loop()
        self._sockets = _native.Sockets(core, connect_s)
        self._loop.add_reader(self._sockets.fileno(), self._sockets.turn)
        self._open = True
        self._paths: dict[str, tuple[int, int]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._names = self._failures = 0

    def describe(self) -> str:
        return "kernel"

    def statistics(self) -> dict[str, Any]:
        counters = self._sockets.statistics()
        counters["connects"] += self._names
        counters["connect_failures"] += self._failures
        return counters

    # --- listening -----------------------------------------------------------------------------------------------

    async def listen(self, url: EndpointURL, endpoint: _native.Endpoint) -> list[str]:
        url = self._mapped(url.supported(), local=True)
        if url.scheme == "unix":
            self._serve(await self._unix_socket(url.path), endpoint)
            return [str(url)]
        kind = socket.SOCK_DGRAM if url.datagram else socket.SOCK_STREAM
        sockets = await self._bound(url, kind)
        names = []
        for sock in sockets:
            host, port = sock.getsockname()[:2]
            names.append(f"{url.scheme}://{join_host(host, port)}")
            if url.datagram:
                self._sockets.serve_datagrams(sock.detach(), endpoint)
            else:
                self._serve(sock, endpoint)
        return names

    def _serve(self, sock: socket.socket, endpoint: _native.Endpoint) -> None:
        sock.listen(BACKLOG)
        self._sockets.listen(sock.detach(), endpoint)

    async def _bound(self, url: EndpointURL, kind: socket.SocketKind) -> list[socket.socket]:
        """Bound sockets; an empty host is 127.0.0.1, and ::1 too where that exists, with the same port."""
        wanted = [(url.host or "127.0.0.1", False)] + ([] if url.host else [("::1", True)])
        sockets: list[socket.socket] = []
        port = url.port
        try:
            for host, optional in wanted:
                for family, address in await self._resolve(host, port, kind, passive=True):
                    try:
                        sock = bound(family, kind, address)
                    except OSError as error:
                        if optional and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                            continue
                        raise _bind_error(url, error) from None
                    sockets.append(sock)
                    port = port or sock.getsockname()[1]
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    async def _resolve(self, host: str, port: int, kind: int, passive: bool = False) -> list[tuple[int, Any]]:
        if is_ip(host):
            return [(socket.AF_INET6, (host, port, 0, 0))] if ":" in host else [(socket.AF_INET, (host, port))]
        flags = socket.AI_PASSIVE if passive else socket.AI_ADDRCONFIG
        try:
            found = await self._loop.getaddrinfo(host, port, type=kind, flags=flags)
        except OSError as error:
            raise TransportError(f"{host}: the system cannot resolve this name: {error.strerror or error}") from None
        return list(dict.fromkeys((family, address) for family, _, _, _, address in found))

    async def _unix_socket(self, path: str) -> socket.socket:
        """Bound at ``path``, mode 0600. A socket that nobody listens on is replaced, a live one is not."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _bind_error(EndpointURL.parse(f"unix://{path}"), error) from None
        else:
            if not stat.S_ISSOCK(status.st_mode):
                raise TransportError(f"unix://{path}: what is there is not a socket; remove it or choose another path")
            if _is_live(path):
                raise AddressInUse(f"unix://{path}: another process listens there")
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        except OSError as error:
            sock.close()
            raise _bind_error(EndpointURL.parse(f"unix://{path}"), error) from None
        finally:
            os.umask(mask)
        status = os.lstat(path)
        self._paths[path] = (status.st_dev, status.st_ino)
        return sock

    def take_frames(self, connection: _native.Connection, batches: Callable[..., Any] | None) -> None:
        raise Unsupported("frames do not come by kernel sockets: expected --transport memif:, af_xdp:, tap: or pcap:")

    def unlisten(self) -> None:
        """Datagram sockets stay: their endpoints refuse new peers, the known ones are served on."""
        self._sockets.unlisten()
        for path, identity in self._paths.items():
            try:
                status = os.lstat(path)
                if (status.st_dev, status.st_ino) == identity:
                    os.unlink(path)
            except OSError:
                continue  # gone already, or taken over: not ours any more
        self._paths.clear()

    def close(self) -> None:
        self.unlisten()
        for task in self._connecting:
            task.cancel()
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sockets.fileno())
            self._sockets.close()

    # --- connecting ----------------------------------------------------------------------------------------------

    def reaches(self, host: str) -> bool:
        return True

    def target(self, url: EndpointURL) -> _native.SocketTarget | NameTarget:
        url = self._mapped(url.supported())
        if url.scheme == "unix":
            return self._sockets.target("unix", url.path, str(url))
        if not url.port:
            raise Unsupported(f"{url}: port 0 is for servers; a connection needs the peer's port")
        host = url.host or "127.0.0.1"
        if is_ip(host):
            return self._sockets.target(url.scheme, join_host(host, url.port), str(url))
        return NameTarget(self, url)

    def _mapped(self, url: EndpointURL, local: bool = False) -> EndpointURL:
        """What ``map`` of a ``type = "kernel"`` port says, and only for urls that name that port.

        Without an entry, a server's address on a named port is one of the network the file was written for: loopback.
        """
        if not url.via:
            return url
        entry = self._map.get(join_host(url.host, url.port))
        if entry is not None:
            return EndpointURL.parse(f"{url.scheme}://{entry}")
        return EndpointURL(url.scheme, "" if local else url.host, url.port)

    def connect(self, url: EndpointURL, connection: _native.Connection) -> None:
        """Begins a connection to a name."""
        self._names += 1
        task = self._loop.create_task(self._connect(url, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, url: EndpointURL, connection: _native.Connection) -> None:
        """To a name: its addresses in turn, until one takes the connection."""
        try:
            async with asyncio.timeout(self._connect_s):
                kind = socket.SOCK_DGRAM if url.datagram else socket.SOCK_STREAM
                addresses = await self._resolve(url.host, url.port, kind)
                sock = await self._first_connected(addresses, kind)
        except TimeoutError:
            self._failed(connection, ConnectionError(f"{url}: not connected within {self._connect_s:g} s"))
        except asyncio.CancelledError:
            connection.abort("the VNF stops")
        except (OSError, TransportError) as error:
            self._failed(connection, error)
        else:
            self._sockets.adopt(sock.detach(), connection)

    async def _first_connected(self, addresses: list[tuple[int, Any]], kind: int) -> socket.socket:
        for number, (family, address) in enumerate(addresses):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
            try:
                await self._loop.sock_connect(sock, address)
                if kind == socket.SOCK_STREAM:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError) or number == len(addresses) - 1:
                    raise
        raise TransportError("the name has no address")

    def _failed(self, connection: _native.Connection, error: Exception) -> None:
        self._failures += 1
        if not isinstance(error, ConnectionError):
            error = ConnectionError(*error.args)
        connection.failed(error)


class NameTarget:
    """Where a connection to a name goes: the shape that ``resolve`` returns."""

    __slots__ = ("_transport", "_url", "datagram")

    def __init__(self, transport: KernelTransport, url: EndpointURL) -> None:
        self._transport, self._url, self.datagram = transport, url, url.datagram

    def open(self, connection: _native.Connection, /) -> None:
        self._transport.connect(self._url, connection)


def bound(family: int, kind: socket.SocketKind, address: Any) -> socket.socket:
    """A bound, non-blocking socket; it listens when a server takes it."""
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            # Accepted connections inherit it; Linux offers no cheaper way.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Only TIME_WAIT is overridden by this on Linux; a live listener still refuses the bind.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its backlog is full
        except FileNotFoundError:
            return False
        return True


def _bind_error(url: EndpointURL, error: OSError) -> TransportError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(f"{url}: another process listens there (address in use)")
    if error.errno == errno.EADDRNOTAVAIL:
        return TransportError(f"{url}: this machine has no such address; an empty host means loopback")
    if error.errno == errno.EACCES:
        return TransportError(f"{url}: permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)")
    return TransportError(f"{url}: {error.strerror}")
