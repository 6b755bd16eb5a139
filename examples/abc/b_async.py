"""B as a coroutine: the same chain as b.py, read from top to bottom."""

from libvnf import VNF, Connection, Field, Fixed, Packet, Request

vnf = VNF("b")
listen = vnf.setting("listen", "tcp://:5000")
c = vnf.setting("c", "tcp://:6000")
message = Fixed(vnf.setting("size", 128))


# With an id the requests of one connection run side by side; without one, each would wait for the one before.
@vnf.server(listen, framing=message, request_id=Field(0, 8))
async def on_request(a: Connection, request: Request, packet: Packet) -> None:
    async with a.connect(c, framing=message) as peer:
        a.send(await peer.ask(packet))
