"""B with a socket to C per request, over UDP on uvloop: the shape of the C++ libVNF. Plain sockets under the loop's
readers: a datagram endpoint, and the task that makes it, would cost more per request.

Usage: udp.py LISTEN_PORT C_PORT
"""

import asyncio
import socket
import sys

import uvloop

LISTEN, C = int(sys.argv[1]), int(sys.argv[2])
BURST = 64


def on_request():
    for _ in range(BURST):
        try:
            request, a = server.recvfrom(65536)
        except BlockingIOError:
            return
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        peer.connect(("127.0.0.1", C))
        loop.add_reader(peer, on_reply, peer, a)
        try:
            peer.send(request)
        except BlockingIOError:
            continue


def on_reply(peer, a):
    try:
        server.sendto(peer.recv(65536), a)
    except (BlockingIOError, ConnectionRefusedError):
        pass
    loop.remove_reader(peer)
    peer.close()


async def main():
    global loop
    loop = asyncio.get_running_loop()
    loop.add_reader(server, on_request)
    print("ready", flush=True)
    await asyncio.Event().wait()


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
server.bind(("127.0.0.1", LISTEN))
uvloop.run(main())
