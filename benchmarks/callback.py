"""What a Python callback per packet costs: UDP over memif (shared memory), one cpu for the VNF, 64-byte datagrams.

A callback that reads each datagram and answers it; the same as a coroutine that does not wait; how soon a VNF is ready
and what it costs while nothing happens; eight replicas that share two cores.

    python benchmarks/callback.py [--quick] [--json FILE]
"""

import contextlib
import statistics
import subprocess
import time
from pathlib import Path

from harness import Program, Results, Side, best_class, distance, main, median, rounds, running, vnf

VNFS = Path(__file__).parent / "vnfs"
PER_PACKET = {"near": 2e6, "far": 1.3e6}
"""Callbacks per second, by how far the cores are apart: the datagrams cross from one to the other."""
REPLICAS = 8
REPLICA_RATE = 2000


def memif(scratch: Path, name: str) -> list[str]:
    """The command line of a VNF at 10.0.0.2 of its own memif."""
    return vnf(VNFS / name, f"--transport=memif:{scratch / name}.sock,address=10.0.0.2/24")


def load(scratch: Path, name: str, more: str) -> str:
    return f"udp://10.0.0.2:5000 --transport memif:{scratch / name}.sock,address=10.0.0.1/24 --size 64 {more}"


def callbacks(results: Results, quick: bool, scratch: Path) -> None:
    names = ("answer.py", "answer_async.py")
    with running(*(memif(scratch, name) for name in names)) as programs:
        plain, coroutine = (
            Side(name, program, load(scratch, name, "--outstanding 256"))
            for name, program in zip(names, programs, strict=True)
        )
        rounds((plain, coroutine), 3 if quick else 9, 0.5 if quick else 2.0)
    for kind in PER_PACKET:
        if any(s.steady and s.distance[0] == kind for s in plain.samples):
            results.add(
                "per packet",
                f"memif, def, {kind} cores",
                median(plain, lambda s: s.rate, kind),
                "goal",
                PER_PACKET[kind],
                "packets/s",
                1.0,
                cpu_us=round(median(plain, lambda s: s.cpu_us, kind), 3),
                **{"class": kind},
            )
    kind = best_class(plain, coroutine)
    apart_ns = 1000 * (median(coroutine, lambda s: s.cpu_us, kind) - median(plain, lambda s: s.cpu_us, kind))
    details = {"class": kind, "rate": median(coroutine, lambda s: s.rate, kind)}
    results.add(
        "async handler", "more than def, cpu", apart_ns, "goal", 200.0, "ns", 1.0, less_is_better=True, **details
    )


def start(results: Results, quick: bool, scratch: Path) -> None:
    times = []
    for _ in range(5 if quick else 15):
        program = Program(*memif(scratch, "answer.py"))
        times.append(program.ready_s)
        program.stop()
    results.add(
        "start to ready", "process, median", statistics.median(times), "goal", 0.3, "s", 1.0, less_is_better=True
    )


def idle(results: Results, quick: bool, scratch: Path) -> None:
    watched_s = 3.0 if quick else 20.0
    with running(memif(scratch, "answer.py")) as [program]:
        # An idle VNF that has a peer: its memif stays up, the other end sends nothing for the time that is watched.
        quiet = [*vnf_load(scratch), "--rate", "0.01", "--duration", str(watched_s + 2), "--timeout", "0.1"]
        other = subprocess.Popen(quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(1.0)
            before, begun = program.cpu_s(), time.monotonic()
            time.sleep(watched_s)
            used = 100 * (program.cpu_s() - before) / (time.monotonic() - begun)
        finally:
            other.terminate()
            other.wait()
    results.add("idle cpu", "memif up", used, "goal", 1.0, "% of a cpu", 1.0, less_is_better=True)


def vnf_load(scratch: Path) -> list[str]:
    import sys

    return [sys.executable, "-m", "libvnf", "load", *load(scratch, "answer.py", "--cpu 0").split()]


def replicas(results: Results, quick: bool, scratch: Path) -> None:
    """All on any cpu, as a small host would run them; each sleeps between its few datagrams."""
    commands = []
    for number in range(REPLICAS):
        port = f"--transport=memif:{scratch}/{number}.sock,address=10.0.0.2/24"
        commands.append(vnf(VNFS / "answer.py", port))
    seconds = 2.0 if quick else 10.0
    with running(*commands, cpu=None) as programs, contextlib.ExitStack() as stack:
        time.sleep(0.5)
        before, begun = [p.cpu_s() for p in programs], time.monotonic()
        time.sleep(seconds)
        used = 100 * sum(p.cpu_s() - b for p, b in zip(programs, before, strict=True)) / (time.monotonic() - begun)
        results.add("replicas", f"{REPLICAS} idle, together", used, "goal", 8.0, "% of a cpu", 1.0, less_is_better=True)
        generators = []
        for number in range(REPLICAS):
            command = [*vnf_load(scratch)[:4], "udp://10.0.0.2:5000", "--size", "64", "--rate", str(REPLICA_RATE)]
            command += ["--transport", f"memif:{scratch}/{number}.sock,address=10.0.0.1/24"]
            command += ["--duration", str(seconds), "--warmup", "0.5", "--json", f"{scratch}/{number}.json"]
            generator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(generator.wait)
            stack.callback(generator.kill)
            generators.append(generator)
        for generator in generators:
            generator.wait()
        import json

        reports = [json.loads((scratch / f"{number}.json").read_text()) for number in range(REPLICAS)]
        served = sum(report["rate"] for report in reports)
        results.add(
            "replicas",
            f"{REPLICAS} at {REPLICA_RATE:,}/s each, 2 cores",
            served,
            "goal",
            0.98 * REPLICAS * REPLICA_RATE,
            "packets/s",
            1.0,
            p99_us=max(report["p99_us"] for report in reports),
            errors=sum(sum(report["errors"].values()) for report in reports),
        )


def measure(results: Results, quick: bool, scratch: Path) -> None:
    print(f"cores are {distance()[0]} to begin with")
    for part in (callbacks, start, idle, replicas):
        part(results, quick, scratch)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
