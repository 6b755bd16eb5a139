"""Sends back every message, on one connection or a hundred thousand: a callback per message and nothing else."""

from libvnf import VNF, Connection, Fixed, Packet, Request

vnf = VNF("echo")


@vnf.server(vnf.setting("listen", "tcp://:5000"), framing=Fixed(vnf.setting("size", 64)))
def echo(conn: Connection, request: Request, packet: Packet) -> None:
    conn.send(packet)
