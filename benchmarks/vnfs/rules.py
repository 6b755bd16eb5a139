"""Rules for the conversations of the generator, and for nothing else: a frame of another one would not be forwarded.

They are installed in no order: a table that is walked in the order in which it was filled would be found in the cache.
"""

import random
from collections.abc import Iterator

from libvnf import VNF
from libvnf.flow import Action, Match, decapsulate, forward, rewrite

vnf = VNF("rules")
kind = vnf.setting("kind", default="forward")  # forward, nat or decapsulate
flows = vnf.setting("flows", default=1000)


def rules(flow: int) -> Iterator[tuple[Match, list[Action]]]:
    """As the generator's frames are: both its ports send the same ones."""
    if kind == "decapsulate":
        yield Match(port="port0", dst_ip="192.0.2.1", teid=flow), [decapsulate, forward("port1")]
        return
    source = f"10.{flow >> 16}.{flow >> 8 & 255}.{flow & 255}"
    fields = {"protocol": "udp", "src_ip": source, "src_port": 1024, "dst_ip": "192.0.2.1", "dst_port": 9}
    there = Match(port="port0", **fields)  # type: ignore[arg-type]
    if kind == "forward":
        yield there, [forward("port1")]
        return
    yield there, [rewrite(src_ip="198.51.100.1", src_port=20_000 + flow), forward("port1")]
    back = Match(port="port1", **fields)  # type: ignore[arg-type]
    yield back, [rewrite(dst_ip="198.51.100.1", dst_port=20_000 + flow), forward("port0")]


def install() -> None:
    order = list(range(flows))
    random.Random(1).shuffle(order)
    for flow in order:
        for match, actions in rules(flow):
            vnf.flows.install(match, actions)
    print("installed", flush=True)


vnf.after(0, install)
