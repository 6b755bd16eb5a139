"""Source NAT: a network behind one address. The first packet of a conversation comes here; what is decided for it is
installed in both directions, and the rest passes without Python.

    vnf run nat.py --config nat.toml
"""

from collections import deque

from libvnf import VNF
from libvnf.flow import FiveTuple, Match, rewrite, route

vnf = VNF("nat")
outside = vnf.setting("outside", default="198.51.100.2")  # an address of port "outside": whose we pretend to be
gateway = vnf.setting("gateway", default="10.0.0.1")  # the address of port "inside": packets for it are for us
idle_s = vnf.setting("idle_s", default=300.0)

free = {protocol: deque(range(20_000, 60_000)) for protocol in ("tcp", "udp", "icmp")}


@vnf.frames("inside", per_packet=True)
def first(port, request, packet):
    if packet.dst_ip in (None, gateway):  # ARP, and what is said to the router itself
        return packet.accept()
    out = FiveTuple.of(packet)  # None: a fragment that is not the first, or a protocol without ports
    if out is None or not free.get(out.protocol):
        return packet.drop()
    number = free[out.protocol].popleft()
    translated = out.replace(src_ip=outside, src_port=number)
    there = [rewrite(src_ip=outside, src_port=number), route("outside")]
    back = [rewrite(dst_ip=out.src_ip, dst_port=out.src_port), route("inside")]
    vnf.flows.install(Match.of(out, port="inside"), there, idle_s=idle_s)
    vnf.flows.install(Match.of(translated.reversed(), port="outside"), back, idle_s=idle_s)
    packet.again()


@vnf.flows.on_expire
def ended(match, reason, statistics):
    if match.port == "outside":  # the number is free again when the way back has been idle
        free[match.protocol].append(match.dst_port)
