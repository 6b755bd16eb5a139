"""Who talks most: a wire between two ports that counts bytes by sender, and shows the first ones every second.

vnf run monitor.py --config monitor.toml
"""

import ipaddress
import time
from collections import Counter

import numpy as np

from libvnf import VNF

vnf = VNF("monitor")
top = vnf.setting("top", default=10)
every_s = vnf.setting("every_s", default=1.0)
sent = Counter()


def count(batch):
    senders, where = np.unique(batch.src_ip[batch.is_ipv4], return_inverse=True)
    sums = np.bincount(where, weights=batch.length[batch.is_ipv4])
    sent.update(dict(zip(senders.tolist(), sums.tolist(), strict=True)))


@vnf.frames("left")
def rightwards(batch):
    count(batch)
    batch.forward("right")


@vnf.frames("right")
def leftwards(batch):
    count(batch)
    batch.forward("left")


def show():
    rows = [(str(ipaddress.IPv4Address(sender)), octets * 8e-6 / every_s) for sender, octets in sent.most_common(top)]
    sent.clear()
    print(time.strftime("%H:%M:%S"), f"{'sender':<15} {'Mbit/s':>10}", sep="  ")
    for sender, rate in rows:
        print(f"          {sender:<15} {rate:>10.3f}", flush=True)


vnf.every(every_s, show)
