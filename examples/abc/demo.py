"""``make demo``: the papers' chain A–B–C in under a minute, without privileges, servers or leftovers.

A and C are one ``vnf load`` process on one cpu; B, a page of Python, runs on another: in each shape of the chain over
shared memory (memif), then the same file over kernel sockets, then a plain uvloop program of the same shape.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ROOT / "benchmarks/peers"
SECONDS = 1.5
OUTSTANDING = 100


@dataclass(frozen=True)
class Shape:
    """How A asks, which B passes it on, and the uvloop program that does the same."""

    what: str
    scheme: str
    file: str
    peer: str
    load: str
    kernel_load: str = ""
    """Over kernel sockets a connection per request would soon have every port in TIME_WAIT."""
    sets: tuple[str, ...] = ()


ON_ONE = f"--connections 1 --outstanding {OUTSTANDING} --id 0:8"
ON_EACH = f"--connections {OUTSTANDING}"
SHAPES = (
    Shape("a connection per request", "tcp", "b.py", "tcp.py", f"{ON_EACH} --requests-per-connection 1", "--reset"),
    Shape("requests on one connection", "tcp", "b.py", "tcp.py", ON_ONE),
    Shape("pooled", "tcp", "b.py", "exclusive.py", ON_EACH, sets=("--set=pool=1000",)),
    Shape("pooled, by id", "tcp", "b_pooled.py", "pooled.py", ON_ONE),
    Shape("UDP", "udp", "b.py", "udp.py", ON_ONE),
)


@dataclass(frozen=True)
class Run:
    """One B, how it is started, and how A and C reach it."""

    what: str
    name: str
    over: str
    command: list[str]
    load: list[str]


def vnf(file: str, listen: str, c: str, *options: str) -> list[str]:
    sets = [f"--set=listen={listen}", f"--set=c={c}", "--set=limits.grace_s=0", "--set=limits.drain_s=0"]
    return [sys.executable, "-m", "libvnf", "run", str(HERE / file), *options, *sets]


def load(b: str, c: str, options: str) -> list[str]:
    times = ["--verify", "--warmup", "0.4", "--duration", str(SECONDS)]
    return [sys.executable, "-m", "libvnf", "load", b, "--respond", c, *times, *options.split()]


def runs(scratch: Path) -> list[Run]:
    plan = []
    for number, shape in enumerate(SHAPES):
        scheme, sets = shape.scheme, shape.sets
        memif, b, c = f"memif:{scratch}/{number}", f"{scheme}://10.0.0.2:5000", f"{scheme}://10.0.0.3:5000"
        port = f"--transport={memif},address=10.0.0.2/24"
        ends = f"{shape.load} --transport {memif},address=10.0.0.1/24,address=10.0.0.3/24"
        ours = vnf(shape.file, f"{scheme}://:5000", c, port, *sets)
        plan.append(Run(shape.what, shape.file, "shared memory", ours, load(b, c, ends)))
        # Ports below those that the system gives to connections out.
        first = 22001 + 4 * number
        b, c, peer_b, peer_c = (f"{scheme}://127.0.0.1:{first + at}" for at in range(4))
        options = f"{shape.load} {shape.kernel_load}"
        plan.append(Run("", shape.file, "kernel sockets", vnf(shape.file, b, c, *sets), load(b, c, options)))
        theirs = [sys.executable, str(PEERS / shape.peer), str(first + 2), str(first + 3)]
        plan.append(Run("", f"uvloop {shape.peer}", "kernel sockets", theirs, load(peer_b, peer_c, options)))
    return plan


@contextlib.contextmanager
def child(command: list[str], cpu: int, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """A program on a cpu of its own, which does not outlive us, however we end."""
    pinned = ["taskset", "-c", str(cpu)] if shutil.which("taskset") and (os.cpu_count() or 1) > cpu else []
    # Ctrl-C reaches us alone: we end the programs in their order.
    process = subprocess.Popen([*pinned, *command], cwd=ROOT, text=True, start_new_session=True, **streams)
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=3)
                break


def cpu_s(process: subprocess.Popen[str]) -> float:
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(run: Run, scratch: Path) -> dict[str, float]:
    with child(run.command, 1, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as b:
        assert b.stdout is not None
        said = []
        while "ready" not in (line := b.stdout.readline()):
            said.append(line)
            if not line:
                raise SystemExit(f"{run.name} did not start:\n{''.join(said)}")
        used = cpu_s(b)
        report = scratch / "report.json"
        with child([*run.load, "--json", str(report)], 0, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as a:
            complaint = follow(run, a)
        used = cpu_s(b) - used
    if not report.exists():
        raise SystemExit(f"{run.name}: {complaint}")
    figures: dict[str, Any] = json.loads(report.read_text())
    report.unlink()
    if figures["errors"]:
        raise SystemExit(f"{run.what}, {run.name} over {run.over}: {figures['errors']}")
    figures["b_cpu_us"] = 1e6 * used / figures["echoed"]
    return figures


def follow(run: Run, a: subprocess.Popen[str]) -> str:
    """Shows what the generator says while it runs, on a terminal; its last words."""
    assert a.stderr is not None
    last = ""
    for line in a.stderr:
        last = line.strip() or last
        if sys.stdout.isatty():
            print(f"\r  {run.what:27} {run.name:19} {run.over:15} {last[:50]}\x1b[K", end="", flush=True)
    return last


def main() -> None:
    print(f"""
The chain of the libVNF papers: A asks B, B asks C and answers A. {OUTSTANDING} requests outstanding, 128 bytes each,
every reply compared with its request. B on one cpu; A and C, one native process, on the other.

  b.py         a connection to C for every request, or, pooled, one of those that are kept
  b_pooled.py  one connection to C for all, matched by request id
""")
    head = f"{'requests/s':>11} {'p50 µs':>9} {'p99 µs':>9} {'B cpu µs/request':>17}"
    print(f"  {'':27} {'B':19} {'over':15} {head}")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vnf-demo-") as name:
        for run in runs(Path(name)):
            if sys.stdout.isatty():
                print(f"  {run.what:27} {run.name:19} {run.over:15} …", end="", flush=True)
            figures = measure(run, Path(name))
            clear = "\r\x1b[K" if sys.stdout.isatty() else ""
            print(
                f"{clear}  {run.what:27} {run.name:19} {run.over:15} {figures['rate']:>11,.0f}"
                f" {figures['p50_us']:>9,.1f} {figures['p99_us']:>9,.1f} {figures['b_cpu_us']:>17.2f}",
                flush=True,
            )
    print(f"""
  {time.monotonic() - begun:.0f} s. The same two files ran in every line that names them: only --transport and
  the settings listen, c and pool changed.

  Read next   examples/abc/b.py             the chain's B, 27 lines
              examples/abc/README.md        the other shapes, and how to run each by hand
              docs/tutorial/index.md        a first function of your own
              benchmarks/README.md          the figures, measured with care
""")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        print("\n  interrupted; everything that was started has been stopped")
        sys.exit(130)
