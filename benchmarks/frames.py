"""Frames from port to port on one cpu: through Python handlers, by a thousand rules and by a million, natively.

A handler of batches that filters by two columns; one called per packet; rules that forward, translate both directions
of a NAT, or take GTP-U off; and the same engine joining two ports without a look at what passes. Frames of 60 bytes
(GTP-U: of 96, of which 60 leave), over memif; the generator sends by the first port, of the NAT by both, and counts
what comes back.

The kernel's NAT is nftables' masquerade in a namespace between two veth pairs, forwarding what the same generator sends
by AF_XDP into the far end of the one, counted by AF_XDP at the far end of the other. It is measured twice, and the
faster one taken: with the kernel's work on the cpu of whoever sends, as is its default, and moved to the other cpu by
receive packet steering, so that it has that alone. Our NAT by AF_XDP stands between two such pairs.

    python benchmarks/frames.py [--quick] [--json FILE]
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from af_xdp import Namespaces, run
from harness import (
    GENERATOR_CPU,
    PREFERRED,
    ROOT,
    SERVER_CPU,
    Measured,
    Program,
    Results,
    Sample,
    best_class,
    distance,
    main,
    median,
    peer,
    rounds,
    vnf,
)

from libvnf.packet import GTPU, UDP, Ethernet, IPv4, build

VNFS = Path(__file__).parent / "vnfs"
SIZE, FLOWS, MANY = 60, 1000, 1_000_000
BATCHES_NEAR, BATCHES_FAR = 7e6, 0.65
"""Frames per second, where the cores are near; where they are far, what crosses between them costs more than Python
does, and the goal is a share of what native code makes of it."""
PER_PACKET = {"near": 3e6, "far": 2e6}
FLOWS_GOAL, MANY_GOAL = 0.7, 0.4
"""Of plain forwarding."""
DECAPSULATED, TRANSLATED = 6e6, 5e6
"""Frames per second, where the cores are near."""
NAT_GOAL, NAT_XDP_GOAL = 25, 1.0
"""Times what the kernel's NAT forwards: over memif, and on the same kind of wires."""
TRIES, DISTURBED = 2, 0.05
"""Of a round, and the part of it for which others may have a cpu."""
INSTALLED_S = 240.0
"""A million rules are installed by Python, one at a time."""
OUTER = (Ethernet("02:00:00:00:00:01", "02:00:00:00:00:02"), IPv4("203.0.113.1", "192.0.2.1"))
TUNNEL = build(
    *OUTER, UDP(2152, 2152, checksum=0), GTPU(0), IPv4("10.0.0.0", "192.0.2.1"), UDP(1024, 9), payload=bytes(SIZE - 42)
)
GTP = {"frame": TUNNEL.hex(), "vary_at": 46, "checksums_at": []}
"""What differs is the tunnel's endpoint identifier (3GPP TS 29.281 §5.1); the outer checksum is left out."""


@dataclass
class Forwarder(Measured):
    """What stands between two ports of the generator."""

    ports: list[str]
    program: Program | None = None
    """None: the kernel."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the generator."""
    inside: list[str] = field(default_factory=list)
    """Where the generator runs."""
    disturbed: int = 0

    def waited_s(self) -> float:
        return self.program.waited_s() if self.program else 0.0

    def cpu_s(self) -> float:
        return self.program.cpu_s() if self.program else 0.0

    def run(self, duration_s: float, warmup_s: float = 0.3) -> Sample:
        """Once, but again while something else took part of either cpu; the least disturbed run counts."""
        runs = []
        for _ in range(TRIES):
            runs.append(self.once(duration_s, warmup_s))
            if runs[-1][0] < DISTURBED * duration_s:
                break
        waited_s, sample = min(runs, key=lambda run: run[0])
        self.disturbed += waited_s >= DISTURBED * duration_s
        self.samples.append(sample)
        return sample

    def once(self, duration_s: float, warmup_s: float) -> tuple[float, Sample]:
        """How long generator and program waited for their cpus, and what was found."""
        spans = {"duration_s": duration_s, "warmup_s": warmup_s}
        options = {"ports": self.ports, "size": SIZE, "flows": FLOWS, "cpu": GENERATOR_CPU, **spans, **self.options}
        command = [*self.inside, *peer("frames.py", json.dumps(options))]
        before, cpu, waited_s = distance()[0], self.cpu_s(), self.waited_s()
        done = subprocess.run(
            ["sh", "-c", PREFERRED, "sh", *command],
            capture_output=True,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60 + 3 * duration_s,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: the generator ended with {done.returncode}:\n{done.stderr}")
        report: dict[str, Any] = json.loads(done.stdout)
        cpu_us = 1e6 * (self.cpu_s() - cpu) / max(1, report["received"])
        lost = report["sent"] - report["received"]
        sample = Sample(report["rate"], 0.0, 0.0, cpu_us, lost, (before, distance()[0]))
        return self.waited_s() - waited_s + report["waited_s"], sample


@dataclass
class Masquerade(Forwarder):
    """The kernel's NAT, whose work is done by the cpus of ``steering``, a mask; 0: by that of whoever sends."""

    device: str = ""
    namespace: str = ""
    steering: int = 0

    def run(self, duration_s: float, warmup_s: float = 0.3) -> Sample:
        mask = f"echo {self.steering:x} >/sys/class/net/{self.device}/queues/rx-0/rps_cpus"
        run("ip", "netns", "exec", self.namespace, "sh", "-c", mask)
        return super().run(duration_s, warmup_s)


# --- over memif -------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What is started for the rows, and where."""

    stack: ExitStack
    scratch: Path
    folders: int = 0

    def start(self, *command: str | Path, ready: str = "ready") -> Program:
        program = Program(*command, ready=ready, timeout_s=INSTALLED_S)
        self.stack.callback(program.stop)
        return program

    def forwarder(
        self, name: str, file: str, ready: str = "ready", *, generator: Any = None, **settings: object
    ) -> Forwarder:
        """A VNF between two memif ports."""
        folder = self.scratch / str(self.folders)
        folder.mkdir()
        self.folders += 1
        paths = [folder / f"{end}.sock" for end in "ab"]
        program = self.start(
            *vnf(VNFS / file, *(f"--transport=memif:{path}" for path in paths), **settings), ready=ready
        )
        return Forwarder(name, [f"memif:{path},role=client" for path in paths], program, generator or {})


def seen(kind: str, *sides: Measured) -> bool:
    """Whether every side had a round that was of that class from start to end."""
    return all(any(s.steady and s.distance[0] == kind for s in side.samples) for side in sides)


def add(
    results: Results, claim: str, case: str, side: Measured, kind: str, other: str, value: float, goal: float
) -> None:
    rate, cpu_ns = median(side, lambda s: s.rate, kind), 1000 * median(side, lambda s: s.cpu_us, kind)
    case = f"{case}, {kind} cores"
    results.add(claim, case, rate, other, value, "frames/s", goal, cpu_ns=round(cpu_ns), **{"class": kind})


def handlers(results: Results, bench: Bench, count: int, duration_s: float) -> None:
    sixteen = {"flows": 16}
    columns, frames, joined = sides = [
        bench.forwarder(name, f"{name}.py", generator=sixteen) for name in ("columns", "frames", "joined")
    ]
    rounds(sides, count, duration_s)
    if seen("near", columns):
        add(results, "batch columns", "memif, filter by two columns", columns, "near", "goal", BATCHES_NEAR, 1.0)
    if seen("far", columns, joined):
        native = median(joined, lambda s: s.rate, "far")
        add(results, "batch columns", "memif, filter by two columns", columns, "far", "native", native, BATCHES_FAR)
    for kind, goal in PER_PACKET.items():
        if seen(kind, frames):
            add(results, "per packet", "memif, a field and a verdict", frames, kind, "goal", goal, 1.0)


def rules(results: Results, bench: Bench, count: int, duration_s: float) -> Forwarder:
    """The rows of installed rules over memif; the NAT, to be compared with the kernel's."""
    plain = bench.forwarder("plain forwarding", "joined.py")
    few = bench.forwarder("1,000 flows", "rules.py", "installed")
    many = bench.forwarder("1 M flows", "rules.py", "installed", generator={"flows": MANY}, flows=MANY)
    tunnels = bench.forwarder("GTP-U", "rules.py", "installed", generator=GTP, kind="decapsulate")
    nat = bench.forwarder("NAT", "rules.py", "installed", generator={"both_ways": True}, kind="nat")
    sides = [plain, few, many, tunnels, nat]
    rounds(sides, count, duration_s)
    if disturbed := sum(side.disturbed for side in sides):
        print(f"  in {disturbed} of {len(sides) * count} rounds other work took part of a cpu", file=sys.stderr)
    for side, goal in ((few, FLOWS_GOAL), (many, MANY_GOAL)):
        for kind in ("near", "far"):
            if seen(kind, side, plain):
                value = median(plain, lambda s: s.rate, kind)
                add(results, side.name, "memif, exact 5-tuples, forward", side, kind, plain.name, value, goal)
    for side, claim, case, goal in (
        (tunnels, "GTP-U decapsulation", "memif, 1,000 tunnels", DECAPSULATED),
        (nat, "NAT", "memif, both ways, 1,000 conversations", TRANSLATED),
    ):
        kind = "near" if seen("near", side) else best_class(side) or "far"
        if seen(kind, side):
            add(results, claim, case, side, kind, "goal", goal, 1.0)
    return nat


# --- beside the kernel ------------------------------------------------------------------------------------------------

RULESET = "table ip nat {{ chain out {{ type nat hook postrouting priority srcnat; oifname {device} masquerade; }}; }};"


def masquerades(namespaces: Namespaces) -> list[Masquerade]:
    """One router of the kernel, with its work on either cpu."""
    (far_in, near_in), (far_out, near_out) = namespaces.cable(), namespaces.cable()
    inside = ["ip", "netns", "exec", namespaces.forwarder]
    for key in ("ip_forward=1", "conf.all.rp_filter=0", f"conf.{near_in}.rp_filter=0"):
        run(*inside, "sysctl", "-q", "-w", f"net.ipv4.{key}")
    # The generator's frames: 10.0.0.0 and on to 192.0.2.1, and to this link address.
    run(*inside, *f"ip link set {near_in} address 02:00:00:00:00:02".split())
    run(*inside, *f"ip route add 10.0.0.0/8 dev {near_in}".split())
    run(*inside, *f"ip address add 192.0.2.2/24 dev {near_out}".split())
    run(*inside, *f"ip neighbour add 192.0.2.1 lladdr 02:00:00:00:00:03 dev {near_out} nud permanent".split())
    run(*inside, "nft", RULESET.format(device=near_out))
    outside = ["ip", "netns", "exec", namespaces.generator]
    ports = [f"af_xdp:{device},take=all" for device in (far_in, far_out)]
    return [
        Masquerade(name, ports, inside=outside, device=near_in, namespace=namespaces.forwarder, steering=mask)
        for name, mask in (("nftables", 0), ("nftables, steered", 1 << SERVER_CPU))
    ]


def beside_the_kernel(results: Results, bench: Bench, nat: Forwarder, count: int, duration_s: float) -> None:
    namespaces = Namespaces(bench.stack)
    kernels = masquerades(namespaces)
    (far_in, near_in), (far_out, near_out) = namespaces.cable(), namespaces.cable()
    ports = [f"af_xdp:{near},take=all,attach=native,name=port{at}" for at, near in enumerate((near_in, near_out))]
    command = vnf(VNFS / "rules.py", *(f"--transport={port}" for port in ports), kind="nat")
    program = bench.start("ip", "netns", "exec", namespaces.forwarder, *command, ready="installed")
    far = [f"af_xdp:{device},take=all" for device in (far_in, far_out)]
    ours = Forwarder("NAT over AF_XDP", far, program, inside=["ip", "netns", "exec", namespaces.generator])
    nat.samples.clear()
    rounds([nat, ours, *kernels], count, duration_s)
    kernel = max(kernels, key=lambda side: median(side, lambda s: s.rate, None))
    results.compare("NAT", f"memif, both ways, against {kernel.name}, veth", nat, kernel, NAT_GOAL, "frames/s")
    results.compare("NAT", f"AF_XDP on veth, against {kernel.name}", ours, kernel, NAT_XDP_GOAL, "frames/s")


def measure(results: Results, quick: bool, scratch: Path) -> None:
    with ExitStack() as stack:
        handlers(results, Bench(stack, scratch), *((2, 0.4) if quick else (12, 1.0)))
    with ExitStack() as stack:
        bench = Bench(stack, scratch, 100)
        nat = rules(results, bench, *((3, 0.3) if quick else (9, 0.5)))
        if os.geteuid():
            print("  NAT beside the kernel's is left out: namespaces need root", file=sys.stderr)
        else:
            beside_the_kernel(results, bench, nat, *((2, 0.3) if quick else (7, 0.7)))


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
