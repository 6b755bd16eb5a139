"""The papers' chain A–B–C, B on one cpu, A and C in one generator on the other.

Each shape of B over kernel sockets and over memif (shared memory), beside a bare uvloop program of the same shape,
which can only have kernel sockets; all in the same run. 128-byte messages.

    python benchmarks/abc.py [--quick] [--json FILE]
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from harness import EXAMPLES, Results, Side, free_ports, main, peer, rounds, running, vnf

OUTSTANDING = (20, 100, 1000)
KERNEL_GOAL = 0.9
"""Over kernel sockets: what dispatch, requests, limits and clean errors may cost against a bare protocol."""
SOCKETS_GOAL = 20.0
"""Over shared memory, against the shape that a chain over UDP has everywhere: a socket per request."""
SHARED_GOAL = 5.0
"""The same against a peer that needs no socket per request."""
CONNECTIONS_GOAL = 15.0
"""Over shared memory, against a TCP connection per request."""
POOL_GOAL = 6.0
"""The same against connections that are kept, one request at a time each."""
BY_ID_GOAL = 1.0
"""The same where one read of the peer brings hundreds of requests, and one write takes them on."""


@dataclass(frozen=True)
class Shape:
    claim: str
    ours: str
    peer: str
    load: str
    """With {n} requests outstanding."""
    memif_goal: float
    scheme: str = "tcp"
    what: str = ""
    kernel_load: str = ""
    """What is added over kernel sockets: a connection per request soon has all ports in TIME_WAIT."""
    memif_warmup_s: float = 0.0
    """B's connection to C is kept: it finds each new C with the next try of its SYN, up to 1.6 s apart."""
    warmup_s: float = 0.0
    """A thousand connections to C are made first."""
    settings: tuple[str, ...] = ()


BY_ID = "--connections 1 --outstanding {n} --id 0:8"
SHAPES = (
    Shape(
        "connection per request",
        "b.py",
        "tcp.py",
        "--connections {n} --requests-per-connection 1",
        CONNECTIONS_GOAL,
        kernel_load="--reset",
    ),
    Shape("requests on one connection", "b.py", "tcp.py", BY_ID, CONNECTIONS_GOAL),
    Shape(
        "pooled",
        "b.py",
        "exclusive.py",
        "--connections {n} --timeout 5",
        POOL_GOAL,
        warmup_s=1.0,
        settings=("pool=1024",),
    ),
    Shape("pooled, by id", "b_pooled.py", "pooled.py", BY_ID, BY_ID_GOAL, memif_warmup_s=2.0),
    Shape("UDP", "b.py", "udp.py", BY_ID, SOCKETS_GOAL, "udp", "socket per request"),
    Shape("UDP", "b_pooled.py", "udp_shared.py", BY_ID, SHARED_GOAL, "udp", "one socket"),
)


def measure(results: Results, quick: bool, scratch: Path) -> None:
    count, duration_s, warmup_s = (2, 0.4, 0.2) if quick else (5, 1.0, 0.3)
    for number, shape in enumerate(SHAPES):
        scheme, kind = shape.scheme, socket.SOCK_DGRAM if shape.scheme == "udp" else socket.SOCK_STREAM
        listen, c, peer_listen, peer_c = free_ports(4, kind)
        kernel, memif = f"{scheme}://127.0.0.1", f"memif:{scratch}/{number}.sock"
        ours, sets = EXAMPLES / "abc" / shape.ours, [f"--set={one}" for one in shape.settings]
        port, to = f"--transport={memif},address=10.0.0.2/24", f"{scheme}://10.0.0.3:5000"
        commands = (
            vnf(ours, *sets, port, listen=f"{scheme}://:5000", c=to),
            vnf(ours, *sets, listen=f"{kernel}:{listen}", c=f"{kernel}:{c}"),
            peer(shape.peer, peer_listen, peer_c),
        )
        ends = f"--respond {to} --transport {memif},address=10.0.0.1/24,address=10.0.0.3/24"
        loads = (
            f"{scheme}://10.0.0.2:5000 {ends} {shape.load}",
            f"{kernel}:{listen} --respond {kernel}:{c} {shape.load} {shape.kernel_load}",
            f"{kernel}:{peer_listen} --respond {kernel}:{peer_c} {shape.load} {shape.kernel_load}",
        )
        names = (f"libvnf {shape.ours} on memif", f"libvnf {shape.ours}", f"uvloop {shape.peer}")
        with running(*commands) as programs:
            for n in (100,) if quick else OUTSTANDING:
                bypass, sockets, uvloop = sides = [
                    Side(name, program, text.format(n=n))
                    for name, program, text in zip(names, programs, loads, strict=True)
                ]
                bypass.more_warmup_s = shape.memif_warmup_s
                rounds(sides, count, duration_s, warmup_s + (0.0 if quick else shape.warmup_s))
                case = f"{n:,} outstanding{', ' if shape.what else ''}{shape.what}"
                results.compare(shape.claim, f"memif, {case}", bypass, uvloop, shape.memif_goal)
                results.compare(shape.claim, f"kernel, {case}", sockets, uvloop, KERNEL_GOAL)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
