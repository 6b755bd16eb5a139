"""Filters by two columns."""

from typing import Any

from libvnf import VNF

vnf = VNF("columns")


@vnf.frames("port0")
def police(batch: Any) -> None:
    batch.drop(batch.is_udp & (batch.dst_port == 53))
    batch.forward("port1")
