"""What Python costs below the transport: frames from one memif port to another, through handlers, one cpu for the VNF.

A handler of batches that filters by two columns; one called per packet; the same engine joining the ports natively.
Frames of 60 bytes, 16 flows; the generator sends by the first port and counts what comes back by the second.

    python benchmarks/frames.py [--quick] [--json FILE]
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import GENERATOR_CPU, PREFERRED, ROOT, Results, Sample, Side, distance, main, median, rounds, running, vnf

VNFS = Path(__file__).parent / "vnfs"
SIZE, FLOWS = 60, 16
BATCHES_NEAR, BATCHES_FAR = 7e6, 0.65
"""Frames per second, where the cores are near; where they are far, what crosses between them costs more than Python
does, and the goal is a share of what native code makes of it."""
PER_PACKET = {"near": 3e6, "far": 2e6}


def generate(ports: list[str], duration_s: float, warmup_s: float) -> dict[str, Any]:
    """One run of the generator, on its cpu; its report."""
    options = {"ports": ports, "size": SIZE, "flows": FLOWS, "cpu": GENERATOR_CPU}
    spans = {"duration_s": duration_s, "warmup_s": warmup_s}
    command = [sys.executable, str(ROOT / "benchmarks/peers/generate.py"), json.dumps({**options, **spans})]
    done = subprocess.run(
        ["sh", "-c", PREFERRED, "sh", *command],
        capture_output=True,
        text=True,
        start_new_session=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        timeout=60 + 3 * duration_s,
    )
    if done.returncode:
        raise RuntimeError(f"the generator ended with {done.returncode}:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@dataclass
class Forwarder(Side):
    """A VNF between two ports; ``load`` is the folder of their sockets."""

    def run(self, duration_s: float, warmup_s: float = 0.3) -> Sample:
        before, cpu = distance()[0], self.program.cpu_s()
        report = generate([f"memif:{self.load}/{end}.sock,role=client" for end in "ab"], duration_s, warmup_s)
        cpu_us = 1e6 * (self.program.cpu_s() - cpu) / max(1, report["received"])
        lost = report["sent"] - report["received"]
        sample = Sample(report["rate"], 0.0, 0.0, cpu_us, lost, (before, distance()[0]))
        self.samples.append(sample)
        return sample


def seen(kind: str, *sides: Side) -> bool:
    """Whether every side had a round that was of that class from start to end."""
    return all(any(s.steady and s.distance[0] == kind for s in side.samples) for side in sides)


def add(results: Results, claim: str, case: str, side: Side, kind: str, peer: str, value: float, goal: float) -> None:
    rate, cpu_ns = median(side, lambda s: s.rate, kind), 1000 * median(side, lambda s: s.cpu_us, kind)
    case = f"{case}, {kind} cores"
    results.add(claim, case, rate, peer, value, "frames/s", goal, cpu_ns=round(cpu_ns), **{"class": kind})


def measure(results: Results, quick: bool, scratch: Path) -> None:
    commands, names = [], ("columns", "frames", "joined")
    for name in names:
        (scratch / name).mkdir()
        ports = [f"--transport=memif:{scratch}/{name}/{end}.sock" for end in "ab"]
        commands.append(vnf(VNFS / f"{name}.py", *ports))
    with running(*commands) as programs:
        sides = [Forwarder(name, one, str(scratch / name)) for name, one in zip(names, programs, strict=True)]
        rounds(sides, 4 if quick else 12, 0.5 if quick else 1.5)
    columns, frames, joined = sides
    if seen("near", columns):
        add(results, "batch columns", "memif, filter by two columns", columns, "near", "goal", BATCHES_NEAR, 1.0)
    if seen("far", columns, joined):
        native = median(joined, lambda s: s.rate, "far")
        add(results, "batch columns", "memif, filter by two columns", columns, "far", "native", native, BATCHES_FAR)
    for kind, goal in PER_PACKET.items():
        if seen(kind, frames):
            add(results, "per packet", "memif, a field and a verdict", frames, kind, "goal", goal, 1.0)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
