"""Frames from one memif port to another and back, forwarded on one cpu: ``vnf bridge`` beside DPDK's testpmd in mode
``io``, each with the same generator, which fills both ports and takes what comes out of either, on the other cpu.

Both are measured in both roles of memif: the client decides where the buffers of both directions lie. Two generators
that send each other frames show how fast a generator is with nothing between.

    python benchmarks/memif.py [--quick] [--json FILE]
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import GENERATOR_CPU, PREFERRED, ROOT, SERVER_CPU, Measured, Program, Results, Sample, distance, main, peer

SIZES = (60, 349, 1514)
OTHER = {"server": "client", "client": "server"}
GOAL = 1.2
LIMIT_GOAL = 1.0
"""The generator alone should be faster than with our bridge in between; where it is not, it is what was measured."""
FLOWS = 1000


class Generator:
    """One in a session of its own; it talks once its ports have peers."""

    def __init__(self, ports: list[str], cpu: int, **options: object) -> None:
        self.options = {"ports": ports, "both_ways": True, "flows": FLOWS, "timeout_s": 20, "cpu": cpu, **options}
        self._child = subprocess.Popen(
            ["sh", "-c", PREFERRED, "sh", *peer("frames.py", json.dumps(self.options))],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def report(self) -> dict[str, Any]:
        output, _ = self._child.communicate(timeout=60)
        if self._child.returncode:
            raise RuntimeError(f"the generator ended with {self._child.returncode}: {self.options}")
        report: dict[str, Any] = json.loads(output)
        return report

    def stop(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def forwarder(name: str, role: str, paths: list[Path]) -> Program:
    if name == "testpmd":
        return Program(*peer("testpmd.py", role, *paths))
    ports = [f"memif:{path},role={role},name=port{number}" for number, path in enumerate(paths)]
    return Program(sys.executable, "-m", "libvnf", "bridge", *ports, ready="bridging")


def forwarded(name: str, role: str, scratch: Path, size: int, duration_s: float) -> Sample:
    """One run. Everything is started anew: a testpmd that listens does not outlive its client."""
    paths = [scratch / f"{name}{number}.sock" for number in (0, 1)]
    for path in paths:
        path.unlink(missing_ok=True)
    ports = [f"memif:{path},role={OTHER[role]}" for path in paths]
    with ExitStack() as stack:

        def start() -> Program:
            program = forwarder(name, role, paths)
            stack.callback(program.stop)
            return program

        def generate() -> Generator:
            generator = Generator(ports, GENERATOR_CPU, size=size, duration_s=duration_s)
            stack.callback(generator.stop)
            return generator

        if role == "server":
            program, generator = start(), generate()
        else:
            generator = generate()
            wait_for(paths)
            program = start()
        before, cpu = distance()[0], program.cpu_s()
        report = generator.report()
        cpu = program.cpu_s() - cpu
        lost = report["sent"] - report["received"] - report["other"]
    cpu_us = cpu * 1e6 / max(1, report["received"])
    return Sample(report["rate"], 0.0, 0.0, cpu_us, lost + report["other"], (before, distance()[0]))


def wait_for(paths: list[Path]) -> None:
    while not all(path.exists() for path in paths):
        os.sched_yield()


def limit(scratch: Path, size: int, duration_s: float) -> Sample:
    """What a generator sends while it receives as much from another: its work with nothing in between."""
    path = scratch / "limit.sock"
    path.unlink(missing_ok=True)
    before = distance()[0]
    generators = []
    try:
        for role, cpu in (("server", SERVER_CPU), ("client", GENERATOR_CPU)):
            generators.append(Generator([f"memif:{path},role={role}"], cpu, size=size, duration_s=duration_s))
            wait_for([path])
        # Of whom both take part all the time.
        rate = sum(generator.report()["rate"] for generator in generators) / 2
    finally:
        for generator in generators:
            generator.stop()
    return Sample(rate, 0.0, 0.0, 0.0, 0, (before, distance()[0]))


def measure(results: Results, quick: bool, scratch: Path) -> None:
    count, duration_s = (2, 0.5) if quick else (7, 1.0)
    for role in ("server", "client"):
        for size in SIZES:
            ours, theirs, alone = Measured("vnf bridge"), Measured("testpmd io"), Measured("generator alone")
            for number in range(count):
                sides = [(ours, "bridge"), (theirs, "testpmd")]
                for side, name in sides if number % 2 == 0 else reversed(sides):
                    side.samples.append(forwarded(name, role, scratch, size, duration_s))
                alone.samples.append(limit(scratch, size, duration_s))
            results.compare("memif to memif, native", f"{size} B, both ways, as {role}", ours, theirs, GOAL, "frames/s")
            results.compare("  the generator alone", f"{size} B, both ways", alone, ours, LIMIT_GOAL, "frames/s")


if __name__ == "__main__":
    main("Frames from one memif port to another", measure)
