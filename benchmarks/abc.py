"""The papers' chain A–B–C, B on one cpu, A and C in one generator on the other.

Over kernel sockets each shape of B against a bare uvloop program of the same shape; over memif (shared memory) the UDP
shapes against the same uvloop programs, which can only have kernel sockets. 128-byte messages.

    python benchmarks/abc.py [--quick] [--json FILE]
"""

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from harness import Results, Side, main, peer, rounds, running, vnf

EXAMPLES = Path(__file__).parents[1] / "examples/abc"
OUTSTANDING = (20, 100, 1000)
KERNEL_GOAL = 0.9
"""Over kernel sockets: what dispatch, requests, limits and clean errors may cost against a bare protocol."""
BYPASS_GOAL = 20.0
"""Over shared memory, against the shape that a chain over UDP has everywhere: a socket per request."""
SHARED_GOAL = 5.0
"""The same against a peer that needs no socket per request."""


@dataclass(frozen=True)
class Shape:
    claim: str
    ours: str
    peer: str
    load: str
    """With {n} requests outstanding."""
    scheme: str = "tcp"
    what: str = ""
    bypass_goal: float = BYPASS_GOAL


SHAPES = (
    Shape("connection per request", "b.py", "tcp.py", "--connections {n} --requests-per-connection 1 --reset"),
    Shape("requests on one connection", "b.py", "tcp.py", "--connections 1 --outstanding {n} --id 0:8"),
    Shape("pooled", "b_pooled.py", "pooled.py", "--connections 1 --outstanding {n} --id 0:8"),
    Shape("UDP", "b.py", "udp.py", "--connections 1 --outstanding {n} --id 0:8", "udp", "socket per request"),
    Shape(
        "UDP",
        "b_pooled.py",
        "udp_shared.py",
        "--connections 1 --outstanding {n} --id 0:8",
        "udp",
        "one socket",
        SHARED_GOAL,
    ),
)


def free_ports(count: int, kind: socket.SocketKind) -> list[int]:
    """Below the range that connections out are given: a client of a port in it can connect to itself."""
    found: list[int] = []
    for number in range(20000 + os.getpid() % 5000, 32000):
        with socket.socket(socket.AF_INET, kind) as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", number))
            found.append(number)
        if len(found) == count:
            return found
    raise OSError("no free ports from 20000 to 32000")


def measure(results: Results, quick: bool, scratch: Path) -> None:
    count, duration_s = (2, 0.4) if quick else (5, 1.0)
    for shape in SHAPES:
        scheme, kind = shape.scheme, socket.SOCK_DGRAM if shape.scheme == "udp" else socket.SOCK_STREAM
        listen, c, peer_listen, peer_c = free_ports(4, kind)
        memif = scratch / "b.sock"
        url = f"{scheme}://127.0.0.1"
        commands = [
            vnf(EXAMPLES / shape.ours, listen=f"{url}:{listen}", c=f"{url}:{c}"),
            peer(shape.peer, peer_listen, peer_c),
        ]
        loads = [
            f"{url}:{listen} --respond {url}:{c} {shape.load}",
            f"{url}:{peer_listen} --respond {url}:{peer_c} {shape.load}",
        ]
        if scheme == "udp":
            port = f"--transport=memif:{memif},address=10.0.0.2/24"
            commands.append(vnf(EXAMPLES / shape.ours, port, listen="udp://:5000", c="udp://10.0.0.3:5000"))
            loads.append(
                f"udp://10.0.0.2:5000 --respond udp://10.0.0.3:5000 {shape.load}"
                f" --transport memif:{memif},address=10.0.0.1/24,address=10.0.0.3/24"
            )
        names = (f"libvnf {shape.ours}", f"uvloop {shape.peer}", f"libvnf {shape.ours} on memif")
        with running(*commands) as programs:
            for n in (20, 1000) if quick else OUTSTANDING:
                sides = [
                    Side(name, program, text.format(n=n))
                    for name, program, text in zip(names, programs, loads, strict=False)
                ]
                rounds(sides, count, duration_s)
                what = f", {shape.what}" if shape.what else ""
                results.compare(shape.claim, f"kernel, {n:,} outstanding{what}", sides[0], sides[1], KERNEL_GOAL)
                if scheme == "udp":
                    results.compare(
                        shape.claim, f"memif, {n:,} outstanding{what}", sides[2], sides[1], shape.bypass_goal
                    )


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
