"""TCP over memif (shared memory), one cpu for the VNF, 64-byte messages with a Python callback each.

Messages on a hundred connections and on a hundred thousand, connections that come and go, what an idle one costs in
memory; and one connection between two VNFs that carries all it can.

    python benchmarks/echo.py [--quick] [--json FILE]
"""

import contextlib
import json
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import (
    GENERATOR_CPU,
    ROOT,
    Results,
    Side,
    best_class,
    distance,
    load,
    main,
    median,
    peer,
    rounds,
    running,
    vnf,
)

VNFS = Path(__file__).parent / "vnfs"
ECHO_GOAL = 7.0
MANY = 100_000
MANY_GOAL = 0.5
CHURN_GOAL = 150_000.0
MEMORY_GOAL_MB = 300.0
BULK_GOAL = 5.0
"""Gbit/s"""


def echo(socket_path: Path) -> list[str]:
    """The command line of the echo VNF, at 10.0.0.2 of a memif of its own."""
    port = f"--transport=memif:{socket_path},address=10.0.0.2/24"
    return vnf(VNFS / "echo.py", port, f"--set=limits.max_connections={2 * MANY}")


def over_memif(socket_path: Path, more: str) -> str:
    # An address has 49,152 ports for connections to one place; three have enough for all.
    addresses = "address=10.0.0.1/24,address=10.0.0.3/24,address=10.0.0.4/24"
    return f"tcp://10.0.0.2:5000 --transport memif:{socket_path},{addresses} --size 64 {more}"


def free_port() -> int:
    """Below the range that connections out are given, so that all of those are left to the generator."""
    for number in range(20000, 32000):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", number))
            return number
    raise OSError("no free port from 20000 to 32000")


def hundred(results: Results, quick: bool, scratch: Path) -> None:
    port, memif = free_port(), scratch / "echo.sock"
    with running(echo(memif), peer("echo.py", port)) as (ours, theirs):
        sides = (
            Side("libvnf echo.py", ours, over_memif(memif, "--connections 100")),
            Side("uvloop echo.py", theirs, f"tcp://127.0.0.1:{port} --connections 100 --size 64"),
        )
        rounds(sides, 2 if quick else 9, 0.5 if quick else 2.0)
    results.compare("echo 100 connections", "memif against kernel, 64 B", *sides, ECHO_GOAL)


def many(results: Results, quick: bool, scratch: Path) -> None:
    """As many requests outstanding on a hundred thousand connections as on a hundred, each connection in its turn."""
    # A descriptor each in both processes, and a port each towards one address.
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100, 28_000)
    sides: list[Side] = []
    for number in range(1 if quick else 5):
        memif, port = scratch / f"many{number}.sock", free_port()
        kernel = f"tcp://127.0.0.1:{port} --size 64 --reset"
        # New ones each time: what a generator leaves open at its end is in the next one's way.
        with running(echo(memif), peer("echo.py", port)) as (ours, theirs):
            now = (
                Side("libvnf with 100", ours, over_memif(memif, "--connections 100 --outstanding 100")),
                Side("libvnf", ours, over_memif(memif, f"--connections {MANY} --outstanding 100")),
                Side(f"uvloop with {most:,}", theirs, f"{kernel} --connections {most} --outstanding 100"),
            )
            for side in now:
                side.run(1.0 if quick else 3.0)
        sides = sides or [Side(side.name, side.program, side.load) for side in now]
        for side, one in zip(sides, now, strict=True):
            side.samples += one.samples
    few, all_of_them, uvloop = sides
    results.compare(f"{MANY:,} connections", "memif, our rate against ours with 100", all_of_them, few, MANY_GOAL)
    case = f"memif, our rate against uvloop's with {most:,}"
    results.compare(f"{MANY:,} connections", case, all_of_them, uvloop, 1.0)


def churn(results: Results, quick: bool, scratch: Path) -> None:
    memif = scratch / "churn.sock"
    with running(echo(memif)) as [program]:
        shape = "--connections 100 --requests-per-connection 1"
        side = Side("libvnf echo.py", program, over_memif(memif, shape))
        rounds([side], 3 if quick else 9, 0.5 if quick else 2.0)
    kind = best_class(side)
    results.add(
        "connections opened, served and closed",
        "memif, 100 at a time, a request each",
        median(side, lambda s: s.rate, kind),
        "goal",
        CHURN_GOAL,
        "connections/s",
        1.0,
        **{"class": kind or "mixed"},
        cpu_us=round(median(side, lambda s: s.cpu_us, kind), 3),
        errors=sum(s.errors for s in side.samples),
    )


@contextlib.contextmanager
def holding(memif: Path, rate: float, messages: int) -> Iterator[None]:
    """A hundred thousand connections, held, once they are open and about so many messages have been answered."""
    command = [sys.executable, "-m", "libvnf", "load", *over_memif(memif, f"--connections {MANY}").split()]
    command += ["--outstanding", "1000", "--rate", str(rate), "--warmup", "0", "--duration", "600", "--json", "-"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen([*command, "--cpu", str(GENERATOR_CPU)], cwd=ROOT, **streams)
    try:
        answered, said = 0.0, []
        for line in child.stderr:
            said.append(line)
            # A line a second.
            if progress := re.match(r"measuring +[\d.]+ s +([\d,]+) /s", line):
                answered += int(progress[1].replace(",", ""))
                if answered >= 1.5 * messages:
                    break
        else:
            raise RuntimeError(f"{MANY:,} connections were not held:\n{''.join(said)}")
        yield
        child.send_signal(signal.SIGINT)
        requests = json.loads(child.communicate(timeout=60)[0])["requests"]
        if requests < messages:
            raise RuntimeError(f"{requests:,} messages were answered, not {messages:,}")
    finally:
        child.kill()
        child.communicate()


def idle(results: Results, quick: bool, scratch: Path) -> None:
    for name, rate, messages in (("no message yet", 0.001, 0), ("after a message each", 40_000.0, MANY)):
        memif = scratch / f"{messages}.sock"
        with running(echo(memif)) as [program]:
            load(over_memif(memif, "--connections 1"), duration_s=0.2, warmup_s=0.1)
            before = program.rss_mb()
            with holding(memif, rate, messages):
                used = program.rss_mb() - before
                # It says how many it leaves: that they were all there.
                left = re.search(r"draining: (\d+) connections", program.stop())
        results.add(
            f"{MANY:,} idle connections",
            f"memory, {name}",
            used,
            "goal",
            MEMORY_GOAL_MB,
            "MB",
            1.0,
            less_is_better=True,
            connections=int(left[1]) if left else None,
        )


def bulk(results: Results, quick: bool, scratch: Path) -> None:
    """One VNF sends for some seconds, the other counts what it took between accept and end."""
    rates, classes = [], []
    for number in range(2 if quick else 9):
        memif = scratch / f"bulk{number}.sock"
        sink = vnf(VNFS / "sink.py", f"--transport=memif:{memif},address=10.0.0.2/24")
        port = f"--transport=memif:{memif},role=client,address=10.0.0.1/24"
        source = vnf(VNFS / "source.py", port, seconds=1.0 if quick else 3.0)
        classes.append(distance()[0])
        with running(sink) as [taker], running(source, cpu=GENERATOR_CPU):
            count, seconds = taker.wait_for("took").split()[1:]
        rates.append(8e-9 * int(count) / float(seconds))
    results.add(
        "bulk",
        "memif, one connection, goodput at the receiver",
        statistics.median(rates),
        "goal",
        BULK_GOAL,
        "Gbit/s",
        1.0,
        rates=[round(rate, 3) for rate in rates],
        distances=classes,
    )


def measure(results: Results, quick: bool, scratch: Path) -> None:
    for part in (hundred, many, churn, idle, bulk):
        part(results, quick, scratch)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
