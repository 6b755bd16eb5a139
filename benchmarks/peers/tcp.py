"""B with a connection to C per request, over TCP on uvloop: Protocols, no streams. uvloop itself gathers the replies
that one turn of the loop writes to A.

Usage: tcp.py LISTEN_PORT C_PORT [SIZE]
"""

import asyncio
import sys

import uvloop

LISTEN, C = int(sys.argv[1]), int(sys.argv[2])
SIZE = int(sys.argv[3]) if len(sys.argv) > 3 else 128


class FromA(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.rest = transport, b""

    def data_received(self, data):
        if self.rest:
            data = self.rest + data
        whole = len(data) - len(data) % SIZE
        self.rest = data[whole:]
        for at in range(0, whole, SIZE):
            self.request(data[at : at + SIZE])

    def request(self, request):
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.create_connection(ToC(self.transport, request), "127.0.0.1", C))
        connecting.add(task)
        task.add_done_callback(connecting.discard)


class ToC(asyncio.Protocol):
    def __init__(self, a, request):
        self.a, self.request, self.reply = a, request, b""

    def __call__(self):
        return self

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.reply += data
        if len(self.reply) >= SIZE:
            self.a.write(self.reply)
            self.transport.close()


async def serve(protocol):
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", LISTEN, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


connecting = set()
if __name__ == "__main__":
    uvloop.run(serve(FromA))
