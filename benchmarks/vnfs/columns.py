"""Filters by two columns."""

from libvnf import VNF, Batch

vnf = VNF("columns")


@vnf.frames("port0")
def police(batch: Batch) -> None:
    batch.drop(batch.is_udp & (batch.dst_port == 53))
    batch.forward("port1")
