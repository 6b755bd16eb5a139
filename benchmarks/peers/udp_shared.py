"""B with one socket to C for all requests, over UDP on uvloop. B's own ids on the wire, A's restored.

Usage: udp_shared.py LISTEN_PORT C_PORT
"""

import asyncio
import itertools
import socket
import sys

import uvloop

LISTEN, C = int(sys.argv[1]), int(sys.argv[2])


class FromA(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)

    def datagram_received(self, data, address):
        number = next(numbers)
        waiting[number] = address, data[:8]
        c.sendto(number.to_bytes(8, "big") + data[8:])


class ToC(asyncio.DatagramProtocol):
    def datagram_received(self, data, address):
        found = waiting.pop(int.from_bytes(data[:8], "big"), None)
        if found is not None:
            a.sendto(found[1] + data[8:], found[0])


async def main():
    global a, c
    loop = asyncio.get_running_loop()
    a, _ = await loop.create_datagram_endpoint(FromA, ("127.0.0.1", LISTEN))
    c, _ = await loop.create_datagram_endpoint(ToC, remote_addr=("127.0.0.1", C))
    print("ready", flush=True)
    await asyncio.Event().wait()


waiting, numbers = {}, itertools.count()
uvloop.run(main())
