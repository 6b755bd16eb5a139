"""B of the chain A–B–C: a connection to C for every request, whether A opens one for each too or sends many on one.
With --set pool=N up to N of them are kept for later requests, one at a time each."""

from libvnf import VNF, Connection, Fixed, Packet, Request

vnf = VNF("b")
listen = vnf.setting("listen", "tcp://:5000")
c = vnf.setting("c", "tcp://:6000")
message = Fixed(vnf.setting("size", 128))
pool = vnf.setting("pool", 0)


class Asked(Request):
    a: Connection


@vnf.server(listen, framing=message)
def on_request(a: Connection, request: Asked, packet: Packet) -> None:
    request.a = a
    peer = a.connect(c, framing=message, pool=pool)
    peer.on_data(on_reply)
    peer.send(packet)


def on_reply(peer: Connection, request: Asked, packet: Packet) -> None:
    request.a.send(packet)
    peer.close()
