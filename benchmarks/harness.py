"""What the benchmarks share: programs on a cpu of their own, rounds of us and the peer in turn, the table, the JSON.

A virtual machine's cores move: the round trip between them flips within seconds between about 50 ns ("near") and 300 ns
("far"), and everything over shared memory follows it. So each round notes the class before and after, us and the peer
are measured next to each other, and a median is of one class. Every program is in a session of its own at the front of
the scheduler's autogroups (`nice` does nothing between sessions); it keeps other work of the machine from counting.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from libvnf._native import core_distance_ns

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
GENERATOR_CPU, SERVER_CPU = 0, 1
STARTS = 3
"""A program under test with long-lived connections to C, or a socket, finds C again while the first requests are on
their way; when all that may be outstanding is lost in that race, none is answered. Such a run is begun again."""
NEAR_NS = 120.0
"""A shorter round trip is "near". The two classes lie at about 30–70 and 300 ns."""

# Unprivileged, the autogroup stays where it is; a machine without autogroups has no such file.
PREFERRED = 'if [ -w /proc/self/autogroup ]; then echo -20 >/proc/self/autogroup 2>/dev/null || :; fi; exec "$@"'


# --- programs ---------------------------------------------------------------------------------------------------------


class Program:
    """A child in a session of its own, pinned; started when it has printed the word ``ready``."""

    def __init__(
        self, *args: str | Path, cpu: int | None = SERVER_CPU, ready: str = "ready", timeout_s: float = 30.0
    ) -> None:
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        begun = time.monotonic()
        self._child = subprocess.Popen(
            ["sh", "-c", PREFERRED, "sh", *pinned, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
        self.wait_for(ready, timeout_s)
        self.ready_s = time.monotonic() - begun

    def wait_for(self, word: str, timeout_s: float = 30.0) -> str:
        """The next line with that word; a program that does not print it in time is ended."""
        assert self._child.stdout is not None
        seen = []
        watchdog = threading.Timer(timeout_s, self._child.kill)
        watchdog.start()
        try:
            for line in self._child.stdout:
                seen.append(line)
                if word in line:
                    return line
        finally:
            watchdog.cancel()
        raise RuntimeError(f"{self._child.args} ended, or printed no {word!r} in {timeout_s} s:\n{''.join(seen)}")

    @property
    def pid(self) -> int:
        return self._child.pid

    def cpu_s(self) -> float:
        """Processor time of all its threads so far; from the scheduler, in nanoseconds."""
        return sum(self._scheduled(task, 0) for task in Path(f"/proc/{self.pid}/task").iterdir())

    def loop_s(self) -> float:
        """Processor time of its main thread so far, in which its loop runs."""
        return self._scheduled(Path(f"/proc/{self.pid}/task/{self.pid}"), 0)

    def waited_s(self) -> float:
        """How long its threads were ready and others had their cpu."""
        return sum(self._scheduled(task, 1) for task in Path(f"/proc/{self.pid}/task").iterdir())

    @staticmethod
    def _scheduled(task: Path, column: int) -> float:
        return int((task / "schedstat").read_text().split()[column]) / 1e9

    def rss_mb(self) -> float:
        """Resident memory, the port's shared memory included."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> str:
        """Ends it; what it printed since it was ready."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGTERM)
            try:
                self._child.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        assert self._child.stdout is not None
        return "" if self._child.stdout.closed else self._child.communicate()[0]


def vnf(file: str | Path, *options: str, **settings: object) -> list[str]:
    """The command line of a VNF."""
    sets = [f"--set={key}={value}" for key, value in settings.items()]
    # Measured programs end at once: there is nothing to hand over.
    return [
        sys.executable,
        "-m",
        "libvnf",
        "run",
        str(file),
        "--set=limits.grace_s=0",
        "--set=limits.drain_s=0",
        *options,
        *sets,
    ]


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


def peer(name: str, *args: object) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks/peers" / name), *map(str, args)]


@contextlib.contextmanager
def running(*commands: Sequence[str], cpu: int | None = SERVER_CPU) -> Iterator[list[Program]]:
    programs: list[Program] = []
    try:
        for command in commands:
            programs.append(Program(*command, cpu=cpu))  # noqa: PERF401 — those before one that fails are stopped
        yield programs
    finally:
        for program in programs:
            program.stop()


def load(*args: object, duration_s: float, warmup_s: float = 0.3) -> dict[str, Any]:
    """One run of ``vnf load`` on its cpu; its report."""
    words = " ".join(map(str, args)).split()
    command = [sys.executable, "-m", "libvnf", "load", *words, "--cpu", str(GENERATOR_CPU)]
    command += ["--duration", str(duration_s), "--warmup", str(warmup_s), "--json", "-"]
    for _ in range(STARTS):
        done = subprocess.run(
            ["sh", "-c", PREFERRED, "sh", *command],
            capture_output=True,
            text=True,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60 + 3 * duration_s,
        )
        if not done.returncode:
            break
        # Exit code 1: no request was answered. Anything else is no race, and nothing to try again.
        print(f"  a run begun again ({done.returncode}): {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        if done.returncode != 1:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    else:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def distance() -> tuple[str, float]:
    nanoseconds = core_distance_ns()
    return ("near" if nanoseconds < NEAR_NS else "far"), nanoseconds


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One run of one side."""

    rate: float
    p50_us: float
    p99_us: float
    cpu_us: float  # the server's, per request
    errors: int
    distance: tuple[str, str]
    loop_us: float = 0.0  # of cpu_us, what its main thread took

    @property
    def steady(self) -> bool:
        return self.distance[0] == self.distance[1]


@dataclass
class Measured:
    """What was found of one of those that are compared."""

    name: str
    samples: list[Sample] = field(default_factory=list, kw_only=True)


@dataclass
class Side(Measured):
    """A server under test and how it is loaded."""

    program: Program
    load: str
    more_warmup_s: float = 0.0
    """Where a server looks for the generator, which is another one in each run, at its own pace."""

    def run(self, duration_s: float, warmup_s: float = 0.3) -> Sample:
        before, cpu, loop = distance()[0], self.program.cpu_s(), self.program.loop_s()
        warmup_s += self.more_warmup_s
        try:
            report = load(self.load, duration_s=duration_s, warmup_s=warmup_s)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self.name} printed:\n{self.program.stop()}") from None
        cpu, loop = self.program.cpu_s() - cpu, self.program.loop_s() - loop
        # The warm-up's requests are not in the report; the far end of a chain has counted them.
        served = report["echoed"] or report["requests"] * (report["seconds"] + warmup_s) / report["seconds"]
        sample = Sample(
            report["rate"],
            report["p50_us"],
            report["p99_us"],
            cpu * 1e6 / max(1, served),
            sum(report["errors"].values()),
            (before, distance()[0]),
            loop * 1e6 / max(1, served),
        )
        self.samples.append(sample)
        return sample


def best_class(*sides: Measured) -> str | None:
    """The class that most rounds of all sides were in from start to end; None when no round was steady."""
    counts = {
        kind: min(sum(s.steady and s.distance[0] == kind for s in side.samples) for side in sides)
        for kind in ("near", "far")
    }
    kind = max(counts, key=lambda kind: counts[kind])
    return kind if counts[kind] else None


def median(side: Measured, of: Callable[[Sample], float], kind: str | None) -> float:
    """Of the rounds in that class; of all when there is none."""
    chosen = [s for s in side.samples if kind is None or (s.steady and s.distance[0] == kind)]
    return statistics.median(of(sample) for sample in chosen)


class Runs(Protocol):
    """What takes its turn in a round."""

    def run(self, duration_s: float, warmup_s: float = 0.3) -> Sample: ...


def rounds(sides: Sequence[Runs], count: int, duration_s: float, warmup_s: float = 0.3) -> None:
    """Each side in turn, ``count`` times; the order turns round, so that none is always the first."""
    for number in range(count):
        for side in sides if number % 2 == 0 else reversed(sides):
            side.run(duration_s, warmup_s)


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """The rows of one benchmark."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        claim: str,
        case: str,
        ours: float,
        peer: str,
        peer_value: float,
        unit: str,
        goal: float,
        *,
        less_is_better: bool = False,
        **details: object,
    ) -> dict[str, Any]:
        """One row, printed at once. ``details`` go to the JSON beside it."""
        ratio = peer_value / max(ours, 1e-12) if less_is_better else ours / max(peer_value, 1e-12)
        row = {
            "claim": claim,
            "ours": significant(ours),
            "peer": peer,
            "peer_value": significant(peer_value),
            "unit": unit,
            "ratio": round(ratio, 3),
            "goal": goal,
            "case": case,
            **details,
        }
        if not self.rows:
            print(self.title)
            print(f"{'claim':37} {'case':46} {'ours':>11} {'peer':>11}  {'unit':13} {'ratio':>6} {'goal':>5}")
        self.rows.append(row)
        met = "met" if ratio >= goal else "MISSED"
        kind = details.get("class") or ""
        print(
            f"{claim:37} {case:46} {number(ours):>11} {number(peer_value):>11}  {unit:13} {ratio:6.2f} {goal:5.2f}"
            f"  {met:6} {kind}",
            flush=True,
        )
        return row

    def compare(
        self, claim: str, case: str, ours: Measured, other: Measured, goal: float, unit: str = "requests/s"
    ) -> dict[str, Any]:
        """Requests, or what else is counted, per second of two sides that were measured in turn."""
        kind = best_class(ours, other)
        return self.add(
            claim,
            case,
            median(ours, lambda s: s.rate, kind),
            other.name,
            median(other, lambda s: s.rate, kind),
            unit,
            goal,
            **{"class": kind or "mixed"},
            cpu_us=[round(median(side, lambda s: s.cpu_us, kind), 2) for side in (ours, other)],
            p50_us=[median(side, lambda s: s.p50_us, kind) for side in (ours, other)],
            p99_us=[median(side, lambda s: s.p99_us, kind) for side in (ours, other)],
            errors=[sum(s.errors for s in side.samples) for side in (ours, other)],
            distances=[[*s.distance] for side in (ours, other) for s in side.samples],
        )

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "rows": self.rows}, indent=2) + "\n")


def significant(value: float) -> float:
    return float(f"{value:.5g}")


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def machine() -> dict[str, Any]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    # Built with profiles or without is a quarter in Python-bound loops, and not every build's configuration tells.
    origin = "the system's" if Path(sys.executable).resolve().is_relative_to("/usr/bin") else "not the system's"
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_build": f"{origin}, {sys.version}",
        "date": time.strftime("%Y-%m-%d"),
        "core_distance_ns": round(distance()[1], 1),
    }


def main(title: str, measure: Callable[[Results, bool, Path], None]) -> None:
    """``--quick``, ``--json FILE``; ``measure(results, quick, scratch)`` adds the rows."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="under a minute; fewer and shorter rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and rows there")
    options = parser.parse_args()
    results = Results(title)
    # SIGTERM must stop what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="vnf-") as scratch:
        try:
            measure(results, options.quick, Path(scratch))
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            if options.json and results.rows:
                results.write(options.json)
