"""Looks at each frame, and sends it on."""

from typing import Any

from libvnf import VNF

vnf = VNF("frames")


@vnf.frames("port0", per_packet=True)
def police(port: Any, request: Any, packet: Any) -> None:
    if packet.dst_port == 53:
        packet.drop()
    else:
        packet.forward("port1")
