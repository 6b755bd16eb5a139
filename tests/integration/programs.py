"""VNF files run as processes, as an operator would: started, awaited until ready, stopped by signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers import Namespace

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "libvnf", "run"]
QUICK = ["--set", "limits.grace_s=0", "--set", "limits.drain_s=0"]
"""Settings with which a signal ends it at once."""


def inside(namespace: Namespace) -> list[str]:
    """``vnf run`` in the namespace."""
    return ["ip", "netns", "exec", namespace.name, *RUN]


class Program:
    """A running ``vnf run``. ``ports`` are in the order of the servers, one per address."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output: list[str] = []
        self.errors: list[str] = []
        self._drain = threading.Thread(target=self._read_errors)
        self._drain.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def line(self, pattern: str) -> re.Match[str]:
        """Reads its output up to the line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line matches {pattern!r}: {self.output} {self.errors}")

    @property
    def places(self) -> list[str]:
        return [line.split()[2] for line in self.output if " serving " in line]

    def port(self, number: int = 0) -> int:
        return int(self.places[number].rpartition(":")[2])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit(self, timeout_s: float = 30) -> int:
        """Its exit code, with all its output read."""
        assert self.process.stdout is not None
        self.output.extend(line.rstrip() for line in self.process.stdout)
        code = self.process.wait(timeout_s)
        self._drain.join()
        return code


@contextmanager
def running(tmp_path: Path, source: str, *options: str, command: list[str] | None = None) -> Iterator[Program]:
    """``vnf run`` of ``source``, ready; killed at the end if it still runs."""
    file = tmp_path / "b.py"
    file.write_text(source)
    process = subprocess.Popen(
        [*(command or RUN), str(file), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program = Program(process)
    try:
        program.line(r": ready in ")
        yield program
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        program.exit()
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stderr.close()
