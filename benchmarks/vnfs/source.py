"""Sends as much as a peer takes for some seconds, on one connection, ends it, and waits for the peer's end."""

import time

from libvnf import VNF

vnf = VNF("source")
to = vnf.setting("to", "tcp://10.0.0.2:5000")
seconds = vnf.setting("seconds", 5.0)
piece = bytes(vnf.setting("piece", 65536))


async def send() -> None:
    async with await vnf.connect(to) as peer:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            peer.send(piece)
            await peer.drain()
        peer.end()
        await peer.receive()


vnf.after(0, send)
