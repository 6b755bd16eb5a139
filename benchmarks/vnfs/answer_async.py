"""The same as a coroutine that does not wait."""

from libvnf import VNF, Connection, Packet, Request

vnf = VNF("answer")


@vnf.server(vnf.setting("listen", "udp://:5000"))
async def answer(conn: Connection, request: Request, packet: Packet) -> None:
    if packet[0] < 256:
        conn.send(packet)
