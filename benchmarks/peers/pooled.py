"""B with one connection to C for all requests, over TCP on uvloop. B's own ids on the wire, A's restored; everything
that one read brought leaves with one write.

Usage: pooled.py LISTEN_PORT C_PORT [SIZE]
"""

import asyncio
import itertools
import sys

import uvloop

LISTEN, C = int(sys.argv[1]), int(sys.argv[2])
SIZE = int(sys.argv[3]) if len(sys.argv) > 3 else 128


class Messages(asyncio.Protocol):
    rest = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if self.rest:
            data = self.rest + data
        whole = len(data) - len(data) % SIZE
        self.rest = data[whole:]
        self.messages(data, range(0, whole, SIZE))


class FromA(Messages):
    def messages(self, data, starts):
        if c is None:
            return self.transport.close()
        out = []
        for at in starts:
            number = next(numbers)
            waiting[number] = self, data[at : at + 8]
            out.append(number.to_bytes(8, "big"))
            out.append(data[at + 8 : at + SIZE])
        c.transport.write(b"".join(out))


class ToC(Messages):
    def __init__(self):
        self.lost = asyncio.Event()

    def connection_lost(self, error):
        self.lost.set()

    def messages(self, data, starts):
        replies = {}
        for at in starts:
            a, identity = waiting.pop(int.from_bytes(data[at : at + 8], "big"))
            out = replies.get(a)
            if out is None:
                out = replies[a] = []
            out.append(identity)
            out.append(data[at + 8 : at + SIZE])
        for a, out in replies.items():
            a.transport.write(b"".join(out))


async def main():
    global c
    loop = asyncio.get_running_loop()
    await loop.create_server(FromA, "127.0.0.1", LISTEN, backlog=1024)
    print("ready", flush=True)
    while True:  # C may come later than B, and again
        try:
            c = (await loop.create_connection(ToC, "127.0.0.1", C))[1]
            await c.lost.wait()
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
        c = None
        waiting.clear()


c, waiting, numbers = None, {}, itertools.count()
uvloop.run(main())
