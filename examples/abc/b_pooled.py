"""B of the chain A–B–C: many requests on A's connections and many on a few to C, replies matched by the id in them."""

from libvnf import VNF, Connection, Field, Fixed, Packet, Request

vnf = VNF("b")
message = Fixed(vnf.setting("size", 128))
listen = vnf.setting("listen", "tcp://:5000")
c = vnf.client(vnf.setting("c", "tcp://:6000"), framing=message, request_id=Field(0, 8), pool=vnf.setting("pool", 1))


class Asked(Request):
    a: Connection


@vnf.server(listen, framing=message)
def on_request(a: Connection, request: Asked, packet: Packet) -> None:
    request.a = a
    c.send(packet, request, on_reply)


def on_reply(peer: Connection, request: Asked, packet: Packet) -> None:
    request.a.send(packet)
