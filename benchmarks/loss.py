"""TCP on a path that loses one packet of a hundred each way: user-space TCP against the kernel's to itself.

One path for both: a router and a host, joined by a veth pair without offload, each of which drops a hundredth of what
comes in by it. The kernel's bytes go between host and router; ours between host and a VNF, which is reached through the
router, a TAP device and DPDK's testpmd (which cost us some, and lose nothing). Digests are compared. Needs root.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import harness

sys.path.insert(0, str(harness.ROOT))

from tests.integration import bulk
from tests.integration.bridge import Bridge, beyond, losing, without_offload
from tests.peers import Namespace, Testpmd, missing

PERCENT = 1
ROUTER, HOST, VNF = "10.0.1.1", "10.0.1.2", "10.0.0.2"


def prefer(pid: int) -> None:
    """The session of that process goes to the front of the scheduler's autogroups, as the harness has its programs."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-20")


def ours(host: Namespace, verb: str, size: int, expected: str) -> float:
    """The host connects to the VNF, which does ``verb``; Mbit/s."""
    with host.socket() as sock:
        sock.settimeout(600)
        bulk.ask(sock, VNF, f"send {size}" if verb == "send" else verb)
        with bulk.Rate(f"  the VNF does: {verb}", size) as rate:
            found = bulk.take(sock)[1] if verb == "send" else bulk.send(sock, size)
    if found != expected:
        raise RuntimeError(f"{verb}: what came is not what was sent")
    return rate.mbit_s


def kernel(router: Namespace, host: Namespace, size: int, expected: str) -> float:
    """The router sends to the host, both with kernel sockets; Mbit/s."""
    with host.socket() as server, router.socket() as sender:
        server.bind((HOST, 47002))
        server.listen()
        sender.settimeout(600)
        sender.connect((HOST, 47002))
        receiver, _ = server.accept()
        with receiver:
            receiver.settimeout(600)
            thread = threading.Thread(target=bulk.take, args=(receiver,))
            with bulk.Rate("  the kernel to itself", size) as rate:
                thread.start()
                found = bulk.send(sender, size)
            thread.join()
    if found != expected:
        raise RuntimeError("the kernel to itself: what came is not what was sent")
    return rate.mbit_s


def measure(results: harness.Results, quick: bool, scratch: Path) -> None:
    for program in ("root", "ip", "nft", "ethtool", "dpdk-testpmd"):
        if reason := missing(program):
            raise SystemExit(reason)
    size = (20 if quick else 100) * bulk.MB
    expected = bulk.digest(size)
    with suppress(PermissionError):  # it leads a group already: then the session is not its own
        os.setsid()
        prefer(os.getpid())
    with ExitStack() as stack:

        def namespace() -> Namespace:
            made = Namespace()
            stack.callback(made.delete)
            return made

        def testpmd(*vdevs: str, options: str, cpu: int, netns: str) -> Testpmd:
            started = Testpmd(*vdevs, options=options, cpu=cpu, netns=netns)
            stack.callback(started.stop)
            prefer(started.pid)
            return started

        link = Bridge(scratch, namespace(), testpmd, "server")
        stack.enter_context(link.vnf(bulk.BULK, "--set", f"orders={scratch / 'orders.sock'}"))
        link.begin_testpmd()
        link.wait_up()
        host = beyond(link.namespace, namespace)
        for where, device in ((link.namespace, "dtap"), (link.namespace, "inner"), (host, "outer")):
            without_offload(where, device)
        losing(link.namespace, "inner", PERCENT)
        losing(host, "outer", PERCENT)
        found: dict[str, list[float]] = {"send": [], "take": [], "kernel": []}
        for _ in range(1 if quick else 3):
            found["send"].append(ours(host, "send", size, expected))
            found["kernel"].append(kernel(link.namespace, host, size, expected))
            found["take"].append(ours(host, "take", size, expected))
        counters = link.window.counters("port0")
    theirs = statistics.median(found["kernel"])
    for verb in ("send", "take"):
        results.add(
            f"{PERCENT} % lost each way",
            f"memif, the VNF {verb}s {size // bulk.MB} MB",
            statistics.median(found[verb]),
            "Linux to itself",
            theirs,
            "Mbit/s",
            0.1,
            rounds=found,
            retransmissions=counters["tx_tcp_retransmission"],
        )


if __name__ == "__main__":
    harness.main("TCP on a path that loses", measure)
