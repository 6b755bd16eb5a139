"""Datagram sockets keep being read after an ICMP error, which libuv's own polling of them does not survive."""

import asyncio
import socket

import pytest
import uvloop

from libvnf.transport.kernel import Readers


def datagram_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind(("127.0.0.1", 0))
    return sock


async def read_after_an_error() -> None:
    loop = asyncio.get_running_loop()
    readers = Readers(loop)
    seen: asyncio.Queue[bytes | str] = asyncio.Queue()
    with datagram_socket() as mine:
        with datagram_socket() as gone:
            address = gone.getsockname()
        mine.connect(address)

        def readable() -> None:
            try:
                seen.put_nowait(mine.recv(100))
            except OSError as error:
                seen.put_nowait(type(error).__name__)

        readers.add(mine.fileno(), readable)
        mine.send(b"nobody is there")
        async with asyncio.timeout(30):
            assert await seen.get() == "ConnectionRefusedError"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind(address)
                peer.sendto(b"here I am", mine.getsockname())
                assert await seen.get() == b"here I am"
        readers.remove(mine.fileno())
        readers.close()


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
def test_a_socket_is_read_again_after_a_port_unreachable(run) -> None:  # type: ignore[no-untyped-def]
    run(read_after_an_error())
