"""A firewall between two ports: which services of the inside may the outside reach? It decides for whole batches at a
time, in columns: a comparison of an array costs about what one packet's handler would.

    vnf run firewall.py --config firewall.toml --set tcp=80,443 --set udp=53
"""

import numpy as np

from libvnf import VNF
from libvnf.flow import Match, forward

vnf = VNF("firewall")
SYN, ACK = 0x02, 0x10


def numbers(key, default):
    """A column of 65536 truths: may that port be reached?"""
    allowed = np.zeros(65536, dtype=bool)
    allowed[[int(number) for number in vnf.setting(key, default=default)]] = True
    return allowed


tcp, udp = numbers("tcp", ["22", "80", "443"]), numbers("udp", ["53"])

# What comes from inside passes, without Python.
vnf.flows.install(Match(port="inside"), [forward("outside")])


@vnf.frames("outside")
def police(batch):
    opens = batch.is_tcp & (batch.tcp_flags & (SYN | ACK) == SYN)
    batch.drop(opens & ~tcp[batch.dst_port])
    # Answers to what the inside asked come from the services' own ports.
    batch.drop(batch.is_udp & ~udp[batch.dst_port] & ~udp[batch.src_port])
    # What is cut in pieces hides its ports.
    batch.drop(batch.is_fragment | batch.is_malformed)
    batch.forward("inside")
