"""Reads each datagram and answers it: the least that a callback per packet can do."""

from libvnf import VNF, Connection, Packet, Request

vnf = VNF("answer")


@vnf.server(vnf.setting("listen", "udp://:5000"))
def answer(conn: Connection, request: Request, packet: Packet) -> None:
    if packet[0] < 256:
        conn.send(packet)
