"""Source NAT: a network behind one address. The first packet of a conversation comes to Python; what is decided for it
is installed for both directions, and the rest passes without Python.

    vnf run nat.py --config nat.toml
"""

from collections import deque

from libvnf import VNF
from libvnf.flow import FiveTuple, Match, rewrite, route

vnf = VNF("nat")
inside = vnf.setting("inside", default="10.0.0.1")  # port "inside" has it: the gateway of those who hide
outside = vnf.setting("outside", default="198.51.100.2")  # port "outside" has it: the address they hide behind
idle_s = vnf.setting("idle_s", default=300.0)

free = {protocol: deque(range(20_000, 60_000)) for protocol in ("tcp", "udp", "icmp")}  # ports; identifiers of echoes
rules = {}  # what matches → what is done with it, and what matches in the other direction


def install(match, actions, other):
    rules[match] = actions, other
    vnf.flows.install(match, actions, idle_s=idle_s)


@vnf.frames("inside", per_packet=True)
def first(port, request, packet):
    asked = FiveTuple.of(packet)
    if not packet.is_ipv4 or packet.dst_ip == inside:
        packet.accept()  # ARP, and what is said to the gateway itself
    elif asked is None or not free.get(asked.protocol):
        packet.drop()  # nothing to tell its answers by, or no port left
    else:
        number = free[asked.protocol].popleft()
        answer = asked.replace(src_ip=outside, src_port=number).reversed()
        there, back = Match.of(asked, port="inside"), Match.of(answer, port="outside")
        install(there, [rewrite(src_ip=outside, src_port=number), route("outside")], back)
        install(back, [rewrite(dst_ip=asked.src_ip, dst_port=asked.src_port), route("inside")], there)
        packet.again()


@vnf.flows.on_expire
def ended(match, reason, statistics):
    """A conversation is over when both directions have been silent."""
    actions, other = rules.pop(match, (None, None))
    if actions is None:
        return  # it went with the other direction
    alive = vnf.flows.statistics(other)
    if alive and alive.packets and alive.idle_s < idle_s:
        install(match, actions, other)
    else:
        vnf.flows.remove(other)
        del rules[other]
        back = match if match.port == "outside" else other
        free[back.protocol].append(back.dst_port)
