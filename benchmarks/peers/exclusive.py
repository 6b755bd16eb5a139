"""B with a pool of connections to C, each for one request at a time, over TCP on uvloop: for peers without request ids.

Usage: exclusive.py LISTEN_PORT C_PORT [SIZE]
"""

import asyncio
import sys

import uvloop

LISTEN, C = int(sys.argv[1]), int(sys.argv[2])
SIZE = int(sys.argv[3]) if len(sys.argv) > 3 else 128


class FromA(asyncio.Protocol):
    rest = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if self.rest or len(data) != SIZE:
            data = self.rest + data
            whole = len(data) - len(data) % SIZE
            self.rest = data[whole:]
            for at in range(0, whole, SIZE):
                self.request(data[at : at + SIZE])
        else:
            self.request(data)

    def request(self, request):
        if idle:
            peer = idle.pop()
            peer.a = self.transport
            peer.transport.write(request)
        else:
            task = loop.create_task(loop.create_connection(ToC(self.transport, request), "127.0.0.1", C))
            connecting.add(task)
            task.add_done_callback(connected)


class ToC(asyncio.Protocol):
    def __init__(self, a, request):
        self.a, self.request, self.rest = a, request, b""

    def __call__(self):
        return self

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)
        del self.request

    def data_received(self, data):
        if self.rest:
            data = self.rest + data
        if len(data) < SIZE:
            self.rest = data
            return
        self.rest = b""
        if not self.a.is_closing():
            self.a.write(data)
        self.a = None
        idle.append(self)

    def connection_lost(self, error):
        if self.a is not None:
            self.a.close()
        elif self in idle:
            idle.remove(self)


def connected(task):
    connecting.discard(task)
    if task.exception() is not None:  # C may come later than B; A asks again
        print(task.exception(), file=sys.stderr)


async def main():
    global loop
    loop = asyncio.get_running_loop()
    server = await loop.create_server(FromA, "127.0.0.1", LISTEN, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


connecting, idle = set(), []
uvloop.run(main())
