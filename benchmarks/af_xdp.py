"""Frames from one veth pair to another by AF_XDP in copy mode, on one cpu: ``vnf bridge`` beside a minimal C program.

The generator, on the other cpu, sends by AF_XDP into the far end of the one pair and counts at the far end of the
other; a veth pair's kernel work is done by whoever sends. The C program copies a frame from one socket's memory into
the other's, as we do; the same program with memory that both sockets share shows what that copy costs.

    python benchmarks/af_xdp.py [--quick] [--json FILE]
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness import GENERATOR_CPU, PREFERRED, ROOT, Program, Results, Sample, Side, best_class, distance, main, median
from harness import rounds as in_turn

SIZES = (60, 349, 1514)
GOAL = 0.95
SHARED_GOAL = 0.85
"""Against memory that both sockets share: two ports that know nothing of each other have none."""
SATURATED = 1.02
"""More must be offered than is forwarded, or the generator is what was measured."""
GENERATE = """
import json, sys
from libvnf import _native
print(json.dumps(_native.generate_frames(json.loads(sys.argv[1]), lambda progress: False)))
"""


def run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")


@dataclass
class Namespaces:
    """The generator's and the forwarders'."""

    stack: ExitStack
    generator: str = f"vnf-bench-{os.getpid()}-g"
    forwarder: str = f"vnf-bench-{os.getpid()}-f"
    cables: int = 0

    def __post_init__(self) -> None:
        for name in (self.generator, self.forwarder):
            run("ip", "netns", "add", name)
            self.stack.callback(run, "ip", "netns", "delete", name)

    def cable(self) -> tuple[str, str]:
        """A new pair; its ends in the one and the other."""
        far, near = f"g{self.cables}", f"x{self.cables}"
        self.cables += 1
        run("ip", "link", "add", far, "netns", self.generator, "type", "veth", "peer", near, "netns", self.forwarder)
        for namespace, device in ((self.generator, far), (self.forwarder, near)):
            inside = ("ip", "netns", "exec", namespace)
            # No frames but the generator's.
            run(*inside, "sysctl", "-q", "-w", f"net.ipv6.conf.{device}.disable_ipv6=1")
            run(*inside, "ethtool", "-K", device, *"tx off tso off gso off gro off".split())
            run(*inside, "ip", "link", "set", device, "up")
        return far, near


@dataclass
class Forwarder(Side):
    """``load`` names the far ends of its two cables."""

    namespaces: Namespaces | None = None
    size: int = 60
    offered: float = 0.0

    def run(self, duration_s: float, warmup_s: float = 0.3) -> Sample:
        assert self.namespaces is not None
        ports = [f"af_xdp:{device},take=all" for device in self.load.split()]
        options = {"ports": ports, "size": self.size, "duration_s": duration_s, "warmup_s": warmup_s}
        before, cpu = distance()[0], self.program.cpu_s()
        command = ["ip", "netns", "exec", self.namespaces.generator, sys.executable, "-c", GENERATE]
        done = subprocess.run(
            ["sh", "-c", PREFERRED, "sh", *command, json.dumps({**options, "cpu": GENERATOR_CPU})],
            capture_output=True,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60 + 3 * duration_s,
        )
        if done.returncode:
            raise RuntimeError(f"the generator ended with {done.returncode}: {done.stderr}")
        report = json.loads(done.stdout)
        cpu = (self.program.cpu_s() - cpu) * 1e6 / max(1, report["received"])
        sample = Sample(report["rate"], 0.0, 0.0, cpu, 0, (before, distance()[0]))
        self.samples.append(sample)
        self.offered = max(self.offered, report["sent_rate"])
        return sample


def measure(results: Results, quick: bool, scratch: Path) -> None:
    count, duration_s, warmup_s = (3, 0.5, 0.2) if quick else (9, 1.0, 0.3)
    binary = scratch / "xdp_forward"
    run("cc", "-O3", "-o", binary, ROOT / "benchmarks/peers/xdp_forward.c")
    with ExitStack() as stack:
        namespaces = Namespaces(stack)
        inside = ["ip", "netns", "exec", namespaces.forwarder]

        def forwarder(name: str) -> Forwarder:
            (far_in, near_in), (far_out, near_out) = namespaces.cable(), namespaces.cable()
            if name == "vnf bridge":
                ports = [f"af_xdp:{device},take=all,attach=native,name={device}" for device in (near_in, near_out)]
                program = Program(*inside, sys.executable, "-m", "libvnf", "bridge", *ports, ready="bridging")
            else:
                program = Program(*inside, binary, near_in, near_out, *name.split()[1:])
            stack.callback(program.stop)
            return Forwarder(name=name, program=program, load=f"{far_in} {far_out}", namespaces=namespaces)

        # All at once: who has nothing to forward sleeps.
        ours, copying, sharing = sides = [
            forwarder(name) for name in ("vnf bridge", "xdp_forward", "xdp_forward share")
        ]
        for size in SIZES:
            for side in sides:
                side.samples, side.size, side.offered = [], size, 0.0
            in_turn(sides, count, duration_s, warmup_s)
            for peer, goal in ((copying, GOAL), (sharing, SHARED_GOAL)):
                kind = best_class(ours, peer)
                results.add(
                    "AF_XDP on veth, copy mode",
                    f"{size} B{', sharing memory' if peer is sharing else ''}",
                    median(ours, lambda s: s.rate, kind),
                    peer.name,
                    median(peer, lambda s: s.rate, kind),
                    "frames/s",
                    goal,
                    **{"class": kind or "mixed"},
                    cpu_us=[round(median(side, lambda s: s.cpu_us, kind), 3) for side in (ours, peer)],
                    distances=[[*s.distance] for side in (ours, peer) for s in side.samples],
                )
            fastest = max((side for side in sides), key=lambda side: median(side, lambda s: s.rate, None))
            most = median(fastest, lambda s: s.rate, None)
            offered = min(side.offered for side in sides)
            results.add("offered by the generator", f"{size} B", offered, fastest.name, most, "frames/s", SATURATED)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
