"""Kernel sockets on the event loop: TCP, UDP and Unix streams.

Streams are the loop's own transports feeding ``_native.StreamProtocol``. UDP has a transport of ours: one readiness
callback takes a burst of datagrams, and a client connection costs no task and no await.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import stat
from collections.abc import Callable, Mapping
from typing import Any

from .. import _native
from ..config import EndpointURL, is_ip, join_host
from ..errors import AddressInUse, TransportError, Unsupported

__all__ = ["KernelTransport"]

BACKLOG = 4096
BURST = 64
"""Datagrams taken per wake-up, so that timers and other sockets get their turn."""
UDP_BUFFER_BYTES = 4 << 20


class KernelTransport:
    """See :class:`~libvnf.transport.base.Transport`."""

    carries_unix = True

    def __init__(
        self,
        core: _native.Core,
        name: str = "kernel",
        mapping: Mapping[str, str] | None = None,
        *,
        connect_s: float = 5.0,
    ) -> None:
        self.name, self._connect_s = name, connect_s
        self._core = core
        self._map = dict(mapping or {})
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.AbstractServer] = []
        self._paths: dict[str, tuple[int, int]] = {}
        self._datagrams: set[DatagramTransport] = set()
        self._readers: Readers | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self.counters = {"datagrams_dropped_at_send": 0, "connects": 0, "connect_failures": 0}

    def describe(self) -> str:
        return "kernel"

    def statistics(self) -> dict[str, Any]:
        return dict(self.counters)

    # --- listening -----------------------------------------------------------------------------------------------

    async def listen(self, url: EndpointURL, endpoint: _native.Endpoint) -> list[str]:
        url = self._mapped(url.supported(), local=True)
        if url.scheme == "unix":
            await self._serve(await self._unix_socket(url.path), endpoint)
            return [str(url)]
        kind = socket.SOCK_DGRAM if url.datagram else socket.SOCK_STREAM
        sockets = await self._sockets(url, kind)
        names = []
        for sock in sockets:
            host, port = sock.getsockname()[:2]
            names.append(f"{url.scheme}://{join_host(host, port)}")
            if url.datagram:
                self._datagrams.add(DatagramTransport(self, sock, _native.DatagramProtocol(self._core, endpoint, None)))
            else:
                await self._serve(sock, endpoint)
        return names

    async def _serve(self, sock: socket.socket, endpoint: _native.Endpoint) -> None:
        core = self._core
        make = self._loop.create_unix_server if sock.family == socket.AF_UNIX else self._loop.create_server

        def protocol() -> Any:
            return _native.StreamProtocol(core, endpoint, None)

        self._servers.append(await make(protocol, sock=sock, backlog=BACKLOG))

    async def _sockets(self, url: EndpointURL, kind: socket.SocketKind) -> list[socket.socket]:
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

    def unlisten(self) -> None:
        """Datagram sockets stay: their endpoints refuse new peers, the known ones are served on."""
        for server in self._servers:
            server.close()
        self._servers.clear()
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
        for transport in list(self._datagrams):
            transport.abort()
        if self._readers is not None:
            self._readers.close()
            self._readers = None

    @property
    def readers(self) -> Readers:
        if self._readers is None:
            self._readers = Readers(self._loop)
        return self._readers

    # --- connecting ----------------------------------------------------------------------------------------------

    def target(self, url: EndpointURL) -> KernelTarget:
        return KernelTarget(self, self._mapped(url.supported()))

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

    def open(self, url: EndpointURL, connection: _native.Connection) -> None:
        self.counters["connects"] += 1
        host = url.host or "127.0.0.1"
        if url.datagram and is_ip(host):
            self._open_datagram(host, url.port, connection)
            return
        task = self._loop.create_task(self._open(url, host, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _open_datagram(self, host: str, port: int, connection: _native.Connection) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
                sock.connect((host, port))
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            self._failed(connection, error)
            return
        self._datagrams.add(DatagramTransport(self, sock, _native.DatagramProtocol(self._core, None, connection)))

    async def _open(self, url: EndpointURL, host: str, connection: _native.Connection) -> None:
        def protocol() -> Any:
            return _native.StreamProtocol(self._core, None, connection)

        try:
            async with asyncio.timeout(self._connect_s):
                if url.scheme == "unix":
                    await self._loop.create_unix_connection(protocol, url.path)
                elif url.datagram:
                    addresses = await self._resolve(host, url.port, socket.SOCK_DGRAM)
                    self._open_datagram(addresses[0][1][0], url.port, connection)
                else:
                    await self._loop.create_connection(protocol, host, url.port)
        except TimeoutError:
            self._failed(connection, ConnectionError(f"{url}: not connected within {self._connect_s:g} s"))
        except asyncio.CancelledError:
            connection.abort("the VNF stops")
        except (OSError, TransportError) as error:
            self._failed(connection, error)

    def _failed(self, connection: _native.Connection, error: Exception) -> None:
        self.counters["connect_failures"] += 1
        if not isinstance(error, ConnectionError):
            error = ConnectionError(*error.args)
        connection.failed(error)


class KernelTarget:
    """Where a connection goes: the shape that ``resolve`` returns."""

    __slots__ = ("_transport", "datagram", "url")

    def __init__(self, transport: KernelTransport, url: EndpointURL) -> None:
        if url.scheme != "unix" and not url.port:
            raise Unsupported(f"{url}: port 0 is for servers; a connection needs the peer's port")
        self._transport, self.url, self.datagram = transport, url, url.datagram

    def open(self, connection: _native.Connection, /) -> None:
        self._transport.open(self.url, connection)


class Readers:
    """Readable datagram sockets: an epoll instance of our own, itself read by the loop.

    libuv stops polling a descriptor for good once that reports an error, which a connected UDP socket does after any
    ICMP error about what it sent (RFC 1122 4.1.3.3), and uvloop tells nobody. A nested epoll instance never reports
    one; besides, a socket per request then costs two system calls here and no handle of the loop's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._epoll = loop, select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0, BURST):
            callback = self._callbacks.get(fd)
            if callback is not None:  # closed by an earlier one of this turn
                callback()

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()


class DatagramTransport(asyncio.DatagramTransport):
    """One UDP socket: connected to a peer, or a server's. What the kernel cannot take now is dropped and counted."""

    def __init__(self, owner: KernelTransport, sock: socket.socket, protocol: Any) -> None:
        super().__init__()
        self._owner, self._sock, self._protocol = owner, sock, protocol
        self._loop = asyncio.get_running_loop()
        self._connected = _peer(sock) is not None
        self._closing = False
        self._reading = True
        self._readers = owner.readers
        self._readers.add(sock.fileno(), self._readable)
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._sock
        if name == "sockname":
            return self._sock.getsockname()
        if name == "peername":
            return _peer(self._sock) or default
        return default

    def _readable(self) -> None:
        receive, sock, deliver = self._sock.recvfrom, self._sock, self._protocol.datagram_received
        for _ in range(BURST):
            try:
                data, address = receive(65536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # An ICMP error about an earlier datagram (RFC 1122 4.1.3.3), reported once.
                self._protocol.error_received(error)
                return
            deliver(data, address)
            if self._closing or sock.fileno() < 0 or not self._reading:
                return

    def sendto(self, data: Any, addr: Any = None) -> None:
        if self._closing:
            return
        try:
            if self._connected or addr is None:
                self._sock.send(data)
            else:
                self._sock.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            self._owner.counters["datagrams_dropped_at_send"] += 1
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._owner.counters["datagrams_dropped_at_send"] += 1
            else:
                self._protocol.error_received(error)

    def pause_reading(self) -> None:
        if self._reading and not self._closing:
            self._reading = False
            self._readers.remove(self._sock.fileno())

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._readers.add(self._sock.fileno(), self._readable)

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._readers.remove(self._sock.fileno())
        self._owner._datagrams.discard(self)
        self._loop.call_soon(self._lost)

    def abort(self) -> None:
        self.close()

    def _lost(self) -> None:
        self._protocol.connection_lost(None)
        self._sock.close()


def _peer(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:
        return None


def bound(family: int, kind: socket.SocketKind, address: Any) -> socket.socket:
    """A bound, non-blocking socket; it listens when a server takes it."""
    # asyncio sets TCP_NODELAY only on sockets whose protocol says TCP.
    protocol = socket.IPPROTO_TCP if kind == socket.SOCK_STREAM else socket.IPPROTO_UDP
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
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
