"""Looks at each frame, and sends it on."""

from libvnf import VNF, Connection, Frame, Request

vnf = VNF("frames")


@vnf.frames("port0", per_packet=True)
def police(port: Connection, request: Request, packet: Frame) -> None:
    if packet.dst_port == 53:
        packet.drop()
    else:
        packet.forward("port1")
